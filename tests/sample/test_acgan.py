"""The ACGAN as a sampler: two known classes are learnt, addresses hold, bad input is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medray.errors import GateError, UsageError
from medray.metrics.frechet import frechet_of
from medray.models.acgan import save_acgan
from medray.sample.acgan import ACGAN, BATCH
from medray.store import Store
from medray.train.acgan import as_maps
from tests.feature_sets import CLASSES, two_gaussians

SMALL = {"width": 64, "noise_dims": 16, "total_images": 8_000, "batch": 32, "seed": 1}
ROWS, LABELS = two_gaussians(400)
OTHERS, OTHER_LABELS = two_gaussians(400, seed=1)
NUMBERS = np.array([CLASSES.index(label) for label in LABELS])
OTHER_NUMBERS = np.array([CLASSES.index(label) for label in OTHER_LABELS])


@pytest.fixture(scope="module")
def fitted() -> ACGAN:
    return ACGAN(**SMALL).fit(ROWS, NUMBERS)


def said(rows) -> np.ndarray:
    """What a linear classifier that knows the true classes calls rows: the nearer mean."""
    return (rows[:, :2].sum(1) > 0).astype(int)


def distance(sampler: ACGAN) -> float:
    """Mean Frechet distance of each class to real rows that nobody trained on."""
    rows, labels = sampler.sample(400, 5, labels="balanced")
    found = [frechet_of(rows[labels == k], OTHERS[OTHER_NUMBERS == k]) for k in (0, 1)]
    return float(np.mean(found))


def test_the_generated_classes_come_near_the_true_ones(fitted) -> None:
    floor = np.mean([frechet_of(ROWS[NUMBERS == k], OTHERS[OTHER_NUMBERS == k]) for k in (0, 1)])
    start = distance(ACGAN(**{**SMALL, "total_images": 32}).fit(ROWS, NUMBERS))
    end = distance(fitted)
    assert end < start / 8 and end < 1 + floor, (start, end, floor)


def test_accepted_rows_have_the_wanted_class_and_shuffled_training_has_not(fitted) -> None:
    rows, labels = fitted.sample(400, 2, labels="balanced")
    right = float((said(rows) == labels).mean())
    assert float((said(OTHERS) == OTHER_NUMBERS).mean()) > 0.95 and right > 0.9
    mixed = np.random.default_rng(0).permutation(NUMBERS)
    control = ACGAN(**SMALL).fit(ROWS, mixed)
    rows, labels = control.sample(400, 2, labels="balanced")
    assert float((said(rows) == labels).mean()) < 0.75


def test_rows_are_addresses_whatever_is_drawn_with_them(fitted) -> None:
    rows, labels = fitted.sample(2 * BATCH + 9, 7)
    for cut in (5, BATCH, BATCH + 1):
        first, rest = fitted.sample(cut, 7), fitted.sample(2 * BATCH + 9 - cut, 7, start=cut)
        assert np.array_equal(np.concatenate([first[0], rest[0]]), rows)
        assert np.array_equal(np.concatenate([first[1], rest[1]]), labels)
    alone, _ = fitted.sample(1, 7, start=200)
    assert np.array_equal(alone[0], rows[200])
    assert not np.array_equal(fitted.sample(3, 8)[0], rows[:3])


def test_only_what_the_discriminator_calls_so_is_kept(fitted) -> None:
    rows, labels = fitted.sample(300, 3)
    seen = fitted.generator.standardised(torch.from_numpy(as_maps(rows)))
    assert np.array_equal(fitted.discriminator(seen)[1].argmax(1).numpy(), labels)
    assert set(fitted.acceptance) == {"0", "1"}
    assert all(0.3 < share <= 1 for share in fitted.acceptance.values())


def test_what_is_never_accepted_ends_naming_the_class(fitted, tmp_path) -> None:
    sampler = ACGAN.of(fitted.generator, fitted.discriminator, [1, 1])
    bias = fitted.discriminator.label.bias
    before = bias.clone()
    try:
        bias[1] -= 1e6
        with pytest.raises(GateError, match=r"row 0 .* calls 1 \(acceptance 0.0%\)"):
            sampler.sample(1, 0, labels=np.array(["1"]))
    finally:
        bias.copy_(before)


def test_fitting_again_gives_the_same_rows_and_another_seed_others() -> None:
    short = {**SMALL, "total_images": 320}
    a, b, c = (
        ACGAN(**{**short, "seed": seed}).fit(ROWS, NUMBERS).sample(9, 0)[0] for seed in (1, 1, 2)
    )
    assert np.array_equal(a, b) and not np.array_equal(a, c)


def test_labels_of_text_and_maps_and_tensors_are_taken() -> None:
    short = {**SMALL, "total_images": 320}
    _, labels = ACGAN(**short).fit(ROWS, np.array(LABELS)).sample(20, 0)
    assert set(labels) == set(CLASSES)
    maps = ROWS.reshape(-1, 2, 2, 2)
    made, _ = ACGAN(**short).fit(maps, NUMBERS).sample(5, 0)
    assert made.shape == (5, 2, 2, 2)
    made, labels = (
        ACGAN(**short).fit(torch.from_numpy(ROWS), torch.from_numpy(NUMBERS)).sample(5, 0)
    )
    assert isinstance(made, torch.Tensor) and isinstance(labels, torch.Tensor)


def test_a_saved_one_gives_the_same_rows_and_refuses_features_of_another_network(
    fitted, tmp_path
) -> None:
    about = {"features": "aa:body:mean", "counts": [200, 200]}
    save_acgan(Store(tmp_path / "model"), fitted.generator, fitted.discriminator, about, "")
    loaded = ACGAN.load(str(tmp_path), tag="aa:body:mean")
    rows, labels = loaded.sample(20, 4)
    assert np.array_equal(rows, fitted.sample(20, 4)[0]) and set(labels) <= {"0", "1"}
    with pytest.raises(
        UsageError, match="makes features of aa:body:mean, these are of bb:body:mean"
    ):
        ACGAN.load(str(tmp_path), tag="bb:body:mean")


@pytest.mark.parametrize(
    ("rows", "numbers", "said"),
    [
        (np.where(np.arange(8) == 3, np.nan, ROWS), NUMBERS, "of 400 rows are not finite"),
        (ROWS, np.zeros(400, int), "one class only"),
        (ROWS, (np.arange(400) == 7).astype(int), "fewer than 2 rows"),
        (np.ones((10, 3), np.float32), np.arange(10) % 2, "all features are constant"),
        (np.ones((10, 3, 2), np.float32), np.arange(10) % 2, "features must have shape"),
    ],
)
def test_what_cannot_be_learnt_from_is_refused(rows, numbers, said) -> None:
    with pytest.raises(UsageError, match=said):
        ACGAN(**SMALL).fit(rows, numbers)


def test_a_constant_feature_stays_constant() -> None:
    rows = ROWS.copy()
    rows[:, 4] = 3.5
    made, _ = ACGAN(**{**SMALL, "total_images": 320}).fit(rows, NUMBERS).sample(50, 0)
    assert np.array_equal(made[:, 4], np.full(50, np.float32(3.5)))
