"""API keys: from the command line to the gateway's answer, with a file that changes meanwhile."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from pydantic import ValidationError

from deployments.errors import Unauthenticated
from serve_app.api_keys import KeyRing, new_key, now_utc
from serve_app.auth import Authenticator
from serve_app.auth_config import AuthConfig
from serve_app.cli import main
from serve_app.config import EndpointConfig
from serve_app.principals import ANONYMOUS
from serve_app.protocols.types import Action


class Desk:
    """An operator's key file, and an authenticator that reads it."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.path = folder / "keys.json"
        self.capsys = capsys
        self.now = now_utc()
        self.auth = Authenticator(now=self.clock)
        self.auth.exposed_host = ""

    def clock(self) -> datetime:
        return self.now

    def run(self, command: str, *args: str, code: int = 0) -> tuple[str, str]:
        self.capsys.readouterr()
        assert main(["keys", command, "--file", str(self.path), *args]) == code
        self.auth.refresh()
        return self.capsys.readouterr()

    def create(self, *args: str, principal: str = "team-a") -> str:
        return self.run("create", "--principal", principal, *args)[0].strip()

    def configure(self, **fields: object) -> None:
        self.auth.configure(EndpointConfig(auth=AuthConfig.model_validate({"keys": f"file:{self.path}", **fields})))

    async def who(self, key: str) -> str:
        return (await self.auth.identify({"authorization": f"Bearer {key}"})).name


@pytest.fixture
def desk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Desk]:
    made = Desk(tmp_path, capsys)
    made.configure()
    return made  # type: ignore[return-value]


async def test_a_new_key_works_without_a_restart_in_either_header(desk: Desk) -> None:
    key = desk.create("--priority", "low", "--models", "mini*,sre:1", "--actions", "infer")
    for headers in (
        {"authorization": f"bearer  {key} "},
        {"x-api-key": key},
        {"authorization": "Basic x", "x-api-key": key},
    ):
        principal = await desk.auth.identify(headers)
        assert (principal.name, principal.priority) == ("team-a", -1)
    assert principal.credential == key.split("_")[1]
    assert principal.may(Action.INFER, "minilm", "minilm:3")
    assert principal.may(Action.INFER, "sre", "sre:1")
    assert not principal.may(Action.INFER, "sre", "sre:2")
    assert not principal.may(Action.READ)
    assert not principal.may(Action.ADMIN)


async def test_only_the_digest_is_kept_and_the_file_is_private(desk: Desk) -> None:
    key = desk.create()
    assert key.split("_", 2)[2] not in desk.path.read_text()
    assert desk.path.stat().st_mode & 0o077 == 0
    assert key not in desk.run("list")[0]


@pytest.mark.parametrize(
    "damage",
    [
        lambda k: k[:-1],
        lambda k: k + "x",
        lambda k: k[:-1] + "!",
        lambda k: "me_" + "0" * 12 + k[15:],
        lambda k: "",
        lambda k: "é" * 50,
    ],
)
async def test_a_wrong_key_is_nobody(desk: Desk, damage: object) -> None:
    key = desk.create()
    with pytest.raises(Unauthenticated) as caught:
        await desk.who(damage(key))  # type: ignore[operator]
    assert key not in caught.value.message


async def test_a_revoked_key_ends_at_once_and_stays_in_the_list(desk: Desk) -> None:
    key, other = desk.create(), desk.create(principal="team-b")
    desk.run("revoke", key.split("_")[1])
    with pytest.raises(Unauthenticated, match="not valid"):
        await desk.who(key)
    assert await desk.who(other) == "team-b"
    assert "revoked" in desk.run("list")[0]


async def test_a_key_expires(desk: Desk) -> None:
    key = desk.create("--expires", "2h")
    assert await desk.who(key) == "team-a"
    desk.now += timedelta(hours=2, minutes=1)
    with pytest.raises(Unauthenticated, match="expired"):
        await desk.who(key)


async def test_rotation_leaves_both_keys_in_force_for_a_while(desk: Desk) -> None:
    old = desk.create("--actions", "infer,metrics", "--expires", "30d")
    new = desk.run("rotate", old.split("_")[1], "--overlap", "1d")[0].strip()
    assert await desk.who(old) == await desk.who(new) == "team-a"
    assert (await desk.auth.identify({"x-api-key": new})).may(Action.METRICS)
    desk.now += timedelta(days=1, minutes=1)
    with pytest.raises(Unauthenticated):
        await desk.who(old)
    assert await desk.who(new) == "team-a"
    desk.now += timedelta(days=29)
    with pytest.raises(Unauthenticated):
        await desk.who(new)


async def test_a_file_that_turns_bad_leaves_the_keys_before_in_force_and_is_told(desk: Desk) -> None:
    key, good = desk.create(), desk.path.read_text()
    for text in ("{", "[]", '{"keys": 1}', '{"keys": [', ""):
        desk.path.write_text(text)
        desk.auth.refresh()
        assert await desk.who(key) == "team-a"
        assert "not a key file" in desk.auth.problems["auth.keys"]
    desk.path.unlink()
    desk.auth.refresh()
    assert "cannot be read" in desk.auth.problems["auth.keys"]
    assert await desk.who(key) == "team-a"
    desk.path.write_text(good)
    desk.auth.refresh()
    assert desk.auth.problems == {}


