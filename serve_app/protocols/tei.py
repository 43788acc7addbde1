"""Text Embeddings Inference's native routes: `/embed`, `/predict`, `/rerank`, `/similarity`, `/info`.

Called through the rows in `ENDPOINTS`. TEI serves one model; here `model` may name one, and may be left out where there
is one for the task. `/rerank` is Jina's and vLLM's, too: a body with `documents` is theirs (`rerank`).
"""

from functools import partial
from typing import Any

import numpy as np
from pydantic import JsonValue

from deployments.errors import InvalidInput, ServeError
from deployments.types import InferRequest, InferResult, Task, text_array
from serve_app import __version__
from serve_app.protocols.choosing import model_for
from serve_app.protocols.classify import read_texts
from serve_app.protocols.json_body import dump, parse_body, parse_json
from serve_app.protocols.openai import cut
from serve_app.protocols.rerank import best_first, parse_rerank
from serve_app.protocols.tei_schema import (
    EmbedRequest,
    Info,
    Predictions,
    PredictTexts,
    RankingRequest,
    Ranks,
    Similarities,
    SimilarityRequest,
    TeiError,
    TeiRerankRequest,
    Vectors,
)
from serve_app.protocols.types import Action, Dialect, Endpoint, Models, RawRequest, Render, Reply

_EMBEDDING, _CLASSES, _RANKING = Task.FEATURE_EXTRACTION, Task.TEXT_CLASSIFICATION, Task.TEXT_RANKING
_TYPES = {400: "Validation", 413: "Validation", 404: "NotFound", 429: "Overloaded", 503: "Unhealthy", 504: "Overloaded"}


def envelope(error: ServeError, request_id: str) -> bytes:
    """Render an error."""
    kind = _TYPES.get(error.status, "Backend")
    return dump({"error": error.message, "error_type": kind, "code": error.code, "request_id": request_id})


def parse_embed(raw: RawRequest, models: Models) -> tuple[InferRequest, Render]:
    """Read `POST /embed`."""
    body = parse_body(raw.body, EmbedRequest)
    texts = read_texts(body.inputs, "inputs")
    name, _ = model_for(body.model, (_EMBEDDING,), models, "embed requests")
    params = _params(body.truncate, normalize=body.normalize)
    request = InferRequest(name, {"text": text_array(texts)}, params=params, request_id=raw.request_id)
    return request, partial(_render_vectors, body.dimensions, body.normalize)


def parse_predict(raw: RawRequest, models: Models) -> tuple[InferRequest, Render]:
    """Read `POST /predict`."""
    body = parse_body(raw.body, PredictTexts)
    texts, pairs, is_batch = _pairs(body.inputs)
    name, _ = model_for(body.model, (_CLASSES,), models, "predict requests")
    inputs = {"text": text_array(texts)} | ({"text_pair": text_array(pairs)} if pairs else {})
    params = _params(body.truncate)
    if body.raw_scores:
        params["function_to_apply"] = "none"
    return InferRequest(name, inputs, params=params, request_id=raw.request_id), partial(_render_classes, is_batch)


def parse_ranking(raw: RawRequest, models: Models) -> tuple[InferRequest, Render]:
    """Read `POST /rerank`."""
    given = parse_json(raw.body)
    if isinstance(given, dict) and "documents" in given:
        return parse_rerank("1", True, raw, models)
    body = parse_body(raw.body, TeiRerankRequest)
    name, _ = model_for(body.model, (_RANKING,), models, "rerank requests")
    inputs = {"query": text_array([body.query]), "text": text_array(body.texts)}
    params = _params(body.truncate)
    if body.raw_scores:
        params["raw_scores"] = True
    request = InferRequest(name, inputs, params=params, request_id=raw.request_id)
    return request, partial(_render_ranking, body.texts if body.return_text else None)


def parse_similarity(raw: RawRequest, models: Models) -> tuple[InferRequest, Render]:
    """Read `POST /similarity`."""
    body = parse_body(raw.body, SimilarityRequest)
    name, _ = model_for(body.model, (_EMBEDDING,), models, "similarity requests")
    texts = [body.inputs.source_sentence, *body.inputs.sentences]
    params = _params(body.parameters.truncate, normalize=True)
    request = InferRequest(name, {"text": text_array(texts)}, params=params, request_id=raw.request_id)
    return request, _render_similarity


