"""The training loop: resume, logging, pictures, checkpoints, progress, non-finite checks.

The loop owns cadence, the algorithm owns the step. Images seen are the clock: everything that is
due is due at a number of images, never of steps. Kill this at any moment and run it again: the
final weights are those of the run that was never killed.
"""

from __future__ import annotations

import contextlib
import math
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from medray import log
from medray.checkpoints import Checkpoints
from medray.dist.context import Context
from medray.errors import MedrayError, Stopped
from medray.records import Batch
from medray.rundir import RunDir
from medray.train.tensorboard import Curves


class Algorithm(Protocol):
    """What is trained; one file each."""

    def step(self, batch: Batch, images: int) -> dict[str, Tensor]:
        """One step from this rank's part of a batch, `images` images into the run."""

    def nonfinite(self) -> str | None:
        """Phase and tensor of a non-finite gradient since the last call."""

    def state_dict(self) -> dict[str, Tensor]:
        """All tensors that decide the rest of the run, whole on every rank (collective)."""

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes what `state_dict` gave."""


class Batches(Protocol):
    """Where batches come from; its state is its position."""

    def next(self, batch_images: int) -> Batch:
        """This rank's part of the next global batch of `batch_images`."""

    def state(self) -> dict[str, Any]:
        """The position, JSON-able."""

    def restore(self, state: dict[str, Any]) -> None:
        """Goes to a position."""


@dataclass(frozen=True)
class Cadence:
    """When things are due, in images seen."""

    total_images: int
    log_images: int
    snapshot_images: int
    checkpoint_images: int
    keep_last: int = 2
    keep_best: int = 1


# Draws pictures of the model after so many images and gives figures to log; runs on rank 0 alone.
Snapshot = Callable[[int], dict[str, float]]


class NonFiniteError(MedrayError):
    """Training met a NaN or an infinity: it stops, and no checkpoint of it is kept."""


@dataclass
class Meter:
    """Sums of the step's scalars since the last row, kept on the device, and the clocks."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    wait_s: float = 0.0
    since_s: float = field(default_factory=time.monotonic)
    images: int = 0

    def add(self, scalars: dict[str, Tensor], images: int) -> None:
        """Takes one step's scalars."""
        for name, value in scalars.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value.double()
            self.counts[name] = self.counts.get(name, 0) + 1
        self.images += images

    def state(self, context: Context) -> dict[str, list[float]]:
        """The sums, mean over ranks, for a checkpoint between two rows (collective)."""
        totals = self._mean_sums(context)
        return {name: [totals[name], self.counts[name]] for name in sorted(self.sums)}

    def restore(self, state: dict[str, list[float]]) -> None:
        """Goes on with the sums of a checkpoint."""
        self.sums = {n: torch.tensor(s, dtype=torch.float64) for n, (s, _) in state.items()}
        self.counts = {name: int(count) for name, (_, count) in state.items()}

    def _mean_sums(self, context: Context) -> dict[str, float]:
        names = sorted(self.sums)
        if not names:
            return {}
        flat = torch.stack([self.sums[name].to(context.device) for name in names])
        return dict(zip(names, context.all_reduce_mean_(flat).tolist(), strict=True))

    def row(self, context: Context) -> dict[str, float]:
        """Means since the last row and the rates; starts anew (collective)."""
        means = {n: s / self.counts[n] for n, s in self._mean_sums(context).items()}
        elapsed_s = max(time.monotonic() - self.since_s, 1e-9)
        row = {f"train/{name}": value for name, value in means.items()}
        row["perf/images_per_s"] = self.images / elapsed_s
        row["perf/data_wait_share"] = self.wait_s / elapsed_s
        row["mem/peak_gib"] = peak_memory_gib(context.device)
        self.sums, self.counts, self.wait_s, self.images = {}, {}, 0.0, 0
        self.since_s = time.monotonic()
        return row


