"""The classifiers: shapes, any size, rows that do not know each other, probabilities, weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from medray.errors import DataError, UsageError
from medray.models import weights
from medray.models.classifier import ARCHITECTURES, Classifier, halvings
from medray.store import Store
from tests.faults import damage

CLASSES = ("bacteria", "normal", "virus")


def made(architecture: str = "residual", seed: int = 0, **named: object) -> Classifier:
    options = {"width": 8, "size_px": 32, **named}
    network = Classifier(CLASSES, architecture=architecture, **options)  # type: ignore[arg-type]
    return network.seed_weights(seed).eval()


def images(count: int, px: int = 32, channels: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(px)
    return torch.rand(count, channels, px, px, generator=generator) * 2 - 1


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_is_said_of_an_image_does_not_depend_on_its_batch(architecture: str) -> None:
    network, batch = made(architecture), images(5)
    together = network(batch).detach()
    alone = torch.cat([network(batch[i : i + 1]).detach() for i in range(5)])
    assert together.shape == (5, 3) and together.dtype == torch.float32
    assert float(together.std()) > 1e-3
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("px", [16, 32, 40, 64, 100])
def test_images_of_any_size_are_taken_and_send_gradients_back(architecture: str, px: int) -> None:
    network, batch = made(architecture), images(2, px).requires_grad_(True)
    features_ND = network.features(batch)
    assert features_ND.shape == (2, network.feature_dims)
    network(batch).square().sum().backward()
    assert batch.grad is not None and float(batch.grad.abs().max()) > 0


@pytest.mark.parametrize("size_px", [16, 24, 48, 64, 96, 128])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_network_can_be_made_for_any_working_size(architecture: str, size_px: int) -> None:
    if architecture == "encoder" and size_px < 32:
        with pytest.raises(UsageError, match=f"32 or more, got {size_px}"):
            made(architecture, size_px=size_px)
        return
    network = made(architecture, size_px=size_px)
    assert network(images(1, size_px)).shape == (1, 3)
    assert halvings(64) == 4


def test_an_image_twice_the_size_is_its_box_mean() -> None:
    network, large = made(), images(2, 64)
    small = torch.nn.functional.avg_pool2d(large, 2)
    assert torch.equal(network(large), network(small))


def test_three_channels_are_taken_where_they_were_asked_for_and_refused_elsewhere() -> None:
    assert made(channels=3)(images(2, channels=3)).shape == (2, 3)
    with pytest.raises(UsageError, match=r"\(N, 1, H, W\), got \(2, 3, 32, 32\)"):
        made()(images(2, channels=3))


def test_probabilities_are_those_of_logits_over_temperature_plus_bias() -> None:
    network = made()
    network.temperature.fill_(2.0)
    network.bias.copy_(torch.tensor([0.0, 1.0, -1.0]))
    logits_NK = network(images(4))
    p_NK = network.probabilities(images(4))
    assert torch.allclose(p_NK.sum(1), torch.ones(4))
    assert torch.equal(p_NK, (logits_NK / 2 + network.bias).softmax(1))
    many = made(multi_label=True)
    assert torch.equal(many.probabilities(images(4)), many(images(4)).sigmoid())


def test_decisions_go_by_the_logits_and_for_findings_by_the_thresholds() -> None:
    logits_NK = torch.tensor([[0.1, 0.0, -1.0], [0.0, 0.0, 3.0]])
    network = made()
    network.bias.copy_(torch.tensor([-9.0, 0.0, 0.0]))
    assert network.decisions(logits_NK).tolist() == [0, 2]
    many = made(multi_label=True)
    many.thresholds.copy_(torch.tensor([0.6, 0.5, 0.2]))
    assert many.decisions(logits_NK).tolist() == [[False, True, True], [False, True, True]]


def test_a_seed_decides_the_weights_and_another_gives_others() -> None:
    first, again, other = made(seed=1), made(seed=1), made(seed=2)
    batch = images(2)
    assert torch.equal(first(batch), again(batch))
    assert not torch.equal(first(batch), other(batch))


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ({"architecture": "large"}, "residual, plain, encoder, got 'large'"),
        ({"classes": ("one",)}, "2 or more different names"),
        ({"classes": ("a", "a")}, "2 or more different names"),
        ({"channels": 2}, "channels must be 1 or 3, got 2"),
        ({"size_px": 8}, "size px must be 16 or more, got 8"),
        ({"width": 12}, "multiple of 8, got 12"),
    ],
)
def test_arguments_that_make_no_network_are_refused(named: dict[str, object], said: str) -> None:
    arguments = {"classes": CLASSES, **named}
    with pytest.raises(UsageError, match=said):
        Classifier(**arguments)  # type: ignore[arg-type]


# --- as files -------------------------------------------------------------------------------------


def saved(url: str | Path, network: Classifier) -> str:
    about = {"kind": "classifier", "arguments": network.arguments()}
    store = Store(url).child("model")
    return weights.save_network(store, weights.CLASSIFIER, network.state_dict(), about, "card")


@pytest.mark.parametrize("scheme", ["", "memory://"])
def test_a_saved_classifier_comes_back_with_its_calibration(tmp_path: Path, scheme: str) -> None:
    url = f"{scheme}{tmp_path}"
    network = made("plain", multi_label=True)
    network.temperature.fill_(1.5)
    network.thresholds.fill_(0.25)
    sha256 = saved(url, network)
    for place in (url, f"{url}/model"):
        found, about = weights.load_classifier(place)
        assert about["classifier_sha256"] == sha256
        assert (found.classes, found.multi_label, found.architecture) == (CLASSES, True, "plain")
        assert torch.equal(found.probabilities(images(3)), network.probabilities(images(3)))
        assert torch.equal(found.thresholds, network.thresholds)
        assert not any(p.requires_grad for p in found.parameters())


def test_weights_that_were_changed_are_refused(tmp_path: Path) -> None:
    saved(tmp_path, made())
    damage.flip_bit(tmp_path / "model" / "classifier.safetensors", at_byte=5000)
    with pytest.raises(DataError, match="digest") as caught:
        weights.load_classifier(str(tmp_path))
    assert caught.value.code == "MR-D030"


def test_a_folder_without_a_classifier_is_a_usage_error(tmp_path: Path) -> None:
    saved(tmp_path, made())
    with pytest.raises(UsageError, match="holds no generator"):
        weights.load_generator(str(tmp_path))
    with pytest.raises(UsageError, match="holds no classifier"):
        weights.load_classifier(str(tmp_path / "nothing"))


def test_weights_of_another_network_do_not_fit(tmp_path: Path) -> None:
    network = made()
    about = {"arguments": {**network.arguments(), "width": 16}}
    weights.save_network(Store(tmp_path), "classifier", network.state_dict(), about, "")
    with pytest.raises(DataError, match="do not fit"):
        weights.load_classifier(str(tmp_path))


# --- on an encoder --------------------------------------------------------------------------------


def test_the_trunk_of_a_classifier_is_the_encoder_that_its_arguments_say(tmp_path: Path) -> None:
    network = made("encoder", encoder={"channels": 1, "width": 16}, width=8)
    assert network.encoder is not None and network.feature_dims == 2 * 64
    assert network.arguments()["encoder"] == {"channels": 1, "width": 16}
    again = Classifier(**network.arguments())
    again.load_state_dict(network.state_dict())
    assert torch.equal(again.eval()(images(2)), network(images(2)))
    assert made().encoder is None and "encoder" not in made().arguments()


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ({"architecture": "encoder", "encoder": {"channels": 3, "width": 8}}, "takes 3 channel"),
        ({"architecture": "residual", "encoder": {"channels": 1, "width": 8}}, "has no encoder"),
    ],
)
def test_an_encoder_that_does_not_fit_is_refused(named: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Classifier(CLASSES, **named)  # type: ignore[arg-type]
