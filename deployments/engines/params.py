"""A request's parameters: each family describes its own as a pydantic model, and all are read here."""

from collections.abc import Mapping
from functools import cache
from typing import TypeVar

from pydantic import Field, JsonValue, ValidationError

from deployments.engines.cutting import Side
from deployments.errors import InvalidInput
from deployments.spec import Strict

P = TypeVar("P", bound=Strict)


class TextParams(Strict):
    """Parameters of every engine that reads text."""

    truncate: bool = Field(default=False, description="cut texts over the model's limit instead of refusing them")
    truncation_side: Side | None = Field(
        default=None,
        description="where they are cut: right (the tokenizer's usual side), or left, which keeps their end",
    )


def parse_params(kind: type[P], params: Mapping[str, JsonValue]) -> P:
    """Read the parameters of a request.

    Raises:
        InvalidInput: `field` is the parameter that does not exist or has a wrong value.
    """
    try:
        return kind.model_validate(dict(params), strict=True) if params else _defaults(kind)
    except ValidationError as exc:
        error = exc.errors(include_url=False)[0]
        name = str(error["loc"][0])
        if error["type"] == "extra_forbidden":
            known = ", ".join(kind.model_fields) or "none"
            raise InvalidInput(f"unknown parameter {name!r}; this model knows: {known}", field=name) from None
        raise InvalidInput(f"parameter {name!r}: {error['msg']}", field=name) from None


@cache
def _defaults(kind: type[P]) -> P:
    """Return what most requests have; it is frozen, and so may be shared."""
    return kind()
