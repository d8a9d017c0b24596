"""Grad-CAM: the published formulas, any layer, and nothing gone back through before the layer."""

import threading

import numpy as np
import pytest
import torch
from monai.visualize.class_activation_maps import GradCAM
from torch import nn
from torch.nn import functional

from medray.errors import DataError, UsageError
from medray.evaluate import gradcam as cam
from medray.models.classifier import Classifier

PX = 32
LAYERS = ("body.stem", "body.blocks.0.conv1", "body.blocks.0", "body.blocks.2")


@pytest.fixture(scope="module")
def network() -> Classifier:
    made = Classifier(("a", "b", "c"), size_px=PX, width=8).seed_weights(3)
    return made.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (5, 1, PX, PX))).float()


def naive(network, image_1CHW, layer, number, plus_plus):
    """The papers' formulas, one image and one map at a time, back through the whole network."""
    kept = []
    hook = network.get_submodule(layer).register_forward_hook(
        lambda module, given, made: kept.append(made.clone()) or kept[-1].clone()
    )
    image_1CHW = image_1CHW.clone().requires_grad_()
    score = network(image_1CHW)[0, number]
    hook.remove()
    (gradient,) = torch.autograd.grad(score, kept[0])
    heat = torch.zeros(kept[0].shape[2:])
    for a, g in zip(kept[0][0].detach(), gradient[0], strict=True):
        weight = g.mean()
        if plus_plus:
            below = 2 * g**2 + a.sum() * g**3
            alpha = torch.where(below != 0, g**2 / below, torch.zeros_like(g))
            weight = (alpha * functional.relu(g)).sum()
        heat = heat + weight * a
    size = image_1CHW.shape[2:]
    heat = functional.interpolate(functional.relu(heat)[None, None], size, mode="bilinear")[0, 0]
    return heat / heat.max() if heat.max() > 0 else heat


@pytest.mark.parametrize("plus_plus", [False, True])
@pytest.mark.parametrize("layer", LAYERS)
def test_heat_is_that_of_the_papers_formula(network, images, layer, plus_plus):
    said = network(images).argmax(1)
    found = cam.gradcam(network, images, layer, plus_plus=plus_plus)
    for n, heat in enumerate(found):
        expected = naive(network, images[n : n + 1], layer, int(said[n]), plus_plus)
        assert torch.allclose(heat, expected, atol=1e-5)
    assert found.shape == (5, PX, PX) and found.min() >= 0 and found.amax() <= 1


def test_heat_equals_monais_to_1e_5_and_that_of_another_class_does_not(network, images):
    other = Classifier(("a", "b", "c"), size_px=PX, width=8).seed_weights(3).eval()

    def scaled(maps_N1HW):
        return maps_N1HW / maps_N1HW.amax((2, 3), keepdim=True).clamp(min=1e-12)

    theirs = GradCAM(other, "body.blocks.1", postprocessing=scaled)(images, class_idx=1)[:, 0]
    ours = cam.gradcam(network, images, "body.blocks.1", torch.ones(5))
    assert (ours - theirs).abs().max() < 1e-5
    assert (
        cam.gradcam(network, images, "body.blocks.1", torch.zeros(5)) - theirs
    ).abs().max() > 0.1


class _NoWayBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise AssertionError("gone back through")


class _Guarded(nn.Module):
    """A trunk that must not be gone back through, a layer, a head."""

    def __init__(self):
        super().__init__()
        self.first, self.layer = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3)
        self.head = nn.Linear(4, 2)

    def forward(self, images):
        x = _NoWayBack.apply(self.first(images))
        return self.head(self.layer(x).mean((2, 3)))


def test_nothing_before_the_layer_is_gone_back_through(images):
    network = _Guarded().eval()
    assert cam.gradcam(network, images, "layer").shape == (5, PX, PX)
    assert all(p.grad is None for p in network.parameters())
    with pytest.raises(AssertionError, match="gone back"):
        cam.gradcam(network, images, "first")


