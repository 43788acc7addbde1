"""What the codecs of Text Embeddings Inference's routes share: which model is meant, and what is empty.

Its clients know of one model only, which their base URL may name.
"""

from deployments.errors import EmptyInput, InvalidInput
from deployments.types import Task
from serve_app.protocols.choosing import model_for
from serve_app.protocols.types import Models, RawRequest


def not_empty(value: object, field: str) -> None:
    """Check that a list has something in it. Raises EmptyInput, which TEI tells from wrong input."""
    if value == []:
        raise EmptyInput(f"{field}: must not be empty", field=field)


def named(raw: RawRequest, model: str | None) -> str | None:
    """Return the model that the path or the body names. Raises InvalidInput where they name two."""
    in_path = raw.path.get("model")
    if in_path is not None and model not in (None, in_path):
        raise InvalidInput(f"model: is {model!r} in the body and {in_path!r} in the path; give one", field="model")
    return in_path or model


def tei_model(raw: RawRequest, model: str | None, tasks: tuple[Task, ...], models: Models, what: str) -> str:
    """Return the model to ask for; without a name, the only one that does one of `tasks`.

    Raises:
        ModelNotFound: there is no such model.
        InvalidInput: it does something else, or none is named and there are several.
    """
    return model_for(named(raw, model), tasks, models, what)[0]
