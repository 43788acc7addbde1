"""Text Embeddings Inference's `/info`, and its answer where a model makes no sparse vectors: none here does.

Called through the rows in `ENDPOINTS`. What is not known, or does not exist here, is null.
"""

from deployments.errors import InvalidInput, NotServed
from deployments.types import ModelStatus, Task
from serve_app import __version__
from serve_app.protocols.json_body import dump
from serve_app.protocols.tei_errors import TEI
from serve_app.protocols.tei_schema import Info
from serve_app.protocols.text_inputs import MAX_TEXTS
from serve_app.protocols.types import Action, Endpoint, Models, RawRequest, Reply

_KINDS = {
    Task.FEATURE_EXTRACTION: "embedding",
    Task.TEXT_CLASSIFICATION: "classifier",
    Task.TEXT_RANKING: "reranker",
}


def info(raw: RawRequest, models: Models) -> Reply:
    """Answer `GET /info`: the model in the path, or the first that TEI could serve."""
    status = _meant(raw, models)
    facts = status.facts if status else {}
    body = {
        "model_id": status.name if status else "",
        "model_sha": None,
        "model_dtype": facts.get("dtype"),
        "served_model_name": status.key if status else "",
        "model_type": _kind(status) if status else {},
        "max_concurrent_requests": None,
        "max_input_length": facts.get("max_tokens"),
        "max_batch_tokens": None,
        "max_batch_requests": status.max_items or None if status else None,
        "max_client_batch_size": MAX_TEXTS,
        "auto_truncate": bool(facts.get("truncation")),
        "tokenization_workers": 1,
        "version": __version__,
        "sha": None,
        "docker_label": None,
    }
    return Reply(dump(body))


def sparse(raw: RawRequest, models: Models) -> Reply:
    """Refuse `POST /embed_sparse`."""
    if "model" in raw.path:
        models.resolve(raw.path["model"])
    raise NotServed("no model here is an embedding model with SPLADE pooling; /embed and /embed_all give dense vectors")


ROWS = (
    Endpoint("GET", "/info", Action.READ, "What is served (TEI)", TEI, answer=info, response=Info),
    Endpoint(
        "POST",
        "/embed_sparse",
        Action.READ,
        "Refused: no model gives sparse vectors (TEI)",
        TEI,
        answer=sparse,
        is_served=False,
    ),
)


def _meant(raw: RawRequest, models: Models) -> ModelStatus | None:
    if "model" not in raw.path:
        return next((status for status in models.all() if status.task in _KINDS), None)
    status = models.resolve(raw.path["model"])
    if status.task not in _KINDS:
        raise InvalidInput(f"model: {status.name!r} does {status.task}, which TEI does not know", field="model")
    return status


def _kind(status: ModelStatus) -> dict[str, object]:
    """Return TEI's `model_type`."""
    if status.task is Task.FEATURE_EXTRACTION:
        return {"embedding": {"pooling": status.facts.get("pooling")}}
    labels = {str(index): label for index, label in enumerate(status.labels)}
    return {_KINDS[status.task]: {"id2label": labels, "label2id": {label: int(i) for i, label in labels.items()}}}
