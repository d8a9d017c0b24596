"""The row of `bench.py --suite pack`: images/s from 128 px PNG files to a set of 64 px shards.

The other is a bare loop of two processes (started and warm before any round) that decodes, scales
and encodes with OpenCV and writes with `tarfile`: no checks, digests, index or limited child.
Ours is the whole pack on a running Ray, planning and contact sheet included. Page cache warm.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import multiprocessing
import os
import shutil
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from medray.images import decode_png, encode_png
from medray.pack.config import PackConfig
from medray.pack.pack import Job, pack
from medray.shards import open_shard, read_index
from medray.store import Store

SIZE_PX, PROCESSES, PHANTOMS = 64, 2, 2000
ROOT = Path(__file__).resolve().parents[1]
CHEST = ROOT.parent / "shared" / "data" / "chest_pneumonia_kermany.tar"

Case = tuple[str, str, float, Callable[[], float], Callable[[], float], Callable[[], None]]


def rows(rounds: int) -> Iterator[Case]:
    """The one row: name, against what, target, a timed round of each in images/s, and the check."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="medray-bench-")))
        source = _chest_files(folder / "source")
        ours = _Ours(source, folder)
        pool = stack.enter_context(multiprocessing.get_context("spawn").Pool(PROCESSES))
        stack.enter_context(_ray())
        other = _Bare(source, folder, pool)

        def check() -> None:
            _assert_same(ours, other)

        yield "pack_chest64", "bare OpenCV and tarfile loop", 0.7, ours, other, check


def _chest_files(folder: Path) -> Path:
    """The real chest films where they are beside the checkout, else as many phantoms."""
    if CHEST.exists():
        with tarfile.open(CHEST) as tar:
            tar.extractall(folder, filter="data")
        return folder / "chest_pneumonia_kermany"
    from medray.phantoms import chest

    folder.mkdir()
    lines = ["file,label,split,patient"]
    for index in range(PHANTOMS):
        sample = chest(0, index, 128)
        (folder / f"{index:05d}.png").write_bytes(encode_png(sample.image))
        lines.append(f"{index:05d}.png,{sample.label},{sample.split},{sample.patient}")
    (folder / "labels.csv").write_text("\n".join(lines))
    return folder


@contextlib.contextmanager
def _ray() -> Iterator[None]:
    """A Ray of two CPUs that runs before the first round and until the last."""
    import ray

    started = not ray.is_initialized()
    if started:
        environment = {"PYTHONPATH": str(ROOT)}
        ray.init(
            num_cpus=PROCESSES,
            include_dashboard=False,
            configure_logging=False,
            runtime_env={"env_vars": environment},
        )
    yield
    if started:
        ray.shutdown()


class _Ours:
    """`medray pack` with two workers."""

    def __init__(self, source: Path, folder: Path) -> None:
        (folder / "secret").write_bytes(b"a secret for benchmarks alone")
        self.out = folder / "ours"
        options = {"source": str(source), "size_px": SIZE_PX, "workers": PROCESSES}
        secret = {"secret_file": str(folder / "secret")}
        self._config = PackConfig.model_validate(options | secret)

    def __call__(self) -> float:
        """One pack into an empty folder, in images/s."""
        shutil.rmtree(self.out, ignore_errors=True)
        start_s = time.perf_counter()
        with contextlib.redirect_stderr(io.StringIO()):
            index = pack(self._config, Job(str(self.out)))
        assert index is not None
        return sum(shard.samples for shard in index.shards) / (time.perf_counter() - start_s)


class _Bare:
    """Two processes of a loop as one would write it in ten lines."""

    def __init__(self, source: Path, folder: Path, pool: Any) -> None:
        with open(source / "labels.csv", newline="") as file:
            table = [(str(source / row["file"]), row["label"]) for row in csv.DictReader(file)]
        self.files = [path for path, _ in table]
        self.tars = [str(folder / f"bare-{part}.tar") for part in range(PROCESSES)]
        self._parts = [(table[k::PROCESSES], tar) for k, tar in enumerate(self.tars)]
        self._pool = pool

    def __call__(self) -> float:
        """One pack by the loop, in images/s."""
        start_s = time.perf_counter()
        done = sum(self._pool.starmap(_bare_loop, self._parts, chunksize=1))
        return float(done / (time.perf_counter() - start_s))


def _bare_loop(table: list[tuple[str, str]], tar_path: str) -> int:
    import cv2

    cv2.setNumThreads(1)
    with tarfile.open(tar_path, "w") as tar:
        for number, (path, label) in enumerate(table):
            image = cv2.imread(path, cv2.IMREAD_GRAYSCALE)
            assert image is not None
            small = cv2.resize(image, (SIZE_PX, SIZE_PX), interpolation=cv2.INTER_AREA)
            png = cv2.imencode(".png", small)[1].tobytes()
            for ending, data in (("png", png), ("cls", label.encode())):
                member = tarfile.TarInfo(f"{number:08d}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return len(table)


def _assert_same(ours: _Ours, other: _Bare) -> None:
    """Both hold the same pixels of the same files."""
    ours()
    other()
    bare = {}
    for part, path in enumerate(other.tars):
        with tarfile.open(path) as tar:
            for member in tar.getmembers():
                number, _, ending = member.name.partition(".")
                if ending == "png":
                    data = tar.extractfile(member)
                    assert data is not None
                    bare[other.files[part + PROCESSES * int(number)]] = decode_png(data.read())
    by_digest = {hashlib.sha256(Path(path).read_bytes()).hexdigest(): path for path in bare}
    store = Store(ours.out)
    seen = 0
    for shard in read_index(store).shards:
        reader = open_shard(store, shard)
        for sample in (reader.sample(number) for number in range(len(reader))):
            assert sample.source_sha256 is not None
            path = by_digest[sample.source_sha256]
            assert np.array_equal(sample.image, bare[path]), os.path.basename(path)
            seen += 1
    assert seen == len(bare), f"{seen} images of {len(bare)}"
