"""The loss curve of a small run, kept in tests/golden/pggan_16px.csv.

It may change only with a commit that means to change numbers (a layer, a loss, the schedule, a
random stream, the order of draws), and that commit replaces the file and says why. A refactor,
another thread count or another processor stays within the tolerance: sums are taken in another
order, Adam's first steps amplify the rounding, and thirty steps let it grow to about 1e-5.
To replace it: `python tests/train/test_pggan_golden.py`.
"""

from pathlib import Path

import numpy as np
import torch

from medray import rng
from medray.dist.context import local
from medray.records import Batch
from medray.train.pggan import Pggan
from medray.train.pggan_config import PgganConfig

CURVE = Path(__file__).resolve().parent.parent / "golden" / "pggan_16px.csv"
COLUMNS = ("loss_d", "loss_g", "score_real", "score_fake")
STEPS, BATCH = 30, 8


def _batch(first: int) -> Batch:
    """Smooth blobs: noise at 4 px, enlarged."""
    words = rng.bits(1, "golden.images", first + np.arange(BATCH), 16)
    pixels = words.astype(np.uint8).reshape(BATCH, 1, 4, 4).repeat(4, 2).repeat(4, 3)
    keys = tuple(f"train-{first + i:08d}" for i in range(BATCH))
    return Batch(keys, np.ascontiguousarray(pixels), np.zeros(BATCH, np.int64), [{}] * BATCH, first)


def _curve() -> np.ndarray:
    config = PgganConfig(
        seed=1, final_px=16, fade_images=48, stable_images=24, latent_dims=16, fmap_base=128,
        fmap_max=16, batch=BATCH, r1_every=4, precision="fp32",
    )  # fmt: skip
    gan = Pggan(config, local())
    rows = []
    for images in range(0, STEPS * BATCH, BATCH):
        scalars = gan.step(_batch(images), images)
        rows.append([images, gan.px, *(float(scalars[name]) for name in COLUMNS)])
    return np.array(rows)


def test_the_loss_curve_is_the_golden_one() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        got = _curve()
    finally:
        torch.set_num_threads(threads)
    wanted = np.loadtxt(CURVE, delimiter=",", skiprows=1)
    assert np.array_equal(got[:, :2], wanted[:, :2])
    np.testing.assert_allclose(got[:, 2:], wanted[:, 2:], rtol=1e-4, atol=1e-5)


if __name__ == "__main__":
    CURVE.parent.mkdir(exist_ok=True)
    header = ",".join(("images", "px", *COLUMNS))
    np.savetxt(CURVE, _curve(), "%.9g", ",", header=header, comments="")
