"""Text Embeddings Inference's `/tokenize` and `/decode`: a model's tokenizer, asked alone in the pool that holds it.

Called through the rows in `ENDPOINTS`. Long texts are not cut. Places are characters of the text, its prompt included.
"""

from functools import partial

from pydantic import JsonValue

from deployments.errors import InvalidInput
from deployments.types import InferRequest, InferResult, Operation, Task, text_array
from serve_app.protocols.json_body import dump, parse_body
from serve_app.protocols.tei_errors import TEI
from serve_app.protocols.tei_model import not_empty, tei_model
from serve_app.protocols.tei_schema import DecodedTexts, DecodeRequest, TokenizedTexts, TokenizeRequest
from serve_app.protocols.text_inputs import MAX_TEXTS, ids_as_text, is_id, read_texts
from serve_app.protocols.types import Action, Endpoint, Models, RawRequest, Render, Reply

_TASKS = (
    Task.FEATURE_EXTRACTION,
    Task.TEXT_CLASSIFICATION,
    Task.TEXT_RANKING,
    Task.TOKEN_CLASSIFICATION,
    Task.ZERO_SHOT_CLASSIFICATION,
    Task.FILL_MASK,
)


def parse_tokenize(raw: RawRequest, models: Models) -> tuple[InferRequest, Render]:
    """Read `POST /tokenize`."""
    body = parse_body(raw.body, TokenizeRequest)
    not_empty(body.inputs, "inputs")
    texts = read_texts(body.inputs, "inputs")
    name = tei_model(raw, body.model, _TASKS, models, "tokenize requests")
    params: dict[str, JsonValue] = {"add_special_tokens": body.add_special_tokens}
    if body.prompt_name is not None:
        params["prompt_name"] = body.prompt_name
    return _request(name, {"text": texts}, params, raw, Operation.TOKENIZE), _render_tokens


def parse_decode(raw: RawRequest, models: Models) -> tuple[InferRequest, Render]:
    """Read `POST /decode`."""
    body = parse_body(raw.body, DecodeRequest)
    rows = _rows(body.ids)
    name = tei_model(raw, body.model, _TASKS, models, "decode requests")
    params: dict[str, JsonValue] = {"skip_special_tokens": body.skip_special_tokens}
    return _request(name, {"ids": rows}, params, raw, Operation.DECODE), _render_texts


_post = partial(Endpoint, "POST", action=Action.INFER, dialect=TEI)
ROWS = (
    _post(
        "/tokenize",
        summary="Tell a text's tokens (TEI)",
        parse=parse_tokenize,
        request=TokenizeRequest,
        response=TokenizedTexts,
    ),
    _post(
        "/decode",
        summary="Tell the text of token ids (TEI)",
        parse=parse_decode,
        request=DecodeRequest,
        response=DecodedTexts,
    ),
)


def _rows(ids: JsonValue) -> list[str]:
    """Return one row of ids or several, as numbers with spaces between; a row may be empty."""
    not_empty(ids, "ids")
    if not isinstance(ids, list):
        raise InvalidInput("ids: must be a list of token ids, or a list of such lists", field="ids")
    if is_id(ids[0]):
        return [ids_as_text(ids, "ids")]
    if len(ids) > MAX_TEXTS:
        raise InvalidInput(f"ids: has {len(ids)} lists, at most {MAX_TEXTS}", field="ids")
    return [ids_as_text(row, f"ids[{index}]") for index, row in enumerate(ids)]


def _request(
    name: str, inputs: dict[str, list[str]], params: dict[str, JsonValue], raw: RawRequest, operation: Operation
) -> InferRequest:
    tensors = {tensor: text_array(rows) for tensor, rows in inputs.items()}
    return InferRequest(name, tensors, params=params, request_id=raw.request_id, operation=operation)


def _render_tokens(result: InferResult) -> Reply:
    return Reply(b"[" + b",".join(result.outputs["tokens"]) + b"]")  # each a JSON array as TEI writes it


def _render_texts(result: InferResult) -> Reply:
    return Reply(dump([text.decode() for text in result.outputs["text"]]))
