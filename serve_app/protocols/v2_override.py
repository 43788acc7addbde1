"""The `config` that a Triton client may send along with a load: what of a model's configuration it may replace.

That is `max_batch_size`, until the next load or unload. The rest is the operator's: a client may send it back as
`GET …/config` told it, but not otherwise. Called by `v2_repository`. Pure.
"""

from collections.abc import Iterable

import orjson
from pydantic import JsonValue, ValidationError

from deployments.errors import InvalidInput
from deployments.spec import BatchLimits
from deployments.types import ModelStatus
from serve_app.protocols.v2_config import config_of

FIELD = "parameters.config"
_SIZE = "max_batch_size"


def read_override(name: str, given: JsonValue, models: Iterable[ModelStatus]) -> int | None:
    """Return the size of batches that a configuration asks for, None where it leaves it.

    Raises:
        InvalidInput: it is no JSON object, or would change anything else.
    """
    config = _parse(name, given)
    known = [orjson.loads(orjson.dumps(config_of(model))) for model in models]
    for key, value in config.items():
        if key != _SIZE and not all(_says(value, one.get(key)) for one in known):
            raise _refused(name, f"{key} cannot be changed over the API, {_SIZE} can; serve_config.yaml has the rest")
    size = config.get(_SIZE)
    if size is None or all(_says(size, one[_SIZE]) for one in known):
        return None
    if any(model.signature.inputs and one[_SIZE] == 0 for model, one in zip(models, known, strict=True)):
        raise _refused(name, f"{_SIZE}: its tensors have no dimension for a batch, so it stays 0")
    try:
        return BatchLimits(max_items=int(str(size))).max_items
    except (ValueError, ValidationError):
        raise _refused(name, f"{_SIZE}: must be a whole number from 1 to 65536") from None


def _parse(name: str, given: JsonValue) -> dict[str, JsonValue]:
    try:
        config = orjson.loads(given) if isinstance(given, str) else None
    except orjson.JSONDecodeError:
        config = None
    if not isinstance(config, dict):
        raise _refused(name, "must be a JSON object, written as a string")
    return config


def _says(given: JsonValue, known: JsonValue) -> bool:
    """Return whether it is what we tell; protobuf's JSON writes long numbers as strings, leaves defaults out."""
    if isinstance(given, dict) and isinstance(known, dict):
        return all(key in known and _says(value, known[key]) for key, value in given.items())
    if isinstance(given, list) and isinstance(known, list):
        return len(given) == len(known) and all(_says(*pair) for pair in zip(given, known, strict=True))
    return str(given) == str(known)


def _refused(name: str, why: str) -> InvalidInput:
    return InvalidInput(f"failed to load {name!r}: {FIELD}: {why}", field=FIELD)
