"""FastAPI calling the model in its thread pool, a request at a time, without batching: what a user writes first."""

import os

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from benchmarks.servers.encoder import Encoder

app = FastAPI()
encoder = Encoder()


class Request(BaseModel):
    texts: list[str]


class Response(BaseModel):
    embeddings: list[list[float]]


@app.post("/embed")
def embed(request: Request) -> Response:
    return Response(embeddings=encoder.embed(request.texts).tolist())


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ["BENCH_PORT"]), log_level="warning", access_log=False)
