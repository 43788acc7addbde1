"""Secrets by reference: `env:NAME` or `file:/path`, so that none ever stands in YAML, in Serve's status or in a log.

Used by the configuration of keys and stores. A value that is not a reference is refused without being repeated.
"""

import os
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

NOT_SHOWN = "secret_reference"  # errors of this type must not show their input: it may be the secret itself
ENV, FILE = "env:", "file:"
_MAX_BYTES = 64 * 2**20


def _is_reference(value: str) -> str:
    if value.startswith(ENV) and value.removeprefix(ENV).isidentifier():
        return value
    if value.startswith(FILE) and value.removeprefix(FILE):
        return value
    raise PydanticCustomError(NOT_SHOWN, "write env:NAME or file:/path; a secret itself never stands in the YAML")


Reference = Annotated[str, AfterValidator(_is_reference)]


def path_of(reference: str) -> Path | None:
    """Return the file a reference names, None for a variable."""
    return Path(reference.removeprefix(FILE)).expanduser() if reference.startswith(FILE) else None


def read(reference: str) -> str:
    """Return what a reference stands for.

    Raises:
        ValueError: there is no such variable or file; the message names it and holds nothing of its content.
    """
    path = path_of(reference)
    if path is None:
        name = reference.removeprefix(ENV)
        if name not in os.environ:
            raise ValueError(f"environment variable {name} is not set in the process of the ingress")
        return os.environ[name]
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError(f"{path} is larger than {_MAX_BYTES} bytes")
        return path.read_text()
    except (OSError, UnicodeDecodeError) as exc:
        raise ValueError(f"{path} cannot be read: {type(exc).__name__}") from None
