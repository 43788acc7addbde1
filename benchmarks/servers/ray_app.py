"""Ray Serve as its documentation teaches it: a FastAPI ingress in front of a deployment whose method is `@serve.batch`.

Model composition, because a server of several models needs it. Concurrency is raised as the batching guide says.
"""

from fastapi import FastAPI
from pydantic import BaseModel
from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

from benchmarks.servers.encoder import Encoder

api = FastAPI()
_MAX_BATCH = 32


class Request(BaseModel):
    texts: list[str]


class Response(BaseModel):
    embeddings: list[list[float]]


@serve.deployment(max_ongoing_requests=2 * _MAX_BATCH, ray_actor_options={"num_cpus": 0.5})
class Model:
    def __init__(self, threads: int) -> None:
        self._encoder = Encoder(threads)

    @serve.batch(max_batch_size=_MAX_BATCH, batch_wait_timeout_s=0.01)
    async def embed(self, requests: list[list[str]]) -> list[list[list[float]]]:
        vectors = iter(self._encoder.embed([text for texts in requests for text in texts]).tolist())
        return [[next(vectors) for _ in texts] for texts in requests]


@serve.deployment(max_ongoing_requests=1000, ray_actor_options={"num_cpus": 0.5})
@serve.ingress(api)
class Api:
    def __init__(self, model: DeploymentHandle) -> None:
        self._model = model

    @api.post("/embed")
    async def embed(self, request: Request) -> Response:
        return Response(embeddings=await self._model.embed.remote(request.texts))


def build(args: dict[str, int]) -> Application:
    """Build it with `replicas` of the model and `threads` each."""
    model = Model.options(num_replicas=args["replicas"])
    return Api.bind(model.bind(args["threads"]))
