"""The gRPC door over the fake gateway, without a server: methods called as Serve calls them."""

from dataclasses import dataclass, field

import grpc
from edge_fakes import MAX_BODY_BYTES, FakeGateway

from serve_app.rpc.calls import Calls
from serve_app.rpc.health import HealthRpcs
from serve_app.rpc.inference import InferenceRpcs


@dataclass
class Rpc:
    """What Serve hands to a method, and what the method says of its end."""

    metadata: dict[str, str | bytes] = field(default_factory=dict)
    code: grpc.StatusCode | None = None
    details: str = ""
    trailing: dict[str, str] = field(default_factory=dict)

    def invocation_metadata(self) -> list[tuple[str, str | bytes]]:
        return list(self.metadata.items())

    def peer(self) -> str:
        return "ipv4:127.0.0.1:5000"

    def set_code(self, code: grpc.StatusCode) -> None:
        self.code = code

    def set_details(self, details: str) -> None:
        self.details = details

    def set_trailing_metadata(self, trailing_metadata: list[tuple[str, str]]) -> None:
        self.trailing = dict(trailing_metadata)


class Service(InferenceRpcs, HealthRpcs):
    def __init__(self, gateway: FakeGateway, *, admits: bool = True) -> None:
        self.calls = Calls(gateway, MAX_BODY_BYTES, lambda _: admits)  # type: ignore[arg-type]