def info(raw: RawRequest, models: Models) -> Reply:
    """Answer `GET /info`: the first model that TEI could serve, or what there is."""
    kinds = {_EMBEDDING: "embedding", _CLASSES: "classifier", _RANKING: "reranker"}
    found = next((status for status in models.all() if status.task in kinds), None)
    kind: dict[str, Any] = {}
    if found is not None:
        labels = dict(enumerate(found.labels))
        kind = {kinds[found.task]: {"id2label": labels} if found.task is _CLASSES else {}}
    body = {
        "model_id": found.name if found else "",
        "model_dtype": None,
        "served_model_name": found.name if found else "",
        "model_type": kind,
        "max_client_batch_size": 2048,
        "auto_truncate": False,
        "version": __version__,
    }
    return Reply(dump(body))


TEI = Dialect(
    "Text Embeddings Inference", envelope, TeiError, ("/embed", "/predict", "/rerank", "/similarity", "/info")
)
_post = partial(Endpoint, "POST", action=Action.INFER, dialect=TEI)
ROWS = (
    _post("/embed", summary="Embed texts (TEI)", parse=parse_embed, request=EmbedRequest, response=Vectors),
    _post(
        "/predict",
        summary="Classify texts or pairs (TEI)",
        parse=parse_predict,
        request=PredictTexts,
        response=Predictions,
    ),
    _post(
        "/rerank",
        summary="Rank texts (TEI) or documents (Jina, vLLM)",
        parse=parse_ranking,
        request=RankingRequest,
        response=Ranks,
    ),
    _post(
        "/similarity",
        summary="Compare sentences (TEI)",
        parse=parse_similarity,
        request=SimilarityRequest,
        response=Similarities,
    ),
    Endpoint("GET", "/info", Action.READ, "What is served (TEI)", TEI, answer=info, response=Info),
)


def _params(truncate: bool | None, **more: JsonValue) -> dict[str, JsonValue]:
    return more if truncate is None else {**more, "truncate": truncate}


def _pairs(inputs: JsonValue) -> tuple[list[str], list[str], bool]:
    """Return the texts, their pairs if they have any, and whether they were a batch."""
    if isinstance(inputs, str) and inputs:
        return [inputs], [], False
    entries = inputs if isinstance(inputs, list) else []
    if len(entries) == 2 and all(isinstance(entry, str) for entry in entries):
        return [str(entries[0])], [str(entries[1])], False
    sizes: set[int] = set()
    rows: list[list[str]] = []
    for index, entry in enumerate(entries):
        if not isinstance(entry, list) or not 1 <= len(entry) <= 2 or not all(isinstance(t, str) and t for t in entry):
            field = f"inputs[{index}]"
            raise InvalidInput(f"{field}: must be [text] or [text, pair] in a batch", field=field)
        rows.append([str(text) for text in entry])
        sizes.add(len(entry))
    if len(sizes) != 1:
        raise InvalidInput(
            "inputs: must be a text, a pair, or a list of texts or pairs but not of both", field="inputs"
        )
    pairs = [row[1] for row in rows] if sizes == {2} else []
    return [row[0] for row in rows], pairs, True


def _render_vectors(dimensions: int | None, normalize: bool, result: InferResult) -> Reply:
    vectors = np.asarray(result.outputs["embedding"], np.float32)
    return Reply(dump(np.ascontiguousarray(cut(vectors, dimensions, normalize=normalize))))


def _render_classes(is_batch: bool, result: InferResult) -> Reply:
    rows = [
        [{"score": score.item(), "label": label.decode()} for label, score in zip(*row, strict=True)]
        for row in zip(result.outputs["label"], result.outputs["score"], strict=True)
    ]
    return Reply(dump(rows if is_batch else rows[0]))


def _render_ranking(texts: list[str] | None, result: InferResult) -> Reply:
    scores = result.outputs["score"]
    lines: list[dict[str, object]] = []
    for place in best_first(scores):
        line: dict[str, object] = {"index": place, "score": scores[place].item()}
        lines.append(line if texts is None else {**line, "text": texts[place]})
    return Reply(dump(lines))


def _render_similarity(result: InferResult) -> Reply:
    vectors = np.asarray(result.outputs["embedding"], np.float32)
    return Reply(dump(np.ascontiguousarray(vectors[1:] @ vectors[0])))
