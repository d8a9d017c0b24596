"""Trials on Ray Tune: one actor a CPU, reused from trial to trial; a crash fails its trial alone.

Which trial comes next and which is given up are `search`'s to say; Tune asks it through its own
interfaces (a Searcher, a TrialScheduler) and does the rest: actors, resources, results, failures.
Tune's own files go to a folder that is thrown away: what was found is in the journal.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from medray import log
from medray.dist import _cluster
from medray.errors import ResourceError
from medray.tune.search import Record, Searches, Trial
from medray.tune.trial import Told, Trials, checked, crashed, ended, of_trial, short

# Before a trial is recorded as failed its worker may die once: with its node, say.
DEATHS = 1
QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_WARN_THRESHOLD_S": "5",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    # How many wait is the bridge's to say; Tune's one would let actors start one after the other.
    "TUNE_MAX_PENDING_TRIALS_PG": "1000",
    # Of how Ray shows progress, and of a part of Tune that medray does not use.
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_TRAIN_V2_ENABLED": "0",
}
SCORES, ERROR, PASSING = "scores", "error", "passing"


@dataclass
class Spent:
    """What a run took: seconds of the wall clock, summed seconds of the trials, side by side."""

    wall_s: float = 0.0
    trials_s: float = 0.0
    side_by_side: int = 1
    trials: int = 0

    @property
    def overhead(self) -> float:
        """Tune's own time as a share of the trials': 0 where workers never waited."""
        return self.wall_s * self.side_by_side / max(self.trials_s, 1e-9) - 1


def run_on_ray(
    trials: Trials, searches: Searches, told: Told, *, workers: int | None = None, cpus: float = 1
) -> Spent:
    """Runs all trials on Ray Tune, `workers` side by side at most (none: as many as there is room).

    ResourceError where the cluster has not the CPUs of one trial, or machine or store refused one
    something: no more trials are started then.
    """
    _cluster.set_environment(QUIET)
    with _cluster.connected() as ours:
        _cluster.wait_for([{"CPU": cpus}], can_grow=not ours, timeout_s=120)
        import ray

        total = ray.cluster_resources().get("CPU", 1)
        if workers:
            # Tune runs what fits: a trial that asks for its share of all CPUs has few neighbours.
            cpus = max(cpus, math.ceil(total / workers))
        bridge = _Bridge(searches, told, max(1, int(total / cpus)))
        if not searches.done:
            _fit(trials, bridge, cpus)
        if bridge.refused:
            raise ResourceError(
                f"a trial could not be run: {bridge.refused}", hint="the same command goes on"
            )
        return bridge.spent


def _fit(trials: Trials, bridge: _Bridge, cpus: float) -> None:
    from ray import tune

    actor = tune.with_parameters(_actor_class(), trials=trials)
    # What Tune says of failed trials is said by `told`.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="medray-tune-") as storage, _kept_folder():
        start_s = time.monotonic()
        tuner = tune.Tuner(
            tune.with_resources(actor, {"cpu": cpus}),
            tune_config=tune.TuneConfig(
                num_samples=-1,
                search_alg=_searcher(bridge),
                scheduler=_scheduler(bridge),
                reuse_actors=True,
                trial_name_creator=_trial_name,
                trial_dirname_creator=_trial_name,
            ),
            run_config=tune.RunConfig(
                name="sweep",
                storage_path=storage,
                verbose=0,
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                failure_config=tune.FailureConfig(max_failures=DEATHS),
            ),
        )
        tuner.fit()
        bridge.spent.wall_s = time.monotonic() - start_s


def _trial_name(trial: Any) -> str:
    return f"trial-{trial.trial_id}"


@contextlib.contextmanager
def _kept_folder() -> Iterator[None]:
    before = os.getcwd()
    try:
        yield
    finally:
        os.chdir(before)


@dataclass
class _Bridge:
    """What searcher and scheduler share: the searches, and the trials that run, by Tune's name."""

    searches: Searches
    told: Told
    most: int
    live: dict[str, Trial] = field(default_factory=dict)
    scores: dict[str, list[float]] = field(default_factory=dict)
    spent: Spent = field(default_factory=Spent)
    refused: str = ""

    def __post_init__(self) -> None:
        self.spent.side_by_side = self.most

    def start(self, trial_id: str) -> Trial | None:
        """A trial for Tune, if one may start."""
        # One waits for each that runs: Tune keeps an actor only where a trial waits for it.
        if len(self.live) >= 2 * self.most or (trial := self.searches.next()) is None:
            return None
        self.live[trial_id] = trial
        return trial

    def seen(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Keeps what a trial reported; whether it is given up."""
        trial, scores = self.live.get(trial_id), list(result.get(SCORES) or [])
        self.scores[trial_id] = scores
        return trial is not None and not result.get(ERROR) and trial.given_up(scores)

    def end(self, trial_id: str, result: dict[str, Any] | None) -> None:
        """Keeps what came of a trial."""
        trial = self.live.pop(trial_id, None)
        if trial is None:
            return
        scores = self.scores.pop(trial_id, [])
        if result is not None:
            scores = list(result.get(SCORES) or scores)
            self.spent.trials_s += float(result.get("spent_s") or 0.0)
            if result.get(PASSING):
                self.refused = self.refused or str(result[ERROR])
                return
        self.spent.trials += 1
        record = _record(trial, scores, result)
        self.searches.take(trial.cell, record)
        self.told(trial, record)


def _record(trial: Trial, scores: list[float], result: dict[str, Any] | None) -> Record:
    if result is None:
        return crashed(trial, scores, "the worker died")
    if error := result.get(ERROR):
        return crashed(trial, scores, str(error))
    return ended(trial, scores)


def _actor_class() -> Any:
    from ray import tune

    class Actor(tune.Trainable):  # type: ignore[misc]
        """Runs a trial step by step; the rows stay with it from trial to trial."""

        def setup(self, config: dict[str, Any], trials: Trials) -> None:
            logging.getLogger("ray.tune").setLevel(logging.ERROR)
            self._trials = trials
            self.reset_config(config)

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self._trial: Trial = new_config["trial"]
            self._scores: list[float] = []
            self._spent_s = 0.0
            return True

        def step(self) -> dict[str, Any]:
            """Fits up to the next rung: before it nothing is decided."""
            trial, error, passing, start_s = self._trial, "", False, time.monotonic()
            try:
                for step in range(len(self._scores), trial.steps):
                    score = self._trials.score(trial.cell, trial.settings, step)
                    self._scores.append(checked(score))
                    if len(self._scores) in trial.cutoffs:
                        break
            except Exception as failure:
                error, passing = short(failure), not of_trial(failure)
            self._spent_s += time.monotonic() - start_s
            return {
                SCORES: list(self._scores),
                ERROR: error,
                PASSING: passing,
                "spent_s": self._spent_s,
                "done": bool(error) or len(self._scores) == trial.steps,
            }

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            """Nothing: a trial that is lost begins again."""

        def load_checkpoint(self, checkpoint: Any) -> None:
            """Nothing."""

    return Actor


def _searcher(bridge: _Bridge) -> Any:
    from ray.tune.search import Searcher

    class Proposals(Searcher):  # type: ignore[misc]
        """Gives Tune the trials that `search` proposes."""

        def suggest(self, trial_id: str) -> Any:
            if bridge.searches.done or bridge.refused:
                return Searcher.FINISHED
            trial = bridge.start(trial_id)
            return None if trial is None else {"trial": trial}

        def on_trial_complete(
            self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
        ) -> None:
            bridge.end(trial_id, None if error else result)

        def save(self, checkpoint_path: str) -> None:
            """Nothing: the journal is kept."""

        def restore(self, checkpoint_path: str) -> None:
            """Nothing."""

    return Proposals(metric="score", mode="max")


def _scheduler(bridge: _Bridge) -> Any:
    from ray.tune.schedulers import FIFOScheduler

    class Rungs(FIFOScheduler):  # type: ignore[misc]
        """Stops a trial that is below its cutoff."""

        def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
            given_up = bridge.seen(trial.trial_id, result)
            return str(FIFOScheduler.STOP if given_up else FIFOScheduler.CONTINUE)

    return Rungs()


def told_by_log(total: int) -> Told:
    """A line of the log for each trial that ends."""
    count = 0

    def tell(trial: Trial, record: Record) -> None:
        nonlocal count
        count += 1
        score = "failed" if record.score is None else f"{record.score:.4f}"
        text = f"{trial.name}: {record.state}, {score} after {len(record.scores)} of {trial.steps}"
        if record.state == "failed":
            log.warn("trial_failed", f"{text}: {record.error}", trial=trial.name)
        else:
            log.event("trial", f"{text} ({count} of {total})", trial=trial.name)

    return tell
