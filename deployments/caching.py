"""Which models' answers may be kept at the endpoint: `cache` of a model's entry. Used by `spec`."""

from pydantic import BaseModel, ConfigDict, Field


class CacheSpec(BaseModel):
    """Marks a model's answers as worth keeping: the same input gives the same answer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ttl_s: float = Field(default=3600.0, gt=0, description="how long an answer is kept at most")
    shared: bool = Field(
        default=False,
        description="one tenant's answers serve the others too, who can tell from its speed that somebody asked",
    )
    rows: tuple[str, ...] | None = Field(
        default=None,
        description="inputs whose rows are answered independently, each kept by itself; default: as the engine knows",
    )
