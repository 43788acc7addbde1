"""`kuberay/`: the manifest says what `serve_config.yaml` says, agrees with the pinned Ray, keeps KubeRay's rules."""

import copy
import re
import runpy
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from config_files import DEFAULT, ROOT, default
from kuberay_rules import broken_rules, unknown_keys
from ray.serve.schema import ServeDeploySchema

from serve_app.validation import Scope, check_text
from serve_app.validation.document import read

MANIFEST = ROOT / "kuberay" / "rayservice.yaml"
CONTAINERFILE = ROOT / "kuberay" / "Containerfile"


@pytest.fixture(scope="module")
def manifest() -> dict[str, Any]:
    """Return the manifest as data; a key written twice fails here."""
    document = read(MANIFEST)
    assert document.problems == []
    assert document.data is not None
    return document.data


@pytest.fixture(scope="module")
def cluster(manifest: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = manifest["spec"]["rayClusterConfig"]
    return found


def containers(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the Ray container of the head and of each worker group."""
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"]["containers"][0] for group in groups]


def env(container: dict[str, Any]) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in container["env"]}


def pinned_ray() -> str:
    """Return Ray's version in pyproject.toml."""
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    [version] = [found[1] for line in dependencies if (found := re.fullmatch(r"ray\[serve\]==([\d.]+)", line))]
    return version


def test_the_manifest_serves_the_default_config_but_for_host_and_keys(manifest: dict[str, Any]) -> None:
    expected = default()
    expected["http_options"]["host"] = "0.0.0.0"  # noqa: S104
    expected["applications"][0]["deployments"][0]["user_config"]["auth"]["keys"] = "file:/etc/model-endpoint/keys.json"
    assert yaml.safe_load(manifest["spec"]["serveConfigV2"]) == expected


def test_the_embedded_config_is_what_the_script_writes() -> None:
    embedded = runpy.run_path(str(ROOT / "kuberay" / "embed.py"))["embedded"]
    text = MANIFEST.read_text()
    assert embedded(DEFAULT.read_text(), text) == text


def test_the_embedded_config_passes_serves_schema_and_our_validation(manifest: dict[str, Any]) -> None:
    text = manifest["spec"]["serveConfigV2"]
    ServeDeploySchema.model_validate(yaml.safe_load(text))
    report = check_text(text, "serveConfigV2", Scope(environ=env(containers(manifest["spec"]["rayClusterConfig"])[1])))
    assert report.errors == report.warnings == ()


def test_ray_is_the_pinned_one_everywhere(cluster: dict[str, Any]) -> None:
    version = pinned_ray()
    assert cluster["rayVersion"] == version
    assert {container["image"].rpartition(":")[2] for container in containers(cluster)} == {f"{version}-py311"}
    assert f"ARG BASE=docker.io/rayproject/ray:{version}-py311\n" in CONTAINERFILE.read_text()


def test_the_workers_hold_every_replica_and_one_that_surges(cluster: dict[str, Any]) -> None:
    deployments = [deployment for app in default()["applications"] for deployment in app["deployments"]]
    cpus = [d["ray_actor_options"]["num_cpus"] for d in deployments]
    offered = sum(
        group["minReplicas"] * float(group["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
        for group in cluster["workerGroupSpecs"]
    )
    assert sum(cpu * d["num_replicas"] for cpu, d in zip(cpus, deployments, strict=True)) + max(cpus) <= offered
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_head_and_workers_run_with_the_same_flags(cluster: dict[str, Any]) -> None:
    head, worker = containers(cluster)
    assert env(head) == env(worker)
    assert env(head)["RAY_SERVE_ENABLE_HA_PROXY"] == env(head)["RAY_SERVE_THROUGHPUT_OPTIMIZED"] == "1"
    assert cluster["authOptions"]["mode"] == "token"


def test_a_pod_that_goes_has_time_for_what_it_took(manifest: dict[str, Any], cluster: dict[str, Any]) -> None:
    shutdown_s = max(d["graceful_shutdown_timeout_s"] for app in default()["applications"] for d in app["deployments"])
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        spec = group["template"]["spec"]
        drain_s = int(env(spec["containers"][0])["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
        assert shutdown_s < drain_s < spec["terminationGracePeriodSeconds"]
    assert manifest["spec"]["rayClusterDeletionDelaySeconds"] >= shutdown_s


def test_pods_run_without_privileges(cluster: dict[str, Any]) -> None:
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        spec = group["template"]["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] == 1000
        [container] = spec["containers"]
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"]
    assert CONTAINERFILE.read_text().rstrip().endswith("USER 1000")


def test_the_manifest_keeps_kuberays_rules(manifest: dict[str, Any]) -> None:
    assert list(broken_rules(manifest)) == []
    assert list(unknown_keys(manifest)) == []


CLUSTER = ("spec", "rayClusterConfig")
WORKER = (*CLUSTER, "workerGroupSpecs", 0)
POD = (*WORKER, "template", "spec", "containers", 0)


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("spec", "serveConfigv2"), "", ".spec.serveConfigv2"),
        (
            (*POD, "readinesProbe"),
            {},
            ".spec.rayClusterConfig.workerGroupSpecs[0].template.spec.containers[0].readinesP",
        ),
        ((*WORKER, "minReplicas"), 2, "cpu: 0 <= minReplicas"),
        ((*CLUSTER, "rayVersion"), "2.51.0", "authOptions.mode: token needs"),
        ((*CLUSTER, "autoscalerOptions"), {"version": "v2"}, "autoscalerOptions: without"),
        ((*POD, "env", 0, "value"), 1, "ray-worker.env.RAY_SERVE_ENABLE_HA_PROXY: values are text"),
        (
            (*CLUSTER, "headGroupSpec", "template", "spec", "containers", 0, "ports", 3, "name"),
            "http",
            "the head's ports",
        ),
        (("spec", "upgradeStrategy", "type"), "NewClusters", "upgradeStrategy.type"),
    ],
)
def test_a_manifest_that_breaks_a_rule_is_found(
    place: tuple[str | int, ...], value: object, said: str, manifest: dict[str, Any]
) -> None:
    broken = copy.deepcopy(manifest)
    at: Any = broken
    for part in place[:-1]:
        at = at[part]
    at[place[-1]] = value
    found = [*broken_rules(broken), *unknown_keys(broken)]
    assert any(line.startswith(said) for line in found), found


def test_everything_the_image_copies_exists() -> None:
    for line in CONTAINERFILE.read_text().splitlines():
        if line.startswith("COPY "):
            sources = [word for word in line.split()[1:-1] if not word.startswith("--")]
            assert [source for source in sources if not Path(ROOT, source).exists()] == []
