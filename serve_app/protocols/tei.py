"""Text Embeddings Inference's native routes that run a model: to embed, classify, rank and compare texts.

Called through the rows in `ENDPOINTS`. TEI serves one model; here `model` may name one, so may the path (`/tei/{model}`
before each route), and both may be left out where there is one for the task. `/rerank` is Jina's and vLLM's, too: a
body with `documents` is theirs (`rerank`).
"""

from functools import partial

import numpy as np
from pydantic import JsonValue

from deployments.errors import InvalidInput
from deployments.types import InferRequest, InferResult, Task, text_array
from serve_app.protocols.json_body import dump, parse_body, parse_json
from serve_app.protocols.openai import cut
from serve_app.protocols.rerank import best_first, parse_rerank
from serve_app.protocols.tei_errors import TEI
from serve_app.protocols.tei_model import not_empty, tei_model
from serve_app.protocols.tei_schema import (
    EmbedAllRequest,
    EmbedRequest,
    Predictions,
    PredictTexts,
    RankingRequest,
    Ranks,
    Similarities,
    SimilarityRequest,
    TeiRerankRequest,
    TokenVectors,
    Truncates,
    Vectors,
)
from serve_app.protocols.text_inputs import read_texts_or_ids
from serve_app.protocols.types import Action, Endpoint, Models, RawRequest, Render, Reply

_EMBEDDING, _CLASSES, _RANKING = Task.FEATURE_EXTRACTION, Task.TEXT_CLASSIFICATION, Task.TEXT_RANKING


def parse_embed(raw: RawRequest, models: Models) -> tuple[InferRequest, Render]:
    """Read `POST /embed`."""
    body = parse_body(raw.body, EmbedRequest)
    request = _embedding(body, raw, models, normalize=body.normalize)
    return request, partial(_render_vectors, body.dimensions, body.normalize)


def parse_embed_all(raw: RawRequest, models: Models) -> tuple[InferRequest, Render]:
    """Read `POST /embed_all`."""
    return _embedding(parse_body(raw.body, EmbedAllRequest), raw, models, pooled=False), _render_token_vectors


def parse_predict(raw: RawRequest, models: Models) -> tuple[InferRequest, Render]:
    """Read `POST /predict`."""
    body = parse_body(raw.body, PredictTexts)
    texts, pairs, is_batch = _pairs(body.inputs)
    name = tei_model(raw, body.model, (_CLASSES,), models, "predict requests")
    inputs = {"text": text_array(texts)} | ({"text_pair": text_array(pairs)} if pairs else {})
    params = _params(body)
    if body.raw_scores:
        params["function_to_apply"] = "none"
    return InferRequest(name, inputs, params=params, request_id=raw.request_id), partial(_render_classes, is_batch)


def parse_ranking(raw: RawRequest, models: Models) -> tuple[InferRequest, Render]:
    """Read `POST /rerank`."""
    given = parse_json(raw.body)
    if isinstance(given, dict) and "documents" in given:
        return parse_rerank("1", True, raw, models)
    body = parse_body(raw.body, TeiRerankRequest)
    not_empty(body.texts, "texts")
    name = tei_model(raw, body.model, (_RANKING,), models, "rerank requests")
    inputs = {"query": text_array([body.query]), "text": text_array(body.texts)}
    params = _params(body)
    if body.raw_scores:
        params["raw_scores"] = True
    request = InferRequest(name, inputs, params=params, request_id=raw.request_id)
    return request, partial(_render_ranking, body.texts if body.return_text else None)


def parse_similarity(raw: RawRequest, models: Models) -> tuple[InferRequest, Render]:
    """Read `POST /similarity`."""
    body = parse_body(raw.body, SimilarityRequest)
    not_empty(body.inputs.sentences, "inputs.sentences")
    name = tei_model(raw, body.model, (_EMBEDDING,), models, "similarity requests")
    texts = [body.inputs.source_sentence, *body.inputs.sentences]
    params = _params(body.parameters, normalize=True)
    if body.parameters.prompt_name is not None:
        params["prompt_name"] = body.parameters.prompt_name
    request = InferRequest(name, {"text": text_array(texts)}, params=params, request_id=raw.request_id)
    return request, _render_similarity


_post = partial(Endpoint, "POST", action=Action.INFER, dialect=TEI)
ROWS = (
    _post("/embed", summary="Embed texts (TEI)", parse=parse_embed, request=EmbedRequest, response=Vectors),
    _post(
        "/embed_all",
        summary="Embed the tokens of texts (TEI)",
        parse=parse_embed_all,
        request=EmbedAllRequest,
        response=TokenVectors,
    ),
    _post(
        "/predict",
        summary="Classify texts or pairs (TEI)",
        example_model="mood",
        parse=parse_predict,
        request=PredictTexts,
        response=Predictions,
    ),
    _post(
        "/rerank",
        summary="Rank texts (TEI) or documents (Jina, vLLM)",
        example_model="rank",
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
)


def _embedding(
    body: EmbedRequest | EmbedAllRequest, raw: RawRequest, models: Models, **params: JsonValue
) -> InferRequest:
    not_empty(body.inputs, "inputs")
    texts, are_ids = read_texts_or_ids(body.inputs, "inputs")
    name = tei_model(raw, body.model, (_EMBEDDING,), models, "embed requests")
    params = _params(body, **params)
    if are_ids:
        params["token_ids"] = True
    if body.prompt_name is not None:
        if are_ids:
            raise InvalidInput("prompt_name: goes with texts, not with token ids", field="prompt_name")
        params["prompt_name"] = body.prompt_name
    return InferRequest(name, {"text": text_array(texts)}, params=params, request_id=raw.request_id)


def _params(how: Truncates, **more: JsonValue) -> dict[str, JsonValue]:
    if how.truncate is not None:
        more["truncate"] = how.truncate
    if how.truncation_direction == "left":
        more["truncation_side"] = "left"
    return more


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


def _render_token_vectors(result: InferResult) -> Reply:
    vectors = np.ascontiguousarray(result.outputs["embedding"], np.float32)
    return Reply(dump(np.split(vectors, np.cumsum(result.outputs["n_tokens"])[:-1])))


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
