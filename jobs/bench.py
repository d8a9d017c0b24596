#!/usr/bin/env python3
"""Benchmarks side by side with the alternative in the same run: a table, and rows as JSON.

Rounds are interleaved, the ratio is taken round by round, the median decides; equal results are
checked before anything is timed. Not a test: the exit code is 0 whether targets are met or not, and
5 where a row's check fails.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import random
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from medray import log
from medray.config import JobConfig, Location
from medray.errors import GateError
from medray.job import job


@dataclass(frozen=True)
class Target:
    """What a row's median ratio should reach, and what the hardware allows at most.

    `amx` stands in for `ratio` (and `amx_limit` for `limit`) on a CPU with AMX bfloat16. With
    `within` the ratio is to be 1 up to that share, with `at_most` no more than the target.
    """

    ratio: float
    limit: float | None = None
    amx: float | None = None
    amx_limit: float | None = None
    within: float | None = None
    at_most: bool = False


# Limits: a GAN step from the work that is left (17 of 19 forward units, 12.4 with lazy R1) at the
# rate of the fastest arithmetic; streaming from mmap and memcpy alone; Frechet from float64's
# tridiagonalisation; the rest by definition.
# Kernels that only write: against torch, the memory itself and cupy.random (where there is a GPU).
GPU_WRITING = ("labels", "gaussian", "truncated", "smote", "mixup")
GPU_STEPS = (
    *("8_64", "16_64", "32_64", "64_64", "64_16", "128_64", "128_16", "256_32", "256_8"),
    *("512_16", "512_4", "1024_8", "1024_4"),
)
TARGETS = {
    "stream_raw": Target(15, limit=51),
    "stream_zstd": Target(8, limit=10),
    "stream_foreign": Target(1.0, limit=5),
    "pack_chest64": Target(0.7),
    "gan_wgan": Target(1.3, limit=1.9, amx=4, amx_limit=12),
    "gan_recommended": Target(2, limit=3.3, amx=7, amx_limit=17),
    "train_vs_torchrun": Target(0.98, limit=1),
    "workers_2": Target(1.8, limit=2),
    "memory_estimate": Target(1, within=0.15),
    "smote_20k": Target(3, limit=9),
    "gaussian_1m": Target(3),
    "png_256": Target(15),
    "archive_64": Target(0.85, limit=1),
    "archive_memory": Target(1, within=0.05),
    "gpu_archive_64": Target(0.85, limit=1),
    "gpu_render_64": Target(2),
    "frechet_scipy": Target(15, limit=35),
    "frechet_eigvals": Target(2.8, limit=5.9),
    "kid_4k": Target(15),
    "prdc_4k": Target(2.4),
    "tune_overhead": Target(0.1, limit=0, at_most=True),
    "scale_strong_2": Target(1.8, limit=2),
    "scale_weak_2": Target(1.8, limit=2),
    "scale_archive_2": Target(1.8, limit=2),
    # The rate does not fall with the number; starting costs the tenth more of its time.
    "scale_million": Target(0.9),
    "scale_million_memory": Target(1, within=0.05),
    "scale_million_index": Target(1, within=0.05),
    "noop_default": Target(10),
    "noop_haproxy": Target(0.9),
    "generate_32": Target(5),
    "latency_32": Target(1, at_most=True),
    "generate_64": Target(0.8),
    "classify_128": Target(0.8),
    "overload": Target(2, at_most=True),
    "replica_killed": Target(1, limit=0, at_most=True),
    "soak": Target(1, within=0.05),
    "views": Target(10),
    "gradcam": Target(2.5),
    **{f"gpu_{name}": Target(4.5) for name in GPU_WRITING},
    **{f"gpu_{name}_memset": Target(0.6, limit=1) for name in GPU_WRITING},
    **{f"gpu_{name}_cupy": Target(20) for name in GPU_WRITING},
    **{f"gpu_{name}": Target(1.5) for name in ("low_rank", "full", "nearest")},
    **{f"gpu_gan_{px}": Target(5, limit=8) for px in (64, 256, 1024)},
    **{f"gpu_step_{px}": Target(0.4, limit=1) for px in GPU_STEPS},
}
SUITES = {
    "stream": ("jobs._bench_stream",),
    "pack": ("jobs._bench_pack",),
    "train": ("jobs._bench_gan", "jobs._bench_dist", "jobs._bench_memory"),
    "sample": ("jobs._bench_sample",),
    "archive": ("jobs._bench_archive",),
    "judge": ("jobs._bench_judge",),
    "small": ("jobs._bench_tune",),
    "ssl": ("jobs._bench_ssl",),
    "serve": ("jobs._bench_serve",),
    "scale": ("jobs._bench_scale",),
    "gpu": ("jobs._bench_gpu",),
    "gradcam": ("jobs._bench_gradcam",),
}

Timed = Callable[[], float]
# name, against, the module's own note of its target (unused here), ours, other, check
Case = tuple[str, str, float, Timed, Timed, Callable[[], None]]


class BenchJob(JobConfig):
    """Which rows, how often, and where the figures go."""

    suite: Literal[
        "all",
        "stream",
        "pack",
        "train",
        "sample",
        "archive",
        "judge",
        "small",
        "gradcam",
        "ssl",
        "serve",
        "scale",
        "gpu",
    ] = Field("all", description="which rows")
    only: str | None = Field(None, description="one row by name")
    rounds: int = Field(7, ge=1, description="interleaved rounds of each row")
    json_file: Location | None = Field(
        None,
        description="write the rows here",
        json_schema_extra={"flag": "--json", "metavar": "FILE"},
    )
    json_lines: bool = Field(
        False, json_schema_extra={"flag": "--json-lines"}, description="JSON log"
    )


@dataclass(frozen=True)
class Row:
    """One line of the result; ratios are ours over the other."""

    name: str
    against: str
    ratio: float
    ci_low: float
    ci_high: float
    rounds: int
    target: float
    met: bool
    limit_ratio: float | None
    ours: float
    other: float


def measure(case: Case, rounds: int) -> Row:
    """Checks that both give the same, then times them in turn."""
    name, against, _, ours, other, check = case
    check()
    pairs = [(ours(), other()) for _ in range(rounds)]
    ratios = [a / b for a, b in pairs]
    low, high = interval(ratios)
    target, goal, limit = TARGETS[name], TARGETS[name].ratio, TARGETS[name].limit
    if target.amx is not None and has_amx():
        goal, limit = target.amx, target.amx_limit
    ratio = statistics.median(ratios)
    met = ratio <= goal if target.at_most else ratio >= goal
    if target.within is not None:
        met = abs(ratio - 1) <= target.within
    middle = [statistics.median(side) for side in zip(*pairs, strict=True)]
    return Row(name, against, ratio, low, high, rounds, goal, met, limit, middle[0], middle[1])


def interval(ratios: list[float], draws: int = 2000) -> tuple[float, float]:
    """95% bootstrap interval of the median."""
    generator = random.Random(0)
    medians = sorted(
        statistics.median(generator.choices(ratios, k=len(ratios))) for _ in range(draws)
    )
    return medians[int(0.025 * draws)], medians[int(0.975 * draws)]


def has_amx() -> bool:
    """Whether this CPU has AMX, which multiplies bfloat16 several times as fast."""
    import torch

    return bool(torch.cpu._is_amx_tile_supported())


def cases(config: BenchJob) -> Iterator[Case]:
    """The cases of the chosen suite."""
    names = SUITES.values() if config.suite == "all" else [SUITES[config.suite]]
    for module in (module for modules in names for module in modules):
        found = importlib.import_module(module)
        # What a module starts for its rows, it starts before the first of them.
        if config.only and config.only not in getattr(found, "ROWS", (config.only,)):
            continue
        for case in found.rows(config.rounds):
            if config.only in (None, case[0]):
                yield case


def run(config: BenchJob) -> None:
    """Measures, prints the table, writes the rows."""
    cores, cpu = len(os.sched_getaffinity(0)), platform.processor() or platform.machine()
    print(f"{cpu}, {cores} cores, AMX {has_amx()}, warm page cache")
    print(f"{'row':18s} {'ratio':>7s} {'95% interval':>15s} {'target':>7s}  met  against")
    rows: list[dict[str, Any]] = []
    failed: list[str] = []
    for case in cases(config):
        try:
            row = measure(case, config.rounds)
        except (AssertionError, RuntimeError) as error:
            failed.append(case[0])
            log.error("bench", f"{case[0]}: {error}")
            continue
        rows.append(asdict(row))
        met = "yes" if row.met else "no"
        print(
            f"{row.name:18s} {row.ratio:7.2f} {row.ci_low:7.2f}-{row.ci_high:<7.2f} "
            f"{row.target:7.2f}  {met:3s}  {row.against}",
            flush=True,
        )
        if config.json_file:
            Path(config.json_file).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    if failed:
        raise GateError(f"the check of {', '.join(failed)} failed")
    if not rows:
        log.warn("bench", f"no row named {config.only!r}; there are: {', '.join(TARGETS)}")


main = job(BenchJob, run)

if __name__ == "__main__":
    sys.exit(main())
