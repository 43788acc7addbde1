"""`python -m serve_app.local up|down|env`: the same functions as the CLI's, for the Makefile."""

import argparse
from pathlib import Path

from serve_app.local.commands import down, environment, up


def main() -> int:
    """Parse the command line, run the command, return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m serve_app.local")
    commands = parser.add_subparsers(dest="command", required=True)
    start = commands.add_parser("up")
    start.add_argument("config", type=Path, nargs="?", default=Path("serve_config.yaml"))
    start.add_argument("--port", type=int)
    start.add_argument("--grpc-port", type=int)
    start.add_argument("--timeout-s", type=float, default=600.0)
    commands.add_parser("down")
    commands.add_parser("env")
    args = parser.parse_args()
    if args.command == "up":
        return up(args.config, port=args.port, grpc_port=args.grpc_port, timeout_s=args.timeout_s)
    return down() if args.command == "down" else environment()


if __name__ == "__main__":
    raise SystemExit(main())
