"""Fixtures shared by the tests of the HTTP edge: a fake gateway, the real ASGI app over it, a client for that."""

import os

# Before anything is imported: huggingface_hub reads it once. No test reaches the network.
os.environ["HF_HUB_OFFLINE"] = "1"

from collections.abc import AsyncIterator

import httpx
import pytest
from edge_fakes import MAX_BODY_BYTES, FakeGateway
from hypothesis import HealthCheck, settings
from starlette.applications import Starlette

from serve_app.http import build_asgi

# These machines are slow and noisy: how long an example takes says nothing.
settings.register_profile("noisy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("noisy")


@pytest.fixture
def gateway() -> FakeGateway:
    return FakeGateway()


@pytest.fixture
def asgi(gateway: FakeGateway) -> Starlette:
    return build_asgi(gateway, MAX_BODY_BYTES)


@pytest.fixture
async def client(asgi: Starlette) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(asgi)
    async with httpx.AsyncClient(transport=transport, base_url="http://endpoint") as opened:
        yield opened
