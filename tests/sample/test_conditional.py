"""Latents of a conditional generator: a normal latent, the class one-hot behind it, by address."""

import numpy as np

from medray import rng
from medray.models.pggan import Generator
from medray.sample.conditional import of_classes
from medray.sample.latents import DRAW_STREAM, LatentModel
from medray.store import Store

SHA256 = "5" * 64


def test_a_latent_is_normal_with_its_class_one_hot_behind_it() -> None:
    model = of_classes(("a", "b", "c"), 6, SHA256)
    assert model.dims == 9 and model.generator_sha256 == SHA256
    indices_N = np.array([4, 900, 10**12, 5])
    rows = model.draw(7, np.array([2, 0, 1, 2]), indices_N)
    assert rows[:, 6:].tolist() == [[0, 0, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert np.array_equal(rows[:, :6], rng.normals(7, DRAW_STREAM, indices_N, 6))


def test_targets_are_the_classes_each_alone() -> None:
    targets = of_classes(("a", "b"), 6, SHA256).targets
    assert [(t.name, t.wanted) for t in targets] == [
        ("a", {"a": 1, "b": 0}),
        ("b", {"a": 0, "b": 1}),
    ]


def test_it_is_saved_and_loaded_and_fits_the_generator(tmp_path) -> None:  # type: ignore[no-untyped-def]
    model = of_classes(("a", "b"), 6, SHA256)
    sha256 = model.save(Store(str(tmp_path)))
    loaded = LatentModel.load(str(tmp_path))
    assert loaded.sha256 == sha256 == model.sha256
    draws = [m.draw(1, np.array([1, 0]), np.array([3, 4])) for m in (model, loaded)]
    assert np.array_equal(*draws)
    assert Generator(8, latent_dims=6, fmap_base=32, fmap_max=8, classes=2).latent_dims == 8
    assert draws[0].shape == (2, 8)
