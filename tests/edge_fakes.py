"""A registry and a gateway for tests of the HTTP edge: real Protocols, made-up numbers."""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import orjson

from deployments.chunks import GENERATIVE_TASKS, Chunk, Finish, TokenLogprob, collect
from deployments.errors import ModelNotFound
from deployments.moderation import Moderation
from deployments.statistics import ModelStatistics
from deployments.types import (
    Array,
    Datatype,
    InferRequest,
    InferResult,
    ModelState,
    ModelStatus,
    Operation,
    Signature,
    Task,
    Tensors,
    TensorSpec,
    Timings,
    Usage,
    text_array,
)
from serve_app.config import EndpointConfig
from serve_app.context import Context
from serve_app.principals import ANONYMOUS
from serve_app.protocols.types import Action, Command, Models, Readiness

DIM = 4
MAX_BODY_BYTES = 100_000
TEXT = TensorSpec("text", Datatype.BYTES, (-1,))
OPTIONAL_TEXT = TensorSpec("text", Datatype.BYTES, (-1,), optional=True)
MESSAGES = TensorSpec("messages", Datatype.BYTES, (-1,), optional=True)
SCORE = TensorSpec("score", Datatype.FP32, (-1, -1))
LABEL = TensorSpec("label", Datatype.BYTES, (-1, -1))
UNKNOWN = Signature((), ())


def status(name: str, task: Task, signature: Signature, **fields: object) -> ModelStatus:
    values = {"version": "1", "state": ModelState.READY, "pinned": False, "timeout_s": 30.0, **fields}
    return ModelStatus(name=name, task=task, signature=signature, **values)  # type: ignore[arg-type]


MODELS = (
    status("minilm", Task.FEATURE_EXTRACTION, Signature((TEXT,), (TensorSpec("embedding", Datatype.FP32, (-1, DIM)),))),
    status("mood", Task.TEXT_CLASSIFICATION, Signature((TEXT,), (LABEL, SCORE)), version="1"),
    status("mood", Task.TEXT_CLASSIFICATION, Signature((TEXT,), (LABEL, SCORE)), version="2"),
    status(
        "guard",
        Task.TEXT_CLASSIFICATION,
        Signature((TEXT,), (LABEL, SCORE)),
        moderation=Moderation(labels={"bad": "hate", "good": "violence/graphic"}),
    ),
    status(
        "zero",
        Task.ZERO_SHOT_CLASSIFICATION,
        Signature((TEXT, TensorSpec("candidate_labels", Datatype.BYTES, (-1,))), (LABEL, SCORE)),
    ),
    status("mask", Task.FILL_MASK, Signature((TEXT,), (SCORE,))),
    status("ner", Task.TOKEN_CLASSIFICATION, Signature((TEXT,), (TensorSpec("entities", Datatype.BYTES, (-1,)),))),
    status(
        "rank",
        Task.TEXT_RANKING,
        Signature(
            (
                TensorSpec("query", Datatype.BYTES, (1,)),
                TEXT,
                TensorSpec("queries", Datatype.BYTES, (-1,), optional=True, instead_of="query"),
            ),
            (TensorSpec("score", Datatype.FP32, (-1,)),),
        ),
    ),
    status(
        "photo",
        Task.IMAGE_CLASSIFICATION,
        Signature((TensorSpec("image", Datatype.BYTES, (-1,)),), (LABEL, SCORE)),
    ),
    status(
        "adder",
        Task.TENSOR,
        Signature((TensorSpec("x", Datatype.FP32, (-1, 2)),), (TensorSpec("y", Datatype.FP32, (-1, 2)),)),
    ),
    status("smollm2", Task.TEXT_GENERATION, Signature((OPTIONAL_TEXT, MESSAGES), (TEXT,))),
    status("titler", Task.TEXT2TEXT_GENERATION, Signature((OPTIONAL_TEXT, MESSAGES), (TEXT,))),
    status("echo", Task.CUSTOM, UNKNOWN),
    status("broken", Task.CUSTOM, UNKNOWN, state=ModelState.UNAVAILABLE, reason="no such file"),
)


class FakeModels:
    """A registry of `MODELS`; `waiting` makes it not ready."""

    def __init__(self, models: tuple[ModelStatus, ...] = MODELS) -> None:
        self._models = models
        self.waiting: dict[str, str] = {}
        self.server_name = "model-endpoint"

    def resolve(self, name: str, version: str | None = None) -> ModelStatus:
        name, _, tail = name.partition(":")
        wanted = version or tail or self.versions(name)[-1]
        for model in self._models:
            if (model.name, model.version) == (name, wanted):
                return model
        raise ModelNotFound(f"model '{name}:{wanted}' not found; versions: {', '.join(self.versions(name))}")

    def all(self) -> tuple[ModelStatus, ...]:
        return self._models

    def versions(self, name: str) -> tuple[str, ...]:
        found = tuple(model.version for model in self._models if model.name == name)
        if not found:
            raise ModelNotFound(f"model {name!r} not found")
        return found

    def readiness(self) -> Readiness:
        return Readiness(not self.waiting, self.waiting, {"bad:1": "task: no such task"})