def test_a_layer_that_does_not_exist_is_an_error_that_lists_those_that_do(network, images):
    for layer in ("body.block.1", "", "body"):
        with pytest.raises(UsageError) as error:
            cam.gradcam(network, images, layer)
        assert "body.blocks.1 " in str(error.value) and "16x8x8" in str(error.value)
    with pytest.raises(UsageError, match="--layer body.blocks"):
        cam.gradcam(network, images, "body.block.1")


def test_a_network_in_training_mode_and_unknown_class_numbers_are_refused(network, images):
    training = Classifier(("a", "b"), size_px=PX, width=8)
    with pytest.raises(UsageError, match="eval mode"):
        cam.gradcam(training, images, "body.blocks.1")
    assert cam.gradcam(training.eval(), images, "body.blocks.1").shape == (5, PX, PX)
    with pytest.raises(UsageError, match="0 to 2"):
        cam.gradcam(network, images, "body.blocks.1", torch.full((5,), 3))
    with pytest.raises(UsageError, match="one class number"):
        cam.gradcam(network, images, "body.blocks.1", torch.ones(4))


def test_it_works_in_inference_mode_and_leaves_gradient_modes_as_they_were(network, images):
    expected = cam.gradcam(network, images, "body.blocks.1")
    with torch.inference_mode():
        assert torch.equal(cam.gradcam(network, images.clone(), "body.blocks.1"), expected)
    assert torch.is_grad_enabled()
    with torch.no_grad():
        cam.gradcam(network, images, "body.blocks.1")
        assert not torch.is_grad_enabled()
    assert not expected.requires_grad and not network.get_submodule("body.blocks.1")._forward_hooks


def test_threads_that_share_a_network_do_not_meet(network, images):
    alone = {layer: cam.gradcam(network, images, layer) for layer in LAYERS}
    found: dict[str, list[torch.Tensor]] = {layer: [] for layer in LAYERS}

    def work(layer):
        for _ in range(5):
            found[layer].append(cam.gradcam(network, images, layer))

    threads = [threading.Thread(target=work, args=(layer,)) for layer in LAYERS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for layer in LAYERS:
        assert len(found[layer]) == 5
        assert all(torch.equal(heat, alone[layer]) for heat in found[layer])


def test_of_findings_the_most_probable_is_explained(images):
    network = Classifier(("a", "b"), size_px=PX, width=8, multi_label=True).seed_weights(1).eval()
    with torch.no_grad():
        network.bias.copy_(torch.tensor([-9.0, 9.0]))
    found = cam.gradcam(network, images, "body.blocks.1")
    assert torch.equal(found, cam.gradcam(network, images, "body.blocks.1", torch.ones(5)))
    assert not torch.equal(found, cam.gradcam(network, images, "body.blocks.1", torch.zeros(5)))


def test_usual_layers_are_those_that_end_a_stage(network):
    assert cam.usual_layers(network, 1, PX) == [f"body.blocks.{n}" for n in range(3)]
    plain = Classifier(("a", "b"), architecture="plain", size_px=PX, width=8).eval()
    assert cam.usual_layers(plain, 1, PX) == [f"body.norms.{n}" for n in range(3)]


def test_heat_of_a_stored_image_does_not_depend_on_its_neighbours(network):
    images = np.random.default_rng(1).integers(0, 256, (19, 1, PX, PX), np.uint8)
    together, logits = cam.of_stored(network, images, "body.blocks.1")
    alone, alone_logits = cam.of_stored(network, images[17:18], "body.blocks.1")
    assert np.array_equal(together[17:18], alone) and np.array_equal(logits[17:18], alone_logits)
    assert not np.array_equal(together[16:17], alone)


def test_heat_that_is_not_finite_is_a_data_error():
    broken = Classifier(("a", "b"), size_px=PX, width=8).seed_weights(0).eval()
    images = np.zeros((2, 1, PX, PX), np.uint8)
    assert np.isfinite(cam.of_stored(broken, images, "body.blocks.1")[0]).all()
    broken.head.weight.data.fill_(float("nan"))
    with pytest.raises(DataError, match="not finite"):
        cam.of_stored(broken, images, "body.blocks.1")
