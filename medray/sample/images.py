"""Latents -> images whose bytes are a function of (latent, render) alone.

Convolutions choose their order of summing by the shape of the batch and the number of threads. So a
generator always runs at one batch shape, padded, on one thread; several threads work on several
batches. Then neither position, neighbours, threads nor workers change a byte, and what is left that
can (device, type, versions) is named by `Renderer.record`.

Shape letters: N images, D latent dimensions, C channels, H and W pixels.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medray.errors import DataError, ResourceError, UsageError
from medray.models.cuda_graph import CudaGraph
from medray.models.pggan import Generator

BATCH = 16
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
# Grey levels by which an image may differ under another render.
TOLERANCE = {"float32": 1, "bf16": 8}

Pixels = npt.NDArray[np.uint8]
Latents = npt.NDArray[np.float32]
T = TypeVar("T")


class Renderer:
    """A generator at a fixed batch shape: latents (N, D) -> uint8 (N, H, W) or (N, H, W, 3).

    `about` is what `load_generator` gives beside the network; `device` is "cpu" or "cuda". Safe to
    use from several threads. UsageError for a type or batch that cannot be, ResourceError without
    the device.
    """

    def __init__(
        self,
        generator: Generator,
        about: dict[str, Any],
        *,
        batch: int = BATCH,
        dtype: str = "float32",
        device: str = "cpu",
    ) -> None:
        if dtype not in DTYPES:
            raise UsageError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
        if batch < 1:
            raise UsageError(f"batch must be at least 1, got {batch}")
        if device != "cpu" and not torch.cuda.is_available():
            raise ResourceError(f"device {device!r} was asked for, this machine has no GPU")
        self.batch, self.dtype, self.device = batch, dtype, torch.device(device)
        self.px = int(about["px"])
        self.channels = int(about["arguments"].get("channels", 1))
        self.dims = generator.latent_dims
        self.generator_sha256 = str(about["generator_sha256"])
        self._generator = generator.to(self.device).eval().requires_grad_(False)
        self._generator.compute_dtype = DTYPES[dtype]
        self._graph: CudaGraph | None = None
        self._recording = threading.Lock()

    def render(self, latents_ND: Latents) -> Pixels:
        """The images of latents float32 (N, D), any N; DataError (MR-D070) if one is not finite."""
        parts = self._parts(latents_ND, _levels)
        return np.concatenate(parts) if parts else np.empty((0, *self.shape), np.uint8)

    def unrounded(self, latents_ND: Latents) -> npt.NDArray[np.float32]:
        """The same images before they are rounded to 8 bits: float32, black at -1, white at 1."""
        parts = self._parts(latents_ND, lambda made: made.cpu().numpy())
        return np.concatenate(parts) if parts else np.empty((0, *self.shape), np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image: (H, W), or (H, W, 3)."""
        return (self.px, self.px) if self.channels == 1 else (self.px, self.px, 3)

    def _parts(self, latents_ND: Latents, finished: Callable[[Tensor], T]) -> list[T]:
        """Each batch's images, (N, H, W) or (N, H, W, 3) float32, as `finished` leaves them."""
        if latents_ND.ndim != 2 or latents_ND.shape[1] != self.dims:
            raise ValueError(f"latents must have shape (N, {self.dims}), got {latents_ND.shape}")
        starts = range(0, len(latents_ND), self.batch)
        with one_thread(), torch.inference_mode():
            return [finished(self._part(latents_ND[at : at + self.batch])) for at in starts]

    def _part(self, latents_ND: Latents) -> Tensor:
        padded_ND = np.zeros((self.batch, self.dims), np.float32)
        padded_ND[: len(latents_ND)] = latents_ND
        with self._exact():
            padded = self._pass(torch.from_numpy(padded_ND))
        made: Tensor = padded[: len(latents_ND)].float()
        if not torch.isfinite(made).all():
            raise DataError(
                "the generator gave values that are not finite; nothing of them is kept",
                code="MR-D070",
                where=f"generator {self.generator_sha256[:12]}",
                hint="take an earlier checkpoint of its run: these weights are broken",
            )
        images: Tensor = made[:, 0] if self.channels == 1 else made.permute(0, 2, 3, 1)
        return images

    def _pass(self, padded_BD: Tensor) -> Tensor:
        if self.device.type == "cpu":
            return self._images(padded_BD)
        with self._recording:
            if self._graph is None:
                self._graph = CudaGraph(self._images, padded_BD.to(self.device))
        return self._graph(padded_BD)

    def _images(self, padded_BD: Tensor) -> Tensor:
        images_NCHW: Tensor = self._generator(padded_BD, self.px, 1.0)
        return images_NCHW

    @contextlib.contextmanager
    def _exact(self) -> Iterator[None]:
        """On a GPU: fixed algorithms, and no TF32, which keeps 10 bits of the mantissa."""
        if self.device.type == "cpu":
            yield
            return
        with torch.backends.cudnn.flags(benchmark=False, deterministic=True, allow_tf32=False):
            yield

    def record(self) -> dict[str, Any]:
        """What beside the address decides an image's bytes; stands in its provenance."""
        on_gpu = self.device.type == "cuda"
        return {
            "device": torch.cuda.get_device_name(self.device) if on_gpu else f"cpu {cpu_isa()}",
            "dtype": self.dtype,
            "memory_format": "channels_last",
            "batch": self.batch,
            "torch": torch.__version__,
            "cudnn": _cudnn() if on_gpu else None,
            "tf32": False,
            "deterministic": True,
        }


def _levels(made: Tensor) -> Pixels:
    """Values from -1 to 1 as grey levels, uint8."""
    levels = ((made + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
    return np.ascontiguousarray(levels)


def _cudnn() -> int | None:
    version: int | None = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    return version


def cpu_isa() -> str:
    """The instruction set that torch and oneDNN choose their kernels by."""
    parts = [torch.backends.cpu.get_cpu_capability()]
    if torch.cpu._is_amx_tile_supported():
        parts.append("AMX")
    return "+".join(parts)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """torch works on one thread while this lasts; costs nothing where it does already."""
    before = torch.get_num_threads()
    if before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
