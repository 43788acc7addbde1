"""The version policies of pools against their models: each is of a model that is there, and offers something."""

from collections.abc import Collection, Iterator

from deployments.spec import PoolConfig
from deployments.versions import offered
from serve_app.validation.applications import POOL, App
from serve_app.validation.problems import Problem, nearest


def check_versions(apps: Collection[App]) -> Iterator[Problem]:
    """Yield what is wrong with the version policies of each pool."""
    for app in apps:
        policies = app.user_config("Pool").get("versions") if app.import_path == POOL else None
        try:
            parsed = PoolConfig.model_validate({"versions": policies or {}}).versions
        except ValueError:
            continue  # named by check_model
        specs = {spec.key: spec for _, spec in app.models}
        names = {spec.name for spec in specs.values()}
        left = {spec.name for spec in offered(specs, parsed).values()}
        for name in parsed:
            place = (*app.deployments["Pool"][0], "user_config", "versions", name)
            if name in app.unseen:
                continue
            if name not in names:
                yield Problem(place, "this pool has no model of this name", near=nearest(name, names))
            elif name not in left:
                yield Problem(place, "offers no version of this model: none that it lists is configured")
