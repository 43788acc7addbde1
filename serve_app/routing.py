"""Where a request goes: the plan that the gateway follows for it. Pure."""

from dataclasses import dataclass

from deployments.types import ModelStatus


@dataclass(frozen=True, slots=True)
class Plan:
    """The model that answers; `asked` is the name the client used (an alias, or the model's own)."""

    asked: str
    primary: ModelStatus
