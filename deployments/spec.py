"""What an operator writes about models and pools: the pydantic side of `serve_config.yaml` for pools.

`PoolArgs` is a pool application's `args` (a change restarts its replicas); `PoolConfig` is the Pool deployment's
`user_config` (a change never does). Read by `deployments.app`, `deployments.pool` and `serve_app.validation`.
"""

import hashlib
import re
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationInfo, field_validator, model_validator

from deployments.caching import CacheSpec
from deployments.chunks import GENERATIVE_TASKS
from deployments.moderation import Moderation
from deployments.sizes import Bytes
from deployments.types import Task, model_key

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Format = Literal["pickle", "torchscript", "torch_export"]


class Strict(BaseModel):
    """A frozen model that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Source(Strict):
    """Where a model's files are: exactly one of `path`, `package`, `hub`, `url`."""

    path: str | None = Field(default=None, description="folder or file; with `package`, relative to that package")
    package: str | None = Field(
        default=None, description="installed Python package whose files hold the model; never imported"
    )
    hub: str | None = Field(default=None, description="Hugging Face hub repository, `org/name`")
    revision: str | None = Field(default=None, description="commit of the hub repository, 40 hex digits")
    url: str | None = Field(
        default=None, description="any fsspec URL of a folder or a file: s3://, gs://, https://, file://"
    )
    version_folders: bool = Field(
        default=False,
        description="`path` holds a folder for each version, named as it is: 1, 2, v1.3; found at start and by `load`",
    )
    sha256: dict[str, Sha256] = Field(
        default_factory=dict, description="expected digest by file name relative to the model's folder"
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        given = [k for k in ("package", "hub", "url") if getattr(self, k)] or (["path"] if self.path else [])
        if len(given) != 1:
            raise ValueError("give exactly one of path, package (with path), hub, url")
        if self.version_folders and (given[0] in ("hub", "url") or self.sha256):
            with_what = "sha256: what comes later cannot be pinned" if self.sha256 else given[0]
            raise ValueError(f"version_folders goes with a local path, and not with {with_what}")
        if self.path and given[0] in ("hub", "url"):
            raise ValueError(f"path goes with package only, not with {given[0]}")
        if self.hub and not re.fullmatch(r"[0-9a-f]{40}", self.revision or ""):
            raise ValueError(
                "hub needs revision: the 40 hex digits of a commit, so that the model cannot change unseen"
            )
        if self.revision and not self.hub:
            raise ValueError("revision goes with hub only")
        return self


class BatchLimits(Strict):
    """How much may run, and wait, together."""

    max_items: int = Field(default=32, ge=1, le=65536, description="items a batch may hold")
    max_tokens: int = Field(
        default=16384,
        ge=1,
        description="tokens a batch may cost, padding included; fewer where a larger batch gains nothing, as measured",
    )
    max_queue_items: int = Field(
        default=2048, ge=1, description="items that may wait; beyond, 429. One request may not hold more"
    )


# Fields that change without a load.
_NO_RELOAD = {"batch", "timeout_s", "pinned", "weight", "cache", "idle_unload_s", "moderation"}


class ModelSpec(Strict):
    """One model: `name:version`, what it does, where its files are, how it may run."""

    name: str = Field(pattern=NAME)
    version: str = Field(default="1", pattern=NAME)
    task: Task
    source: Source
    base: str | None = Field(
        default=None, description="`name:version` of the pool's model that this one is a LoRA adapter of"
    )
    engine: str | None = Field(default=None, description="engine family; default: the task's own")
    options: dict[str, JsonValue] = Field(default_factory=dict, description="options of that engine family")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="auto: float32 on CPU; on CUDA bfloat16 where the GPU has it"
    )
    max_tokens: int | None = Field(
        default=None, ge=1, description="tokens an input may have; default: the model's own limit"
    )
    packing: bool = Field(
        default=True, description="run the texts of a batch without padding, where the architecture gives equal answers"
    )
    truncation: bool = Field(default=False, description="cut longer inputs instead of refusing them with 400")
    batch: BatchLimits = BatchLimits()
    timeout_s: float = Field(
        default=30.0, gt=0, le=3600, description="time an answer may take, waiting and loading included"
    )
    moderation: Moderation | None = Field(
        default=None, description="label map by which a text classifier answers POST /v1/moderations"
    )
    cache: CacheSpec | None = Field(default=None, description="keep answers at the endpoint, item by item")
    pinned: bool = Field(default=False, description="load at start, never evict; the endpoint is ready only when it is")
    idle_unload_s: float | None = Field(
        default=None, gt=0, description="leave the device after so long without a request; default: only to make room"
    )
    weight: float = Field(
        default=1.0, gt=0, le=1000, description="share of the device's time against other models that wait for it"
    )
    allow: tuple[Format, ...] = Field(
        default=(), description="file formats accepted besides safetensors; each may run code"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.source.version_folders and "version" in self.model_fields_set:
            raise ValueError("version: the names of the folders are the versions; leave it out")
        if self.moderation and self.task is not Task.TEXT_CLASSIFICATION:
            raise ValueError(f"moderation goes with task {Task.TEXT_CLASSIFICATION.value} only")
        return self

    @field_validator("cache")
    @classmethod
    def _repeats_itself(cls, value: CacheSpec | None, info: ValidationInfo) -> CacheSpec | None:
        if value is not None and info.data.get("task") in GENERATIVE_TASKS:
            raise ValueError("a generating model answers differently each time; leave it out")
        return value

    @field_validator("version", mode="before")
    @classmethod
    def _version_text(cls, value: object) -> object:
        # YAML reads `version: 2` as a number.
        return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value

    @property
    def key(self) -> str:
        """`name:version`."""
        return model_key(self.name, self.version)

    @cached_property
    def digest(self) -> str:
        """Fingerprint of everything that needs the model loaded anew when it changes."""
        part = self.model_dump_json(exclude=_NO_RELOAD)
        return hashlib.sha256(part.encode()).hexdigest()[:16]


class PoolArgs(Strict):
    """`args` of a pool application: what needs new processes."""

    device: str = Field(default="cpu", pattern=r"^(cpu|cuda(:\d+)?)$", description="cpu, or cuda for the replica's GPU")
    budget_bytes: Bytes = Field(
        description="bytes of the device for weights and the largest batch's activations, e.g. 2GiB"
    )
    ram_bytes: Bytes = Field(
        default=0,
        description="bytes of host RAM for models that left the device, to come back from fast; 0: they leave memory",
    )
    threads: int | None = Field(
        default=None, ge=1, description="threads of one operation, in torch and numpy; default: the replica's num_cpus"
    )
    cache_dir: str = Field(default="~/.cache/model-endpoint", description="where models from hub and URLs are kept")


class Latest(Strict):
    """The newest versions of a model."""

    latest: int = Field(ge=1, description="how many; 2 comes before 10, v1.9 before v1.10")


VersionPolicy = Literal["all"] | Latest | tuple[str, ...]


class PoolConfig(Strict):
    """`user_config` of a Pool deployment: what changes without a restart."""

    models: tuple[ModelSpec, ...] = ()
    versions: dict[str, VersionPolicy] = Field(
        default_factory=dict,
        description="which of a model's versions, listed or found in its folder, are offered, by name: all (default), "
        "{latest: n}, or a list",
    )
    drain_s: float = Field(default=30.0, ge=0, description="how long a model removed from the list still answers")
    max_loads: int = Field(default=2, ge=1, description="models that may load at the same time")
    max_held: int = Field(
        default=256, ge=1, description="requests that may wait for one model's load; beyond, 503 with Retry-After"
    )

    @field_validator("models")
    @classmethod
    def _unique(cls, models: tuple[ModelSpec, ...]) -> tuple[ModelSpec, ...]:
        seen: set[str] = set()
        for model in models:
            if model.key in seen:
                raise ValueError(f"model {model.key!r} is listed twice")
            seen.add(model.key)
        return models


def parse_models(user_config: Any) -> tuple[PoolConfig, dict[str, str]]:
    """Read a Pool's user_config entry by entry, so that one bad model does not cost the others.

    Returns:
        The configuration with every model that is right, and the reason by key for each that is not. The key of an
        entry without a usable name is `models[i]`; of anything outside `models`, its field.
    """
    if not isinstance(user_config, dict):
        return PoolConfig(), {"user_config": f"expected a mapping, got {type(user_config).__name__}"}
    rejected: dict[str, str] = {}
    fields = dict(user_config)
    entries = fields.pop("models", [])
    if not isinstance(entries, list):
        rejected["models"] = f"expected a list, got {type(entries).__name__}"
        entries = []
    models: dict[str, ModelSpec] = {}
    for index, entry in enumerate(entries):
        try:
            spec = ModelSpec.model_validate(entry)
        except ValueError as exc:
            rejected[_entry_key(entry, index)] = explain(exc)
        else:
            if spec.key in models:
                rejected[f"models[{index}]"] = f"model {spec.key!r} is listed twice; the first one counts"
            models.setdefault(spec.key, spec)
    try:
        settings = PoolConfig.model_validate(fields)
    except ValueError as exc:
        rejected["user_config"] = explain(exc)
        settings = PoolConfig()
    return settings.model_copy(update={"models": tuple(models.values())}), rejected


def _entry_key(entry: object, index: int) -> str:
    if isinstance(entry, dict) and isinstance(entry.get("name"), str):
        return model_key(entry["name"], str(entry.get("version", "1")))
    return f"models[{index}]"


def explain(exc: ValueError) -> str:
    """Return one line for a pydantic error: `field: what is wrong`, joined by `; `."""
    errors = getattr(exc, "errors", None)
    if errors is None:
        return str(exc)
    lines = [f"{'.'.join(str(p) for p in e['loc']) or 'value'}: {e['msg']}" for e in errors(include_url=False)]
    return "; ".join(lines)
