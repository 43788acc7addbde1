"""Options of the engine families: what a model entry may write under `options`.

Pure pydantic, so that `model-endpoint validate` checks them without importing torch.
"""

from typing import Literal, Self

import numpy as np
from pydantic import Field, JsonValue, field_validator, model_validator

from deployments.generation import SamplingDefaults
from deployments.sizes import Bytes
from deployments.spec import Strict
from deployments.types import NUMPY_DTYPES, Datatype, TensorSpec


class NoOptions(Strict):
    """An engine family without options."""


class EmbeddingOptions(Strict):
    """Sentence embeddings; None means: as the model's own sentence-transformers files say."""

    pooling: Literal["mean", "cls", "max", "last"] | None = None
    normalize: bool | None = None


class ClassificationOptions(Strict):
    """Classifiers; None means: from the model's `problem_type`, as transformers decides."""

    function_to_apply: Literal["softmax", "sigmoid", "none"] | None = None
    top_k: int | None = Field(default=None, ge=1, description="classes to return; default all")


class FillMaskOptions(Strict):
    """Masked language models."""

    top_k: int = Field(default=5, ge=1, le=1000)


class ZeroShotOptions(Strict):
    """Zero-shot classifiers by entailment."""

    hypothesis_template: str = "This example is {}."


class TensorOption(Strict):
    """One tensor of a numeric model."""

    name: str = Field(min_length=1)
    datatype: Datatype
    shape: tuple[int, ...] = Field(description="-1 for a size that varies; the first one counts the items of a batch")
    example: tuple[JsonValue, ...] = Field(
        default=(), description="an input the program takes, nested as its shape says, for the model's OpenAPI document"
    )
    example_shape: tuple[int, ...] = Field(default=(), description="in place of `example`: this many zeros")

    @model_validator(mode="after")
    def _example_fits(self) -> Self:
        if self.example and self.example_shape:
            raise ValueError(f"tensor {self.name!r}: give example or example_shape, not both")
        if self.example or self.example_shape:
            array = np.array(self.example or np.zeros(self.example_shape))
            sizes = zip(self.shape, array.shape, strict=False)
            fits = array.ndim == len(self.shape) and all(want in (-1, size) for want, size in sizes)
            if not fits or array.dtype.kind not in "biuf":
                raise ValueError(f"tensor {self.name!r}: its example must be numbers and of its shape")
        return self

    def spec(self) -> TensorSpec:
        """Return it as the protocols see it."""
        zeros = np.zeros(self.example_shape, NUMPY_DTYPES[self.datatype]).tolist() if self.example_shape else ()
        return TensorSpec(self.name, self.datatype, self.shape, example=self.example or tuple(zeros))


class TensorOptions(Strict):
    """TorchScript and torch.export programs: the tensors they take and give, in argument order."""

    inputs: tuple[TensorOption, ...] = Field(min_length=1)
    outputs: tuple[TensorOption, ...] = Field(min_length=1)
    batched: bool = Field(default=True, description="rows along the first axis are independent and may be batched")
    warm_up: bool = Field(
        default=True, description="run once on zeros after loading; off for programs that refuse them"
    )
    method: str = Field(default="forward", pattern=r"^[A-Za-z]\w*$", description="TorchScript method to call")

    @field_validator("inputs", "outputs")
    @classmethod
    def _numeric(cls, tensors: tuple[TensorOption, ...]) -> tuple[TensorOption, ...]:
        for tensor in tensors:
            if tensor.datatype is Datatype.BYTES:
                raise ValueError(f"tensor {tensor.name!r}: a numeric engine cannot take BYTES")
        return tensors

    @model_validator(mode="after")
    def _rows(self) -> Self:
        for tensor in (*self.inputs, *self.outputs):
            if self.batched and tensor.shape[:1] != (-1,):
                raise ValueError(
                    f"tensor {tensor.name!r}: batched programs take rows, so its shape must begin with -1; "
                    "or write `batched: false`"
                )
        return self


class GenerationOptions(Strict):
    """Language models and other generators of text."""

    cache_bytes: Bytes = Field(
        default=256 * 2**20, description="keys and values of all running sequences; charged to the pool's budget"
    )
    prompt_tokens_per_step: int = Field(
        default=512, ge=1, description="prompt tokens computed between two tokens of the running sequences"
    )
    max_new_tokens: int = Field(default=1024, ge=1, description="tokens to generate where a request does not say")
    defaults: SamplingDefaults = SamplingDefaults()
    chat_template: str | None = Field(default=None, description="Jinja; default: the one in the model's files")


class CustomOptions(Strict):
    """Any Python class that keeps the `Engine` contract."""

    factory: str = Field(pattern=r"^[\w.]+:\w+$", description="`package.module:Class`")
    kwargs: dict[str, JsonValue] = Field(default_factory=dict)
