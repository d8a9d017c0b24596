"""The rows of `bench.py --suite archive`: PNG encoding, an archive end to end, its memory.

`png_256` encodes grey images of 256 px, half smooth noise and half phantom films, against Pillow's
defaults. `archive_64` is the whole job (plan, latents, images, provenance, PNG, shards, pictures,
index) against the generator's bare forward pass at the same batch on the same cores, with torch's
own threads. `archive_memory` is the peak of one fresh process over that of another which makes a
tenth of the images. The suite `gpu` has the same job on a GPU, at the paper's width.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from jobs import archive as archive_job
from medray import log
from medray.images.png import decode_png, encode_png
from medray.records import Array

ROWS = ("png_256", "archive_64", "archive_memory")
PX, IMAGES = 256, 16
LARGER_AT_MOST = 1.08
COUNT, BATCH = 2000, 16
FEW, TIMES = 600, 10
GPU_COUNT = 20_000
Case = tuple[str, str, float, Callable[[], float], Callable[[], float], Callable[[], None]]


def rows(rounds: int) -> Iterator[Case]:
    """The three rows."""
    yield from png_rows()
    with tempfile.TemporaryDirectory(prefix="medray-bench-") as folder:
        yield archive_row(Path(folder))
        yield memory_row(Path(folder))


# --- PNG ----------------------------------------------------------------------------------------


def png_rows() -> Iterator[Case]:
    """One thread each."""
    images = [*smooth_noise(IMAGES // 2), *films(IMAGES // 2)]

    def check() -> None:
        for name, some in (("noise", images[: IMAGES // 2]), ("films", images[IMAGES // 2 :])):
            sizes = [sum(len(encode(image)) for image in some) for encode in (ours, pillows)]
            log.event("png_bytes", f"{name}: {sizes[0] / sizes[1]:.3f} of Pillow's bytes")
            assert sizes[0] <= LARGER_AT_MOST * sizes[1], f"{name}: {sizes[0] / sizes[1]:.3f}"
        for image in images:
            _assert_read_back(ours(image), image)

    yield (
        "png_256",
        "Pillow's default",
        15.0,
        lambda: _per_second(ours, images, 20),
        lambda: _per_second(pillows, images, 1),
        check,
    )


def ours(image: Array) -> bytes:
    """As an archive encodes."""
    return encode_png(image, filter="smallest")


def pillows(image: Array) -> bytes:
    """As Pillow does by itself."""
    from PIL import Image

    Image.fromarray(image).save(buffer := io.BytesIO(), "PNG")
    return buffer.getvalue()


def _assert_read_back(data: bytes, image: Array) -> None:
    import cv2
    from PIL import Image

    by_opencv = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    for read in (decode_png(data), by_opencv, np.asarray(Image.open(io.BytesIO(data)))):
        assert read is not None and np.array_equal(read, image)


def _per_second(encode: Callable[[Array], bytes], images: list[Array], times: int) -> float:
    start_s = time.perf_counter()
    for image in images * times:
        encode(image)
    return times * len(images) / (time.perf_counter() - start_s)


def smooth_noise(count: int) -> list[Array]:
    """Two smooth octaves and fine grain, as the streaming benchmarks use."""
    import cv2

    rng, images = np.random.default_rng(0), []
    for _ in range(count):
        coarse = cv2.resize(rng.standard_normal((16, 16)), (PX, PX), interpolation=cv2.INTER_CUBIC)
        fine = cv2.resize(rng.standard_normal((64, 64)), (PX, PX))
        noise = 40 * coarse + 10 * fine + 2 * rng.standard_normal((PX, PX)) + 128
        images.append(np.clip(noise, 0, 255).astype(np.uint8))
    return images


def films(count: int) -> list[Array]:
    """Phantom chest films."""
    from medray.phantoms import chest

    return [chest(0, index, PX).image for index in range(count)]


# --- an archive ---------------------------------------------------------------------------------


def archive_row(folder: Path, *, gpu: bool = False) -> Case:
    """The whole job against the bare forward pass, both with torch's threads on the same cores."""
    generator = folder / f"generator64{'-gpu' * gpu}"
    save_generator(generator, 64, *((8192, 512) if gpu else (2048, 128)))
    out, count = folder / "archive", GPU_COUNT if gpu else COUNT

    def end_to_end() -> float:
        shutil.rmtree(out, ignore_errors=True)
        start_s = time.perf_counter()
        make(generator, out, count, *(("--gpus-per-worker", "1") if gpu else ()))
        return count / (time.perf_counter() - start_s)

    return (
        "gpu_archive_64" if gpu else "archive_64",
        "the generator's bare forward pass",
        0.85,
        end_to_end,
        _bare(generator, count, "cuda" if gpu else "cpu"),
        lambda: _assert_same(generator, out, end_to_end, levels=int(gpu)),
    )


