"""May they? Scopes against actions and models; and the registry as one principal sees it.

Called by `gateway.py`. What a principal may not use is refused by name (403); what it may not see is not listed.
"""

from deployments.errors import ModelNotFound, PermissionDenied
from deployments.types import ModelStatus
from serve_app.context import Context
from serve_app.principals import Principal
from serve_app.protocols.types import Action, Models, Readiness, shown


def permit_action(context: Context) -> None:
    """Raise PermissionDenied unless the principal may do the context's action to some model."""
    if not context.principal.may(context.action):
        raise _denied(context.principal, context.action)


def authorise(principal: Principal, action: Action, asked: str, model: ModelStatus) -> None:
    """Raise PermissionDenied unless the principal may do this to the model.

    An alias is granted by its own name only: whom it means may change, and differ from one request to the next.
    """
    is_alias = asked not in (model.name, model.key)
    if not (principal.may(action, asked) if is_alias else principal.may(action, model.name, model.key)):
        raise _denied(principal, action, asked)


def visible_models(models: Models, context: Context) -> Models:
    """Return the registry as the context's principal may see and use it."""
    principal = context.principal
    if context.action is Action.OPEN or principal.may_all(context.action):
        return models
    return _Visible(models, principal, context.action)


class _Visible:
    def __init__(self, models: Models, principal: Principal, action: Action) -> None:
        self._models = models
        self._principal = principal
        self._action = action

    @property
    def server_name(self) -> str:
        return self._models.server_name

    def resolve(self, name: str, version: str | None = None) -> ModelStatus:
        try:
            model = self._models.resolve(name, version)
        except ModelNotFound:
            # NOTE: the registry's own words list every model there is.
            name = shown(name)
            if not self._principal.may(self._action, name.partition(":")[0], name):
                raise _denied(self._principal, self._action, name) from None
            raise ModelNotFound(f"unknown model: {name!r} is not found") from None
        authorise(self._principal, self._action, name.partition(":")[0], model)
        return model

    def all(self) -> tuple[ModelStatus, ...]:
        return tuple(model for model in self._models.all() if self._may(model))

    def versions(self, name: str) -> tuple[str, ...]:
        return tuple(v for v in self._models.versions(name) if self._principal.may(self._action, name, f"{name}:{v}"))

    def readiness(self) -> Readiness:
        return self._models.readiness()

    def _may(self, model: ModelStatus) -> bool:
        return self._principal.may(self._action, model.name, model.key)


def _denied(principal: Principal, action: Action, model: str = "") -> PermissionDenied:
    what = f"{action} on model {model!r}" if model else action
    return PermissionDenied(f"{principal.name!r} may not {what}; ask the operator for a scope", action=action.value)
