"""The progressive GAN as a thing to train: resume, levels, inputs, faults, pictures, precision."""

import numpy as np
import pytest
import torch

from medray import rng
from medray.dist.context import local
from medray.errors import DataError, UsageError
from medray.models.pixels import to_unit
from medray.records import Batch
from medray.train import ema
from medray.train.pggan import Pggan, faded, reduced
from medray.train.pggan_config import PgganConfig


def _config(**changes: object) -> PgganConfig:
    fields = {
        "final_px": 16, "fade_images": 32, "stable_images": 16, "latent_dims": 8, "batch": 8,
        "fmap_base": 128, "fmap_max": 16, "precision": "fp32", "seed": 5,
    }  # fmt: skip
    return PgganConfig(**{**fields, **changes})  # type: ignore[arg-type]


def _batch(first: int, images: int = 8, px: int = 16, channels: int = 1) -> Batch:
    words = rng.bits(9, "test.images", first + np.arange(images), channels * px * px)
    pixels = words.astype(np.uint8).reshape(images, channels, px, px)
    keys = tuple(f"train-{first + i:08d}" for i in range(images))
    return Batch(keys, pixels, np.zeros(images, np.int64), [{}] * images, first)


def _train(gan: Pggan, start: int, end: int) -> list[dict[str, torch.Tensor]]:
    return [gan.step(_batch(images), images) for images in range(start, end, 8)]


def _copied(gan: Pggan) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in gan.state_dict().items()}


def _equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# --- resume -----------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["r1", "wgan-gp"])
@pytest.mark.parametrize("at_images", [8, 40, 48, 72])
def test_a_run_resumed_anywhere_goes_on_bit_for_bit(loss: str, at_images: int) -> None:
    config = _config(loss=loss, r1_every=4)
    whole = Pggan(config, local())
    _train(whole, 0, at_images)
    resumed = Pggan(config, local())
    resumed.load_state_dict(_copied(whole))
    after = _train(whole, at_images, at_images + 24)
    again = _train(resumed, at_images, at_images + 24)
    assert all(_equal(a, b) for a, b in zip(after, again, strict=True))
    assert _equal(whole.state_dict(), resumed.state_dict())


def test_without_adams_state_a_resumed_run_is_another_run() -> None:
    whole, resumed = Pggan(_config(), local()), Pggan(_config(), local())
    _train(whole, 0, 40)
    state = _copied(whole)
    for name in state:
        if name.startswith("adam") and "exp_avg" in name:
            state[name].zero_()
    resumed.load_state_dict(state)
    _train(whole, 40, 48)
    _train(resumed, 40, 48)
    assert not _equal(whole.state_dict(), resumed.state_dict())


def test_a_state_lists_every_part_under_its_name() -> None:
    names = set(Pggan(_config(), local()).state_dict())
    for name in ("generator.block16.0.weight", "ema.rgb4.bias", "discriminator.out.weight"):
        assert name in names
    assert {"adam_g.exp_avg.dense.weight", "adam_d.exp_avg_sq.out.bias", "adam_g.step"} <= names
    assert "progress.px" in names


def test_a_checkpoint_of_another_width_is_refused_by_the_tensors_name() -> None:
    state = Pggan(_config(fmap_max=8), local()).state_dict()
    with pytest.raises(DataError, match=r"dense.weight has shape \(128, 8\) in the checkpoint"):
        Pggan(_config(), local()).load_state_dict(state)


def test_a_checkpoint_with_a_tensor_missing_is_refused() -> None:
    gan = Pggan(_config(), local())
    state = _copied(gan)
    del state["ema.rgb8.bias"]
    with pytest.raises(DataError, match="checkpoint lacks ema.rgb8.bias"):
        gan.load_state_dict(state)


# --- levels, seeds, cadence -------------------------------------------------------------------


def test_adam_starts_anew_at_each_level_and_only_there() -> None:
    gan = Pggan(_config(), local())
    _train(gan, 0, 16)
    assert int(gan.state_dict()["adam_d.step"]) == 2
    _train(gan, 16, 24)
    assert gan.px == 8 and int(gan.state_dict()["adam_d.step"]) == 1
    _train(gan, 24, 64)
    assert gan.px == 8 and int(gan.state_dict()["adam_g.step"]) == 6


def test_layers_of_later_levels_wait_untouched() -> None:
    gan = Pggan(_config(), local())
    before = _copied(gan)
    _train(gan, 0, 48)
    after = gan.state_dict()
    assert torch.equal(before["generator.block16.0.weight"], after["generator.block16.0.weight"])
    assert not torch.equal(before["generator.block8.0.weight"], after["generator.block8.0.weight"])


def test_seeds_decide_the_weights_and_nothing_else_does() -> None:
    torch.manual_seed(1)
    first = Pggan(_config(), local()).state_dict()
    torch.manual_seed(2)
    assert _equal(first, Pggan(_config(), local()).state_dict())
    other = Pggan(_config(seed=6), local()).state_dict()
    assert not torch.equal(first["generator.dense.weight"], other["generator.dense.weight"])


def test_r1_is_due_in_one_step_of_so_many() -> None:
    gan = Pggan(_config(r1_every=4), local())
    assert ["penalty" in s for s in _train(gan, 0, 64)] == [True, False, False, False] * 2


