"""Rows of the suite `gpu` that a CPU can carry out in small."""

from __future__ import annotations

import pytest

from jobs import _bench_gpu
from jobs.bench import TARGETS, measure
from medray.train.scaling import costs_of


def test_a_step_is_held_against_a_product_of_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TARGETS, "gpu_step_16_8", TARGETS["gpu_step_16_64"])
    monkeypatch.setattr(_bench_gpu, "SIDE", 64)
    size = _bench_gpu.gan.Size(16, 8, 64, 16, gpu=False, steps=1)
    (case,) = _bench_gpu.step_rows((size,))
    row = measure(case, 2)
    (costs,) = costs_of(size.config("r1", "bf16"))
    assert (row.name, row.against) == ("gpu_step_16_8", "a product of matrices")
    # Of 16 steps one has the penalty: a step is a little more than the plain one.
    assert costs.plain.flops < costs.mean_flops(16) < costs.with_penalty.flops
    assert row.ours > 0 and row.other > 0 and row.limit_ratio == 1


def test_every_step_has_a_target() -> None:
    names = {f"gpu_step_{px}_{images}" for px, images in _bench_gpu.STEPS}
    assert names == {name for name in TARGETS if name.startswith("gpu_step_")}
