"""Writes `dashboard.json` for Grafana from the table below: run it after every edit; a test compares the two.

    python monitoring/dashboard.py

Import the JSON into Grafana (Dashboards → Import) and choose the Prometheus that scrapes the endpoint's `/metrics`.
"""

import json
from pathlib import Path
from typing import Any

TARGET = Path(__file__).with_suffix(".json")
_WINDOW = "[$__rate_interval]"
_MODEL = '{model=~"$model"}'


def rate(metric: str, by: str, labels: str = _MODEL) -> str:
    """Return PromQL: events a second."""
    return f"sum by ({by}) (rate(model_endpoint_{metric}{labels}{_WINDOW}))"


def quantile(q: float, metric: str, by: str, labels: str = _MODEL) -> str:
    """Return PromQL: a quantile over all replicas."""
    return f"histogram_quantile({q}, {rate(f'{metric}_bucket', f'le, {by}', labels)})"


def share(part: str, whole: str, by: str) -> str:
    """Return PromQL: one rate in another, by the same labels."""
    return f"{rate(part, by)} / on ({by}) {rate(whole, by)}"


# Rows of panels: title, unit, and (query, legend) for each line.
PANELS: dict[str, list[tuple[str, str, list[tuple[str, str]]]]] = {
    "Requests": [
        ("Requests", "reqps", [(rate("requests_total", "model, version"), "{{model}}:{{version}}")]),
        (
            "Failures by code",
            "reqps",
            [(rate("requests_total", "model, code", '{model=~"$model",code!="ok"}'), "{{model}} {{code}}")],
        ),
        (
            "Time to answer",
            "s",
            [(quantile(q, "request_seconds", "model"), f"{{{{model}}}} p{q * 100:g}") for q in (0.5, 0.99)],
        ),
        (
            "HTTP by route and status",
            "reqps",
            [(rate("http_requests_total", "route, status", ""), "{{route}} {{status}}")],
        ),
    ],
    "Traffic": [
        ("A/B: requests by arm", "reqps", [(rate("arm_requests_total", "alias, arm", ""), "{{alias}} → {{arm}}")]),
        ("A/B: p99 by arm", "s", [(quantile(0.99, "arm_request_seconds", "alias, arm", ""), "{{alias}} → {{arm}}")]),
        (
            "A/B: failures by arm",
            "percentunit",
            [
                (
                    rate("arm_requests_total", "alias, arm", '{code!="ok"}')
                    + " / on (alias, arm) "
                    + rate("arm_requests_total", "alias, arm", ""),
                    "{{alias}} → {{arm}}",
                )
            ],
        ),
        (
            "Shadows by result",
            "reqps",
            [(rate("shadow_requests_total", "shadow, result", ""), "{{shadow}} {{result}}")],
        ),
        (
            "Shadows: p95 difference",
            "short",
            [(quantile(0.95, "shadow_difference", "alias, shadow", ""), "{{alias}} ~ {{shadow}}")],
        ),
        (
            "Cache: share of items known",
            "percentunit",
            [
                (
                    rate("cache_items_total", "model", '{model=~"$model",result!="miss"}')
                    + " / on (model) "
                    + rate("cache_items_total", "model"),
                    "{{model}}",
                )
            ],
        ),
        ("Cache: bytes", "bytes", [("sum by (replica) (model_endpoint_cache_bytes)", "{{replica}}")]),
    ],
    "Trouble": [
        ("Fallbacks", "reqps", [(rate("fallbacks_total", "model, by, code"), "{{model}} → {{by}} ({{code}})")]),
        (
            "Circuits (0 closed, 2 open)",
            "short",
            [(f"max by (model, version) (model_endpoint_breaker_state{_MODEL})", "{{model}}:{{version}}")],
        ),
        ("Turned away", "reqps", [(rate("shed_requests_total", "model, reason"), "{{model}} {{reason}}")]),
        ("Retries", "reqps", [(rate("retries_total", "model"), "{{model}}")]),
        ("Refused by a limit", "reqps", [(rate("limited_requests_total", "limit, unit", ""), "{{limit}} ({{unit}})")]),
        (
            "Shared counters of limits up",
            "short",
            [("min by (replica) (model_endpoint_limit_store_up)", "{{replica}}")],
        ),
        (
            "Request log",
            "short",
            [
                (rate("request_log_lines_total", "replica", ""), "lines {{replica}}"),
                (rate("request_log_dropped_total", "part", ""), "dropped {{part}}"),
            ],
        ),
    ],
    "Models": [
        ("Items waiting", "short", [(f"sum by (model) (model_endpoint_queue_items{_MODEL})", "{{model}}")]),
        ("Batch size, mean", "short", [(share("batch_items_sum", "batch_items_count", "model"), "{{model}}")]),
        ("Tokens", "short", [(rate("batch_tokens_total", "model"), "{{model}}")]),
        (
            "Padding",
            "percentunit",
            [(f"1 - {share('batch_tokens_total', 'batch_padded_tokens_total', 'model')}", "{{model}}")],
        ),
        ("Phases, p95", "s", [(quantile(0.95, "phase_seconds", "phase"), "{{phase}}")]),
        (
            "Loads and unloads",
            "short",
            [
                (rate("loads_total", "model, outcome"), "{{model}} {{outcome}}"),
                (rate("unloads_total", "model"), "{{model}} unloaded"),
            ],
        ),
        ("Memory by model", "bytes", [(f"sum by (model) (model_endpoint_resident_bytes{_MODEL})", "{{model}}")]),
        ("States", "short", [(f"sum by (state) (model_endpoint_model_state{_MODEL})", "{{state}}")]),
    ],
}
_HEIGHT, _WIDTH = 8, 8
_SOURCE = {"type": "prometheus", "uid": "${source}"}


def dashboard() -> dict[str, Any]:
    """Return the dashboard as Grafana imports it."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in PANELS.items():
        panels.append({"type": "row", "title": title, "gridPos": {"x": 0, "y": y, "w": 24, "h": 1}, "panels": []})
        y += 1
        for number, (name, unit, lines) in enumerate(row):
            place = {"x": _WIDTH * (number % 3), "y": y + _HEIGHT * (number // 3), "w": _WIDTH, "h": _HEIGHT}
            panels.append(_panel(name, unit, lines, place))
        y += _HEIGHT * ((len(row) + 2) // 3)
    for number, panel in enumerate(panels, 1):
        panel["id"] = number
    return {
        "title": "Model Endpoint",
        "uid": "model-endpoint",
        "schemaVersion": 39,
        "tags": ["model-endpoint"],
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [_source_variable(), _model_variable()]},
        "panels": panels,
    }


def _panel(title: str, unit: str, lines: list[tuple[str, str]], place: dict[str, int]) -> dict[str, Any]:
    return {
        "type": "timeseries",
        "title": title,
        "gridPos": place,
        "datasource": _SOURCE,
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + number), "expr": expr, "legendFormat": legend, "datasource": _SOURCE}
            for number, (expr, legend) in enumerate(lines)
        ],
    }


def _source_variable() -> dict[str, Any]:
    return {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"}


def _model_variable() -> dict[str, Any]:
    return {
        "name": "model",
        "type": "query",
        "datasource": _SOURCE,
        "query": "label_values(model_endpoint_requests_total, model)",
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
        "refresh": 2,
    }


def rendered() -> str:
    """Return the text of `dashboard.json`."""
    return json.dumps(dashboard(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    TARGET.write_text(rendered())
