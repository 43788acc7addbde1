"""kserve's inference clients: REST in both its protocols, and gRPC."""

import httpx
import numpy as np
from checks import raises, run
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig

A = np.arange(16, dtype=np.int32).reshape(1, 16)
B = np.ones((1, 16), dtype=np.int32)


def request(model: str = "simple", *, binary: bool = False) -> InferRequest:
    made = [InferInput("INPUT0", [1, 16], "INT32"), InferInput("INPUT1", [1, 16], "INT32")]
    for tensor, array in zip(made, (A, B), strict=True):
        tensor.set_data_from_numpy(array, binary_data=binary)
    return InferRequest(model_name=model, infer_inputs=made)


async def check_rest_v2(url: str, address: str) -> None:
    client = InferenceRESTClient(config=RESTConfig(protocol="v2", timeout=30))
    base = f"http://{url}"
    assert await client.is_server_live(base)
    assert await client.is_server_ready(base)
    assert await client.is_model_ready(base, model_name="simple")
    for binary in (False, True):
        answer = await client.infer(base, request(binary=binary), model_name="simple")
        found = {output.name: output.as_numpy() for output in answer.outputs}
        assert np.array_equal(found["OUTPUT0"].reshape(1, 16), A + B)
    with raises(httpx.HTTPStatusError, "404"):
        await client.infer(base, request("nope"), model_name="nope")
    await client.close()


async def check_rest_v1(url: str, address: str) -> None:
    client = InferenceRESTClient(config=RESTConfig(protocol="v1", timeout=30))
    base = f"http://{url}"
    assert await client.is_server_live(base)
    assert await client.is_model_ready(base, model_name="simple")
    instances = [{"INPUT0": A[0].tolist(), "INPUT1": B[0].tolist()}] * 2
    answer = await client.infer(base, {"instances": instances}, model_name="simple")
    assert answer["predictions"] == [{"OUTPUT0": (A + B)[0].tolist(), "OUTPUT1": (A - B)[0].tolist()}] * 2
    await client.close()


async def check_grpc(url: str, address: str) -> None:
    client = InferenceGRPCClient(url=address, timeout=30)
    assert await client.is_server_live()
    assert await client.is_server_ready()
    assert await client.is_model_ready(model_name="simple")
    for binary in (False, True):
        answer = await client.infer(request(binary=binary))
        found = {output.name: output.as_numpy() for output in answer.outputs}
        assert np.array_equal(found["OUTPUT0"].reshape(1, 16), A + B)
    with raises(Exception, "unknown model"):
        await client.infer(request("nope"))
    await client.close()


run(globals())
