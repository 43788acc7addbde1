"""KubeRay 1.7's rules for a RayService, as far as our manifest could break them, and the keys such a manifest may have.

The operator checks the rules only after the API server has stored the object; the keys restate the part of the
CustomResourceDefinition and of the pod template that we use, so that a misspelt one is found without a cluster.
"""

import re
from collections.abc import Iterator
from typing import Any

ANY: dict[str, Any] = {}  # free keys below
LEAF = None

_ENV = [{"name": LEAF, "value": LEAF, "valueFrom": ANY}]
_HTTP_PROBE = {
    "httpGet": {"path": LEAF, "port": LEAF},
    "initialDelaySeconds": LEAF,
    "periodSeconds": LEAF,
    "timeoutSeconds": LEAF,
    "failureThreshold": LEAF,
}
_CONTAINER = {
    "name": LEAF,
    "image": LEAF,
    "ports": [{"name": LEAF, "containerPort": LEAF}],
    "env": _ENV,
    "resources": {"requests": ANY, "limits": ANY},
    "securityContext": {"allowPrivilegeEscalation": LEAF, "capabilities": {"drop": LEAF}},
    "readinessProbe": _HTTP_PROBE,
    "volumeMounts": [{"name": LEAF, "mountPath": LEAF, "readOnly": LEAF}],
}
_TEMPLATE = {
    "metadata": {"labels": ANY, "annotations": ANY},
    "spec": {
        "terminationGracePeriodSeconds": LEAF,
        "automountServiceAccountToken": LEAF,
        "securityContext": {
            "runAsNonRoot": LEAF,
            "runAsUser": LEAF,
            "runAsGroup": LEAF,
            "fsGroup": LEAF,
            "seccompProfile": {"type": LEAF},
        },
        "nodeSelector": ANY,
        "tolerations": [{"key": LEAF, "operator": LEAF, "effect": LEAF}],
        "containers": [_CONTAINER],
        "volumes": [
            {
                "name": LEAF,
                "persistentVolumeClaim": {"claimName": LEAF, "readOnly": LEAF},
                "secret": {"secretName": LEAF, "optional": LEAF},
            }
        ],
    },
}
_GROUP = {"rayStartParams": ANY, "template": _TEMPLATE}
RAY_SERVICE: dict[str, Any] = {
    "apiVersion": LEAF,
    "kind": LEAF,
    "metadata": {"name": LEAF, "labels": ANY, "annotations": ANY},
    "spec": {
        "upgradeStrategy": {"type": LEAF},
        "rayClusterDeletionDelaySeconds": LEAF,
        "excludeHeadPodFromServeSvc": LEAF,
        "serveConfigV2": LEAF,
        "rayClusterConfig": {
            "rayVersion": LEAF,
            "authOptions": {"mode": LEAF},
            "enableInTreeAutoscaling": LEAF,
            "autoscalerOptions": {"version": LEAF, "idleTimeoutSeconds": LEAF},
            "headGroupSpec": _GROUP,
            "workerGroupSpecs": [
                {**_GROUP, "groupName": LEAF, "replicas": LEAF, "minReplicas": LEAF, "maxReplicas": LEAF}
            ],
        },
    },
}


def unknown_keys(data: object, known: Any = RAY_SERVICE, place: str = "") -> Iterator[str]:
    """Yield every key that a RayService, or a pod in it, does not have."""
    if isinstance(known, list) and isinstance(data, list):
        for index, item in enumerate(data):
            yield from unknown_keys(item, known[0], f"{place}[{index}]")
    elif isinstance(known, dict) and known and isinstance(data, dict):
        for key, value in data.items():
            if key in known:
                yield from unknown_keys(value, known[key], f"{place}.{key}")
            else:
                yield f"{place}.{key}"
    elif isinstance(known, list) or (known == {} and not isinstance(data, dict)):
        yield f"{place}: of the wrong kind"


def broken_rules(manifest: dict[str, Any]) -> Iterator[str]:
    """Yield what the operator would refuse, or would make it wait for ever."""
    spec = manifest["spec"]
    cluster = spec["rayClusterConfig"]
    head, workers = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    name = manifest["metadata"]["name"]
    if len(name) > 47 or not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        yield "metadata.name: at most 47 characters, a DNS-1035 label"
    if spec["upgradeStrategy"]["type"] not in {"None", "NewCluster"}:
        yield "upgradeStrategy.type: None or NewCluster; an incremental one needs the autoscaler and a Gateway"
    if spec["rayClusterDeletionDelaySeconds"] < 0:
        yield "rayClusterDeletionDelaySeconds: negative"
    ports = {port["name"] for port in head["template"]["spec"]["containers"][0]["ports"]}
    if not {"serve", "dashboard"} <= ports:
        yield "the head's ports: without `serve` no Service is made, without `dashboard` the operator reaches nothing"
    yield from _auth(cluster)
    yield from _autoscaler(cluster)
    for worker in workers:
        if not 0 <= worker["minReplicas"] <= worker["replicas"] <= worker["maxReplicas"]:
            yield f"{worker['groupName']}: 0 <= minReplicas <= replicas <= maxReplicas"
    for group in [head, *workers]:
        yield from _container(group["template"]["spec"]["containers"][0])


def _auth(cluster: dict[str, Any]) -> Iterator[str]:
    version = tuple(int(part) for part in cluster["rayVersion"].split("."))
    if cluster["authOptions"]["mode"] == "token" and version < (2, 52, 0):
        yield "authOptions.mode: token needs Ray 2.52"


def _autoscaler(cluster: dict[str, Any]) -> Iterator[str]:
    is_on = cluster.get("enableInTreeAutoscaling") is True
    if "autoscalerOptions" in cluster and not is_on:
        yield "autoscalerOptions: without enableInTreeAutoscaling they do nothing"
    if is_on and cluster.get("autoscalerOptions", {}).get("version") != "v2":
        yield "autoscalerOptions.version: v2, or the operator starts the old autoscaler"


def _container(container: dict[str, Any]) -> Iterator[str]:
    for kind in ("env", "ports"):
        names = [entry["name"] for entry in container[kind]]
        if len(names) != len(set(names)):
            yield f"{container['name']}.{kind}: a name is given twice"
    for entry in container["env"]:
        if not isinstance(entry.get("value"), str):
            yield f"{container['name']}.env.{entry['name']}: values are text"
    if container["resources"]["requests"].keys() != container["resources"]["limits"].keys():
        yield f"{container['name']}.resources: requests and limits name different resources"
