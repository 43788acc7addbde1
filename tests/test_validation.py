"""`serve_app.validation`: the text, and Serve's own part of it; each fault gets a line that says how to mend it."""

from pathlib import Path

import pytest
from config_files import CASSETTE, DEFAULT, GONE, INGRESS, POOL, SRE, Table, changed, lines_of, write

from serve_app.validation import check_file

OPTIONS = (*POOL, "ray_actor_options")
SCALING = {"min_replicas": 1, "max_replicas": 2}
ENDPOINTS = "applications[0].deployments[0]"

SERVE_FIELDS: Table = {
    "unknown top key": ([(("http_option",), {})], "http_option: unknown key; did you mean 'http_options'?"),
    "unknown http key": (
        [(("http_options", "hosts"), "x")],
        "http_options.hosts: unknown key (value 'x'); did you mean 'host'?",
    ),
    "port is text": (
        [(("http_options", "port"), "many")],
        "http_options.port: input should be a valid integer, unable to parse string as an integer (value 'many')",
    ),
    "port out of range": ([(("http_options", "port"), 70000)], "http_options.port: ports are 1 to 65535 (value 70000)"),
    "proxy location": (
        [(("proxy_location",), "EveryNod")],
        "proxy_location: input should be 'Disabled', 'HeadOnly' or 'EveryNode' (value 'EveryNod'); "
        "did you mean 'EveryNode'?",
    ),
    "unknown deployment key": (
        [((*INGRESS, "num_replica"), 3)],
        f"{ENDPOINTS}.num_replica: unknown key (value 3); did you mean 'num_replicas'?",
    ),
    "no replicas": (
        [((*INGRESS, "num_replicas"), 0)],
        f"{ENDPOINTS}.num_replicas: input should be greater than 0 (value 0)",
    ),
    "unknown actor option": (
        [((*OPTIONS, "num_cpu"), 1)],
        "applications[1].deployments[1].ray_actor_options.num_cpu: unknown key (value 1); did you mean 'num_cpus'?",
    ),
    "negative cpus": (
        [((*OPTIONS, "num_cpus"), -1)],
        "applications[1].deployments[1].ray_actor_options.num_cpus: input should be greater than or equal to 0 "
        "(value -1)",
    ),
    "unknown autoscaling key": (
        [((*POOL, "num_replicas"), GONE), ((*POOL, "autoscaling_config"), SCALING | {"min_replica": 1})],
        "applications[1].deployments[1].autoscaling_config.min_replica: unknown key (value 1); "
        "did you mean 'min_replicas'?",
    ),
    "autoscaling bounds": (
        [((*POOL, "num_replicas"), GONE), ((*POOL, "autoscaling_config"), {"min_replicas": 3, "max_replicas": 2})],
        "applications[1].deployments[1].autoscaling_config: max_replicas (2) must be greater than or equal to "
        "min_replicas (3)!",
    ),
    "autoscaling policy": (
        [
            ((*POOL, "num_replicas"), GONE),
            ((*POOL, "autoscaling_config"), SCALING | {"policy": {"policy_functoin": "a:b"}}),
        ],
        "applications[1].deployments[1].autoscaling_config.policy.policy_functoin: unknown key (value 'a:b'); "
        "did you mean 'policy_function'?",
    ),
    "unknown router key": (
        [((*POOL, "request_router_config", "request_router_clas"), "x")],
        "applications[1].deployments[1].request_router_config.request_router_clas: unknown key (value 'x'); "
        "did you mean 'request_router_class'?",
    ),
    "router period": (
        [((*POOL, "request_router_config", "request_routing_stats_period_s"), 0)],
        "applications[1].deployments[1].request_router_config.request_routing_stats_period_s: "
        "input should be greater than 0 (value 0)",
    ),
    "unknown grpc key": (
        [(("grpc_options",), {"prot": 9000})],
        "grpc_options.prot: unknown key (value 9000); did you mean 'port'?",
    ),
    "unknown logging key": (
        [(("logging_config", "log_levle"), "INFO")],
        "logging_config.log_levle: unknown key (value 'INFO'); did you mean 'log_level'?",
    ),
    "runtime environment": (
        [((*OPTIONS, "runtime_env"), {"env_var": {}})],
        "applications[1].deployments[1].ray_actor_options.runtime_env.env_var: unknown key of a runtime environment; "
        "did you mean 'env_vars'?",
    ),
    "env var is a number": (
        [(("applications", 1, "runtime_env"), {"env_vars": {"OMP_NUM_THREADS": 1}})],
        "applications[1].runtime_env.env_vars.OMP_NUM_THREADS: environment variables are text; put it in quotes "
        "(value 1)",
    ),
    "applications missing": ([(("applications",), GONE)], "applications: expected a list of applications (value null)"),
    "a deployment is text": ([(INGRESS, "Ingress")], f"{ENDPOINTS}: expected a mapping (value 'Ingress')"),
}