def peak_memory_gib(device: torch.device) -> float:
    """Peak memory of this process (on a GPU: of its tensors) in GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    # Not getrusage: on Linux its figure begins at the peak of the process that started this one.
    status = Path("/proc/self/status")
    if status.exists():
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM:"))
        return int(line.split()[1]) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**30


def due(images: int, batch_images: int, every: int) -> bool:
    """Whether a multiple of `every` lies in (images - batch_images, images]."""
    return images // every > (images - batch_images) // every


class Fit:
    """One run of an algorithm on this rank; `run()` trains to the end and returns the figures."""

    def __init__(
        self,
        algorithm: Algorithm,
        batches: Batches,
        context: Context,
        run: RunDir,
        cadence: Cadence,
        *,
        batch_at: Callable[[int], int],
        snapshot: Snapshot,
        enough: Callable[[], bool] | None = None,
    ) -> None:
        """`enough` is asked on rank 0 after a snapshot: whether training may end before its time.

        What it goes by must be in the algorithm's state, so that a resumed run ends there too.
        """
        self.algorithm, self.batches, self.context = algorithm, batches, context
        self.folder, self.cadence = run, cadence
        self.batch_at, self.snapshot, self.enough = batch_at, snapshot, enough
        self.checkpoints = Checkpoints(run.store, run.lease)
        self.curves = Curves(run.store) if context.rank == 0 else None
        self.meter = Meter()
        self.images = 0
        self.score: float | None = None
        self.ended_early = False

    def run(self) -> dict[str, Any]:
        """Trains from the newest checkpoint to `total_images`; the figures of this attempt."""
        started_s, first = time.monotonic(), self._resume()
        with self.curves.open(first) if self.curves else contextlib.nullcontext():
            if first == 0:
                self._picture()
            with log.Progress("train", self.cadence.total_images) as progress:
                progress.update(self.images)
                while not self.ended:
                    self._step(progress)
            self._checkpoint()
        seconds = time.monotonic() - started_s
        return {
            "images": self.images,
            "resumed_at_images": first,
            "duration_s": seconds,
            "images_per_s": (self.images - first) / seconds,
            "peak_memory_gib": peak_memory_gib(self.context.device),
        }

    @property
    def ended(self) -> bool:
        """Whether there is nothing left to train."""
        return self.ended_early or self.images >= self.cadence.total_images

    def _resume(self) -> int:
        newest = self.checkpoints.newest()
        # Every rank reads the same folder; a rank that sees another newest one would train apart.
        seen = set(self.context.gather(None if newest is None else newest.images))
        if len(seen) > 1:
            raise MedrayError(
                f"the ranks see different newest checkpoints: {sorted(map(str, seen))}"
            )
        if newest is None:
            if self.context.rank == 0:
                self.folder.cut_metrics(-1)
            return 0
        tensors, state = self.checkpoints.load(newest)
        self.algorithm.load_state_dict(tensors)
        self.batches.restore(state["stream"])
        self.meter.restore(state["meter"])
        self.images, self.score = int(state["images"]), state["score"]
        self.ended_early = bool(state.get("ended_early", False))
        if self.context.rank == 0:
            self.folder.cut_metrics(self.images)
            before, now = int(state["world"]), self.context.world
            ranks = f", {now} workers after {before}" if now != before else ""
            log.event(
                "resumed",
                f"resumed at {self.images:,} images{ranks}",
                images=self.images,
                world=now,
            )
        return self.images

    def _step(self, progress: log.Progress) -> None:
        batch_images = self.batch_at(self.images)
        asked_s = time.monotonic()
        batch = self.batches.next(batch_images)
        self.meter.wait_s += time.monotonic() - asked_s
        scalars = self.algorithm.step(batch, self.images)
        self.images += batch_images
        self.meter.add(scalars, batch_images)
        last = self.images >= self.cadence.total_images
        if due(self.images, batch_images, self.cadence.log_images) or last:
            self._row(progress)
        if due(self.images, batch_images, self.cadence.snapshot_images) or last:
            self._picture()
            self._ask_whether_enough()
        regular = due(self.images, batch_images, self.cadence.checkpoint_images)
        if regular and not self.ended:
            self._checkpoint()
        reason = self.context.agree_to_stop()
        if reason and not self.ended:
            # In passing, so that a stopped run keeps the checkpoints of one that was not.
            self._checkpoint(passing=not regular)
            raise Stopped(
                f"stopped at {self.images:,} images ({reason}); everything is saved",
                hint="run the same command with --resume to go on",
            )

    def _row(self, progress: log.Progress) -> None:
        self._check_finite()
        row = self.meter.row(self.context)
        for name, value in row.items():
            if not math.isfinite(value):
                raise NonFiniteError(f"{name} is {value} at {self.images:,} images")
        if self.context.rank == 0:
            self._write_row(row)
            shown = {n.rpartition("/")[2]: v for n, v in row.items() if n.startswith("train/loss")}
            said = " ".join(f"{name}={value:.4g}" for name, value in shown.items())
            log.debug("row", f"{self.images:,} images {said}", images=self.images)
            progress.update(self.images, **shown)
        self.context.report({"images": self.images, **row})

    def _check_finite(self) -> None:
        found = next(filter(None, self.context.gather(self.algorithm.nonfinite())), None)
        if found:
            raise NonFiniteError(
                f"{found} is not finite, at or before {self.images:,} images",
                hint="the last checkpoint is sound; try a smaller --lr, or --precision fp32",
            )

    def _picture(self) -> None:
        if self.context.rank != 0:
            return
        figures = self.snapshot(self.images)
        self.score = figures.get("score")
        if figures:
            row = {f"snapshot/{name}": value for name, value in figures.items()}
            self._write_row(row)

    def _ask_whether_enough(self) -> None:
        if self.enough is not None:
            self.ended_early = self.context.any(self.context.rank == 0 and self.enough())

    def _write_row(self, row: dict[str, float]) -> None:
        self.folder.append_metrics({"images": self.images, **row})
        if self.curves:
            self.curves.add(self.images, row)

    def _checkpoint(self, *, passing: bool = False) -> None:
        self._check_finite()
        tensors = self.algorithm.state_dict()
        state = {
            "images": self.images,
            "stream": self.batches.state(),
            "meter": self.meter.state(self.context),
            "world": self.context.world,
            "score": self.score,
            **({"ended_early": True} if self.ended_early else {}),
        }
        if self.context.rank == 0:
            self.checkpoints.save(self.images, tensors, state, passing=passing)
            self.checkpoints.prune(self.cadence.keep_last, self.cadence.keep_best)
            if self.curves:
                self.curves.publish()
        self.context.barrier()
