"""Fixtures of the gRPC door."""

import pytest
from edge_fakes import FakeGateway
from rpc_fakes import Rpc, Service


@pytest.fixture
def service(gateway: FakeGateway) -> Service:
    return Service(gateway)


@pytest.fixture
def rpc() -> Rpc:
    return Rpc()
