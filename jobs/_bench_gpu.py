"""The rows of `bench.py --suite gpu`: they run where torch sees a GPU, and nowhere else.

Sampling kernels, the GAN's step at the paper's widths, rendering through a CUDA graph, an archive.
From a plain checkout: `PYTHONPATH=. python jobs/bench.py --suite gpu`.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from jobs import _bench_archive as archive
from jobs import _bench_gan as gan
from jobs import _bench_sample_gpu as sample
from medray import log

RENDERED = 4096
Case = tuple[str, str, float, Callable[[], float], Callable[[], float], Callable[[], None]]


def rows(rounds: int) -> Iterator[Case]:
    """Every row, or none and a warning."""
    import torch

    if not torch.cuda.is_available():
        log.warn("bench", "there is no GPU: the suite gpu is left out")
        return
    yield from sample.rows(rounds)
    yield from gan.gpu_rows()
    with tempfile.TemporaryDirectory(prefix="medray-bench-") as folder:
        yield render_row(Path(folder))
        yield archive.archive_row(Path(folder), gpu=True)


def render_row(folder: Path) -> Case:
    """Images/s of a renderer, which replays a graph, against the same passes launched one by one.

    The same bytes are checked first.
    """
    from medray.models.weights import load_generator
    from medray.sample.images import Renderer

    archive.save_generator(folder / "generator", 64, 8192, 512)
    ours, plain = (
        Renderer(*load_generator(str(folder / "generator")), device="cuda") for _ in range(2)
    )
    plain._pass = lambda padded_BD: plain._images(padded_BD.to(plain.device))  # type: ignore[method-assign]
    latents_ND = np.random.default_rng(0).standard_normal((RENDERED, ours.dims), np.float32)

    def rate(renderer: Renderer) -> float:
        start_s = time.perf_counter()
        renderer.render(latents_ND)
        return RENDERED / (time.perf_counter() - start_s)

    def check() -> None:
        some_ND = latents_ND[:64]
        np.testing.assert_array_equal(ours.render(some_ND), plain.render(some_ND))

    return (
        "gpu_render_64",
        "launched one by one",
        0.0,
        lambda: rate(ours),
        lambda: rate(plain),
        check,
    )
