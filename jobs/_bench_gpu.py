"""The rows of `bench.py --suite gpu`: they run where torch sees a GPU, and nowhere else.

Sampling kernels, the GAN's step at the paper's widths, rendering through a CUDA graph, an archive.
From a plain checkout: `PYTHONPATH=. python jobs/bench.py --suite gpu`.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from jobs import _bench_archive as archive
from jobs import _bench_gan as gan
from jobs import _bench_sample_gpu as sample
from medray import log
from medray.train.scaling import costs_of

RENDERED = 4096
# Pixels and images of the steps whose rate is told; what `cluster/SCALING.md` lists.
STEPS = (
    *((8, 64), (16, 64), (32, 64), (64, 64), (64, 16), (128, 64), (128, 16)),
    *((256, 32), (256, 8), (512, 16), (512, 4), (1024, 8), (1024, 4)),
)
# Sides of the matrices whose product says what the GPU can do.
SIDE = 8192
Case = tuple[str, str, float, Callable[[], float], Callable[[], float], Callable[[], None]]


def rows(rounds: int) -> Iterator[Case]:
    """Every row, or none and a warning."""
    import torch

    if not torch.cuda.is_available():
        log.warn("bench", "there is no GPU: the suite gpu is left out")
        return
    yield from sample.rows(rounds)
    yield from gan.gpu_rows()
    yield from step_rows(tuple(gan.Size(px, n, 8192, 512, True, 16) for px, n in STEPS))
    with tempfile.TemporaryDirectory(prefix="medray-bench-") as folder:
        yield render_row(Path(folder))
        yield archive.archive_row(Path(folder), gpu=True)


def step_rows(sizes: tuple[gan.Size, ...]) -> Iterator[Case]:
    """The recommended step's operations a second, against those of a product of matrices.

    Both in bfloat16; images/s are told. That it is the right step is checked by the rows `gpu_gan`.
    """
    import torch

    for size in sizes:
        ours = gan.Ours(size, "r1", "bf16")
        (costs,) = costs_of(ours.gan.config)
        operations = costs.mean_flops(ours.every)

        def step(ours: gan.Ours = ours, operations: float = operations) -> float:
            steps_s = ours()
            images_s = steps_s * ours.size.images
            text = f"{ours.size.px} px, batch {ours.size.images}: {images_s:,.0f} images/s"
            log.event("gpu_step", text, px=ours.size.px, images_per_s=images_s)
            return steps_s * operations

        name = f"gpu_step_{size.px}_{size.images}"
        yield name, "a product of matrices", 0.0, step, partial(product, size), _nothing
        del ours
        if size.gpu:
            torch.cuda.empty_cache()


def product(size: gan.Size) -> float:
    """Operations a second of a product of square matrices in bfloat16."""
    import torch

    device = size.context().device
    left, right = (torch.ones(SIDE, SIDE, dtype=torch.bfloat16, device=device) for _ in range(2))
    left @ right
    return 2 * SIDE**3 * size.steps / size.seconds(lambda: left @ right, size.steps)


def _nothing() -> None:
    """A row without results of its own to compare."""


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