def _bare(generator: Path, count: int, device: str) -> Callable[[], float]:
    import torch

    from medray.models.weights import load_generator

    network, _ = load_generator(str(generator))
    z_ND = torch.randn(BATCH, network.latent_dims, device=device)
    network = network.to(device)

    def forward() -> float:
        start_s = time.perf_counter()
        with torch.inference_mode():
            for _ in range(count // BATCH):
                made = network(z_ND, 64, 1.0)
            made.cpu()
        return count // BATCH * BATCH / (time.perf_counter() - start_s)

    return forward


def _assert_same(
    generator: Path, out: Path, end_to_end: Callable[[], float], *, levels: int
) -> None:
    """The archive holds what the bare generator makes on the CPU, up to so many grey levels."""
    import torch

    from medray.models.weights import load_generator
    from medray.sample.latents import prior
    from medray.shards import open_shard, read_index
    from medray.store import Store

    end_to_end()
    network, _ = load_generator(str(generator))
    with torch.inference_mode():
        made = network(torch.from_numpy(prior(0, np.arange(BATCH), 512)), 64, 1.0)
    expected = ((made[:, 0] + 1) * 127.5).round().clamp(0, 255).numpy()
    store = Store(out)
    reader = open_shard(store, read_index(store).shards[0])
    for number in range(BATCH):
        off = np.abs(reader.sample(number).image - expected[number]).max()
        assert off <= levels, f"image {number} is {off} grey levels off"


def save_generator(folder: Path, px: int, fmap_base: int, fmap_max: int) -> None:
    """A generator of random weights: speed and memory do not depend on what it draws."""
    import torch

    from medray.models import weights
    from medray.models.pggan import Generator
    from medray.store import Store

    torch.manual_seed(0)
    arguments = {"final_px": px, "fmap_base": fmap_base, "fmap_max": fmap_max}
    network = Generator(px, fmap_base=fmap_base, fmap_max=fmap_max)
    about = {"kind": "pggan", "arguments": arguments, "px": px, "seed": 0}
    weights.save_generator(Store(folder), network.state_dict(), about, "of random weights")


def make(generator: Path, out: Path, count: int, *more: str) -> None:
    """An archive of plain latents, by the job itself."""
    words = ("--generator", generator, "--out", out, "--count", count, "--labels", "natural")
    with contextlib.redirect_stderr(io.StringIO()) as said:
        code = archive_job.main([*map(str, words), "--workers", "0", "--quiet", *more])
    assert code == 0, said.getvalue()


# --- memory -------------------------------------------------------------------------------------


def memory_row(folder: Path) -> Case:
    """Peak of a process that makes ten times as many images, over that of one that does not."""
    generator = folder / "generator32"
    save_generator(generator, 32, 512, 64)
    places = (folder / f"memory{number}" for number in itertools.count())
    return (
        "archive_memory",
        f"a tenth of the {TIMES * FEW:,} images",
        1.0,
        lambda: peak_mib(generator, next(places), TIMES * FEW),
        lambda: peak_mib(generator, next(places), FEW),
        lambda: None,
    )


def peak_mib(generator: Path, out: Path, count: int) -> float:
    """Peak of a fresh process that makes an archive in shards of 200."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-m", "jobs._bench_archive", str(generator), str(out), str(count)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert done.returncode == 0, f"the archive ended with code {done.returncode}"
    shutil.rmtree(out)
    return float(json.loads(done.stdout.splitlines()[-1])) / 2**20


def _in_fresh_process(generator: str, out: str, count: str) -> int:
    from jobs import _pggan_probe

    words = ["--generator", generator, "--out", out, "--count", count, "--labels", "natural"]
    words += ["--workers", "0", "--samples-per-shard", "200", "--quiet"]
    assert archive_job.main(words) == 0
    return _pggan_probe.peak_bytes()


if __name__ == "__main__":
    print(_in_fresh_process(*sys.argv[1:4]))
