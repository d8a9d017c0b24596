"""Latents of a conditional generator: a normal latent, the class one-hot behind it, by address."""

import numpy as np
import pytest

from medray import rng
from medray.archive.load import Places, load_parts
from medray.errors import UsageError
from medray.models import weights
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


@pytest.fixture
def generator(tmp_path) -> str:  # type: ignore[no-untyped-def]
    """A conditional generator's run folder, with its latents."""
    arguments = {"final_px": 8, "latent_dims": 6, "fmap_base": 32, "fmap_max": 8, "classes": 2}
    tensors = dict(Generator(**arguments).named_parameters())
    about = {"kind": "pggan", "arguments": arguments, "px": 8, "seed": 0, "classes": ["a", "b"]}
    store = Store(str(tmp_path))
    sha256 = weights.save_generator(store.child("model"), tensors, about, "card")
    of_classes(("a", "b"), 6, sha256).save(store.child("latents"))
    return str(tmp_path)


def test_an_archive_draws_each_class_through_the_latents_that_the_training_left(
    generator: str,
) -> None:
    parts = load_parts(
        Places(generator, f"{generator}/latents", None, None),
        batch=4, dtype="float32", device="cpu",
    )  # fmt: skip
    assert parts.latents is not None and parts.classes == ("a", "b")
    drawn = parts.latents.draw(0, np.array([0, 1]), np.array([5, 5]))
    a, b = parts.renderer.render(drawn)
    assert not np.array_equal(a, b), "the class alone differs"


def test_plain_latents_of_a_conditional_generator_are_refused(generator: str) -> None:
    from jobs._latents_run import load_pair

    with pytest.raises(UsageError, match="is conditional") as caught:
        load_parts(Places(generator, None, None, None), batch=4, dtype="float32", device="cpu")
    assert f"--latents {generator}/latents" in str(caught.value.hint)
    with pytest.raises(UsageError, match="is conditional: its latents name one of a, b"):
        load_pair(generator, "nothing")