async def test_one_bad_entry_costs_nobody_else(desk: Desk) -> None:
    bad, good = desk.create(), desk.create(principal="team-b")
    desk.path.write_text(desk.path.read_text().replace('"read"', '"reed"', 1))
    desk.auth.refresh()
    assert "grants.0.actions.1" in desk.auth.problems["auth.keys.keys[0]"]
    with pytest.raises(Unauthenticated):
        await desk.who(bad)
    assert await desk.who(good) == "team-b"


async def test_keys_from_a_variable(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    key = desk.create()
    monkeypatch.setenv("ENDPOINT_KEYS", desk.path.read_text())
    desk.configure(keys="env:ENDPOINT_KEYS")
    assert await desk.who(key) == "team-a"
    desk.configure(keys="env:NOT_SET")
    assert "NOT_SET is not set" in desk.auth.problems["auth.keys"]
    with pytest.raises(Unauthenticated):
        await desk.who(key)


async def test_without_a_credential_only_where_that_is_written(desk: Desk) -> None:
    key = desk.create()
    with pytest.raises(Unauthenticated, match="is needed"):
        await desk.auth.identify({})
    desk.configure(allow_anonymous=True, anonymous=[{"actions": ["metrics"]}])
    principal = await desk.auth.identify({})
    assert principal.name == "anonymous"
    assert principal.may(Action.METRICS)
    assert not principal.may(Action.INFER)
    with pytest.raises(Unauthenticated):
        await desk.auth.identify({"x-api-key": key[:-1]})


async def test_without_authentication_everybody_but_only_on_loopback_unless_it_is_written() -> None:
    auth = Authenticator()
    with pytest.raises(Unauthenticated, match="not known yet"):
        await auth.identify({})
    auth.exposed_host = ""
    assert await auth.identify({"authorization": "Bearer whatever-the-openai-client-sends"}) is ANONYMOUS
    auth.exposed_host = "0.0.0.0"  # noqa: S104
    with pytest.raises(Unauthenticated, match="allow_anonymous: true"):
        await auth.identify({})
    auth.configure(EndpointConfig(auth=AuthConfig(allow_anonymous=True)))
    assert await auth.identify({}) is ANONYMOUS


@pytest.mark.parametrize("secret", ["hunter2", "file:", "env:", "env:not a name", "me_0_x"])
def test_a_secret_in_the_yaml_is_refused_without_being_repeated(secret: str) -> None:
    with pytest.raises(ValidationError) as caught:
        AuthConfig(keys=secret)
    [error] = caught.value.errors()
    assert error["type"] == "secret_reference"
    assert secret not in error["msg"] or secret in ("file:", "env:")


@pytest.mark.parametrize(
    ("command", "args", "said"),
    [
        ("create", ["--principal", "x", "--actions", "fly"], "actions"),
        ("create", ["--principal", ""], "principal"),
        ("revoke", ["000000000000"], "no key has the id"),
        ("rotate", ["000000000000"], "no key has the id"),
    ],
)
def test_wrong_wishes_are_refused_and_change_nothing(desk: Desk, command: str, args: list[str], said: str) -> None:
    desk.create()
    before = desk.path.read_text()
    assert said in desk.run(command, *args, code=1)[1]
    assert desk.path.read_text() == before


def test_there_is_nothing_to_list_without_a_file(desk: Desk) -> None:
    assert "no key file" in desk.run("list", code=1)[1]


def test_looking_a_key_up_costs_the_same_among_many() -> None:
    from serve_app.api_keys import KeyRecord

    made = [new_key() for _ in range(1000)]
    records = [KeyRecord(id=i, principal=f"p{n}", sha256=d, created=now_utc()) for n, (i, _, d) in enumerate(made)]
    ring = KeyRing(records)
    assert ring.identify(made[999][1], now_utc()).name == "p999"
    assert len(ring.ids) == 1000


@pytest.mark.parametrize(
    ("peer", "is_admitted"),
    [
        ("ipv4:127.0.0.1:5000", True),
        ("ipv6:%5B::1%5D:5000", True),
        ("unix:", True),
        ("ipv4:10.0.0.7:5000", False),
        ("ipv6:%5Bfe80::1%5D:5000", False),
        ("", False),
    ],
)
def test_without_authentication_only_this_machine_comes_in_by_grpc(peer: str, is_admitted: bool) -> None:
    assert Authenticator().admits(peer) is is_admitted


def test_with_authentication_or_open_on_purpose_every_peer_comes_in() -> None:
    door = Authenticator()
    door.configure(EndpointConfig.model_validate({"auth": {"allow_anonymous": True}}))
    assert door.admits("ipv4:10.0.0.7:5000")
