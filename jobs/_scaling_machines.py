"""Machines that `medray scaling` knows: what they do per second, where it was measured or said.

Each has a slow and a quick form: the range that predictions are given as.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from medray.train.scaling import Machine


@dataclass(frozen=True)
class Kind:
    """A machine by its slow and its quick form, and where the figures are from."""

    slow: Machine
    quick: Machine
    sources: tuple[str, ...]


# One H100, medray's recommended step in bfloat16 at the paper's widths, 2026-11-26: operations per
# second at the largest batch that was tried, and seconds of a step whose batch was too small to
# fill the GPU. Measured before bias, norm and halving were single passes, which gained a tenth at
# 64 px; 1024 px was not measured: the slow form goes on with the trend, the quick one stays.
_FLOPS_S = {8: 27e12, 16: 117e12, 32: 333e12, 64: 330e12, 128: 281e12, 256: 200e12, 512: 115e12}
_LAUNCH_S = {8: 0.0187, 16: 0.0192, 64: 0.0280, 128: 0.0333, 256: 0.0477, 512: 0.0446}

_H100 = Machine(
    "8 H100 a node, NVLink", 8, {**_FLOPS_S, 1024: 65e12}, _LAUNCH_S,
    link_bytes_s=200e9, network_bytes_s=10e9, store_bytes_s=1e9,
)  # fmt: skip

KINDS = {
    "h100": Kind(
        _H100,
        replace(
            _H100, flops_s=_FLOPS_S, link_bytes_s=370e9, network_bytes_s=90e9, store_bytes_s=5e9
        ),
        (
            "GPU: measured on one H100 80GB, 2026-11-26 (8 to 512 px; 1024 px extrapolated)",
            "NVLink: 200 GB/s on 8 A100 (NVIDIA/nccl-tests #149) to 370 GB/s on 8 H100 (#212)",
            "network: 10 GB/s (100 Gb/s Ethernet, four fifths) to 90 GB/s (8 NICs, NVIDIA/nccl "
            "#1168)",
            "store: 1 to 5 GB/s a node, assumed",
        ),
    ),
}

# The published run that the model is fitted to: a V100 is one constant, everything else is given.
V100 = Machine("8 V100 a node, NVLink", 8, {}, link_bytes_s=40e9, network_bytes_s=5e9)
PUBLISHED_DAYS = {1: 14.0, 2: 7.0, 4: 3.0, 8: 2.0}
PUBLISHED_BATCH = {
    1: (4, {4: 128, 8: 128, 16: 128, 32: 64, 64: 32, 128: 16, 256: 8, 512: 4}),
    2: (8, {4: 256, 8: 256, 16: 128, 32: 64, 64: 32, 128: 16, 256: 8}),
    4: (16, {4: 512, 8: 256, 16: 128, 32: 64, 64: 32, 128: 16}),
    8: (32, {4: 512, 8: 256, 16: 128, 32: 64, 64: 32}),
}
PUBLISHED = {
    "final_px": 1024, "channels": 3, "total_images": 12_000_000, "fade_images": 600_000,
    "stable_images": 600_000, "loss": "wgan-gp", "precision": "fp32",
}  # fmt: skip
PUBLISHED_SOURCE = (
    "github.com/tkarras/progressive_growing_of_gans: the presets v2 of config.py and the times of "
    "the README (2 weeks, 1 week, 3 days, 2 days)"
)
