"""Which outputs a V2 request wants and in which form: all or some, as they are or as their best classes, JSON or bytes.

Called by `v2` and `v2_grpc`. Pure.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import JsonValue

from deployments.errors import InvalidInput
from deployments.tensors import check_output_names
from deployments.types import Array, InferResult, ModelStatus, Tensors
from serve_app.protocols.v2_parameters import flag

SHARED_MEMORY = (
    "Client shared memory is disabled: this server shares no memory with its clients. Send tensors in the request"
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """One output to send back; `n_classes` > 0 asks for its best classes in place of the tensor."""

    name: str
    is_binary: bool
    n_classes: int = 0


@dataclass(frozen=True, slots=True)
class Outputs:
    """The outputs of one request: `wanted` is empty for all of them, each then binary if `all_binary`."""

    wanted: tuple[Wanted, ...]
    all_binary: bool
    labels: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...] | None:
        """What the model is asked for; classes need to see the outputs beside their own."""
        if not self.wanted or any(output.n_classes for output in self.wanted):
            return None
        return tuple(output.name for output in self.wanted)

    def select(self, result: InferResult) -> Iterable[tuple[Wanted, Array]]:
        """Yield the outputs to send, in the order they were asked for.

        Raises:
            InvalidInput: the model did not give one of them, or it has no classes.
        """
        for output in self.wanted or [Wanted(name, self.all_binary) for name in result.outputs]:
            if output.name not in result.outputs:  # a model whose signature was not known when the request was read
                gives = ", ".join(result.outputs)
                raise InvalidInput(
                    f"unexpected inference output {output.name!r} for model {result.model!r}; it gives {gives}",
                    field="outputs",
                )
            array = result.outputs[output.name]
            if output.n_classes:
                array = _classes(output, array, self.labels, result.outputs)
            yield output, array


def read_outputs(
    outputs: Sequence[tuple[str, Mapping[str, JsonValue]]], status: ModelStatus, *, all_binary: bool
) -> Outputs:
    """Read the outputs of a request, each a name and its parameters.

    Raises:
        InvalidInput: `field` is `outputs[i].name` or `outputs[i].parameters`.
    """
    wanted: dict[str, Wanted] = {}
    for index, (name, parameters) in enumerate(outputs):
        field = f"outputs[{index}]"
        if name in wanted:
            raise InvalidInput(f"output {name!r} already exists in request", field=f"{field}.name")
        wanted[name] = _wanted(name, parameters, f"{field}.parameters", all_binary)
    check_output_names(tuple(wanted), status.signature, status.name)
    return Outputs(tuple(wanted.values()), all_binary, status.labels)


def _wanted(name: str, parameters: Mapping[str, JsonValue], field: str, all_binary: bool) -> Wanted:
    if "shared_memory_region" in parameters:
        raise InvalidInput(SHARED_MEMORY, field=field)
    n_classes = parameters.get("classification", 0)
    if type(n_classes) is not int or ("classification" in parameters and n_classes < 1):
        raise InvalidInput(
            f"{field}.classification: must be a whole number above 0, the classes to return", field=field
        )
    binary = parameters.get("binary_data", all_binary)
    return Wanted(name, flag(binary, f"{field}.binary_data"), n_classes)


def _classes(output: Wanted, scores: Array, labels: tuple[str, ...], outputs: Tensors) -> Array:
    """Return `value:index:label` of the best classes of each row, the best first.

    The classifiers here give `score` sorted beside `label`: the class is then what the label says, not the place.
    """
    if scores.dtype.hasobject or scores.ndim not in (1, 2) or scores.shape[-1] == 0:
        raise InvalidInput(
            f"output {output.name!r} cannot be classified: it is no row of numbers, its shape is {list(scores.shape)}",
            field="outputs",
        )
    beside = outputs.get("label")
    named = beside if beside is not None and beside.shape == scores.shape and beside is not scores else None
    rows = np.atleast_2d(scores)
    names = None if named is None else np.atleast_2d(named)
    best = [
        [
            _entry(row[place], place, labels, None if names is None else names[index, place])
            for place in np.argsort(-row.astype(np.float64), kind="stable")[: output.n_classes].tolist()
        ]
        for index, row in enumerate(rows)
    ]
    array = np.array(best, dtype=np.object_)
    return array[0] if scores.ndim == 1 else array


def _entry(value: np.generic, place: int, labels: tuple[str, ...], name: bytes | None) -> bytes:
    shown = f"{value.item():f}" if np.issubdtype(value.dtype, np.floating) else str(value.item())
    label = name.decode() if name is not None else labels[place] if place < len(labels) else ""
    if name is not None and label in labels:
        place = labels.index(label)
    return f"{shown}:{place}{f':{label}' if label else ''}".encode()