def test_scalars_stay_on_the_device_and_carry_no_graph() -> None:
    scalars = _train(Pggan(_config(loss="wgan-gp"), local()), 0, 8)[0]
    assert set(scalars) == {"loss_d", "loss_g", "score_real", "score_fake", "penalty"}
    assert all(s.ndim == 0 and not s.requires_grad for s in scalars.values())


def test_precision_auto_must_be_resolved_before() -> None:
    with pytest.raises(UsageError, match="precision auto must be resolved"):
        Pggan(_config(precision="auto"), local())


# --- inputs -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "top"), [(np.uint8, 255), (np.uint16, 65535)])
def test_grey_levels_fill_minus_one_to_one(dtype: type, top: int) -> None:
    images = torch.from_numpy(np.array([0, top], dtype).reshape(1, 1, 1, 2))
    assert to_unit(images).flatten().tolist() == [-1.0, 1.0]


def test_other_pixel_types_are_refused() -> None:
    with pytest.raises(DataError, match="must be uint8 or uint16, got torch.float32"):
        to_unit(torch.zeros(1, 1, 4, 4))


def test_real_images_are_reduced_by_box_mean_and_faded_as_the_networks_are() -> None:
    images = torch.arange(64.0).reshape(1, 1, 8, 8)
    box = torch.stack(
        [images[0, 0, r : r + 2, c : c + 2].mean() for r in (0, 2, 4, 6) for c in (0, 2, 4, 6)]
    )
    assert torch.equal(reduced(images, 4).flatten(), box)
    assert reduced(images, 8) is images and faded(images, 1.0) is images
    coarse = reduced(images, 4).repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(faded(images, 0.25), 0.75 * coarse + 0.25 * images)


@pytest.mark.parametrize("shape", [(1, 1, 8, 4), (1, 1, 12, 12)])
def test_images_that_do_not_reduce_to_the_resolution_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="square and a multiple of 8 px"):
        reduced(torch.zeros(shape), 8)


def test_mirroring_flips_half_of_the_images_by_their_number() -> None:
    gan = Pggan(_config(mirror=True, start_px=16), local())
    batch = _batch(0, images=64)
    plain = to_unit(torch.from_numpy(batch.images_NCHW))
    seen = gan._inputs(batch, 0, gan.config.growth_at(0)).real_NCHW
    flipped = [torch.equal(s, p.flip(2)) for s, p in zip(seen, plain, strict=True)]
    kept = [torch.equal(s, p) for s, p in zip(seen, plain, strict=True)]
    assert all(a != b for a, b in zip(flipped, kept, strict=True)) and 16 < sum(flipped) < 48


@pytest.mark.parametrize("images", [1, 2, 3, 5, 6])
def test_any_batch_size_trains(images: int) -> None:
    gan = Pggan(_config(batch=images, loss="wgan-gp"), local())
    scalars = gan.step(_batch(0, images=images), 0)
    assert all(torch.isfinite(s) for s in scalars.values()) and gan.nonfinite() is None


def test_colour_trains_too() -> None:
    gan = Pggan(_config(channels=3), local())
    gan.step(_batch(0, channels=3), 0)
    assert gan.sample(torch.zeros(2, 8), 8).shape == (2, 3, 4, 4)


# --- faults and pictures ----------------------------------------------------------------------


def test_a_non_finite_gradient_is_named_by_phase_and_tensor() -> None:
    gan = Pggan(_config(), local())
    _train(gan, 0, 8)
    assert gan.nonfinite() is None
    with torch.no_grad():
        gan.generator.rgb4.bias.fill_(float("nan"))
    _train(gan, 8, 16)
    assert gan.nonfinite() == "phase D: gradient of rgb4.weight"


def test_pictures_are_grey_levels_of_the_average_at_the_current_resolution() -> None:
    gan = Pggan(_config(), local())
    _train(gan, 0, 64)
    z = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    pictures = gan.sample(z, 64)
    assert pictures.shape == (20, 1, 16, 16) and pictures.dtype == torch.uint8
    growth = gan.config.growth_at(64)
    with torch.no_grad():
        expected = (gan.average(z[:16], growth.px, growth.alpha) + 1) * 127.5
    difference = (pictures[:16].float() - expected.clamp(0, 255)).abs()
    assert difference.max() <= 0.5001


def test_the_average_halves_its_distance_in_a_half_life_whatever_the_batch() -> None:
    for batch in (1, 10, 100):
        average = [torch.zeros(3), torch.zeros(2)]
        for images in range(100_000, 101_000, batch):
            decay = ema.decay_at(images, batch, half_life_images=1000, rampup=0.05)
            ema.update_(average, [torch.ones(3), torch.ones(2)], decay)
        torch.testing.assert_close(average[0], torch.full((3,), 0.5), atol=1e-4, rtol=0)


def test_an_average_follows_every_parameter_of_its_network_and_no_buffer() -> None:
    average, network = (torch.nn.BatchNorm1d(3) for _ in range(2))
    with torch.no_grad():
        network.weight.fill_(3.0)
        network.bias.fill_(1.0)
    network(torch.randn(4, 3))
    ema.follow(average, network, images=100_000, batch=1000, half_life_images=1000)
    assert torch.equal(average.weight, torch.full((3,), 2.0))
    assert torch.equal(average.bias, torch.full((3,), 0.5))
    assert torch.equal(average.running_mean, torch.zeros(3))


def test_early_on_the_average_follows_closely() -> None:
    early = ema.decay_at(100, 10, half_life_images=10_000, rampup=0.05)
    assert early == pytest.approx(0.5 ** (10 / 5))
