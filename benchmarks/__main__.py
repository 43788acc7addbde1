"""`python -m benchmarks`: what `make bench` and `make bench-all` call. Linux; takes the whole machine while it runs."""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence

from benchmarks import endtoend, equality, machine, report, venvs
from benchmarks.bars import bars
from benchmarks.contestant import BareLoop, Contestant, Served
from benchmarks.profile import profile
from benchmarks.side import STATE, Side
from benchmarks.sides import FEW, all_sides
from benchmarks.workload import ALL_CELLS, FEW_CELLS, Cell

RESULTS = STATE / "results"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    ends = commands.add_parser("peers", help="end to end against peers")
    ends.add_argument("--sides", default=",".join(FEW), help="comma-separated, or `all` (default: %(default)s)")
    ends.add_argument("--cells", default="few", help="few, all, or names such as short@64,mixed@64")
    ends.add_argument("--rounds", type=int, default=3)
    ends.set_defaults(run=_peers)

    make = commands.add_parser("venvs", help="make the peers' environments that are missing")
    make.set_defaults(run=lambda _: _venvs())

    spies = commands.add_parser("profile", help="where the CPU of a request to ours goes (needs py-spy)")
    spies.add_argument("--cells", default="short@64,mixed@64,bulk@4")
    spies.set_defaults(run=_profile)

    args = parser.parse_args(argv)
    code: int = args.run(args)
    return code


def _peers(args: argparse.Namespace) -> int:
    began = time.monotonic()

    def say(line: str) -> None:
        print(f"[{time.monotonic() - began:5.0f} s] {line}", flush=True)

    results = endtoend.run(_contestants(args.sides), _cells(args.cells), args.rounds, say)
    found = bars(results)
    path = report.save(
        RESULTS,
        "peers",
        {"machine": machine.describe(), "rounds": args.rounds, **report.as_json(results)},
        report.plot(results),
    )
    print("", report.table(results), "", report.open_table(results), "", report.bars_table(found), sep="\n")
    print(f"\nkept: {path}, and the plot beside it (.svg)")
    return 0


def _venvs() -> int:
    failed = venvs.make(list(venvs.PINS), print)
    print(
        f"does not install here, and is left out: {', '.join(failed)}"
        if failed
        else "all peers' environments are there"
    )
    return 0


def _profile(args: argparse.Namespace) -> int:
    ours = Served(all_sides()["ours"])
    try:
        ours.start(equality.reference())
        for cell in _cells(args.cells):
            print(profile(ours, cell), flush=True)
    finally:
        ours.stop()
    return 0


def _cells(names: str) -> Sequence[Cell]:
    sets = {"few": FEW_CELLS, "all": ALL_CELLS}
    return sets.get(names) or [cell for cell in ALL_CELLS if cell.name in names.split(",")]


def _contestants(names: str) -> list[Contestant]:
    sides = all_sides()
    chosen = [*sides, "ceiling"] if names == "all" else names.split(",")
    return [_contestant(name, sides) for name in chosen]


def _contestant(name: str, sides: Mapping[str, Side]) -> Contestant:
    return BareLoop() if name == "ceiling" else Served(sides[name])


if __name__ == "__main__":
    sys.exit(main())
