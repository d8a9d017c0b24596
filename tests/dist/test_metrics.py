"""What a run tells Prometheus: names, labels, and that it arrives at the node's port."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from medray.dist import _metrics

Told = list[tuple[str, float, dict[str, str]]]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    """What would have reached Ray; a label that the table lacks is an error there."""
    found: Told = []

    class Fake:
        def __init__(self, name: str) -> None:
            self.name, self.labels = name, set(_metrics.TABLE[name][2])

        def set(self, value: float, tags: dict[str, str]) -> None:
            assert set(tags) == self.labels
            found.append((self.name, value, tags))

        inc = set

    monkeypatch.setattr(_metrics, "_metric", Fake)
    return found


def test_rank_0_tells_images_rate_wait_memory_and_losses(told: Told) -> None:
    tell = _metrics.teller("pggan")
    rows = [
        {"images": images, "perf/images_per_s": 20.0, "perf/data_wait_share": 0.1}
        | {"mem/peak_gib": 2.0, "train/loss_d": 1.5, "train/score_real": 0.5}
        for images in (128, 384)
    ]
    for row in rows:
        tell(row)
    counted = [value for name, value, _ in told if name == "medray_train_images_total"]
    assert counted == [128, 256]
    assert ("medray_train_loss", 1.5, {"job": "pggan", "name": "loss_d"}) in told
    assert ("medray_train_data_wait_share", 0.1, {"job": "pggan"}) in told
    assert not any("score" in str(entry) for entry in told)


def test_a_pool_tells_its_tasks_by_stage(told: Told) -> None:
    from medray.archive import worker

    function = next(
        f for f in vars(worker).values() if getattr(f, "__module__", "") == worker.__name__
    )
    _metrics.task(function, "lost", 7)
    assert told == [
        ("medray_pool_tasks_total", 1, {"stage": "archive", "state": "lost"}),
        ("medray_pool_tasks_waiting", 7, {"stage": "archive"}),
    ]


def test_no_label_can_hold_a_patient_a_path_or_a_sample() -> None:
    allowed = {"job", "name", "stage", "state"}
    for name, (kind, about, labels) in _metrics.TABLE.items():
        assert set(labels) <= allowed and about and name.startswith("medray_")
        assert (kind == "Counter") == name.endswith("_total")


SCRIPT = """
    import time, urllib.request
    import ray
    from medray.dist import _metrics, pool

    ray.init("local", num_cpus=1, include_dashboard=False)
    address = f"http://127.0.0.1:{ray.nodes()[0]['MetricsExportPort']}/metrics"
    row = {"images": 640, "perf/images_per_s": 20.0, "train/loss_d": 1.5}
    _metrics.teller("pggan")(row)
    _metrics.task(pool.run_on_actors, "done", 3)
    names = ("train_images_total", "train_loss", "pool_tasks_total")
    wanted = ["ray_medray_" + name + "{" for name in names]
    deadline, text = time.monotonic() + 100, ""
    while time.monotonic() < deadline and not all(name in text for name in wanted):
        time.sleep(0.5)
        try:
            text = urllib.request.urlopen(address).read().decode()
        except OSError:
            continue
    print("\\n".join(line for line in text.splitlines() if line.startswith("ray_medray")))
"""


@pytest.mark.ray
def test_they_arrive_at_the_port_that_prometheus_scrapes(tmp_path: Path) -> None:
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    environment["RAY_metrics_report_interval_ms"] = "500"
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    lines = [line for line in ended.stdout.splitlines() if line.startswith("ray_medray")]
    images = [line for line in lines if line.startswith("ray_medray_train_images_total{")]
    assert images and images[0].endswith(" 640.0") and 'job="pggan"' in images[0], ended.stdout
    assert any(x.startswith("ray_medray_train_loss{") and 'name="loss_d"' in x for x in lines)
    assert any(x.startswith("ray_medray_pool_tasks_total{") and 'state="done"' in x for x in lines)
