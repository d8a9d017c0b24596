"""Runs a study's jobs, some side by side, each in a process of its own; tells how long is left."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jobs import _data, _out
from jobs._study_data import BOXES, PUBLISHED, unpacked
from jobs._study_page import leave
from jobs._study_steps import SCALES, Plan, Step, plan
from jobs.study import StudyJob
from medray import errors, log
from medray.config import SUBMIT_DIR
from medray.errors import MedrayError, UsageError
from medray.store import Store

SCHEMA = "medray.study/1"
# Studies with modules of their own: facts(config), begin(config, where), plan(config, where) and
# leave(plan).
OWN = {"gradcam": "jobs._study_gradcam", "mr-clips": "jobs._study_clips_steps"}
SUMMARY, LOGS = "summary.json", "logs"
POLL_S, GRACE_S = 0.5, 30.0
TAIL_LINES = 12


def study(config: StudyJob) -> None:
    """Everything, from the set to the tables."""
    if not config.out:
        config = config.model_copy(update={"out": f"{_data.runs_dir()}/studies/{config.name}"})
    store = Store(config.out)
    if not store.is_local:
        raise UsageError(f"--out {config.out}: a study works in a folder of this machine")
    if config.dry_run:
        _describe(_plan(config, Path(config.out) / "source"))
        return
    with _out.alone(store, "study"):
        if _out.start(
            store, _facts(config), what="a study", done=SUMMARY, overwrite=config.overwrite
        ):
            log.event("complete", f"{config.out} is complete: nothing to do")
            return
        made = _plan(config, _sources(config))
        _describe(made)
        Runner(made, config.at_once).run()
        own = _own(config)
        own.leave(made) if own else leave(made)


def _own(config: StudyJob) -> Any:
    return importlib.import_module(OWN[config.name]) if config.name in OWN else None


def _facts(config: StudyJob) -> dict[str, object]:
    if own := _own(config):
        return {"schema": SCHEMA, "name": config.name, "seed": config.seed, **own.facts(config)}
    return {
        "schema": SCHEMA,
        "name": config.name,
        "scale": asdict(SCALES[config.scale]),
        "fractions": list(config.fractions),
        "seed": config.seed,
    }


def _sources(config: StudyJob) -> Path:
    """Unpacks what the study begins with; the folder of it."""
    where, sets = Path(config.out) / "source", Path(config.sets)
    if own := _own(config):
        own.begin(config, where)
        return where
    unpacked(PUBLISHED[config.name], sets, where / config.name)
    if config.name == "brain-grade":
        unpacked(BOXES, sets, where / "boxes")
    return where


def _plan(config: StudyJob, where: Path) -> Plan:
    if own := _own(config):
        made: Plan = own.plan(config, where)
        return made
    source = where / config.name / PUBLISHED[config.name].tar
    return plan(config, source, where / "boxes" / BOXES.tar)


def _describe(made: Plan) -> None:
    left = [step for step in made.steps if not step.done.exists()]
    minutes = sum(step.minutes for step in left)
    lines = [f"  {step.minutes:5.1f} min  {_command(step)}" for step in left]
    log.event(
        "plan",
        f"{len(left)} of {len(made.steps)} jobs are left, about {minutes:.0f} minutes of one core, "
        f"{minutes / made.config.at_once:.0f} with {made.config.at_once} at once\n"
        + "\n".join(lines),
        jobs=len(left),
        minutes=round(minutes, 1),
    )


def _command(step: Step) -> str:
    return f"medray {' '.join(step.command())}" if step.words else f"({step.name}: written here)"


class Runner:
    """Starts each step when those that it needs are done, a few at once."""

    def __init__(self, made: Plan, at_once: int) -> None:
        self.plan, self.at_once = made, at_once
        self.waiting = [step for step in made.steps if not step.done.exists()]
        self.running: dict[str, tuple[Step, subprocess.Popen[bytes], float]] = {}
        self.logs = made.out / LOGS
        self._all = sum(step.minutes for step in self.waiting)

    def run(self) -> None:
        """Returns when every step is done; the error of the first that fails.

        What runs beside it is asked to stop: with a checkpoint, so that nothing is lost.
        """
        self.logs.mkdir(parents=True, exist_ok=True)
        with self._stopped_at_the_end(), log.Progress("study", round(self._all * 60), "s") as bar:
            while self.waiting or self.running:
                self._start_ready()
                self._collect()
                left = sum(s.minutes for s in self.waiting) + sum(
                    step.minutes for step, _, _ in self.running.values()
                )
                bar.update(round((self._all - left) * 60), running=" ".join(self.running))
                time.sleep(POLL_S)

    def _start_ready(self) -> None:
        for step in list(self.waiting):
            if len(self.running) >= self.at_once:
                return
            if self._needed(step):
                continue
            self.waiting.remove(step)
            self._start(step)

    def _needed(self, step: Step) -> list[str]:
        undone = {s.name for s in self.waiting} | set(self.running)
        return [name for name in step.needs if name in undone]

    def _start(self, step: Step) -> None:
        if not step.words:
            assert step.write is not None, "a step without words writes something itself"
            step.write(self.plan.folder(step.needs[0]), step.done.parent)
            return
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        # A job of a study is not itself the program that was submitted.
        environment.pop(SUBMIT_DIR, None)
        with (self.logs / f"{step.name}.log").open("ab") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "medray.cli", *step.command()],
                env=environment,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        self.running[step.name] = (step, process, time.monotonic())

    def _collect(self) -> None:
        for name, (step, process, start_s) in list(self.running.items()):
            code = process.poll()
            if code is None:
                continue
            del self.running[name]
            if code != 0 or not step.done.exists():
                raise self._failure(step, code)
            took_s = time.monotonic() - start_s
            log.event(
                "job_done", f"{name} in {log.duration(took_s)}", job=name, seconds=round(took_s, 1)
            )

    def _failure(self, step: Step, code: int) -> MedrayError:
        path = self.logs / f"{step.name}.log"
        tail = "\n    ".join(path.read_text(errors="replace").splitlines()[-TAIL_LINES:])
        kinds = (errors.UsageError, errors.DataError, errors.ResourceError, errors.GateError)
        by_code = {kind.exit_code: kind for kind in (*kinds, errors.Stopped)}
        return by_code.get(code, MedrayError)(
            f"the job {step.name} ended with exit code {code}:\n    {tail}",
            hint=f"its whole log is {path}; mend it and run the same command again",
        )

    @contextlib.contextmanager
    def _stopped_at_the_end(self) -> Iterator[None]:
        try:
            yield
        finally:
            processes = [process for _, process, _ in self.running.values()]
            for process in processes:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGTERM)
            for process in processes:
                try:
                    process.wait(GRACE_S)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
