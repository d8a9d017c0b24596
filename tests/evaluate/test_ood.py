"""Images unlike the training data: told by a distance whose threshold keeps its promise."""

import numpy as np
import pytest
import torch

from medray import phantoms
from medray.errors import DataError
from medray.evaluate import ood
from medray.models.classifier import Classifier
from medray.models.pixels import to_unit
from medray.store import Store

PX = 32
SHA = "a" * 64


@pytest.fixture(scope="module")
def network():
    """Untrained: what a distance rests on is there before any training."""
    return Classifier(["a", "b"], size_px=PX, width=8).seed_weights(1).eval()


@pytest.fixture(scope="module")
def phantom_images():
    drawn = [s.image[None] for s in phantoms.dataset("chest", 3, 600, PX)]
    return np.stack(drawn)


def rows_of(network, images_NCHW):
    unit = to_unit(torch.from_numpy(np.ascontiguousarray(images_NCHW)))
    with torch.no_grad():
        return ood.describe(unit.numpy(), network.features(unit).numpy())


@pytest.fixture(scope="module")
def fitted(network, phantom_images):
    training, validation = phantom_images[:200], phantom_images[200:400]
    return ood.fit(rows_of(network, training), rows_of(network, validation), SHA)


def strange(kind):
    """Five pictures of a kind that no radiology department makes."""
    draw = np.random.default_rng(7)
    if kind == "noise":
        return draw.integers(0, 256, (5, 1, PX, PX), np.uint8)
    if kind == "checkerboard":
        places = np.arange(PX)
        boards = [(places[:, None] // s + places // s) % 2 * 255 for s in (1, 2, 4, 8, 16)]
        return np.array(boards, np.uint8)[:, None]
    # As photographs are: power falls with frequency, and a horizon with sky above it.
    frequency = np.hypot(np.fft.fftfreq(PX)[:, None], np.fft.fftfreq(PX)) + 1 / PX
    waves = np.fft.fft2(draw.normal(size=(5, PX, PX))) / frequency
    fields = np.real(np.fft.ifft2(waves))
    fields = fields / fields.std(axis=(1, 2), keepdims=True) * 40 + 110
    fields[:, : PX // 3] = fields[:, : PX // 3] * 0.2 + 190
    return np.clip(fields, 0, 255).astype(np.uint8)[:, None]


@pytest.mark.parametrize("kind", ["noise", "checkerboard", "photograph"])
def test_what_is_no_radiograph_is_flagged(network, fitted, kind):
    assert fitted.unlike(fitted.scores(rows_of(network, strange(kind)))).all()


def test_images_like_the_training_data_are_flagged_at_the_promised_rate(
    network, fitted, phantom_images
):
    held_out = phantom_images[400:]
    flagged = int(fitted.unlike(fitted.scores(rows_of(network, held_out))).sum())
    # Of 200 at 1%: more than six come about once in two hundred times by chance.
    assert flagged <= 6
    assert fitted.facts.expected == pytest.approx(1 - 199 / 201)


def test_a_threshold_of_few_images_says_what_it_can_promise():
    assert ood.cut(np.arange(9.0)) == (8.0, pytest.approx(0.1))
    assert ood.cut(np.arange(199.0)) == (197.0, pytest.approx(0.01))


def test_scores_are_those_of_the_definition_and_of_each_image_alone(network, fitted):
    rows = rows_of(network, strange("noise"))
    unit = (rows - fitted.mean_D) / fitted.scale_D
    precision = fitted.whitening_DD @ fitted.whitening_DD.T
    wanted = [np.sqrt(row @ precision @ row / len(row)) for row in unit]
    np.testing.assert_allclose(fitted.scores(rows), wanted, rtol=1e-9)
    np.testing.assert_allclose(fitted.scores(rows[2:3]), wanted[2:3], rtol=1e-9)


def test_a_score_that_is_no_number_is_flagged(fitted):
    assert fitted.unlike(np.array([np.nan, np.inf, 0.0])).tolist() == [True, True, False]


def test_what_was_fitted_is_kept_whole_for_its_classifier_alone(tmp_path, fitted):
    store = Store(tmp_path)
    assert ood.Familiarity.load(store, SHA) is None
    fitted.save(store)
    first = store.read_bytes(ood.FILE)
    fitted.save(store)
    assert store.read_bytes(ood.FILE) == first
    again = ood.Familiarity.load(store, SHA)
    assert again.facts == fitted.facts
    np.testing.assert_array_equal(again.whitening_DD, fitted.whitening_DD)
    with pytest.raises(DataError, match="fitted for classifier aaaaaaaaaaaa"):
        ood.Familiarity.load(store, "b" * 64)


@pytest.mark.parametrize("damage", [b"", b"\0" * 40, "cut"])
def test_a_damaged_file_is_an_error_that_names_it(tmp_path, fitted, damage):
    store = Store(tmp_path)
    fitted.save(store)
    data = store.read_bytes(ood.FILE)[:-9] if damage == "cut" else damage
    store.write_bytes(ood.FILE, data)
    with pytest.raises(DataError, match="ood.safetensors"):
        ood.Familiarity.load(store, SHA)


def test_no_flipped_bit_moves_a_threshold_unseen(tmp_path, fitted):
    store, draw = Store(tmp_path), np.random.default_rng(5)
    fitted.save(store)
    whole = store.read_bytes(ood.FILE)
    for at in draw.integers(0, len(whole), 60).tolist() + list(range(8, 40)):
        data = bytearray(whole)
        data[at] ^= 1 << int(draw.integers(0, 8))
        store.write_bytes(ood.FILE, bytes(data))
        try:
            again = ood.Familiarity.load(store, SHA)
        except DataError:
            continue
        # White space of the header alone may change.
        assert again.facts == fitted.facts, at
        np.testing.assert_array_equal(again.whitening_DD, fitted.whitening_DD)


@pytest.mark.parametrize(
    ("training", "validation", "said"),
    [
        (np.zeros((1, 80)), np.zeros((30, 80)), "2 or more training images are needed, got 1"),
        (np.zeros((9, 80)), np.zeros((18, 80)), "19 or more validation images are needed, got 18"),
        (np.full((9, 80), np.nan), np.zeros((30, 80)), "training images are not finite"),
    ],
)
def test_rows_that_say_nothing_are_refused(training, validation, said):
    with pytest.raises(ValueError, match=said):
        ood.fit(training, validation, SHA)


def test_images_that_are_all_alike_still_have_a_distance():
    flat = np.zeros((30, 80))
    fitted = ood.fit(flat, flat, SHA)
    assert fitted.unlike(fitted.scores(np.vstack([flat[:1], flat[:1] + 1]))).tolist() == [
        False,
        True,
    ]
