"""The Grafana dashboard and the alert rules: right for Prometheus, and about metrics that exist.

`promtool` comes with Debian's package `prometheus` (`.ci/run` installs it).
"""

import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from deployments.metrics import PoolMetrics
from serve_app.telemetry import IngressMetrics

FOLDER = Path(__file__).resolve().parents[1] / "monitoring"
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="needs promtool, of Debian's package prometheus")


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def dashboard_queries() -> list[str]:
    panels = json.loads((FOLDER / "dashboard.json").read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel.get("targets", [])]


def alert_queries() -> list[str]:
    rules = yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"][0]["rules"]
    return [rule["expr"] for rule in rules]


def exported() -> dict[str, set[str]]:
    """Return the labels of every series the endpoint can export, by name; those of the page's merging included."""
    found: dict[str, set[str]] = {}
    for registry in (IngressMetrics()._registry, PoolMetrics()._registry):
        for collector in list(registry._collector_to_names):
            labels = set(getattr(collector, "_labelnames", ())) | {"application", "replica"}
            for name in registry._collector_to_names[collector]:
                found[name] = labels | ({"le"} if name.endswith("_bucket") else set())
    return found


def promtool(*arguments: str) -> None:
    assert PROMTOOL is not None
    done = subprocess.run([PROMTOOL, *arguments], cwd=FOLDER, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("query", [*dashboard_queries(), *alert_queries()])
def test_a_query_is_about_series_and_labels_that_exist(query: str) -> None:
    series = exported()
    names = set(re.findall(r"model_endpoint_\w+", query))
    assert names
    assert names <= series.keys()
    labels = {
        label.strip() for part in re.findall(r"(?:by|on|group_left) ?\(([^)]*)\)", query) for label in part.split(",")
    }
    labels |= set(re.findall(r"(\w+)(?:=~|!~|!=|=)\"", query))
    assert labels <= set().union(*(series[name] for name in names))


def test_the_dashboard_is_what_its_table_says() -> None:
    assert (FOLDER / "dashboard.json").read_text() == load("dashboard").rendered(), "run python monitoring/dashboard.py"


def test_panels_have_ids_of_their_own_and_do_not_overlap() -> None:
    panels = json.loads((FOLDER / "dashboard.json").read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells)


@needs_promtool
def test_prometheus_accepts_the_alert_rules() -> None:
    promtool("check", "rules", "alerts.yaml")


@needs_promtool
def test_alerts_fire_when_they_should_and_only_then() -> None:
    promtool("test", "rules", "alerts_test.yaml")


@needs_promtool
def test_prometheus_accepts_the_dashboards_queries(tmp_path: Path) -> None:
    filled = [query.replace("$__rate_interval", "5m").replace("$model", ".*") for query in dashboard_queries()]
    rules = [{"record": f"panel:{number}", "expr": query} for number, query in enumerate(filled)]
    path = tmp_path / "queries.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool("check", "rules", str(path))
