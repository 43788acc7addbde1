"""Benchmarks: our endpoint beside what a user would pick instead. `python -m benchmarks --help`; `make bench`.

A *side* is one way to serve the same model; a *cell* is one workload under one load; a *round* runs every cell once on
every side. Sides are started once, checked to give equal answers, and frozen (SIGSTOP) while another one is measured.
"""
