"""`serve_app.validation`: what cannot work although every field is right, and what works badly."""

import hashlib
from pathlib import Path

import pytest
from config_files import CASSETTE, GONE, INGRESS, POOL, SHARED, SRE, VOICE, Table, changed, default, lines_of, write

from serve_app.validation import Scope, check

OPTIONS = (*POOL, "ray_actor_options")
SCALING = {"min_replicas": 1, "max_replicas": 2}
MODEL = "applications[2].deployments[1].user_config.models[0]"

IMPOSSIBLE: Table = {
    "pinned over budget": (
        [(("applications", 1, "args", "budget_bytes"), "64MiB")],
        "applications[1].args.budget_bytes: the pinned models of this pool take 86.6 MiB, its budget is 64.0 MiB",
    ),
    "model over budget": (
        [(("applications", 2, "args", "budget_bytes"), "80MiB")],
        "applications[2].deployments[1].user_config.models[1]: its weights (86.6 MiB) do not fit into budget_bytes "
        "(80.0 MiB)",
    ),
    "model over what pins leave": (
        [((*SRE, "pinned"), True)],
        "applications[2].deployments[1].user_config.models[2]: its weights (86.6 MiB) do not fit into budget_bytes "
        "(150.0 MiB) beside the pinned models (86.6 MiB)",
    ),
    "package": (
        [((*CASSETTE, "source", "package"), "cognitoin")],
        f"{MODEL}.source.package: no such package is installed on this machine (value 'cognitoin')",
    ),
    "digest of no file": (
        [((*CASSETTE, "source", "sha256"), {"model.safetensor": "0" * 64})],
        f"{MODEL}.source.sha256.model.safetensor: there is no such file in ",
    ),
    "format not allowed": (
        [((*VOICE, "allow"), [])],
        "applications[2].deployments[1].user_config.models[3].allow: ",
    ),
    "device without a GPU": (
        [(("applications", 1, "args", "device"), "cuda")],
        "applications[1].deployments[1].ray_actor_options.num_gpus: device cuda needs a GPU, and Ray hides them from "
        "a replica that reserves none",
    ),
    "Serve's default concurrency": (
        [((*POOL, "max_ongoing_requests"), GONE)],
        "applications[1].deployments[1].max_ongoing_requests: missing: Serve's default of 5 calls at once is too low; "
        "write 4 or more",
    ),
    "bodies larger than messages": (
        [
            (
                ("controller_options",),
                {"runtime_env": {"env_vars": {"RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": "1000"}}},
            )
        ],
        "applications[0].args.max_body_bytes: a body of that size would not get from the ingress to a pool: messages "
        "end at 1000 bytes; set RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH above 67108864 in every Ray process",
    ),
    "open to the network": (
        [(("http_options", "host"), "0.0.0.0")],  # noqa: S104
        "http_options.host: other machines reach this address, and the endpoint has no authentication; "
        "write 127.0.0.1, or configure the Ingress's auth.keys or auth.jwt, or write its auth.allow_anonymous: true "
        "(value '0.0.0.0')",
    ),
    "open by Serve's default": (
        [(("http_options", "host"), GONE)],
        "http_options.host: other machines reach this address, and the endpoint has no authentication; Serve's default "
        "is 0.0.0.0; write 127.0.0.1, or configure the Ingress's auth.keys or auth.jwt, or write its "
        "auth.allow_anonymous: true",
    ),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_what_cannot_work_gets_its_line(name: str, tmp_path: Path) -> None:
    changes, expected = IMPOSSIBLE[name]
    lines = lines_of(tmp_path, changed(*changes))
    assert any(line == expected or (line.startswith(expected) and expected[-1] == " ") for line in lines), lines


def test_a_changed_file_is_found_when_hashes_are_asked_for(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "model.safetensors").write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    source = {"path": str(tmp_path / "m"), "sha256": {"model.safetensors": "0" * 64}}
    data = changed(((*CASSETTE, "source"), source))
    assert lines_of(tmp_path, data) == []
    [line] = lines_of(tmp_path, data, Scope(hashes_files=True))
    assert line.startswith(f"{MODEL}.source.sha256.model.safetensors: the file's digest is {digest}: ")


def test_a_misspelt_folder_gets_the_name_of_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    data = changed(((*CASSETTE, "source"), {"path": f"{tmp_path}/weihgts"}))
    [line] = lines_of(tmp_path, data)
    assert line.endswith(f"did you mean '{tmp_path}/weights'?")


def test_files_of_another_machine_are_not_looked_for(tmp_path: Path) -> None:
    data = changed(((*CASSETTE, "source"), {"path": "/models/elsewhere"}))
    assert lines_of(tmp_path, data, Scope(reads_files=False)) == []


def test_a_source_on_the_hub_is_left_to_the_pool(tmp_path: Path) -> None:
    assert lines_of(tmp_path, changed(((*CASSETTE, "source"), {"hub": "org/name", "revision": "a" * 40}))) == []


@pytest.mark.parametrize("auth", [{"allow_anonymous": True}, {"keys": "file:/etc/model-endpoint/keys.json"}])
def test_an_open_address_is_right_with_keys_or_where_it_is_meant(auth: dict[str, object], tmp_path: Path) -> None:
    data = changed((("http_options", "host"), "0.0.0.0"), ((*INGRESS, "user_config", "auth"), auth))  # noqa: S104
    assert lines_of(tmp_path, data) == []


def test_a_secret_in_the_file_is_refused_without_being_repeated(tmp_path: Path) -> None:
    [line] = lines_of(tmp_path, changed(((*INGRESS, "user_config", "auth"), {"keys": "hunter2"})))
    assert "write env:NAME or file:/path" in line
    assert "hunter2" not in line


@pytest.mark.parametrize("host", ["localhost", "127.0.0.7", "::1"])
def test_any_loopback_address_will_do(host: str, tmp_path: Path) -> None:
    assert lines_of(tmp_path, changed((("http_options", "host"), host))) == []


def test_the_flags_of_the_ray_processes_count_for_the_message_limit(tmp_path: Path) -> None:
    flags = {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}
    [line] = lines_of(tmp_path, default(), Scope(environ=flags))
    assert "messages end at 4194304 bytes" in line
    flags["RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH"] = str(2**28)
    assert lines_of(tmp_path, default(), Scope(environ=flags)) == []


WARNED: Table = {
    "no router": ([((*POOL, "request_router_config"), GONE)], "every replica would load every model"),
    "idle GPU": ([((*OPTIONS, "num_gpus"), 1)], "leaves idle"),
    "bulkhead": (
        [((*INGRESS, "user_config", "bulkhead", "max_requests"), 1000)],
        "applications[0].deployments[0].user_config.bulkhead.max_requests: one model could take the whole ingress",
    ),
    "few calls": ([((*SHARED, "max_ongoing_requests"), 8)], "16 calls or more may come at once"),
    "no room to change": ([(("applications", 1, "args", "budget_bytes"), "100MiB")], "a changed version (86.6 MiB)"),
    "foreign application": (
        [(("applications", 3), {"name": "own", "import_path": "their.app:build", "route_prefix": None})],
        "an application of its own",
    ),
    "Serve's own warning": (
        [((*POOL, "num_replicas"), GONE), ((*POOL, "autoscaling_config"), SCALING | {"look_back_period_s": 5})],
        "must be greater than `metrics_interval_s`",
    ),
}


@pytest.mark.parametrize("name", WARNED)
def test_what_works_badly_is_a_warning_and_no_error(name: str, tmp_path: Path) -> None:
    changes, expected = WARNED[name]
    report = check(write(tmp_path, changed(*changes)))
    assert report.errors == ()
    assert any(expected in line for line in report.warnings), report.warnings
