"""A group of workers whose number follows the cluster: what decides on its size, and when.

Ray Train ends a group and starts another where machines came or went. Here it takes only numbers
that share every batch evenly, and asks a group that still trains for a checkpoint before it is
ended, so that nothing is trained twice. A machine that is lost costs what was trained since the
last checkpoint. Failures count in a row: one that comes long after another begins a new count.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import ray
from ray.train import ControllerError, ScalingConfig
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from ray.train.v2._internal.execution.scaling_policy import (
    ElasticScalingPolicy,
    NoopDecision,
    ResizeDecision,
    ScalingDecision,
)

from medray import log
from medray.dist import _failures
from medray.errors import Stopped

RESIZE = "another number of workers"
LOOK_S = 1.0
NOTICE_S = 60.0
ANSWER_S = 10.0
FAILURES_TO_START = 5
# Failures that are further apart have nothing to do with each other.
FORGET_S = 600.0


def largest(worlds: Sequence[int], possible: int) -> int:
    """The largest of `worlds` up to `possible`, 0 where there is none."""
    return max((world for world in worlds if world <= possible), default=0)


def free_by_node() -> dict[str, dict[str, float]]:
    """What nobody holds of each machine."""
    from ray._private.state import available_resources_per_node

    return dict(available_resources_per_node())


class Sizes(ElasticScalingPolicy):  # type: ignore[misc]
    """Ray Train's elastic policy with numbers of workers of our choice, and a save before an end.

    `board` is the driver's `_ray_train.Board`.
    """

    def __init__(self, scaling: ScalingConfig, worlds: Sequence[int], board: Any) -> None:
        super().__init__(scaling)
        self._worlds, self._board = tuple(worlds), board
        self._asked = False
        # The group that is being started, 0 where one runs; the most that is to be thought of.
        self._starting, self._limit = 0, scaling.max_workers
        self._notice_s = float("-inf")

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        """The largest group there is room for; none yet where the smallest has no room."""
        self._asked = False
        if stop := ray.get(self._board.go_on.remote(RESIZE)):
            self._give_up(stop)
        # One that found no room is tried smaller: machines are gone, or hold something else.
        smaller = self._starting > self._worlds[0]
        self._limit = self._starting - 1 if smaller else self.scaling_config.max_workers
        decision = super().make_decision_for_non_running_worker_group()
        if isinstance(decision, ResizeDecision):
            self._starting = decision.num_workers
            return decision
        self._tell_wait()
        # Ray's loop asks again at once.
        time.sleep(LOOK_S)
        return decision

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> ScalingDecision:
        """Another size, once the group that trains has saved for it."""
        self._starting, self._notice_s = 0, float("-inf")
        self._limit = worker_group_state.num_workers + self._free()
        if self._asked:
            return self._once_saved()
        decision = super().make_decision_for_running_worker_group(
            worker_group_state, worker_group_status
        )
        if isinstance(decision, ResizeDecision):
            now = worker_group_state.num_workers
            log.event("resize", f"{now} -> {decision.num_workers} workers: saving first")
            ray.get(self._board.ask_to_save.remote(RESIZE))
            self._asked = True
            return NoopDecision()
        return decision

    def _once_saved(self) -> ScalingDecision:
        if not ray.get(self._board.has_saved.remote()):
            return NoopDecision()
        count = self._count_possible_workers(self._get_reserved_resources() or {})
        if not count:
            return NoopDecision()
        self._asked, self._starting = False, count
        ray.get(self._board.go_on.remote(RESIZE))
        return self._get_resize_decision(count)

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        possible = super()._count_possible_workers(reserved_resources)
        return largest(self._worlds, min(possible, self._limit))

    def _free(self) -> int:
        """Workers that there is room for beside all that runs; Ray counts what others hold too."""
        needs = self.scaling_config._resources_per_worker_not_none.items()
        rooms = [
            min(free.get(name, 0.0) // need for name, need in needs if need)
            for free in free_by_node().values()
        ]
        return int(sum(rooms))

    def _get_reserved_resources(self) -> Any:
        """What of the cluster is ours, seen now: Ray's own look may be 20 s old."""
        answer = self._autoscaling_coordinator.get_reserved_resources.remote(
            self._requester_id, recompute=True
        )
        try:
            return ray.get(answer, timeout=ANSWER_S)
        except ray.exceptions.RayError as error:
            log.warn("unanswered", f"Ray does not say what is free: {error}".splitlines()[0])
            return None

    def _tell_wait(self) -> None:
        if time.monotonic() >= self._notice_s:
            self._notice_s = time.monotonic() + NOTICE_S
            log.event("waiting", f"the cluster has no room for {self._worlds[0]} workers: waiting")

    def _give_up(self, reason: str) -> None:
        """Ends the run while no worker is there to do it."""
        error = Stopped(
            f"stopped ({reason}); everything up to the last checkpoint is saved",
            hint="run the same command with --resume to go on",
        )
        ray.get(self._board.fail.remote(_failures.describe(error, 0)))
        # As Ray Train's own error, of which it prints no trace.
        raise ControllerError(error)


class Failures(DefaultFailurePolicy):  # type: ignore[misc]
    """Ray Train's policy of restarts, which forgets failures that are long past."""

    _last_s = float("-inf")

    def make_decision(self, training_failed_error: Exception) -> FailureDecision:
        """Whether to start the workers again."""
        now_s = time.monotonic()
        if now_s - self._last_s > FORGET_S:
            self._worker_group_failures = self._controller_failures = 0
        self._last_s = now_s
        return super().make_decision(training_failed_error)
