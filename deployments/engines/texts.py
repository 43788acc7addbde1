"""BYTES tensors of a request as Python strings. Called by every engine that reads text."""

from deployments.errors import InvalidInput
from deployments.types import Tensors


def read_texts(inputs: Tensors, name: str) -> list[str]:
    """Decode the BYTES tensor `name` of shape (n,), n >= 1.

    Raises:
        InvalidInput: it is empty (`field` = name) or an element is not UTF-8 (`field` = `name[index]`).
    """
    tensor = inputs[name]
    if tensor.size == 0:
        raise InvalidInput(f"input {name!r} is empty; give at least one element", field=name)
    texts = []
    for index, element in enumerate(tensor.flat):
        try:
            texts.append(element.decode())
        except UnicodeDecodeError as exc:
            field = f"{name}[{index}]"
            raise InvalidInput(f"{field} is not valid UTF-8 (byte {exc.start}); send UTF-8 text", field=field) from None
    return texts


def check_pair(inputs: Tensors, first: str, second: str) -> None:
    """Check that two tensors hold as many elements each.

    Raises:
        InvalidInput: `field` is the second one.
    """
    n_first, n_second = inputs[first].size, inputs[second].size
    if n_first != n_second:
        raise InvalidInput(f"{second!r} has {n_second} elements but {first!r} has {n_first}", field=second)


def asked_with(inputs: Tensors) -> str:
    """Return which input of a ranker holds its queries: `query`, one for all texts, or `queries`, one for each.

    Raises:
        InvalidInput: there are not as many queries as texts.
    """
    if "queries" not in inputs:
        return "query"
    check_pair(inputs, "text", "queries")
    return "queries"
