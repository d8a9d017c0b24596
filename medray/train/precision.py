"""What `precision: auto` means on this machine: measured once, by time, before training.

bfloat16 is several times as fast where the processor has matrix units for it and slower than
float32 where it has not, so nobody should have to guess.
"""

from __future__ import annotations

import time
from typing import Literal

import torch

from medray import log
from medray.models.pggan import Discriminator
from medray.train.pggan_config import PgganConfig

Precision = Literal["fp32", "bf16"]

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
ROUNDS = 2
# On a CPU a larger measurement would take longer than it can save; the ratio is about the same.
CPU_PX, CPU_IMAGES = 32, 4
# bfloat16 rounds: it must be faster by more than the noise of a measurement.
WORTH = 1.1


def resolve(config: PgganConfig, device: torch.device) -> PgganConfig:
    """`config` with `precision: auto` replaced by what is faster on `device`; logs what it chose.

    Call it once for a run, on one rank, and write the result down: a later measurement may differ.
    """
    if config.precision != "auto":
        return config
    seconds = measure(config, device)
    chosen = "bf16" if seconds["fp32"] > WORTH * seconds["bf16"] else "fp32"
    log.event(
        "precision",
        f"precision auto: {chosen} (fp32 {seconds['fp32']:.3f} s, bf16 {seconds['bf16']:.3f} s "
        "for the discriminator there and back)",
        chosen=chosen,
        fp32_s=round(seconds["fp32"], 6),
        bf16_s=round(seconds["bf16"], 6),
    )
    return config.model_copy(update={"precision": chosen})


def measure(config: PgganConfig, device: torch.device) -> dict[Precision, float]:
    """Least seconds of a discriminator's forward and backward pass, in turns, per precision."""
    cpu = device.type == "cpu"
    px = min(config.final_px, CPU_PX) if cpu else config.final_px
    images = min(config.batch_at(px), CPU_IMAGES) if cpu else config.batch_at(px)
    with torch.device(device):
        network = Discriminator(
            px, config.channels, fmap_base=config.fmap_base, fmap_max=config.fmap_max
        )
        images_NCHW = torch.zeros(images, config.channels, px, px)
    seconds = {name: float("inf") for name in DTYPES}
    for turn in range(ROUNDS + 1):
        for name, dtype in DTYPES.items():
            network.compute_dtype = dtype
            took_s = _there_and_back_s(network, images_NCHW, px)
            # The first turn pays for choosing kernels.
            seconds[name] = min(seconds[name], took_s) if turn else seconds[name]
    return seconds


def _there_and_back_s(network: Discriminator, images_NCHW: torch.Tensor, px: int) -> float:
    start = _now(images_NCHW.device)
    network(images_NCHW, px, 1.0).sum().backward()
    return _now(images_NCHW.device) - start


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
