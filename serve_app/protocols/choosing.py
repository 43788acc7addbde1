"""Which model a request means, where its dialect does not name one or only models of some task will do.

Called by `openai`, `moderations`, `rerank`, `classify` and `tei`.
"""

from deployments.errors import InvalidInput
from deployments.types import ModelStatus, Task
from serve_app.protocols.types import Models


def model_for(name: str | None, tasks: tuple[Task, ...], models: Models, what: str) -> tuple[str, ModelStatus]:
    """Return the name to ask for and the model, which does one of `tasks`; without a name, the only one that does.

    Raises:
        ModelNotFound: there is no such model.
        InvalidInput: it does something else, or none is named and there are several.
    """
    if name is None:
        name = _only(tasks, models, what)
    status = models.resolve(name)
    if status.task not in tasks:
        wanted = " or ".join(tasks)
        raise InvalidInput(
            f"model: {status.name!r} does {status.task}; {what} need a model for {wanted}", field="model"
        )
    return name, status


def _only(tasks: tuple[Task, ...], models: Models, what: str) -> str:
    names = list(dict.fromkeys(status.name for status in models.all() if status.task in tasks))
    if len(names) == 1:
        return names[0]
    if not names:
        raise InvalidInput(f"model: no model here does {' or '.join(tasks)}, which {what} need", field="model")
    raise InvalidInput(f"model: is required, there are several: {', '.join(names)}", field="model")