@pytest.mark.parametrize("name", SERVE_FIELDS)
def test_a_fault_in_serves_part_gets_its_line(name: str, tmp_path: Path) -> None:
    changes, expected = SERVE_FIELDS[name]
    lines = lines_of(tmp_path, changed(*changes))
    assert any(line == expected or (line.startswith(expected) and expected[-1] == " ") for line in lines), lines


def test_every_line_names_file_and_line(tmp_path: Path) -> None:
    text = DEFAULT.read_text().replace("task: fill-mask", "task: fil-mask")
    path = write(tmp_path, text)
    number = next(i for i, line in enumerate(text.splitlines(), 1) if "fil-mask" in line)
    [line] = check_file(path)
    assert line.startswith(f"{path}:{number}: applications[2].deployments[1].user_config.models[0].task: ")


def test_one_run_names_every_fault(tmp_path: Path) -> None:
    lines = lines_of(tmp_path, changed((("http_option",), 1), ((*CASSETTE, "timeout"), 1), ((*SRE, "task"), "x")))
    assert len(lines) == 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("applications: [\n", ":2: not valid YAML at column 1: while parsing a flow node expected the node content"),
        ("a: 1\n\tb: 2\n", ":2: not valid YAML at column 1: while scanning for the next token found character"),
        ("applications: []\nhttp_options: {}\napplications: []\n", ":3: applications: written twice, first on line 1"),
        ("", ": expected a mapping at the top"),
        ("- 1\n", ": expected a mapping at the top"),
        ("a: 1\n---\nb: 2\n", ":2: not valid YAML at column 1: expected a single document"),
        ("a: !!python/object:os.system {}\n", ":1: not valid YAML at column 4: could not determine a constructor"),
        ("a: 2026-02-31\n", ": not valid YAML: day"),
        ("a: &a [*a]\n", ":1: a[0]: this alias holds itself"),
        ("a: .inf\n", ":1: a: not a finite number (value '.inf')"),
        ("a: 2026-01-02\n", ":1: a: YAML reads this as a date; put it in quotes (value '2026-01-02')"),
        ("version: 1.10\n", ":1: version: YAML reads this as the number 1.1; put it in quotes (value '1.10')"),
    ],
)
def test_what_is_no_yaml_mapping_is_said_with_its_line(text: str, expected: str, tmp_path: Path) -> None:
    path = write(tmp_path, text)
    assert any(line.startswith(f"{path}{expected}") for line in check_file(path)), check_file(path)


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    assert check_file(tmp_path / "none.yaml") == [f"{tmp_path}/none.yaml: cannot be read: No such file or directory"]
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9\n")
    [line] = check_file(tmp_path / "latin.yaml")
    assert "is not UTF-8" in line


def test_servicer_functions_that_cannot_be_imported_are_named(tmp_path: Path) -> None:
    functions = ["serve_app.rpc.health_pb2_grpc.add_HealthServicer_to_server", "serve_app.rpc.nothing", "x"]
    place = ("grpc_options", "grpc_servicer_functions")
    lines = lines_of(tmp_path, changed((place, functions)))
    assert [line for line in lines if "grpc_servicer_functions" in line] == lines
    assert len(lines) == 2
