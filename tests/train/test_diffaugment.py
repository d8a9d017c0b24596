"""Differentiable augmentation: a naive version image by image, gradients, addresses, the step."""

import numpy as np
import pytest
import torch

from medray import rng
from medray.dist.context import local
from medray.records import Batch
from medray.train import diffaugment
from medray.train.diffaugment import DRAWS, augment
from medray.train.pggan import Pggan
from medray.train.pggan_config import AUGMENTATIONS, PgganConfig

Tensor = torch.Tensor
ALL = ",".join(AUGMENTATIONS)


def _draws(images: int = 12) -> Tensor:
    return torch.from_numpy(rng.uniforms(3, "test.draws", np.arange(images), DRAWS))


def _images(images: int = 12, channels: int = 1, px: int = 16) -> Tensor:
    drawn = rng.normals(3, "test.images", np.arange(images), channels * px * px)
    return torch.from_numpy(drawn).view(images, channels, px, px).double()


# --- one image at a time, pixel by pixel ------------------------------------------------------


def _tone(image: np.ndarray, draws: np.ndarray) -> np.ndarray:
    brighter = image + (draws[0] - 0.5)
    return (brighter - brighter.mean()) * (draws[1] + 0.5) + brighter.mean()


def _translation(image: np.ndarray, draws: np.ndarray) -> np.ndarray:
    px = image.shape[1]
    most = int(px / 8 + 0.5)
    dy, dx = (int(d * (2 * most + 1)) - most for d in draws[2:4])
    moved = np.zeros_like(image)
    for y in range(px):
        for x in range(px):
            if 0 <= y + dy < px and 0 <= x + dx < px:
                moved[:, y, x] = image[:, y + dy, x + dx]
    return moved