class FakeGateway:
    """Answers by task; keeps what it was asked. `error` is raised instead of an answer."""

    def __init__(self) -> None:
        self.models = FakeModels()
        self.rpcs: list[tuple[str, str]] = []
        self.counted: dict[str, ModelStatistics] = {}
        self.requests: list[InferRequest] = []
        self.commands: list[Command] = []
        self.observed: list[tuple[str, str, int]] = []
        self.config = EndpointConfig()
        self.recorded: list[Context] = []
        self.error: Exception | None = None
        self.breaks_off: Exception | None = None  # raised in the middle of a stream
        self.n_streams_closed = 0
        self.refusal: Exception | None = None
        self.outputs: Tensors | None = None

    async def authenticate(self, context: Context, headers: Mapping[str, str]) -> None:
        if self.refusal and context.action is not Action.OPEN:
            raise self.refusal
        context.principal = ANONYMOUS

    def visible(self, context: Context) -> Models:
        return self.models

    def observe_rpc(self, method: str, code: str, seconds: float) -> None:
        assert seconds >= 0
        self.rpcs.append((method, code))

    def record(self, context: Context) -> None:
        self.recorded.append(context)

    async def infer(self, request: InferRequest, context: Context) -> InferResult:
        context.request = request
        self.requests.append(request)
        if self.error:
            raise self.error
        model = self.models.resolve(request.model, request.version)
        if model.task in GENERATIVE_TASKS:
            self.requests.pop()
            return await collect(self.stream(request, context))
        answer = ANSWERS[model.task] if request.operation is Operation.INFER else SPELLED[request.operation]
        outputs = self.outputs if self.outputs is not None else answer(request.inputs)
        if request.params.get("pooled") is False:  # as if each text were one token
            outputs = {**outputs, "n_tokens": np.ones(request.n_items, np.int64)}
        usage = Usage(request.n_items, 3 * request.n_items)
        result = InferResult(model.name, model.version, outputs, usage, Timings(0.0, 0.001, 0.002, 0.0123456))
        context.answered(result)
        return result

    async def statistics(self) -> Mapping[str, ModelStatistics]:
        return self.counted

    async def stream(self, request: InferRequest, context: Context) -> AsyncGenerator[Sequence[Chunk], None]:
        """Say "Hello, world!" for each sequence, in three pieces."""
        self.requests.append(request)
        if self.error:
            raise self.error
        n = int(request.params.get("n", 1)) * request.n_items  # type: ignore[arg-type]
        logprobs = (TokenLogprob(b"Hello", -0.5, ((b"Hello", -0.5), (b"\xc3", -1.5))),)
        try:
            first = logprobs if request.params.get("logprobs") is not None else ()
            yield [Chunk("smollm2", "1", i, "Hello", 1, first) for i in range(n)]
            if self.breaks_off:
                raise self.breaks_off
            yield [Chunk("smollm2", "1", i, ", wor", 2) for i in range(n)]
            usage = Usage(request.n_items, 7 + 4 * n, 4 * n)
            *others, last = (Chunk("smollm2", "1", i, "ld!", 1, finish=Finish.STOP) for i in range(n))
            yield [*others, replace(last, usage=usage, timings=Timings())]
            context.took(usage, Timings())
        finally:
            self.n_streams_closed += 1

    async def control(self, command: Command) -> None:
        if self.error:
            raise self.error
        self.commands.append(command)

    async def metrics(self) -> bytes:
        return b"# TYPE up gauge\nup 1\n"

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        assert seconds >= 0
        self.observed.append((method, route, status))


def objects(values: list[list[str]]) -> Array:
    return np.array([[value.encode() for value in row] for row in values], dtype=np.object_)


def embed(inputs: Tensors) -> Mapping[str, Array]:
    """Vector i is (i+1, 0, 0, 3): not of unit length once it is cut."""
    vectors = np.zeros((len(inputs["text"]), DIM), dtype=np.float32)
    vectors[:, 0] = np.arange(1, len(vectors) + 1)
    vectors[:, 3] = 3
    return {"embedding": vectors}


def classify(inputs: Tensors) -> Mapping[str, Array]:
    n = len(next(iter(inputs.values())))
    return {"label": objects([["good", "bad"]] * n), "score": np.array([[0.75, 0.25]] * n, dtype=np.float32)}


def fill(inputs: Tensors) -> Mapping[str, Array]:
    n = len(inputs["text"])
    return {
        "token_str": objects([["cat"]] * n),
        "score": np.full((n, 1), 0.5, dtype=np.float32),
        "token": np.full((n, 1), 42, dtype=np.int64),
        "sequence": objects([["a cat"]] * n),
    }


def entities(inputs: Tensors) -> Mapping[str, Array]:
    found = orjson.dumps([{"entity_group": "PER", "word": "Ada"}]).decode()
    return {"entities": text_array([found] * len(inputs["text"]))}


def rank(inputs: Tensors) -> Mapping[str, Array]:
    """Score a text by its length."""
    return {"score": np.array([len(text) for text in inputs["text"]], dtype=np.float32)}


ANSWERS: dict[Task, Callable[[Tensors], Mapping[str, Array]]] = {
    Task.FEATURE_EXTRACTION: embed,
    Task.TEXT_CLASSIFICATION: classify,
    Task.ZERO_SHOT_CLASSIFICATION: classify,
    Task.IMAGE_CLASSIFICATION: classify,
    Task.FILL_MASK: fill,
    Task.TOKEN_CLASSIFICATION: entities,
    Task.TEXT_RANKING: rank,
    Task.TENSOR: lambda inputs: {"y": inputs["x"] + 1},
    Task.CUSTOM: dict,
}
SPELLED: dict[Operation, Callable[[Tensors], Mapping[str, Array]]] = {
    Operation.TOKENIZE: lambda inputs: {"tokens": text_array(["[]"] * len(inputs["text"]))},
    Operation.DECODE: lambda inputs: {"text": text_array([ids.decode() for ids in inputs["ids"]])},
}
