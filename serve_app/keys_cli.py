"""`model-endpoint keys create | list | rotate | revoke`: edits the key file that a running endpoint watches.

The file holds digests only; a key is printed once, alone on stdout, when it is made. Every edit replaces the file as a
whole, under a lock, so that neither a reader nor a second editor ever sees half of one.
"""

import argparse
import fcntl
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from deployments.spec import explain
from serve_app.api_keys import KeyFile, KeyRecord, new_key, now_utc
from serve_app.auth_config import PRIORITIES

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_DEFAULT = Path("keys.json")


class _Refused(Exception):
    """Said on stderr; exit code 1."""


def add_commands(commands: Any) -> None:
    """Add the `keys` family to the parser of `model-endpoint`."""
    keys = commands.add_parser("keys", help="create, list, rotate and revoke API keys")
    family = keys.add_subparsers(metavar="COMMAND", required=True)

    create = _command(family, "create", "make a key and print it, once", _create)
    create.add_argument("--principal", required=True, metavar="NAME", help="whose key it is: a team, a service")
    create.add_argument("--actions", default="infer,read", help="of infer, read, admin, metrics (default: %(default)s)")
    create.add_argument("--models", default="*", help="globs, by comma: minilm,sre-* (default: all)")
    create.add_argument("--priority", default="standard", choices=tuple(PRIORITIES), help="(default: %(default)s)")
    create.add_argument("--expires", type=_duration, metavar="90d", help="how long it is valid (default: for ever)")

    _command(family, "list", "list keys, without secrets", _list)

    rotate = _command(family, "rotate", "make a key like another, which then expires", _rotate)
    rotate.add_argument("id", help="the id of the key to replace")
    rotate.add_argument(
        "--overlap", type=_duration, default=_duration("7d"), metavar="7d", help="how long both work (default: 7d)"
    )

    revoke = _command(family, "revoke", "end a key now", _revoke)
    revoke.add_argument("id", help="the id of the key")


def _command(family: Any, name: str, text: str, run: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = family.add_parser(name, help=text)
    parser.add_argument("--file", type=Path, default=_DEFAULT, help="the key file (default: %(default)s)")
    parser.set_defaults(run=lambda args: _run(run, args))
    return parser


def _run(command: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> int:
    try:
        command(args)
    except _Refused as exc:
        print(exc, file=sys.stderr)
        return 1
    return 0


def _create(args: argparse.Namespace) -> None:
    key_id, key, digest = new_key()
    now = now_utc()
    actions, models = (tuple(filter(None, text.split(","))) for text in (args.actions, args.models))
    fields = {
        "id": key_id,
        "principal": args.principal,
        "sha256": digest,
        "grants": [{"actions": actions, "models": models}],
        "priority": args.priority,
        "created": now,
        "expires": now + args.expires if args.expires else None,
    }
    try:
        record = KeyRecord.model_validate(fields)
    except ValidationError as exc:
        raise _Refused(explain(exc)) from None
    with _edited(args.file, must_exist=False) as records:
        records.append(record)
    _show(key, f"key {key_id} of {args.principal!r} added to {args.file}")


def _list(args: argparse.Namespace) -> None:
    records, now = _read(args.file), now_utc()
    width = max((len(record.principal) for record in records), default=0)
    for record in records:
        grants = "; ".join(f"{','.join(grant.actions)} on {','.join(grant.models)}" for grant in record.grants)
        expires = f"expires {record.expires:%Y-%m-%d %H:%M}Z" if record.expires else "no expiry"
        facts = [record.id, record.principal.ljust(width), record.state(now).ljust(7), record.priority, expires, grants]
        print("  ".join(facts))


def _rotate(args: argparse.Namespace) -> None:
    key_id, key, digest = new_key()
    now = now_utc()
    with _edited(args.file) as records:
        index = _find(records, args.id)
        old = records[index]
        if old.state(now) != "active":
            raise _Refused(f"key {args.id} is {old.state(now)}; create a new one")
        ends = now + args.overlap
        records[index] = old.model_copy(update={"expires": min(ends, old.expires) if old.expires else ends})
        # The new one is valid for as long as the old one was meant to be.
        expires = now + (old.expires - old.created) if old.expires else None
        records.append(old.model_copy(update={"id": key_id, "sha256": digest, "created": now, "expires": expires}))
    _show(key, f"key {key_id} replaces {args.id}, which expires in {args.overlap}")


def _revoke(args: argparse.Namespace) -> None:
    with _edited(args.file) as records:
        index = _find(records, args.id)
        records[index] = records[index].model_copy(update={"revoked": now_utc()})
    print(f"key {args.id} is revoked; a running endpoint follows within seconds", file=sys.stderr)


def _find(records: Sequence[KeyRecord], key_id: str) -> int:
    for index, record in enumerate(records):
        if record.id == key_id:
            return index
    raise _Refused(f"no key has the id {key_id!r}; `model-endpoint keys list` shows them")


def _show(key: str, line: str) -> None:
    print(f"{line}; it is shown this once:", file=sys.stderr)
    print(key)


def _read(path: Path) -> list[KeyRecord]:
    try:
        return list(KeyFile.model_validate_json(path.read_bytes()).keys)
    except FileNotFoundError:
        raise _Refused(f"there is no key file at {path}; `model-endpoint keys create` makes one") from None
    except OSError as exc:
        raise _Refused(f"{path} cannot be read: {exc.strerror}") from None
    except ValidationError as exc:
        raise _Refused(f"{path} is not a key file: {explain(exc)}") from None


@contextmanager
def _edited(path: Path, *, must_exist: bool = True) -> Iterator[list[KeyRecord]]:
    """Give the records to change, alone; what is left of them becomes the file."""
    try:
        lock = os.open(path.with_name(f"{path.name}.lock"), os.O_CREAT | os.O_RDWR, 0o600)
    except OSError as exc:
        raise _Refused(f"{path.parent} cannot be written: {exc.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        records = _read(path) if must_exist or path.exists() else []
        yield records
        _write(path, KeyFile(keys=tuple(records)))
    finally:
        os.close(lock)


def _write(path: Path, keys: KeyFile) -> None:
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o600
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        file.write(keys.model_dump_json(indent=2, exclude_none=True) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.chmod(file.name, mode)
    os.replace(file.name, path)


def _duration(text: str) -> timedelta:
    match = re.fullmatch(r"(\d{1,6})([smhd])", text)
    if not match or not int(match[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is not a time; write 90d, 12h, 30m or 45s")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})