def _cutout(image: np.ndarray, draws: np.ndarray) -> np.ndarray:
    px = image.shape[1]
    side = int(px / 2 + 0.5)
    top, left = (int(d * (px + 1 - side % 2)) - side // 2 for d in draws[4:6])
    cut = image.copy()
    cut[:, max(top, 0) : top + side, max(left, 0) : left + side] = 0
    return cut


NAIVE = {"tone": _tone, "translation": _translation, "cutout": _cutout}


@pytest.mark.parametrize("px", [4, 8, 16, 33])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", AUGMENTATIONS)
def test_each_kind_is_the_naive_one(kind: str, channels: int, px: int) -> None:
    images, draws = _images(channels=channels, px=px), _draws()
    got = augment(images, draws, [kind])
    pairs = zip(images.numpy(), draws.double().numpy(), strict=True)
    wanted = np.stack([NAIVE[kind](image, draw) for image, draw in pairs])
    np.testing.assert_allclose(got.numpy(), wanted, rtol=1e-6, atol=1e-6)
    assert not torch.equal(got, images)


def test_kinds_are_applied_in_the_order_tone_translation_cutout() -> None:
    images, draws = _images(), _draws()
    one_by_one = images
    for kind in ("tone", "translation", "cutout"):
        one_by_one = augment(one_by_one, draws, [kind])
    config = PgganConfig(diffaugment="cutout,translation,tone")  # type: ignore[arg-type]
    assert torch.equal(augment(images, draws, config.diffaugment), one_by_one)


def test_shifts_reach_an_eighth_each_way_and_all_are_as_likely() -> None:
    images = torch.zeros(4000, 1, 16, 16)
    images[:, :, 8, 8] = 1
    draws = torch.from_numpy(rng.uniforms(3, "test.shifts", np.arange(4000), DRAWS))
    place = diffaugment.translation(images, draws)[:, 0].flatten(1).argmax(1)
    for along in (place // 16, place % 16):
        counts = torch.bincount(along - 6, minlength=5)
        assert counts.tolist() and (counts.float() / 4000 - 0.2).abs().max() < 0.03


@pytest.mark.parametrize("draw", [0.0, 1 - 2**-24])
def test_the_ends_of_the_draws_stay_inside_the_image(draw: float) -> None:
    images, draws = _images(2), torch.full((2, DRAWS), draw)
    changed = augment(images, draws, AUGMENTATIONS)
    assert changed.shape == images.shape and torch.isfinite(changed).all()


def test_the_gradient_is_that_of_finite_differences() -> None:
    images, draws = _images(3, px=5).requires_grad_(True), _draws(3)
    assert torch.autograd.gradcheck(lambda x: augment(x, draws, AUGMENTATIONS), (images,))


def test_the_memory_format_and_the_type_stay() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        images = _images(4, 3).to(dtype).contiguous(memory_format=torch.channels_last)
        changed = augment(images, _draws(4), ["translation", "cutout"])
        assert changed.dtype == dtype
        plain = augment(images.contiguous(), _draws(4), ["translation", "cutout"])
        assert torch.equal(changed, plain)


# --- in the configuration and in the step -----------------------------------------------------


@pytest.mark.parametrize("given", ["cutout,tone", ["tone", "cutout"], ("cutout,", "tone")])
def test_words_come_with_commas_or_apart_and_in_any_order(given: object) -> None:
    assert PgganConfig.model_validate({"diffaugment": given}).diffaugment == ("tone", "cutout")


@pytest.mark.parametrize(
    ("given", "said"), [("tone,tone", "names one twice"), ("blur", "'tone', 'translation' or")]
)
def test_other_words_are_refused(given: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        PgganConfig.model_validate({"diffaugment": given})


def _config(**changes: object) -> PgganConfig:
    fields = {
        "final_px": 16, "start_px": 16, "latent_dims": 8, "batch": 8, "fmap_base": 128,
        "fmap_max": 16, "precision": "fp32", "seed": 5, "r1_every": 1,
    }  # fmt: skip
    return PgganConfig(**{**fields, **changes})  # type: ignore[arg-type]


def _batch(first: int, images: int = 8) -> Batch:
    words = rng.bits(9, "test.images", first + np.arange(images), 256)
    pixels = words.astype(np.uint8).reshape(images, 1, 16, 16)
    return Batch(("",) * images, pixels, np.full(images, -1), [{}] * images, first)


def test_an_image_is_changed_by_its_number_alone() -> None:
    gan = Pggan(_config(diffaugment=ALL), local())
    growth = gan.config.growth_at(0)
    whole, part = gan._inputs(_batch(0), 0, growth), gan._inputs(_batch(4, 4), 0, growth)
    assert torch.equal(whole.real_NCHW[4:], part.real_NCHW)
    for name in ("draws_d_NA", "draws_g_NA"):
        assert torch.equal(getattr(whole, name)[4:], getattr(part, name))
    assert not torch.equal(whole.draws_d_NA, whole.draws_g_NA)  # type: ignore[arg-type]


def test_real_and_made_images_are_changed_alike_and_g_is_moved_through_it() -> None:
    gan = Pggan(_config(diffaugment="cutout"), local())
    inputs = gan._inputs(_batch(0), 0, gan.config.growth_at(0))
    seen: list[Tensor] = []
    logits = gan._logits
    gan._logits = lambda images, growth, parts=1: (  # type: ignore[method-assign]
        seen.append(images),
        logits(images, growth, parts),
    )[1]
    gan._loss_d(inputs)
    gan._loss_g(inputs)[0].backward()
    penalised, both, made = seen
    assert torch.equal(penalised, inputs.real_NCHW), "R1 at the images that D is trained on"
    real, fake = both.chunk(2)
    for images in (real, fake, made):
        assert ((images == 0).flatten(1).float().mean(1) > 0.05).all(), "a square is cut out"
    assert gan.generator.rgb16.weight.grad.abs().sum() > 0


def test_off_is_what_it_was_and_on_is_not() -> None:
    rows = {}
    for words in ((), ALL):
        gan = Pggan(_config(diffaugment=words), local())
        plain = gan._inputs(_batch(0), 0, gan.config.growth_at(0))
        rows[words] = (gan.step(_batch(0), 0), plain)
    (off, inputs), (on, _) = rows[()], rows[ALL]
    assert inputs.draws_d_NA is None and inputs.draws_g_NA is None
    assert not torch.equal(off["penalty"], on["penalty"])
    untouched = torch.from_numpy(_batch(0).images_NCHW).float() / 127.5 - 1
    torch.testing.assert_close(inputs.real_NCHW, untouched)
