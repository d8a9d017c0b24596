"""What decides on the size of a group of workers; no Ray is started, the board answers here."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.train import ControllerError, ScalingConfig
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2._internal.execution.scaling_policy import NoopDecision
from ray.train.v2.api.config import FailureConfig

from medray.dist import _elastic, _failures, context
from medray.dist._ray_train import Board, Plan
from medray.errors import Stopped, UsageError


class Near:
    """An actor whose calls are made here, at once."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=getattr(self._actor, name))


class Rig:
    """The policy with a board of its own, and a cluster of so many CPUs."""

    patch: pytest.MonkeyPatch

    def __init__(self, worlds: tuple[int, ...], cpus: float) -> None:
        self.board, self.cpus, self.others = Board(), cpus, 0.0
        scaling = ScalingConfig(
            num_workers=(worlds[0], worlds[-1]),
            elastic_resize_monitor_interval_s=0.0,
            resources_per_worker={"CPU": 1},
        )
        self.sizes = _elastic.Sizes(scaling, worlds, Near(self.board))
        coordinator = SimpleNamespace(get_reserved_resources=self.reserved)
        self.sizes._coordinator_client = SimpleNamespace(
            _autoscaling_coordinator=Near(coordinator),
            maybe_send_resource_request=lambda *_: None,
        )

    def reserved(self, requester: Any, recompute: bool = False) -> dict[str, dict[str, float]]:
        assert recompute, "an old look counts machines that are gone"
        return {"a": {"CPU": min(self.cpus, 2)}, "b": {"CPU": max(self.cpus - 2, 0)}}

    def running(self, workers: int) -> int | None:
        """What is decided for a group that trains; nobody but it and `others` holds CPUs."""
        free = max(self.cpus - workers - self.others, 0)
        self.patch.setattr(_elastic, "free_by_node", lambda: {"a": {"CPU": free}, "b": {}})
        state = SimpleNamespace(start_time=0.0, num_workers=workers)
        return self._count(self.sizes.make_decision_for_running_worker_group(state, None))

    def waiting(self) -> int | None:
        """What is decided where no group runs."""
        return self._count(self.sizes.make_decision_for_non_running_worker_group())

    @staticmethod
    def _count(decision: Any) -> int | None:
        return None if isinstance(decision, NoopDecision) else decision.num_workers


@pytest.fixture(autouse=True)
def near(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Rig, "patch", monkeypatch, raising=False)
    monkeypatch.setattr(ray, "get", lambda answer, timeout=None: answer)
    monkeypatch.setattr(_elastic, "LOOK_S", 0.0)


@pytest.mark.parametrize(("cpus", "size"), [(4, 4), (3, 2), (2, 2), (1, 1), (9, 4)])
def test_a_group_has_the_largest_size_that_shares_the_batch(cpus: int, size: int) -> None:
    assert Rig((1, 2, 4), cpus).waiting() == size


def test_a_group_that_trains_saves_before_it_is_ended_for_another_size() -> None:
    rig = Rig((1, 2, 4), 2)
    assert rig.running(2) is None and rig.board.read()[2] is None
    rig.cpus = 4
    assert rig.running(2) is None, "asked first"
    assert rig.board.read()[2] == _elastic.RESIZE
    assert rig.running(2) is None, "not saved yet"
    rig.board.say_saved()
    assert rig.running(2) == 4
    assert rig.board.read()[2] is None, "the next group is not asked to stop"
    assert rig.running(4) is None


def test_a_group_that_waits_for_its_end_is_started_again_though_the_machines_went() -> None:
    rig = Rig((2, 4), 4)
    assert rig.running(2) is None
    rig.board.say_saved()
    rig.cpus = 1
    assert rig.running(2) is None, "less than the fewest"
    rig.cpus = 2
    assert rig.running(2) == 2


def test_a_request_ends_with_the_group_that_it_was_made_to() -> None:
    rig = Rig((1, 2), 2)
    assert rig.running(1) is None and rig.board.read()[2] == _elastic.RESIZE
    rig.cpus = 1
    assert rig.waiting() == 1, "a machine was lost in the meantime"
    assert rig.board.read()[2] is None
    assert rig.running(1) is None and rig.board.read()[2] is None


def test_what_others_hold_is_no_room_to_grow_into() -> None:
    rig = Rig((1, 2, 4), 4)
    rig.others = 2
    assert rig.running(2) is None and rig.board.read()[2] is None
    rig.others = 0
    assert rig.running(2) is None and rig.board.read()[2] == _elastic.RESIZE


def test_a_group_that_found_no_room_is_tried_smaller_and_from_the_top_at_the_end() -> None:
    rig = Rig((1, 2, 4), 4)
    assert [rig.waiting() for _ in range(4)] == [4, 2, 1, 4]
    rig.running(4)
    assert rig.waiting() == 4, "one that ran and failed has room"


def test_below_the_fewest_it_waits_and_says_so_once(capfd: pytest.CaptureFixture[str]) -> None:
    rig = Rig((2, 4), 1)
    assert rig.waiting() is None and rig.waiting() is None
    assert capfd.readouterr().err.count("no room for 2 workers") == 1
    rig.cpus = 4
    assert rig.waiting() == 4


def test_a_stop_while_it_waits_ends_the_run_as_stopped() -> None:
    rig = Rig((2, 4), 1)
    rig.board.stop("SIGTERM of the driver")
    with pytest.raises(ControllerError):
        rig.waiting()
    record = rig.board.read()[0]
    assert record is not None
    error = _failures.rebuild(record)
    assert isinstance(error, Stopped) and "SIGTERM of the driver" in error.message


def test_a_stop_of_the_driver_goes_before_a_resize() -> None:
    board = Board()
    board.stop("SIGTERM of the driver")
    board.ask_to_save(_elastic.RESIZE)
    assert board.read()[2] == "SIGTERM of the driver"
    assert board.go_on(_elastic.RESIZE) == "SIGTERM of the driver"


def test_failures_count_in_a_row_and_those_long_past_are_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = SimpleNamespace(s=0.0)
    monkeypatch.setattr(_elastic, "time", SimpleNamespace(monotonic=lambda: now.s))
    policy = _elastic.Failures(FailureConfig(max_failures=0, controller_failure_limit=2))
    error = ControllerError(WorkerGroupStartupTimeoutError(2))
    retry, give_up = FailureDecision.RETRY, FailureDecision.RAISE
    assert [policy.make_decision(error) for _ in range(2)] == [retry, retry]
    now.s += _elastic.FORGET_S + 1
    assert [policy.make_decision(error) for _ in range(3)] == [retry, retry, give_up]


def test_a_plan_of_one_size_is_not_elastic() -> None:
    plan = Plan(4, 1, 0, 1, "test", 3, 60, worlds=(4,))
    assert not plan.elastic and plan.fewest == 4
    other = Plan(4, 1, 0, 1, "test", 3, 60, worlds=(1, 2, 4))
    assert other.elastic and other.fewest == 1


def test_several_sizes_without_ray_are_refused() -> None:
    with pytest.raises(UsageError, match="workers = 1 to 2 with backend torchrun, allowed: ray"):
        context.launch(lambda *_: None, {}, backend="torchrun", workers=2, worlds=(1, 2))
