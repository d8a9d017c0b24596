"""Rendering: a fixed batch shape, so that the bytes of an image depend on its latent alone."""

import threading

import numpy as np
import pytest
import torch

from medray import rng
from medray.errors import DataError, ResourceError, UsageError
from medray.models.pggan import Generator
from medray.sample.images import TOLERANCE, Renderer

DIMS = 12


def network(px=16, channels=1, fmap_base=256, seed=0):
    torch.manual_seed(seed)
    return Generator(px, channels, DIMS, fmap_base, 128)


def renderer(generator=None, batch=16, px=16, channels=1, **options):
    about = {"px": px, "arguments": {"channels": channels}, "generator_sha256": "0" * 64}
    return Renderer(generator or network(px, channels), about, batch=batch, **options)


def latents(count, seed=0):
    return rng.normals(seed, "test", np.arange(count), DIMS)


@pytest.mark.parametrize("fmap_base, channels, px", [(256, 1, 16), (512, 3, 32), (2048, 1, 16)])
def test_neither_position_nor_neighbours_change_a_byte(fmap_base, channels, px):
    made = renderer(network(px, channels, fmap_base), px=px, channels=channels)
    z_ND = latents(37)
    whole = made.render(z_ND)
    assert whole.dtype == np.uint8
    assert whole.shape == ((37, px, px) if channels == 1 else (37, px, px, 3))
    order = np.random.default_rng(1).permutation(37)
    np.testing.assert_array_equal(made.render(z_ND[order]), whole[order])
    for number in (0, 5, 36):
        np.testing.assert_array_equal(made.render(z_ND[number : number + 1])[0], whole[number])


def test_threads_change_no_byte():
    made, z_ND, before = renderer(network(32, fmap_base=512), px=32), latents(32), None
    whole, found = made.render(z_ND), {}
    for threads in (2, 3, 5):
        before = torch.get_num_threads()
        try:
            torch.set_num_threads(threads)
            np.testing.assert_array_equal(made.render(z_ND), whole)
            assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(before)
    halves = [
        threading.Thread(target=lambda n=n: found.update({n: made.render(z_ND[16 * n :][:16])}))
        for n in (0, 1)
    ]
    for half in halves:
        half.start()
    for half in halves:
        half.join()
    np.testing.assert_array_equal(np.concatenate([found[0], found[1]]), whole)


def test_without_the_fixed_shape_position_does_change_values():
    """The negative control: at its own batch shape each, an image gets other bits."""
    generator, z_ND = network(32, fmap_base=2048).eval(), torch.from_numpy(latents(16))
    with torch.inference_mode():
        together = generator(z_ND, 32, 1.0)
        alone = torch.cat([generator(z_ND[n : n + 1], 32, 1.0) for n in range(16)])
    assert not torch.equal(together, alone)


def test_another_batch_shape_stays_within_the_promise():
    z_ND = latents(20)
    by_16, by_5 = renderer().render(z_ND), renderer(batch=5).render(z_ND)
    assert np.abs(by_16.astype(int) - by_5).max() <= TOLERANCE["float32"]
    rounded = renderer(dtype="bf16").render(z_ND)
    assert np.abs(by_16.astype(int) - rounded).max() <= TOLERANCE["bf16"]
    assert not np.array_equal(by_16, rounded)


def test_the_record_names_what_decides_the_bytes():
    record = renderer(batch=5).record()
    assert record["batch"] == 5
    assert record["dtype"] == "float32"
    assert record["device"].startswith("cpu ")
    assert record["torch"] == torch.__version__
    assert record == renderer(batch=5).record() != renderer(batch=6).record()


def test_values_that_are_not_finite_are_an_error_and_not_an_image():
    broken = network()
    with torch.no_grad():
        broken.rgb16.bias.fill_(float("nan"))
    with pytest.raises(DataError, match="not finite") as caught:
        renderer(broken).render(latents(3))
    assert caught.value.code == "MR-D070"


def test_a_broken_latent_beside_others_is_found_too():
    z_ND = latents(3)
    z_ND[1, 0] = np.inf
    with pytest.raises(DataError, match="not finite"):
        renderer().render(z_ND)


def test_no_latents_are_no_images():
    assert renderer().render(np.empty((0, DIMS), np.float32)).shape == (0, 16, 16)


@pytest.mark.parametrize("options", [{"dtype": "float16"}, {"batch": 0}])
def test_what_cannot_be_is_refused(options):
    with pytest.raises(UsageError):
        renderer(**options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(ResourceError, match="no GPU"):
        renderer(device="cuda")


def test_latents_of_another_size_are_refused():
    with pytest.raises(ValueError, match="must have shape"):
        renderer().render(np.zeros((2, DIMS + 1), np.float32))
