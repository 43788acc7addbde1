"""The parameters of a V2 request, REST or gRPC: those the protocol reserves, and the model's own.

Called by `v2` and `v2_grpc`. `timeout` (µs) lowers the deadline. `priority` is accepted and changes nothing: whose work
goes first is the operator's decision, by key. Sequences and forwarded headers are refused rather than ignored, because
the answer would be wrong without them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import JsonValue

from deployments.errors import InvalidInput

FINAL_RESPONSE = "triton_enable_empty_final_response"
_REFUSED = frozenset(("sequence_id", "sequence_start", "sequence_end", "headers"))
_UINT64 = 2**64


@dataclass(slots=True)
class Parameters:
    """What the parameters of one request say."""

    timeout_s: float | None = None
    binary_outputs: bool | None = None  # None: as the protocol does by itself
    final_response: bool = False
    params: dict[str, JsonValue] = field(default_factory=dict)


def read_parameters(given: Mapping[str, JsonValue], *, is_stream: bool = False) -> Parameters:
    """Sort a request's parameters.

    Raises:
        InvalidInput: `field` is `parameters.<key>`.
    """
    read = Parameters()
    for key, value in given.items():
        where = f"parameters.{key}"
        if is_stream and key == FINAL_RESPONSE:
            read.final_response = flag(value, where)
            continue
        if key.startswith("triton_"):
            raise InvalidInput(
                f"{where}: parameter keys starting with 'triton_' are reserved for Triton usage "
                "and should not be specified.",
                field=where,
            )
        if key in _REFUSED and value:
            raise InvalidInput(f"{where}: is not served; leave it out", field=where)
        if not isinstance(value, str | int | float):
            raise InvalidInput(f"{where}: must be a string, a number or a boolean", field=where)
        if key == "timeout":
            read.timeout_s = _timeout_s(value, where)
        elif key == "binary_data_output":
            read.binary_outputs = flag(value, where)
        elif key not in _REFUSED and key != "priority":
            read.params[key] = value
    return read


def flag(value: JsonValue, field: str) -> bool:
    """Return a parameter that must be a boolean. Raises InvalidInput."""
    if not isinstance(value, bool):
        raise InvalidInput(f"{field}: must be true or false", field=field)
    return value


def _timeout_s(value: JsonValue, field: str) -> float | None:
    if type(value) is not int or not 0 <= value < _UINT64:
        raise InvalidInput(f"{field}: must be a whole number of microseconds, 0 or more", field=field)
    return value / 1e6 if value else None  # 0 is Triton's "no timeout of its own"
