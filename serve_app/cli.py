"""The command line, `model-endpoint`: check a config, watch an endpoint, start and stop a local one, keep API keys.

Exit codes: 0 all right; 1 a problem, printed; 2 wrong usage.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx
from pydantic import ValidationError

from serve_app import keys_cli, local
from serve_app.plan import plan
from serve_app.protocols.status import EndpointStatus, render
from serve_app.validation import Scope, check
from serve_app.validation.document import read

_DEFAULT_CONFIG = Path("serve_config.yaml")
_DEFAULT_URL = "http://127.0.0.1:8000"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    args = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int] = args.run
    return command(args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="model-endpoint", description="One endpoint for many models on Ray Serve.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    validate = commands.add_parser("validate", help="check a config file: Serve's fields, ours, the models' files")
    validate.add_argument("config", type=Path, metavar="FILE")
    validate.add_argument("--hash", action="store_true", help="compare the digests of the models' files as well")
    validate.add_argument("--no-files", action="store_true", help="the models' files are on another machine")
    validate.set_defaults(run=_validate)

    planned = commands.add_parser("plan", help="what fits where, and which replicas deploying a config would restart")
    planned.add_argument("config", type=Path, metavar="FILE")
    planned.add_argument("--from", dest="old", type=Path, metavar="OLD", help="default: what the local cluster runs")
    planned.set_defaults(run=_plan)

    status = commands.add_parser("status", help="who is ready, what was refused, which flags are on")
    status.add_argument("--url", default=_DEFAULT_URL, help="the endpoint's address (default: %(default)s)")
    status.set_defaults(run=_status)

    up = commands.add_parser("up", help="start a local cluster, or deploy to the one that runs, and wait until ready")
    up.add_argument("config", type=Path, metavar="FILE", nargs="?", default=_DEFAULT_CONFIG)
    up.add_argument("--port", type=int, help="HTTP port (default: the config's)")
    up.add_argument("--grpc-port", type=int, help="gRPC port (default: the config's)")
    up.add_argument("--timeout-s", type=float, default=600.0, help="how long it may take (default: %(default)s)")
    up.set_defaults(run=_up)

    keys_cli.add_commands(commands)
    commands.add_parser("down", help="stop the local cluster").set_defaults(run=lambda _: local.down())
    env = commands.add_parser("env", help="print what another shell must export to reach the local cluster")
    env.set_defaults(run=lambda _: local.environment())
    return parser


def _validate(args: argparse.Namespace) -> int:
    scope = Scope(reads_files=not args.no_files, hashes_files=args.hash, environ=dict(os.environ))
    report = check(args.config, scope)
    for line in report.warnings:
        print(f"warning: {line}", file=sys.stderr)
    for line in report.errors:
        print(line, file=sys.stderr)
    if report.errors:
        print(f"{len(report.errors)} problem{'s' * (len(report.errors) > 1)}", file=sys.stderr)
        return 1
    print(f"{args.config}: valid")
    return 0


def _plan(args: argparse.Namespace) -> int:
    for path in filter(None, (args.config, args.old)):
        if errors := check(path, Scope(environ=dict(os.environ))).errors:
            return _failed("\n".join(errors))
    old = read(args.old).data if args.old else local.deployed()
    for line in plan(read(args.config).data or {}, old):
        print(line)
    return 0


def _status(args: argparse.Namespace) -> int:
    url = f"{args.url.rstrip('/')}/status"
    try:
        # NOTE: no proxy from the environment: the endpoint is on this machine or in this network.
        response = httpx.get(url, timeout=10.0, trust_env=False)
        response.raise_for_status()
        status = EndpointStatus.model_validate_json(response.content)
    except (httpx.HTTPError, httpx.InvalidURL) as exc:
        return _failed(f"no answer from {url}: {exc}")
    except ValidationError:
        return _failed(f"{url} answers, but is not a model endpoint of this version")
    print(render(status))
    return 0 if status.ready and not status.rejected else 1


def _up(args: argparse.Namespace) -> int:
    return local.up(args.config, port=args.port, grpc_port=args.grpc_port, timeout_s=args.timeout_s)


def _failed(line: str) -> int:
    print(line, file=sys.stderr)
    return 1
