"""Text Embeddings Inference's routes over real tiny models, through the gateway to who holds the tokenizer."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from in_process import served
from tiny_models import build
from transformers import AutoTokenizer

from deployments.engines import sentence_embedding, vocabulary

MOOD = "/tei/mood"
TEXTS = ["The cat is a\x00b happy", "Grüße 🎈 zzz"]
POLICIES = {
    "aliases": {"pet": {"targets": {"embed:1": 1}, "shadows": [{"model": "mask"}]}},
    "fallbacks": {"echo": {"to": ["mask"]}},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tei")


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[httpx.Client]:
    echo = {"name": "echo", "task": "text-classification", "engine": "custom", "source": {"path": str(folder)}}
    models = [
        tiny("embed", "feature-extraction", "sentence-bert", folder, cache={}),
        tiny("mood", "text-classification", "bert-classifier", folder),
        tiny("mask", "fill-mask", "roberta-masked", folder),
        tiny("speak", "text-generation", "llama", folder),
        {**echo, "options": {"factory": "echo_engine:Echo"}, "pinned": True},
    ]
    with served(folder / "cache", models, POLICIES) as url, httpx.Client(base_url=url, timeout=60) as opened:
        yield opened


def tiny(name: str, task: str, kind: str, folder: Path, **fields: Any) -> dict[str, Any]:
    path = build(kind, folder / name)
    return {"name": name, "task": task, "source": {"path": str(path)}, "pinned": True, **fields}


def ask(client: httpx.Client, path: str, status: int = 200, **body: Any) -> Any:
    answer = client.post(path, json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


def test_tokens_are_the_tokenizers_own(client: httpx.Client, folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder / "mood")
    found = ask(client, f"{MOOD}/tokenize", inputs=TEXTS)
    for text, tokens in zip(TEXTS, found, strict=True):
        assert [token["id"] for token in tokens] == tokenizer(text).input_ids
        assert [token["special"] for token in tokens] == [True, *[False] * (len(tokens) - 2), True]
        assert all(text[t["start"] : t["stop"]] == t["text"] for t in tokens if not t["special"])
        first = {"id": tokenizer.cls_token_id, "text": "[CLS]", "special": True, "start": None, "stop": None}
        assert tokens[0] == first
    (bare,) = ask(client, f"{MOOD}/tokenize", inputs=TEXTS[1], add_special_tokens=False)
    assert bare == found[1][1:-1]


def test_a_long_text_is_told_whole(client: httpx.Client) -> None:
    """The model takes 32 tokens; its tokenizer is asked alone, between requests that are cut."""
    for _ in range(2):
        (tokens,) = ask(client, f"{MOOD}/tokenize", inputs="cat " * 100)
        assert len(tokens) == 102
        ask(client, f"{MOOD}/predict", inputs="cat " * 100, truncate=True)


@pytest.mark.parametrize("direction", ["left", "Left", "right", "Right"])
def test_a_long_text_is_cut_on_the_side_that_is_asked_for(client: httpx.Client, direction: str) -> None:
    """The embedding model takes 16 tokens, two of them special."""
    start, end = "cat " * 14, "dog " * 14
    kept = end if direction.lower() == "left" else start
    how = {"truncate": True, "truncation_direction": direction}
    assert ask(client, "/embed", model="embed", inputs=start + end, **how) == ask(
        client, "/embed", model="embed", inputs=kept
    )
    ids = [[7] * 16 + [9] * 16]
    kept_ids = [[9 if direction.lower() == "left" else 7] * 16]
    assert ask(client, "/embed", model="embed", inputs=ids, **how) == ask(
        client, "/embed", model="embed", inputs=kept_ids
    )
    sentences = {"source_sentence": start + end, "sentences": [kept, start + end]}
    near = ask(client, "/similarity", model="embed", inputs=sentences, parameters=how)
    assert near == pytest.approx([1, 1], abs=1e-5)
    scores = ask(client, f"{MOOD}/predict", inputs="cat " * 30 + "dog " * 30, **how)
    assert scores == ask(client, f"{MOOD}/predict", inputs=("dog " if direction.lower() == "left" else "cat ") * 30)
    ask(client, "/embed", 422, model="embed", inputs=start + end, truncation_direction=direction)
    ask(client, "/embed", 422, model="embed", inputs="cat", truncation_direction="up")


def test_ids_decode_to_their_text_and_back(client: httpx.Client) -> None:
    texts = ["the cat is happy", "no dog"]
    for model in ("mood", "mask"):
        tokens = ask(client, "/tokenize", model=model, inputs=texts)
        ids = [[token["id"] for token in row] for row in tokens]
        assert ask(client, "/decode", model=model, ids=ids) == texts
        assert ask(client, "/decode", model=model, ids=ids[0]) == texts[:1]
    kept = ask(client, f"{MOOD}/decode", ids=[2, 5, 3], skip_special_tokens=False)
    assert kept == ["[CLS] the [SEP]"]
    assert ask(client, f"{MOOD}/decode", ids=[[], [5]]) == ["", "the"]


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        ("/tokenize", {"inputs": []}, 400, "inputs: must not be empty"),
        ("/tokenize", {"inputs": ""}, 422, "inputs: must not be an empty string"),
        ("/tokenize", {"inputs": [1]}, 422, "inputs[0]: must be a string"),
        ("/tokenize", {"inputs": ["a"] * 2049}, 422, "inputs: has 2049 texts, at most 2048"),
        ("/tokenize", {"inputs": "a", "add_special_tokens": "yes"}, 422, "add_special_tokens: "),
        ("/tokenize", {"inputs": "a", "prompt_name": "query"}, 422, "prompt_name: this model has no prompt"),
        ("/tokenize", {}, 422, "inputs: is required"),
        ("/tokenize", {"inputs": "a", "model": "embed"}, 422, "model: is 'embed' in the body and 'mood' in the path"),
        ("/decode", {"ids": []}, 400, "ids: must not be empty"),
        ("/decode", {"ids": [99999999]}, 422, "ids[0]: must be token ids of this model's own vocabulary, 0 to "),
        ("/decode", {"ids": [[1], [10**18]]}, 422, "ids[1]: must be token ids of this model's own vocabulary"),
        ("/decode", {"ids": [-1]}, 422, "ids[0]: must be a list of token ids"),
        ("/decode", {"ids": [True]}, 422, "ids[0]: must be a list of token ids"),
        ("/decode", {"ids": [1, "a"]}, 422, "ids: must be a list of token ids"),
        ("/decode", {"ids": [1.0]}, 422, "ids[0]: must be a list of token ids"),
        ("/decode", {"ids": "1 2"}, 422, "ids: must be a list of token ids, or a list of such lists"),
        ("/decode", {"ids": [[1]] * 2049}, 422, "ids: has 2049 lists"),
        ("/embed", {"inputs": "a"}, 422, "model: 'mood' does text-classification; embed requests need"),
        ("/embed_sparse", {"inputs": "a"}, 424, "SPLADE"),
        ("/predict", {"inputs": "cat " * 40}, 422, "text[0] has 42 tokens; this model takes 32"),
        ("/rerank", {"query": "q", "texts": []}, 400, "texts: must not be empty"),
    ],
)
def test_wrong_input_is_told_as_tei_does(
    client: httpx.Client, path: str, body: dict[str, Any], status: int, says: str
) -> None:
    answer = ask(client, f"{MOOD}{path}", status, **body)
    assert says in answer["error"]
    assert answer["error_type"] == {400: "Empty", 422: "Validation", 424: "Backend"}[status]


def test_a_model_without_a_tokenizer_of_its_own_says_so(client: httpx.Client) -> None:
    for model, says in (("echo", "has no tokenizer that can be asked alone"), ("speak", "tokenize requests need")):
        for path, body in (("tokenize", {"inputs": "a"}), ("decode", {"ids": [1]})):
            answer = ask(client, f"/tei/{model}/{path}", 422, **body)
            assert says.replace("tokenize requests", f"{path} requests") in answer["error"]
    assert "does not know" in (client.get("/tei/mask/info")).json()["error"]
    assert (client.get("/tei/nope/info")).status_code == 404


def test_too_many_tokens_are_refused(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "MAX_TOKENS", 5)
    ask(client, f"{MOOD}/tokenize", inputs="cat cat cat")
    answer = ask(client, f"{MOOD}/tokenize", 422, inputs=["cat", "cat"])
    assert "text has 6 tokens in all, at most 5" in answer["error"]


def test_token_vectors_pool_to_the_texts_vector(client: httpx.Client) -> None:
    texts = ["the cat", "a happy dog", "no"]
    vectors = ask(client, "/embed", inputs=texts)
    for given in (texts, texts[:1]):
        found = ask(client, "/embed_all", inputs=given)
        assert [len(rows) for rows in found] == [4, 5, 3][: len(given)]
        for rows, vector in zip(found, vectors, strict=False):
            mean = np.mean(rows, axis=0)
            np.testing.assert_allclose(mean / np.linalg.norm(mean), vector, atol=1e-4)
    ids = [[t["id"] for t in row] for row in ask(client, "/tei/embed/tokenize", inputs=texts)]
    np.testing.assert_allclose(ask(client, "/embed", inputs=ids), vectors, atol=1e-4)
    np.testing.assert_allclose(ask(client, "/embed", inputs=ids[1]), vectors[1:2], atol=1e-4)


def test_token_vectors_show_by_text_on_the_native_route_and_by_token_in_v2(client: httpx.Client) -> None:
    native = ask(client, "/v1/predict", model="embed", inputs=["a", "a cat"], parameters={"pooled": False})
    assert [len(rows) for rows in native["outputs"]] == [3, 4]
    text = {"name": "text", "datatype": "BYTES", "shape": [2], "data": ["a", "a cat"]}
    v2 = ask(client, "/v2/models/embed/infer", inputs=[text], parameters={"pooled": False})
    assert [(tensor["name"], tensor["shape"]) for tensor in v2["outputs"]] == [
        ("embedding", [7, 32]),
        ("n_tokens", [2]),
    ]


def test_token_vectors_are_bounded(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentence_embedding, "MAX_BYTES", 4 * 32 * 6)
    ask(client, "/embed_all", inputs="the cat no")
    answer = ask(client, "/embed_all", 422, inputs=["the cat no", "a"])
    assert "send fewer or shorter texts" in answer["error"]


def test_prompts_are_the_models_own(client: httpx.Client) -> None:
    prompted = ask(client, "/embed", inputs="cat", prompt_name="query")
    assert prompted != ask(client, "/embed", inputs="cat")
    np.testing.assert_allclose(ask(client, "/embed", inputs="to cat"), prompted, atol=1e-5)
    (tokens,) = ask(client, "/tei/embed/tokenize", inputs="cat", prompt_name="query", add_special_tokens=False)
    assert [token["text"] for token in tokens] == ["to", "cat"]
    for path, model in (("/embed", {}), ("/embed_all", {}), ("/tokenize", {"model": "embed"})):
        answer = ask(client, path, 422, inputs="cat", prompt_name="nope", **model)
        assert "this model has no prompt 'nope'; it has: query" in answer["error"]
    answer = ask(client, "/embed", 422, inputs=[5], prompt_name="query")
    assert "goes with texts" in answer["error"]


def test_tokens_and_vectors_of_a_text_are_cached_apart(client: httpx.Client) -> None:
    for _ in range(2):
        assert len(ask(client, "/embed", inputs=["a dog"])) == 1
        assert len((ask(client, "/tei/embed/tokenize", inputs=["a dog"]))[0]) == 4
        assert len((ask(client, "/embed_all", inputs=["a dog", "a dog"]))[1]) == 4
    again = client.post("/tei/embed/tokenize", json={"inputs": ["a dog"]})
    assert again.headers["x-cache"] == "hit"


def test_an_alias_tokenizes_by_its_target(client: httpx.Client) -> None:
    by_alias = ask(client, "/tei/pet/tokenize", inputs="a dog")
    assert by_alias == ask(client, "/tei/embed/tokenize", inputs="a dog")


def test_info_says_what_is_known(client: httpx.Client) -> None:
    found = (client.get("/tei/embed/info")).json()
    assert found["model_type"] == {"embedding": {"pooling": "mean"}}
    assert (found["max_input_length"], found["model_dtype"], found["auto_truncate"]) == (16, "float32", False)
    mood = (client.get("/tei/mood/info")).json()
    assert mood["model_type"]["classifier"]["label2id"] == {"NEGATIVE": 0, "NEUTRAL": 1, "POSITIVE": 2}
    assert mood["served_model_name"] == "mood:1"


def test_deadlines_and_body_limits_hold(client: httpx.Client) -> None:
    answer = client.post(f"{MOOD}/tokenize", json={"inputs": "a"}, headers={"x-request-timeout-seconds": "5"})
    assert "total" in answer.headers["server-timing"]
    too_long = client.post(f"{MOOD}/tokenize", content=b"[" + b" " * 2**20 + b"]")
    assert too_long.status_code == 413
    assert too_long.json()["error_type"] == "Validation"
