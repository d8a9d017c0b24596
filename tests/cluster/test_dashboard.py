"""The dashboard and the alerts ask for metrics that the code exports, and for labels they have."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.documents import KUBERAY, named


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((KUBERAY / "grafana" / "medray.json").read_text())
    return found


def queries() -> Iterator[tuple[str, str]]:
    """(panel or alert, query)."""
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]
    for group in named("PrometheusRule")[0][1]["spec"]["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]


def exported() -> dict[str, set[str] | None]:
    """Names as Prometheus has them, with their labels (None: Ray's own, not looked at)."""
    from medray.dist import _metrics
    from serve import metrics

    found: dict[str, set[str] | None] = {}
    for name, (_, _, labels) in _metrics.TABLE.items():
        found[f"ray_{name}"] = set(labels)
    for name, (kind, _, labels, _) in metrics.TABLE.items():
        if kind == metrics.HISTOGRAM:
            found[f"{name}_bucket"] = {*labels, "le"}
            found[f"{name}_sum"] = found[f"{name}_count"] = set(labels)
        else:
            found[name] = set(labels)
    import ray

    agent = Path(ray.__file__).parent / "dashboard" / "modules" / "reporter" / "reporter_agent.py"
    for name in re.findall(r'^    "((?:node|cluster)_\w+)": Gauge\(', agent.read_text(), re.M):
        found[f"ray_{name}"] = None
    return found


def unknown(query: str, known: dict[str, set[str] | None]) -> list[str]:
    """Metrics of a query that nobody exports, and labels that they do not have."""
    names = re.findall(r"\b(?:ray_)?(?:medray|node|cluster)_\w+\b", query)
    found = [f"{name} is not exported" for name in names if name not in known]
    own = [known[name] for name in names if known.get(name) is not None]
    labels = {*re.findall(r'(\w+)\s*[=!]~?"', query)}
    for group in re.findall(r"\b(?:by|without) \(([^)]*)\)", query):
        labels |= {label.strip() for label in group.split(",")}
    if own:
        allowed = set.union(*own)  # type: ignore[arg-type]
        found += [f"no label {label}" for label in sorted(labels - allowed)]
    if not names:
        found.append("no metric")
    return found


@pytest.mark.parametrize(("title", "query"), list(queries()), ids=lambda text: text[:40])
def test_a_query_asks_for_what_is_exported(title: str, query: str) -> None:
    assert unknown(query, exported()) == [], title
    assert query.count("(") == query.count(")") and query.count("{") == query.count("}")


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("rate(ray_medray_train_image_total[5m])", "not exported"),
        ("max by (run) (ray_medray_train_loss)", "no label run"),
        ('rate(medray_http_requests_total{code="500"}[5m])', "no label code"),
        ("medray_http_seconds", "not exported"),
        ("avg(ray_node_gpu_usage)", "not exported"),
        ("vector(1)", "no metric"),
    ],
)
def test_control_a_query_of_something_else_is_found(query: str, said: str) -> None:
    assert any(said in one for one in unknown(query, exported()))


def test_the_dashboard_shows_what_a_person_looks_for() -> None:
    panels = dashboard()["panels"]
    text = " ".join(query for _, query in queries())
    for name in (
        *("medray_train_images", "data_wait_share", "node_gpus_utilization", "medray_train_loss"),
        *("medray_queue_images", "medray_http_seconds_bucket", "medray_pool_tasks_total"),
    ):
        assert name in text, name
    assert len({panel["id"] for panel in panels}) == len(panels)
    for one in panels:
        for other in panels:
            assert one is other or not _overlap(one["gridPos"], other["gridPos"]), one["title"]


def _overlap(a: dict[str, int], b: dict[str, int]) -> bool:
    across = a["x"] < b["x"] + b["w"] and b["x"] < a["x"] + a["w"]
    return across and a["y"] < b["y"] + b["h"] and b["y"] < a["y"] + a["h"]


def test_prometheus_scrapes_ports_that_the_pods_have_and_the_walls_let_it() -> None:
    ports = {"metrics": 8080, "as-metrics": 44217, "dash-metrics": 44227, "serve": 8000}
    wanted = set()
    for kind, key in (("PodMonitor", "podMetricsEndpoints"), ("ServiceMonitor", "endpoints")):
        for _, monitor in named(kind):
            wanted |= {endpoint["port"] for endpoint in monitor["spec"][key]}
    assert wanted == set(ports)
    wall = next(d for _, d in named("NetworkPolicy") if d["metadata"]["name"] == "prometheus")
    allowed = {port["port"] for port in wall["spec"]["ingress"][0]["ports"]}
    assert allowed == set(ports.values())
