"""A conditional progressive GAN: the class term by hand, labels by address, resume, pictures."""

import numpy as np
import pytest
import torch

from medray import config as configuration
from medray import rng
from medray.dist.context import local
from medray.errors import DataError
from medray.images.png import decode_png
from medray.records import Batch
from medray.report import GREY
from medray.rundir import RunDir
from medray.train.conditioning import Conditioning
from medray.train.pggan import Pggan
from medray.train.pggan_config import PgganConfig
from medray.train.snapshots import GanSnapshots

# The set declares three classes, of the second the split has no image.
DECLARED = {"classes": ("a", "absent", "b"), "class_counts": (30, 0, 10)}


def _config(**changes: object) -> PgganConfig:
    fields = {
        "final_px": 16, "fade_images": 32, "stable_images": 16, "latent_dims": 8, "batch": 8,
        "fmap_base": 128, "fmap_max": 16, "precision": "fp32", "seed": 5, "conditional": True,
        **DECLARED,
    }  # fmt: skip
    return PgganConfig(**{**fields, **changes})  # type: ignore[arg-type]


def _batch(first: int, images: int = 8, labels: tuple[int, ...] = (0, 2, -1)) -> Batch:
    numbers = first + np.arange(images)
    words = rng.bits(9, "test.images", numbers, 256)
    pixels = words.astype(np.uint8).reshape(images, 1, 16, 16)
    labels_N = np.asarray(labels)[numbers % len(labels)]
    keys = tuple(f"train-{number:08d}" for number in numbers)
    return Batch(keys, pixels, labels_N, [{}] * images, first)


def _train(gan: Pggan, start: int, end: int) -> list[dict[str, torch.Tensor]]:
    return [gan.step(_batch(images), images) for images in range(start, end, 8)]


def _equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# --- labels -----------------------------------------------------------------------------------


def test_labels_of_absent_classes_and_no_labels_are_unknown_and_the_others_are_numbered() -> None:
    conditioning = Conditioning(_config())
    assert conditioning.names == ("a", "b")
    labels_N = np.array([0, 1, 2, -1, 2])
    assert conditioning.of_labels(labels_N).tolist() == [0, -1, 1, -1, 1]


@pytest.mark.parametrize(("how", "share"), [("natural", 0.25), ("balanced", 0.5)])
def test_classes_of_made_images_have_the_shares_asked_for(how: str, share: float) -> None:
    conditioning = Conditioning(_config(fake_labels=how))
    drawn_N = conditioning.drawn("test", np.arange(4000))
    assert set(drawn_N.tolist()) == {0, 1}
    assert abs(drawn_N.mean() - share) < 4 * (share * (1 - share) / 4000) ** 0.5


def test_the_class_of_a_made_image_is_a_function_of_its_number() -> None:
    conditioning = Conditioning(_config())
    whole_N = conditioning.drawn("pggan.classes_g", np.arange(100))
    assert np.array_equal(conditioning.drawn("pggan.classes_g", np.arange(40, 60)), whole_N[40:60])
    assert not np.array_equal(conditioning.drawn("pggan.classes_d", np.arange(100)), whole_N)


def test_the_class_stands_one_hot_behind_the_latent() -> None:
    rows = Conditioning(_config()).beside(np.zeros((2, 3), np.float32), np.array([1, 0]))
    assert rows.dtype == np.float32 and rows.tolist() == [[0, 0, 0, 0, 1], [0, 0, 0, 1, 0]]


