"""On a GPU: the step is the CPU's within rounding, and its state goes on anywhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medray.dist.context import local
from medray.records import Batch
from medray.train.pggan import Pggan
from medray.train.pggan_config import PgganConfig

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]
IMAGES, PX = 8, 16


def config(**more):
    return PgganConfig(
        final_px=PX, start_px=8, total_images=64, fade_images=16, stable_images=16, batch=IMAGES,
        latent_dims=16, fmap_base=256, fmap_max=32, precision="fp32", diffaugment=("translation",),
        **more,
    )  # fmt: skip


def batch(first):
    rng = np.random.default_rng(first)
    images = rng.integers(0, 255, (IMAGES, 1, PX, PX), np.uint8)
    keys = tuple(f"train-{first + n:08d}" for n in range(IMAGES))
    return Batch(keys, images, np.zeros(IMAGES, np.int64), [{}] * IMAGES, first)


def trained(gan, first, last):
    rows = []
    for images in range(first, last, IMAGES):
        rows.append({n: float(v) for n, v in gan.step(batch(images), images).items()})
    return rows


@pytest.mark.parametrize("loss", ["r1", "wgan-gp"])
def test_the_curve_on_a_gpu_is_the_cpus(loss):
    with torch.backends.cudnn.flags(allow_tf32=False):
        here = trained(Pggan(config(loss=loss), local()), 0, 32)
        there = trained(Pggan(config(loss=loss), local(gpus_per_worker=1)), 0, 32)
    for one, other in zip(here, there, strict=True):
        assert one.keys() == other.keys()
        np.testing.assert_allclose(list(one.values()), list(other.values()), rtol=2e-2, atol=2e-3)


def test_a_state_taken_on_a_gpu_goes_on_there_and_on_the_cpu():
    with torch.backends.cudnn.flags(allow_tf32=False, deterministic=True):
        gan = Pggan(config(), local(gpus_per_worker=1))
        trained(gan, 0, 24)
        state = {name: tensor.detach().cpu().clone() for name, tensor in gan.state_dict().items()}
        expected = trained(gan, 24, 48)
        for gpus in (1, 0):
            again = Pggan(config(), local(gpus_per_worker=gpus))
            again.load_state_dict(state)
            for one, other in zip(expected, trained(again, 24, 48), strict=True):
                np.testing.assert_allclose(list(one.values()), list(other.values()), rtol=2e-2,
                                           atol=2e-3)  # fmt: skip
    assert gan.nonfinite() is None
