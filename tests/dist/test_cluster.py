"""How long a job waits for a cluster that grows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from medray.dist import _cluster
from medray.errors import ResourceError, UsageError


class Slow:
    """A cluster whose machines come after `comes_s` seconds of a clock of its own."""

    def __init__(self, comes_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
        import ray.util

        self.now_s, self.comes_s, self.removed = 0.0, comes_s, False
        clock = SimpleNamespace(monotonic=lambda: self.now_s, sleep=self._pass)
        monkeypatch.setattr(_cluster, "time", clock)
        monkeypatch.setattr(_cluster, "shortage", lambda bundles: "waiting for 1 GPU")
        monkeypatch.setattr(_cluster, "_lacks", lambda bundles: True)
        monkeypatch.setattr(ray.util, "placement_group", lambda bundles, strategy: self)
        monkeypatch.setattr(ray.util, "remove_placement_group", self._remove)

    def _pass(self, seconds: float) -> None:
        self.now_s += seconds

    def wait(self, seconds: float) -> bool:
        self.now_s += seconds
        return self.now_s >= self.comes_s

    def _remove(self, group: Any) -> None:
        self.removed = True


def wait(can_grow: bool = True) -> None:
    _cluster.wait_for([{"GPU": 1.0}], can_grow=can_grow, timeout_s=60)


def test_a_cluster_that_buys_its_machines_first_is_waited_for_as_long_as_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster = Slow(300, monkeypatch)
    monkeypatch.setenv(_cluster.WAIT, "900")
    wait()
    assert 300 <= cluster.now_s < 320 and cluster.removed


def test_without_that_word_it_is_given_up_after_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(_cluster.WAIT, raising=False)
    cluster = Slow(300, monkeypatch)
    with pytest.raises(ResourceError, match="gave up after 60 s"):
        wait()
    assert 60 <= cluster.now_s < 80 and cluster.removed


def test_a_cluster_that_cannot_grow_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(_cluster.WAIT, "900")
    cluster = Slow(300, monkeypatch)
    with pytest.raises(ResourceError, match="waiting for 1 GPU"):
        wait(can_grow=False)
    assert cluster.now_s == 0


def test_workers_lost_with_their_machine_are_waited_for_as_long_where_machines_are_bought(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(_cluster.WAIT, "900")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert _cluster.allowed_s(60) == 60
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert _cluster.allowed_s(60) == 900 and _cluster.allowed_s(1000) == 1000


def test_a_wait_that_is_no_number_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(_cluster.WAIT, "ten minutes")
    with pytest.raises(
        UsageError, match="MEDRAY_CLUSTER_WAIT_S must be seconds, got 'ten minutes'"
    ):
        _cluster._patience_s()
