"""Latents with addresses: every row for itself, the stated distribution, one file."""

import json

import numpy as np
import pytest

from medray.errors import DataError, UsageError
from medray.sample.latents import (
    ABOUT,
    TENSORS,
    Gaussian,
    LatentModel,
    Target,
    prior,
    target_of,
)
from medray.store import Store

DIMS = 24
FINDINGS = ("cardiomegaly", "effusion", "nodule")


def gaussian(seed: int, scales: tuple[float, ...] = (0.2, 3.0), dims: int = DIMS) -> Gaussian:
    random = np.random.default_rng(seed)
    directions = np.linalg.qr(random.normal(size=(dims, len(scales))))[0]
    return Gaussian(
        mean_D=random.normal(size=dims).astype(np.float32),
        diagonal_D=random.uniform(0.5, 1.5, dims).astype(np.float32),
        directions_DR=directions.astype(np.float32),
        scales_R=np.array(scales, np.float32),
    )


def model() -> LatentModel:
    targets = (Target("a", {"a": 1, "b": 0}), Target("b", {"a": 0, "b": 1}))
    return LatentModel(targets, (gaussian(1), gaussian(2, (0.5,))), "g" * 64, "c" * 64)


def covariance(of: Gaussian) -> np.ndarray:
    """The stated covariance, by matrix products."""
    update = of.directions_DR @ np.diag(of.scales_R**2 - 1) @ of.directions_DR.T
    return np.diag(of.diagonal_D) @ (np.eye(len(of.mean_D)) + update) @ np.diag(of.diagonal_D)


def test_a_latent_is_the_same_alone_and_in_any_batch():
    drawn, numbers = model(), np.arange(1200) % 2
    rows = drawn.draw(7, numbers, np.arange(1200))
    for some in (slice(3, 4), slice(500, 530), slice(1199, None, -7)):
        again = drawn.draw(7, numbers[some], np.arange(1200)[some])
        assert again.tobytes() == rows[some].tobytes()
    assert rows.dtype == np.float32 and np.isfinite(rows).all()
    assert (rows != drawn.draw(8, numbers, np.arange(1200))).mean() > 0.99


def test_a_draw_is_the_formula_with_matrix_products():
    of, x_ND = gaussian(3), np.random.default_rng(0).normal(size=(50, DIMS)).astype(np.float32)
    along_NR = x_ND @ of.directions_DR * (of.scales_R - 1)
    expected = of.mean_D + of.diagonal_D * (x_ND + along_NR @ of.directions_DR.T)
    np.testing.assert_allclose(of.transform(x_ND), expected, atol=1e-5)


def test_draws_have_the_stated_mean_and_covariance():
    drawn = model()
    rows = drawn.draw(1, np.zeros(40_000, int), np.arange(40_000)).astype(np.float64)
    of = drawn.gaussians[0]
    # Five standard errors of a mean and of a covariance.
    spread = np.sqrt(np.diag(covariance(of)))
    assert (np.abs(rows.mean(0) - of.mean_D) < 5 * spread / 200).all()
    error = np.abs(np.cov(rows.T) - covariance(of)) / np.outer(spread, spread)
    assert error.max() < 5 * np.sqrt(2) / 200


def test_a_gaussian_without_directions_is_a_diagonal_one():
    of = gaussian(4, ())
    x_ND = np.ones((2, DIMS), np.float32)
    np.testing.assert_allclose(of.transform(x_ND)[0], of.mean_D + of.diagonal_D, rtol=1e-6)
    assert of.transform(np.empty((0, DIMS), np.float32)).shape == (0, DIMS)


def test_plain_latents_are_standard_normal_and_have_addresses_of_their_own():
    rows = prior(3, np.arange(20_000), 8)
    assert abs(rows.mean()) < 5 / np.sqrt(rows.size) and abs(rows.var() - 1) < 0.02
    assert prior(3, np.array([17]), 8).tobytes() == rows[17].tobytes()


def test_a_model_comes_back_from_its_file_with_the_same_bytes(tmp_path):
    store, made = Store(tmp_path), model()
    sha256 = made.save(store)
    again = LatentModel.load(str(tmp_path))
    assert again.data == made.data == store.read_bytes(TENSORS)
    assert again.sha256 == sha256 == json.loads(store.read_bytes(ABOUT))["latents_sha256"]
    assert again.targets == made.targets and again.generator_sha256 == "g" * 64
    indices = np.arange(9)
    assert (again.draw(1, indices % 2, indices) == made.draw(1, indices % 2, indices)).all()


def test_the_digest_depends_on_the_targets_too():
    made = model()
    other = LatentModel(
        (Target("a", {"a": 1, "b": 1}), made.targets[1]), made.gaussians, "g" * 64, "c" * 64
    )
    assert other.sha256 != made.sha256


@pytest.mark.parametrize("place", [0, 9, 400, -1])
def test_a_changed_byte_is_refused(tmp_path, place):
    store = Store(tmp_path)
    model().save(store)
    data = bytearray(store.read_bytes(TENSORS))
    data[place] ^= 1
    store.write_bytes(TENSORS, bytes(data))
    with pytest.raises(DataError, match="digest") as raised:
        LatentModel.load(str(tmp_path))
    assert raised.value.code == "MR-D040" and TENSORS in raised.value.where


def test_another_schema_and_no_model_are_refused(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="holds no latents"):
        LatentModel.load(str(tmp_path))
    monkeypatch.setattr("medray.sample.latents.SCHEMA", "medray.latents/2")
    model().save(Store(tmp_path))
    monkeypatch.undo()
    with pytest.raises(DataError, match="medray.latents/2"):
        LatentModel.load(str(tmp_path))


@pytest.mark.parametrize(
    "numbers, indices, said",
    [([2], [0], "0 to 1, got 2"), ([-1], [0], "got -1"), ([0, 1], [0], r"\(2,\) and \(1,\)")],
)
def test_addresses_that_do_not_fit_are_refused(numbers, indices, said):
    with pytest.raises(ValueError, match=said):
        model().draw(0, np.array(numbers), np.array(indices))


def test_a_gaussian_that_does_not_fit_together_is_refused():
    of = gaussian(1)
    with pytest.raises(ValueError, match="must agree"):
        Gaussian(of.mean_D, of.diagonal_D, of.directions_DR, of.scales_R[:1])
    with pytest.raises(ValueError, match="scales_R must be finite"):
        Gaussian(of.mean_D, of.diagonal_D, of.directions_DR, of.scales_R * np.float32("nan"))


def test_targets_are_named_findings_present_and_all_others_absent():
    both = target_of("effusion+nodule", FINDINGS, True)
    assert both.wanted == {"cardiomegaly": 0, "effusion": 1, "nodule": 1}
    assert not any(target_of("normal", FINDINGS, True).wanted.values())
    assert target_of("b", ("a", "b"), False).wanted == {"a": 0, "b": 1}


@pytest.mark.parametrize(
    "text, multi_label, said",
    [
        ("fracture", True, "'fracture'.*\n.*cardiomegaly, effusion, nodule"),
        ("normal", False, "'normal'"),
        ("effusion+effusion", True, "twice"),
        ("effusion+nodule", False, "2 classes at once"),
    ],
)
def test_targets_that_cannot_be_are_refused(text, multi_label, said):
    with pytest.raises(UsageError, match=f"(?s){said}"):
        target_of(text, FINDINGS, multi_label)
