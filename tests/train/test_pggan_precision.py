"""bfloat16 against float32: where the gradients point, and what `auto` chooses."""

import numpy as np
import pytest
import torch

from medray import log, rng
from medray.dist.context import local
from medray.records import Batch
from medray.train import precision
from medray.train.pggan import Pggan
from medray.train.pggan_config import PgganConfig

# px, images, width. A slope of the leaky ReLU that rounding flips is noise in one image at one
# pixel, which means over images, pixels and channels average away: so not the smallest network.
# (At 16 px, 64 images and width 16, G's cosine is 0.9985, with pixel norm in float32 too.)
SIZES = [(32, 32, 64)]


def _config(px: int, images: int, width: int, **changes: object) -> PgganConfig:
    fields = {
        "final_px": px, "fade_images": 32, "stable_images": 16, "latent_dims": 32, "seed": 5,
        "fmap_base": 16 * width, "fmap_max": width, "batch": images, "r1_every": 1,
    }  # fmt: skip
    return PgganConfig(**{**fields, **changes})  # type: ignore[arg-type]


def _batch(images: int, px: int) -> Batch:
    pixels = rng.bits(9, "test.images", np.arange(images), px * px).astype(np.uint8)
    keys = tuple(f"train-{i:08d}" for i in range(images))
    return Batch(
        keys, pixels.reshape(images, 1, px, px), np.zeros(images, np.int64), [{}] * images, 0
    )


def _gradients(config: PgganConfig, at_images: int) -> dict[str, torch.Tensor]:
    gan = Pggan(config, local())
    growth = config.growth_at(at_images)
    inputs = gan._inputs(_batch(config.batch, config.final_px), at_images, growth)
    with torch.no_grad():
        fake = gan._generate(gan.generator, inputs.z_d_NL, growth)
    terms = {
        "D main": lambda: gan._adversarial(inputs, fake)[0],
        "D reg": lambda: gan._penalty(inputs, fake),
        "G": lambda: gan._loss_g(inputs)[0],
    }
    gradients = {}
    for name, term in terms.items():
        network = gan.generator if name == "G" else gan.discriminator
        network.zero_grad()
        term().backward()
        grads = [p.grad.flatten() for p in network.parameters() if p.grad is not None]
        gradients[name] = torch.cat(grads)
    return gradients


@pytest.mark.parametrize("loss", ["r1", "wgan-gp"])
@pytest.mark.parametrize(("px", "images", "width"), SIZES)
@pytest.mark.parametrize("at_images", [80, 1000])
def test_bfloat16_gradients_point_where_float32_ones_do(
    loss: str, px: int, images: int, width: int, at_images: int
) -> None:
    exact, rounded = (
        _gradients(_config(px, images, width, loss=loss, precision=p), at_images)
        for p in ("fp32", "bf16")
    )
    cosines = {
        name: float(torch.cosine_similarity(exact[name], rounded[name], 0)) for name in exact
    }
    assert all(cosine >= 0.999 for cosine in cosines.values()), cosines
    assert not torch.equal(exact["G"], rounded["G"])


def test_a_chosen_precision_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "measure", lambda *_: pytest.fail("measured"))
    config = _config(16, 8, 8, precision="fp32")
    assert precision.resolve(config, torch.device("cpu")) is config


@pytest.mark.parametrize(
    ("fp32_s", "bf16_s", "chosen"), [(1.0, 0.5, "bf16"), (1.0, 0.95, "fp32"), (1.0, 3.0, "fp32")]
)
def test_auto_takes_bfloat16_only_where_it_is_clearly_faster_and_says_so(
    fp32_s: float, bf16_s: float, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[dict[str, object]] = []
    monkeypatch.setattr(precision, "measure", lambda *_: {"fp32": fp32_s, "bf16": bf16_s})
    monkeypatch.setattr(log, "event", lambda name, text, **fields: said.append(fields))
    config = precision.resolve(_config(16, 8, 8), torch.device("cpu"))
    assert config.precision == chosen and said[0]["chosen"] == chosen


def test_the_measurement_times_both_precisions() -> None:
    seconds = precision.measure(_config(16, 4, 8), torch.device("cpu"))
    assert set(seconds) == {"fp32", "bf16"} and all(0 < s < 60 for s in seconds.values())
