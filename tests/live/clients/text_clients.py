"""The text services' own libraries: openai sync and asyncio, cohere v1 and v2, LangChain's OpenAI embeddings.

vLLM's and Text Embeddings Inference's routes have no library of their own: plain HTTP.
"""

from typing import Any

import cohere
import httpx
import numpy as np
import openai
from checks import comes_true, raises, run
from langchain_openai import OpenAIEmbeddings

TEXTS = ["a cat sat on the mat", "GPU memory is full"]
DOCUMENTS = ["shares fell on Monday", "the cat is asleep", "memory chips are scarce"]


def client(url: str, prefix: str = "/v1") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"http://{url}{prefix}", api_key="none", max_retries=0, timeout=60)


def check_openai_embeddings_in_every_form(url: str, grpc: str) -> None:
    ask = client(url).embeddings.create
    base64 = ask(model="minilm", input=TEXTS)
    floats = ask(model="minilm", input=TEXTS, encoding_format="float")
    assert [len(line.embedding) for line in base64.data] == [384, 384]
    assert np.allclose(base64.data[1].embedding, floats.data[1].embedding, atol=1e-6)
    assert base64.usage.prompt_tokens > 4
    ids = [101, 1037, 4937, 2938, 2006, 1996, 13523, 102]  # the first text, by the model's own tokenizer
    for given in (ids, [ids, ids]):
        line = ask(model="minilm", input=given).data[0]
        assert np.allclose(line.embedding, base64.data[0].embedding, atol=1e-4)
    assert len(ask(model="minilm", input="x", dimensions=8).data[0].embedding) == 8


def check_openai_models_errors_and_prefix(url: str, grpc: str) -> None:
    for prefix in ("/v1", "/openai/v1"):
        assert "minilm" in [model.id for model in client(url, prefix).models.list()]
        assert client(url, prefix).models.retrieve("minilm").owned_by == "model-endpoint"
    with raises(openai.NotFoundError, "unknown model", "minilm"):
        client(url).embeddings.create(model="nope", input="a")
    with raises(openai.BadRequestError, "token ids"):
        client(url).embeddings.create(model="minilm", input=[[99999999]])


def check_openai_moderations(url: str, grpc: str) -> None:
    result = client(url).moderations.create(input=TEXTS).results[1]
    scores = result.category_scores
    assert scores.hate > 0
    assert scores.violence > 0
    assert result.flagged == (max(scores.hate, scores.violence) >= 0.5)
    assert result.categories.sexual is False


async def check_openai_asyncio(url: str, grpc: str) -> None:
    async with openai.AsyncOpenAI(base_url=f"http://{url}/v1", api_key="none", max_retries=0) as asked:
        assert len((await asked.embeddings.create(model="minilm", input=TEXTS)).data) == 2


def check_cohere_v2(url: str, grpc: str) -> None:
    asked = cohere.ClientV2(api_key="none", base_url=f"http://{url}")
    answer = asked.rerank(model="rerank-minilm", query="a sleeping pet", documents=DOCUMENTS, top_n=2)
    assert [answer.results[0].index, len(answer.results)] == [1, 2]
    with raises(cohere.core.api_error.ApiError, "404"):
        asked.rerank(model="nope", query="q", documents=["a"])


def check_cohere_v1(url: str, grpc: str) -> None:
    asked = cohere.Client(api_key="none", base_url=f"http://{url}")
    documents = [{"text": text} for text in DOCUMENTS]
    answer = asked.rerank(model="rerank-minilm", query="a sleeping pet", documents=documents, return_documents=True)
    assert answer.results[0].document.text == DOCUMENTS[1]


def check_score_and_classify(url: str, grpc: str) -> None:
    asked = httpx.Client(base_url=f"http://{url}", timeout=60)

    def ask(path: str, **body: object) -> dict[str, Any]:
        found: dict[str, Any] = asked.post(path, json=body).raise_for_status().json()
        return found

    queries = ["stock market", "a sleeping pet", "computer memory"]
    pairs = ask("/score", model="rerank-minilm", text_1=queries, text_2=DOCUMENTS)
    scores = [line["score"] for line in pairs["data"]]
    one_by_one = [
        ask("/v1/score", model="rerank-minilm", text_1=query, text_2=document)["data"][0]["score"]
        for query, document in zip(queries, DOCUMENTS, strict=True)
    ]
    assert np.allclose(scores, one_by_one, atol=1e-5)
    against_one = ask("/score", model="rerank-minilm", text_1=queries[1], text_2=DOCUMENTS)["data"]
    assert max(against_one, key=lambda line: line["score"])["index"] == 1
    assert np.isclose(against_one[1]["score"], scores[1], atol=1e-5)
    wrong = asked.post("/score", json={"model": "rerank-minilm", "text_1": queries, "text_2": DOCUMENTS[:2]})
    assert (wrong.status_code, "text_1: has 3 texts" in wrong.text) == (400, True)
    classes = ask("/classify", model="guard", input=TEXTS)["data"]
    assert [(line["index"], line["num_classes"]) for line in classes] == [(0, 2), (1, 2)]
    alone = ask("/classify", model="guard", input=TEXTS[1])["data"][0]
    assert np.allclose(alone["probs"], classes[1]["probs"], atol=1e-5)


def check_tei(url: str, grpc: str) -> None:
    asked = httpx.Client(base_url=f"http://{url}/tei/minilm", timeout=60)

    def ask(path: str, **body: object) -> Any:
        return asked.post(path, json=body).raise_for_status().json()

    (tokens,) = ask("/tokenize", inputs="a cat sat")
    assert [token["id"] for token in tokens] == [101, 1037, 4937, 2938, 102]
    assert [token["text"] for token in tokens] == ["[CLS]", "a", "cat", "sat", "[SEP]"]
    assert ask("/decode", ids=[token["id"] for token in tokens]) == ["a cat sat"]
    (rows,) = ask("/embed_all", inputs="a cat sat")
    mean = np.mean(rows, axis=0)
    assert np.allclose(mean / np.linalg.norm(mean), ask("/embed", inputs="a cat sat")[0], atol=1e-4)

    def is_told() -> bool:
        info = asked.get("/info").json()
        return (info["max_input_length"], info["model_type"]) == (256, {"embedding": {"pooling": "mean"}})

    assert comes_true(is_told)
    assert asked.post("/tokenize", json={"inputs": 1}).status_code == 422
    assert asked.post("/embed_sparse", json={"inputs": "a"}).status_code == 424


def check_langchain(url: str, grpc: str) -> None:
    asked = OpenAIEmbeddings(
        model="minilm",
        base_url=f"http://{url}/v1",
        api_key="none",
        check_embedding_ctx_length=False,  # or it sends token ids of OpenAI's own vocabulary
    )
    vectors = asked.embed_documents(TEXTS)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert np.allclose(asked.embed_query(TEXTS[0]), vectors[0], atol=1e-5)


run(globals())
