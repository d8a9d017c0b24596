"""The jobs that run on several nodes: a small training of two ranks, a small archive."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests import outcomes
from tests.archive import made_parts
from tests.faults.kill import tree_sha256
from tests.jobs import pggan_runs
from tests.nodes.rig import PATIENCE_S, Job, environment

TOTAL_IMAGES, SAVE_IMAGES, LOG_IMAGES = 480, 48, 24
# Seconds that a step or a shard takes at least: on a fast machine, too, a fault meets the job.
STEP_S, SHARD_S = 0.15, 0.03
LOST = "a worker was lost and is replaced"


def _flags(backend: str, total: int) -> tuple[str, ...]:
    return (
        *("--backend", backend, "--workers", "2", "--total-images", f"{total}"),
        *("--checkpoint-images", f"{SAVE_IMAGES}", "--snapshot-images", f"{total // 2}"),
        *("--log-images", f"{LOG_IMAGES}"),
    )


@dataclass
class Training(Job):
    """A PGGAN of two ranks, in a run folder."""

    folder: Path = field(kw_only=True)
    total: int = field(default=TOTAL_IMAGES, kw_only=True)

    @classmethod
    def on(
        cls,
        address: str,
        folder: Path,
        *more: str,
        total: int = TOTAL_IMAGES,
        prefix: Sequence[str] = (),
        **env: str,
    ) -> Training:
        """One on the cluster at `address`; `prefix` goes before its command."""
        paced = [sys.executable, "-m", "tests.jobs.patched_workers", f"pace={STEP_S}"]
        flags = pggan_runs.arguments(folder, *_flags("ray", total), *more)
        return cls(
            [*prefix, *paced, *flags],
            environment(RAY_ADDRESS=address, **env),
            folder.with_suffix(".log"),
            folder=folder,
            total=total,
        )

    @classmethod
    def here(cls, folder: Path, *, total: int = TOTAL_IMAGES, **env: str) -> Training:
        """The same by two processes of this machine, without Ray."""
        words = pggan_runs.command(folder, *_flags("torchrun", total))
        log = folder.with_suffix(".log")
        return cls(words, environment(**env), log, folder=folder, total=total)

    def saved(self) -> int:
        """Images of the newest complete checkpoint, 0 before the first."""
        manifests = self.folder.glob("checkpoints/*/manifest.json")
        return max((int(path.parent.name) for path in manifests), default=0)

    def rests(self, seconds: float) -> bool:
        """Whether it has not saved for so long."""
        manifests = self.folder.glob("checkpoints/*/manifest.json")
        return time.time() - max(path.stat().st_mtime for path in manifests) > seconds

    def reached(self) -> int:
        """Images of the newest row of metrics."""
        path = self.folder / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        whole = [line for line in lines if line.endswith("}")]
        return int(json.loads(whole[-1])["images"]) if whole else 0

    def resumed(self) -> list[int]:
        """Where it went on, each time."""
        found = re.findall(r"resumed at ([\d,]+) images", self.said())
        return [int(text.replace(",", "")) for text in found]

    def wait_for_images(self, images: int) -> None:
        """Returns once a checkpoint at `images` or beyond is there; the run still goes on."""
        self.until(lambda: self.saved() >= images)
        assert self.process.poll() is None and self.reached() < self.total, "it was over too soon"

    def members(self) -> set[int]:
        """Process ids of the ranks."""
        return pggan_runs.members(self.folder) - {self.process.pid}

    def results(self) -> dict[str, Any]:
        """What it left."""
        return pggan_runs.results(self.folder, self.total)

    def goes_on(self, fault: Callable[[], object], timeout_s: float = PATIENCE_S) -> Cost:
        """Does `fault` to it; what that cost, once it goes on by itself."""
        before, reached, begun_s = len(self.resumed()), self.reached(), time.monotonic()
        fault()
        self.until(lambda: len(self.resumed()) > before, timeout_s)
        # The last row may be almost a row's worth of images old.
        lost = max(0, reached + LOG_IMAGES - self.resumed()[-1])
        return Cost(lost, "images", time.monotonic() - begun_s)


@dataclass
class Cost:
    """What a fault cost: work that was done twice, at most, and the seconds until it went on."""

    lost: int
    unit: str
    seconds: float

    def record(self, part: str, fault: str, *, wrong: int = 0) -> None:
        """Writes it where outcomes are collected."""
        told = outcomes.record(
            part=part,
            fault=fault,
            trials=1,
            lost=self.lost,
            unit=self.unit,
            recovered_s=self.seconds,
            wrong=wrong,
        )
        print(told)


@dataclass
class Archiving(Job):
    """An archive made by actors."""

    out: Path = field(kw_only=True)

    @classmethod
    def on(
        cls,
        address: str,
        parts: Path,
        out: Path,
        *more: object,
        prefix: Sequence[str] = (),
        **env: str,
    ) -> Archiving:
        """One on the cluster at `address`."""
        flags = made_parts.arguments(parts, out, *more)
        paced = [sys.executable, "-m", "tests.nodes.paced_archive", f"{SHARD_S}"]
        return cls(
            [*prefix, *paced, *flags],
            environment(RAY_ADDRESS=address, **env),
            out.with_suffix(".log"),
            out=out,
        )

    def shards(self) -> int:
        """Shards that are there."""
        return len(list(self.out.glob("*.tar")))

    def lost(self) -> int:
        """Workers that were lost, and with each the shard it was at."""
        return self.said().count(LOST)

    def meet(self, shards: int) -> None:
        """Returns once so many shards are there; the job still goes on."""
        self.until(lambda: self.shards() >= shards)
        assert self.process.poll() is None, "it was over too soon"

    def results(self) -> dict[str, str]:
        """What it left."""
        return tree_sha256(self.out, made_parts.is_result)

    def goes_on(self, fault: Callable[[], object], timeout_s: float = PATIENCE_S) -> Cost:
        """Does `fault` to it; what that cost, once the loss is known and shards come again."""
        before, begun_s = self.lost(), time.monotonic()
        fault()
        self.until(lambda: self.lost() > before, timeout_s)
        there = self.shards()
        self.until(lambda: self.shards() > there or (self.out / "index.json").exists(), timeout_s)
        return Cost(self.lost() - before, "shards", time.monotonic() - begun_s)
