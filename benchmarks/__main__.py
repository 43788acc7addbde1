"""`python -m benchmarks`: what `make bench` and `make bench-all` call. Linux; takes the whole machine while it runs."""

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

from benchmarks import batching, endtoend, equality, front_door, growth, machine, report, variants, venvs
from benchmarks.bars import bars
from benchmarks.contestant import BareLoop, Contestant, Served
from benchmarks.profile import profile
from benchmarks.report import aligned
from benchmarks.side import STATE, Side
from benchmarks.sides import FEW, all_sides
from benchmarks.variants import Found
from benchmarks.workload import ALL_CELLS, FEW_CELLS, Cell

RESULTS = STATE / "results"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    ends = commands.add_parser("peers", help="end to end against peers")
    ends.add_argument("--sides", default=",".join(FEW), help="comma-separated, or `all` (default: %(default)s)")
    ends.add_argument("--cells", default="few", help="few, all, or names such as short@64,mixed@64")
    ends.add_argument("--rounds", type=int, default=3)
    ends.add_argument("--open", default="0.8", help="open loops at these shares of each one's most, or nothing")
    ends.set_defaults(run=_peers)

    doors = commands.add_parser("front-door", help="a request's cost without a model, feature by feature")
    doors.add_argument("--rounds", type=int, default=3)
    doors.add_argument("--features", default="", help="comma-separated, at 64 connections only (default: all)")
    doors.set_defaults(run=_front_door)

    grows = commands.add_parser("growth", help="a request's cost as models, keys and replicas get more")
    grows.add_argument("--rounds", type=int, default=5)
    grows.set_defaults(run=_growth)

    alone = commands.add_parser("batching", help="batching alone, in virtual time, against @serve.batch and a bound")
    alone.set_defaults(run=_batching)

    make = commands.add_parser("venvs", help="make the peers' environments that are missing")
    make.set_defaults(run=lambda _: _venvs())

    spies = commands.add_parser("profile", help="where the CPU of a request to ours goes (needs py-spy)")
    spies.add_argument("--cells", default="short@64,mixed@64,bulk@4")
    spies.set_defaults(run=_profile)

    args = parser.parse_args(argv)
    code: int = args.run(args)
    return code


def _peers(args: argparse.Namespace) -> int:
    shares = [float(share) for share in args.open.split(",") if share]
    results = endtoend.run(_contestants(args.sides), _cells(args.cells), shares, args.rounds, _clocked())
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


def _front_door(args: argparse.Namespace) -> int:
    found = front_door.run(args.rounds, _clocked(), args.features.split(","))
    print("", aligned([*variants.rows(found)]), "", *front_door.verdict(found), sep="\n")
    return _keep("front-door", args.rounds, found)


def _growth(args: argparse.Namespace) -> int:
    found = growth.run(args.rounds, _clocked())
    print("", aligned([*variants.rows(found)]), "", *growth.verdict(found), sep="\n")
    return _keep("growth", args.rounds, found)


def _keep(name: str, n_rounds: int, found: Sequence[Found]) -> int:
    content = {"machine": machine.describe(), "rounds": n_rounds, "found": [asdict(one) for one in found]}
    print(f"kept: {report.save(RESULTS, name, content)}")
    return 0


def _batching(args: argparse.Namespace) -> int:
    found = list(batching.rows())
    print(batching.table(found))
    print(f"kept: {report.save(RESULTS, 'batching', {'machine': machine.describe(), 'found': found})}")
    return 0


def _clocked() -> Callable[[str], None]:
    """Return what prints a line of progress with the seconds since now."""
    began = time.monotonic()
    return lambda line: print(f"[{time.monotonic() - began:5.0f} s] {line}", flush=True)


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
    if name == "ceiling":
        return BareLoop()
    return Served(sides[name], equality.HALF_COSINE if name.endswith("-bf16") else equality.COSINE)


if __name__ == "__main__":
    sys.exit(main())
