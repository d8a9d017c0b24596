"""The rows of `bench.py --suite scale`: what more workers and more images cost on this machine.

- `scale_strong_2`: two ranks on the batch of one; `scale_weak_2`: two ranks on twice the batch, in
  images. Both against one rank, one thread each.
- `scale_archive_2`: an archive by two Ray actors against one; from the first shard begun to the
  last written, so that Ray's start and that of the actors are outside.
- `scale_million`: images per CPU second of an archive of a million against a tenth of them;
  `scale_million_memory`: the peaks of the two processes; `scale_million_index`: what is kept
  beside the shards, per shard. The images are of 4 px, so that everything else is what is timed.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

from jobs import _archive_run as archive_run
from jobs import _bench_dist as dist
from jobs import archive as archive_job
from jobs._bench_archive import save_generator
from medray.archive.worker import Worker, make_shard

ROWS = (
    "scale_strong_2",
    "scale_weak_2",
    "scale_archive_2",
    "scale_million",
    "scale_million_memory",
    "scale_million_index",
)
ARCHIVE_PX, ARCHIVE_COUNT, SHARD = 32, 8000, 500
MILLION, TENTH = 1_000_000, 100_000

Case = tuple[str, str, float, Callable[[], float], Callable[[], float], Callable[[], None]]


def rows(rounds: int) -> Iterator[Case]:
    """The rows, the quick ones first."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="medray-bench-")))
        yield from _ranks(folder, stack)
        yield _archive(folder)
        yield from _million(folder)


# --- ranks --------------------------------------------------------------------------------------


def _ranks(folder: Path, stack: contextlib.ExitStack) -> Iterator[Case]:
    def start(name: str, workers: int, batch: int) -> dist.Group:
        group = dist.Group(folder / name, workers, dist.by_torchrun, batch)
        return stack.enter_context(group)

    batch = dist.BATCH_IMAGES
    one, two = start("one", 1, batch), start("two", 2, batch)
    strong = lambda: dist.assert_same(two, one, dist.ORDER)  # noqa: E731
    yield "scale_strong_2", "one rank, the same batch", 0.0, two, one, strong
    two.stop()
    twice, whole = start("twice", 2, 2 * batch), start("whole", 1, 2 * batch)
    # One rank on the same twofold batch has the same weights; it is timed on the batch of one.
    weak = lambda: dist.assert_same(twice, whole, dist.ORDER, stop=True)  # noqa: E731
    yield "scale_weak_2", "one rank, half the batch", 0.0, lambda: 2 * twice(), one, weak
    one.stop()
    twice.stop()


# --- archives -----------------------------------------------------------------------------------


class _Stamped:
    """`make_shard` that notes in a folder when each shard was begun and written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, worker: Worker, number: int) -> dict[str, Any]:
        begun_s = time.time()
        result = make_shard(worker, number)
        (self.folder / str(number)).write_text(json.dumps([begun_s, time.time()]))
        return result

    def seconds(self) -> float:
        """From the first shard begun to the last written."""
        stamps = [json.loads(path.read_text()) for path in self.folder.iterdir()]
        return float(max(ended for _, ended in stamps) - min(begun for begun, _ in stamps))


def _archive(folder: Path) -> Case:
    generator, out, stamps = folder / "generator", folder / "by-actors", folder / "stamps"
    save_generator(generator, ARCHIVE_PX, 2048, 128)
    digests: dict[int, str] = {}

    def by(workers: int) -> float:
        for place in (out, stamps):
            shutil.rmtree(place, ignore_errors=True)
        stamps.mkdir()
        stamped = _Stamped(stamps)
        with mock.patch.object(archive_run, "make_shard", stamped):
            _make(generator, out, ARCHIVE_COUNT, workers)
        digests[workers] = (out / "index.json").read_text()
        return ARCHIVE_COUNT / stamped.seconds()

    def check() -> None:
        by(2), by(1)
        assert digests[1] == digests[2], "the shards differ with the number of workers"

    return "scale_archive_2", "one actor", 0.0, lambda: by(2), lambda: by(1), check


def _make(generator: Path, out: Path, count: int, workers: int) -> None:
    """An archive by so many actors."""
    words = ["--generator", str(generator), "--out", str(out), "--count", str(count)]
    words += ["--labels", "natural", "--samples-per-shard", str(SHARD), "--quiet"]
    words += ["--workers", str(workers), "--min-workers", str(workers)]
    with contextlib.redirect_stderr(io.StringIO()) as said:
        code = archive_job.main(words)
    assert code == 0, said.getvalue()


# --- a million ----------------------------------------------------------------------------------


def _million(folder: Path) -> Iterator[Case]:
    generator = folder / "tiny"
    save_generator(generator, 4, 64, 8)

    @cache
    def figures(count: int) -> dict[str, float]:
        return _in_another_process(generator, folder / f"of-{count}", count)

    def case(name: str, figure: str) -> Case:
        sides = (lambda: figures(MILLION)[figure], lambda: figures(TENTH)[figure])
        return name, f"{TENTH:,} addresses", 0.0, *sides, lambda: None

    yield case("scale_million", "images_per_cpu_s")
    yield case("scale_million_memory", "peak_mib")
    yield case("scale_million_index", "beside_bytes_per_shard")


def _in_another_process(generator: Path, out: Path, count: int) -> dict[str, float]:
    """What an archive takes: CPU time, its process's peak, what lies beside the shards."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-m", "jobs._bench_scale", str(generator), str(out), str(count)]
    begun_s = _cpu_s()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert done.returncode == 0, f"the archive ended with code {done.returncode}"
    seconds = _cpu_s() - begun_s
    beside = [p for p in out.rglob("*") if p.is_file() and p.suffix not in (".tar", ".png")]
    shards = sum(1 for _ in out.glob("*.tar"))
    size = sum(path.stat().st_size for path in beside)
    shutil.rmtree(out)
    return {
        "images_per_cpu_s": count / seconds,
        "peak_mib": float(json.loads(done.stdout.splitlines()[-1])) / 2**20,
        "beside_bytes_per_shard": size / shards,
    }


def _cpu_s() -> float:
    """CPU time of the processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _main(generator: str, out: str, count: str) -> int:
    from jobs import _pggan_probe

    words = ["--generator", generator, "--out", out, "--count", count, "--labels", "natural"]
    assert archive_job.main([*words, "--workers", "0", "--quiet"]) == 0
    return _pggan_probe.peak_bytes()


if __name__ == "__main__":
    print(_main(*sys.argv[1:4]))
