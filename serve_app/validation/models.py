"""Data checked against a pydantic model, Ray Serve's or ours: unknown keys and wrong values, each at its own place.

Serve's schemas ignore unknown keys, and take some parts as any mapping (`autoscaling_config`); both are checked here
as the pinned version of Serve defines them, by reading its models.
"""

import copy
import re
import types
import warnings
from collections.abc import Iterator
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from serve_app.references import NOT_SHOWN
from serve_app.validation.problems import ABSENT, Place, Problem, nearest

_QUOTED = re.compile(r"'([^']*)'")


def check_model(model: type[BaseModel], data: object, place: Place) -> Iterator[Problem]:
    """Yield every unknown key and every wrong value of `data`, which stands at `place` in the file."""
    yield from _unknown_keys(model, data, place)
    yield from _wrong_values(model, data, place)


def _unknown_keys(model: type[BaseModel], data: object, place: Place) -> Iterator[Problem]:
    if not isinstance(data, dict):
        return
    fields = model.model_fields
    for key, value in data.items():
        if key not in fields:
            near = nearest(key, fields)
            rule = "unknown key" if near else f"unknown key; known are {', '.join(fields)}"
            yield Problem((*place, str(key)), rule, value, near)
            continue
        for child, part, where, is_loose in _children(fields[key].annotation, value, (*place, key)):
            yield from _unknown_keys(child, part, where)
            if is_loose:
                yield from _wrong_values(child, part, where)


def _children(
    annotation: Any, value: object, place: Place, is_loose: bool = False
) -> Iterator[tuple[type[BaseModel], object, Place, bool]]:
    """Yield the models inside a field with their part of the data; loose where any mapping would pass as well."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        yield from _children(arguments[0], value, place, is_loose)
    elif origin in (Union, types.UnionType):
        any_mapping = any(arm is dict or get_origin(arm) is dict for arm in arguments)
        for arm in arguments:
            yield from _children(arm, value, place, any_mapping)
    elif origin in (list, tuple) and arguments and isinstance(value, list):
        for index, item in enumerate(value):
            yield from _children(arguments[0], item, (*place, index), is_loose)
    elif origin is dict and arguments and isinstance(value, dict):
        for key, item in value.items():
            yield from _children(arguments[1], item, (*place, str(key)), is_loose)
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel) and isinstance(value, dict):
        yield annotation, value, place, is_loose


def _wrong_values(model: type[BaseModel], data: object, place: Place) -> Iterator[Problem]:
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        problems = _validated(model, data, place)
    yield from problems
    for warning in heard:
        yield Problem(place, str(warning.message), is_warning=True)


def _validated(model: type[BaseModel], data: object, place: Place) -> list[Problem]:
    try:
        model.model_validate(copy.deepcopy(data))  # Serve's validators write into their input
    except ValidationError as exc:
        return list(_explained(exc, data, place))
    except (ImportError, AttributeError, TypeError, RecursionError) as exc:
        # Serve's own validators on a value of a kind they did not expect, or a policy that cannot be imported.
        return [Problem(place, f"{type(exc).__name__}: {exc}")]
    return []


def _explained(exc: ValidationError, data: object, place: Place) -> Iterator[Problem]:
    seen: set[Place] = set()
    for error in exc.errors(include_url=False):
        where = _where(data, error["loc"], is_missing=error["type"] == "missing")
        if error["type"] == "extra_forbidden" or where in seen:
            continue  # named as an unknown key; another arm of the same union
        seen.add(where)
        rule = error["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
        if error["type"] == "missing":
            yield Problem((*place, *where), "missing; it has no default")
            continue
        is_shown = not isinstance(error["input"], dict | list) and error["type"] != NOT_SHOWN
        value = error["input"] if is_shown else ABSENT
        near = nearest(value, _QUOTED.findall(str(error.get("ctx", {}).get("expected", ""))))
        yield Problem((*place, *where), rule[:1].lower() + rule[1:], value, near)


def _where(data: object, loc: tuple[int | str, ...], *, is_missing: bool) -> Place:
    """Return the place a pydantic `loc` means in the data: without the names of union arms."""
    place: list[int | str] = []
    for position, part in enumerate(loc):
        is_key = isinstance(data, dict) and part in data
        is_index = isinstance(data, list) and isinstance(part, int) and part < len(data)
        if is_key or is_index:
            data = data[part]  # type: ignore[index]
            place.append(part)
        elif is_missing and position == len(loc) - 1:
            place.append(part)
    return tuple(place)