@pytest.mark.parametrize(
    ("counts", "said"), [((0, 0, 0), "no labels"), ((5, 0, 0), r"one class only \(a\)")]
)
def test_fewer_than_two_classes_are_refused(counts: tuple[int, ...], said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        Pggan(_config(class_counts=counts), local())
    assert caught.value.code == "MR-D075" and "without --conditional" in str(caught.value.hint)


def test_classes_without_conditional_are_refused() -> None:
    with pytest.raises(ValueError, match="give --conditional"):
        _config(conditional=False)


def test_what_is_off_leaves_no_trace_in_a_stored_configuration() -> None:
    off = PgganConfig(final_px=16)
    assert "conditional" not in off.model_dump(mode="json")
    on = _config(diffaugment="cutout,tone")
    stored = on.model_dump(mode="json")
    assert stored["classes"] == ["a", "absent", "b"] and stored["diffaugment"] == ["tone", "cutout"]
    assert PgganConfig.model_validate(stored) == on
    assert configuration.digest(on) != configuration.digest(_config())


# --- the step ---------------------------------------------------------------------------------


def _by_hand(logits_NK: torch.Tensor, classes_N: list[int]) -> torch.Tensor:
    """-log of the softmax at the class, summed over images that have one, over all images."""
    pairs = [(row, c) for row, c in zip(logits_NK.double(), classes_N, strict=True) if c >= 0]
    terms = [-torch.log(torch.softmax(row, 0)[c]) for row, c in pairs]
    return torch.stack(terms).sum() / len(classes_N)


def test_the_class_term_is_the_cross_entropy_of_those_that_have_a_class() -> None:
    gan = Pggan(_config(start_px=16, r1_every=1000), local())
    growth = gan.config.growth_at(8)
    inputs = gan._inputs(_batch(8), 8, growth)
    assert inputs.classes_real_N is not None and inputs.classes_d_N is not None
    assert inputs.classes_real_N.tolist() == [-1, 0, 1, -1, 0, 1, -1, 0]
    with torch.no_grad():
        fake = gan.generator(inputs.z_d_NL, 16, 1.0)
        on_real = gan.discriminator.logits(inputs.real_NCHW, 16, 1.0)[:, 1:]
        on_fake = gan.discriminator.logits(fake, 16, 1.0)[:, 1:]
    wanted = {
        "class_real": _by_hand(on_real, inputs.classes_real_N.tolist()),
        "class_fake": _by_hand(on_fake, inputs.classes_d_N.tolist()),
    }
    loss, scalars = gan._loss_d(inputs)
    for name, value in wanted.items():
        torch.testing.assert_close(scalars[name].double(), value, rtol=1e-5, atol=1e-6)
    total = scalars["loss_d"] + scalars["class_real"] + scalars["class_fake"]
    torch.testing.assert_close(loss, total)


def test_d_may_learn_classes_from_real_images_alone() -> None:
    gan = Pggan(_config(start_px=16, class_on_fakes=False), local())
    inputs = gan._inputs(_batch(8, labels=(-1,)), 8, gan.config.growth_at(8))
    loss, scalars = gan._loss_d(inputs)
    assert "class_fake" not in scalars and "class_g" in gan._loss_g(inputs)[1]
    loss.backward()
    assert not gan.discriminator.out.weight.grad[1:].any(), "no real image has a class here"


def test_the_class_term_alone_moves_the_logits_of_d_and_the_class_columns_of_g() -> None:
    gan = Pggan(_config(start_px=16, class_weight=0.0), local())
    inputs = gan._inputs(_batch(8), 8, gan.config.growth_at(8))
    gan._loss_d(inputs)[0].backward()
    assert not gan.discriminator.out.weight.grad[1:].any()
    gan = Pggan(_config(start_px=16, class_weight=2.0), local())
    loss, scalars = gan._loss_d(inputs)
    loss.backward()
    assert gan.discriminator.out.weight.grad[1:].abs().min() > 0
    loss_g, scalars_g = gan._loss_g(inputs)
    torch.testing.assert_close(loss_g, scalars_g["loss_g"] + 2 * scalars_g["class_g"])
    loss_g.backward()
    assert gan.generator.dense.weight.grad[:, -2:].abs().max() > 0


def test_images_without_labels_train_the_gan_and_not_the_class_term() -> None:
    gan = Pggan(_config(start_px=16), local())
    scalars = gan.step(_batch(8, labels=(-1,)), 8)
    assert float(scalars["class_real"]) == 0
    assert float(scalars["class_fake"]) > 0 and float(scalars["score_real"]) != 0
    assert gan.nonfinite() is None


def test_the_penalty_is_on_the_score_and_knows_no_classes() -> None:
    losses = {}
    for weight in (0.0, 3.0):
        gan = Pggan(_config(start_px=16, r1_every=1, class_weight=weight), local())
        losses[weight] = gan.step(_batch(8), 8)["penalty"]
    assert torch.equal(losses[0.0], losses[3.0]) and float(losses[0.0]) > 0


@pytest.mark.parametrize(("weight", "apart"), [(1.0, True), (0.0, False)])
def test_the_class_term_alone_makes_the_class_decide_what_is_made(
    weight: float, apart: bool
) -> None:
    """Dark and bright images of two classes; without the term the class says nothing."""
    config = _config(
        final_px=4, start_px=4, batch=16, lr=0.01, class_counts=(30, 0, 30), class_weight=weight,
        ema_half_life_images=100.0, fmap_base=32, fmap_max=8, latent_dims=2, r1_gamma=0.1,
    )  # fmt: skip
    gan = Pggan(config, local())
    for images in range(0, 90 * 16, 16):
        bright_N = rng.integers(0, "test.labels", images + np.arange(16), 1, 0, 2)[:, 0]
        noise = rng.integers(0, "test.pixels", images + np.arange(16), 16, 0, 40)
        pixels = (noise + 40 + 150 * bright_N[:, None]).astype(np.uint8).reshape(16, 1, 4, 4)
        gan.step(Batch(("",) * 16, pixels, 2 * bright_N, [{}] * 16, images), images)
    assert gan.conditioning is not None
    z = rng.normals(0, "test", np.arange(32), 2)
    rows = [gan.conditioning.beside(z, np.full(32, number)) for number in (0, 1)]
    dark, bright = (gan.sample(torch.from_numpy(r), 1440).float().mean((1, 2, 3)) for r in rows)
    assert ((bright > dark + 60).float().mean() > 0.9) == apart


@pytest.mark.parametrize(("loss", "at_images"), [("r1", 40), ("wgan-gp", 8)])
def test_a_conditional_run_resumed_anywhere_goes_on_bit_for_bit(loss: str, at_images: int) -> None:
    config = _config(loss=loss, r1_every=2, diffaugment="translation,cutout,tone")
    whole = Pggan(config, local())
    _train(whole, 0, at_images)
    resumed = Pggan(config, local())
    resumed.load_state_dict({n: t.clone() for n, t in whole.state_dict().items()})
    after, again = _train(whole, at_images, 56), _train(resumed, at_images, 56)
    assert all(_equal(a, b) for a, b in zip(after, again, strict=True))
    assert _equal(whole.state_dict(), resumed.state_dict())


def test_a_conditional_run_in_bfloat16_is_near_one_in_float32() -> None:
    rows = {}
    for precision in ("fp32", "bf16"):
        gan = Pggan(_config(precision=precision, start_px=16), local())
        rows[precision] = gan.step(_batch(8), 8)
        assert rows[precision]["class_real"].dtype == torch.float32
    for name in ("class_real", "class_fake", "loss_d"):
        torch.testing.assert_close(rows["bf16"][name], rows["fp32"][name], rtol=0.05, atol=0.02)


# --- pictures ---------------------------------------------------------------------------------


class _Told:
    """A model whose images tell what it was given: bright where the second class is wanted."""

    def __init__(self) -> None:
        self.asked: list[torch.Tensor] = []

    def sample(self, z_NL: torch.Tensor, images: int) -> torch.Tensor:
        self.asked.append(z_NL)
        grey = (200 * z_NL[:, -1] + 20).to(torch.uint8)
        return grey[:, None, None, None].expand(-1, 1, 16, 16).contiguous()


def test_pictures_have_a_row_a_class_and_the_same_latents_in_each(tmp_path) -> None:  # type: ignore[no-untyped-def]
    config = _config()
    checks = np.add.outer(np.arange(16), np.arange(16)).astype(np.uint8) % 2
    reals = np.arange(40, dtype=np.uint8)[:, None, None, None] + checks
    labels_N = np.array([0] * 37 + [2] * 3)
    model = _Told()
    arguments = {"config_yaml": "seed: 0\n", "config_hash": "0", "command": "test"}
    with RunDir.start(str(tmp_path / "run"), **arguments) as run:
        pictures = GanSnapshots(
            model, run, latent_dims=8, seed=5, conditioning=Conditioning(config)
        )
        pictures.show_reals(reals, labels_N)
        pictures(16)
    shown = model.asked[0].reshape(2, 8, 10)
    assert torch.equal(shown[0, :, :8], shown[1, :, :8])
    assert shown[0, 0, 8:].tolist() == [1, 0] and shown[1, 7, 8:].tolist() == [0, 1]
    scored = model.asked[1][:, -1]
    assert 0.05 < float(scored.mean()) < 0.6, "scored in the set's shares"
    fakes = decode_png(run.store.read_bytes("fakes-00000016.png"))
    real = decode_png(run.store.read_bytes("reals.png"))
    assert fakes.shape == real.shape == (2 * 66 - 2, 8 * 66 - 2)
    assert fakes[30, 30] == 20 and fakes[96, 30] == 220
    assert real[30, 30] == 0 and real[96, 30] == 37 and real[96, 2 * 66 + 30] == 39
    assert real[96, 3 * 66 + 30] == GREY, "the second class has three images"
