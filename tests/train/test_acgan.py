"""The ACGAN's step: losses as a loop gives them, who moves, resume, what goes wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medray.dist.context import Context
from medray.errors import DataError
from medray.train.acgan import ACGANTraining, as_maps, share_of_lr, trained_in_memory
from medray.train.acgan_config import ACGANConfig
from medray.train.loop import NonFiniteError
from medray.train.table_batches import TableBatches
from tests.feature_sets import CLASSES, two_gaussians

ROWS, LABELS = two_gaussians(60)
MAPS = as_maps(ROWS)
NUMBERS = np.array([CLASSES.index(label) for label in LABELS])
CONFIG = ACGANConfig(width=16, noise_dims=4, batch=8, total_images=80)


def training(config: ACGANConfig = CONFIG) -> ACGANTraining:
    context = Context(0, 1, 0, torch.device("cpu"), threads_per_rank=1)
    return ACGANTraining(config, CLASSES, MAPS, context)


def batches() -> TableBatches:
    return TableBatches(MAPS, NUMBERS, seed=0, balanced=True)


def trained(steps: int, made: ACGANTraining, source: TableBatches, first: int = 0):
    return [made.step(source.next(8), 8 * n) for n in range(first, first + steps)]


def test_the_losses_are_those_that_a_loop_gives() -> None:
    config = CONFIG.model_copy(update={"fake_class_weight": 1.0})
    made, batch = training(config), batches().next(8)
    from medray.models.acgan import noise

    with torch.no_grad():
        classes = torch.from_numpy(batch.labels_N)
        fake = made.generator(noise(0, "acgan.noise.d", np.arange(8), 4), classes)
        real = made.generator.standardised(torch.from_numpy(batch.images_NCHW))
        loss = entropy = 0.0
        for n in range(8):
            for row, sign in ((real[n : n + 1], -1), (fake[n : n + 1], 1)):
                source, label = made.discriminator(row)
                loss += float(torch.log1p(torch.exp(sign * source)))
                if sign < 0:
                    entropy -= float(label.log_softmax(1)[0, classes[n]])
    found = made.step(batch, 0)
    np.testing.assert_allclose(float(found["loss_d"]), loss / 8, rtol=1e-4)
    np.testing.assert_allclose(float(found["class_real"]), entropy / 8, rtol=1e-4)


@pytest.mark.parametrize("regulariser", ["gradient", "spectral", "none"])
def test_a_step_moves_both_networks_and_the_average_follows(regulariser) -> None:
    made = training(CONFIG.model_copy(update={"regulariser": regulariser}))
    before = {n: t.clone() for n, t in made.state_dict().items()}
    trained(2, made, batches())
    after = made.state_dict()
    for name in ("generator.last.weight", "discriminator.source.weight", "average.last.weight"):
        assert not torch.equal(before[name], after[name]), name
    assert made.nonfinite() is None


def test_the_gradient_penalty_holds_the_slope_down() -> None:
    slopes = []
    for regulariser in ("gradient", "none"):
        fields = {"regulariser": regulariser, "lr": 0.01, "penalty": 10, "total_images": 10**6}
        config = CONFIG.model_copy(update=fields)
        made = training(config)
        trained(60, made, batches())
        real = made.generator.standardised(torch.from_numpy(MAPS)).requires_grad_(True)
        (slope,) = torch.autograd.grad(made.discriminator(real)[0].sum(), real)
        slopes.append(float(slope.norm(dim=1).mean()))
    assert slopes[0] < slopes[1] / 1.5, slopes


@pytest.mark.parametrize("regulariser", ["gradient", "spectral"])
def test_resumed_training_ends_with_the_same_bits(regulariser) -> None:
    config = CONFIG.model_copy(update={"regulariser": regulariser})
    whole, source = training(config), batches()
    trained(4, whole, source)
    saved = {n: t.clone() for n, t in whole.state_dict().items()}
    position = source.state()
    trained(4, whole, source, first=4)
    resumed, again = training(config), batches()
    trained(1, resumed, again)
    resumed.load_state_dict(saved)
    again.restore(position)
    trained(4, resumed, again, first=4)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_a_checkpoint_of_another_shape_is_refused() -> None:
    state = training().state_dict()
    other = training(CONFIG.model_copy(update={"width": 32}))
    with pytest.raises(DataError, match="has shape"):
        other.load_state_dict(state)
    del state["average.last.weight"]
    with pytest.raises(DataError, match="lacks average.last.weight"):
        training().load_state_dict(state)


def test_the_learning_rate_falls_in_the_second_half_alone() -> None:
    shares = [share_of_lr(images, 1000) for images in (0, 500, 750, 1000)]
    np.testing.assert_allclose(shares, [1, 1, 0.5, 0], atol=1e-12)


def test_a_training_that_diverges_is_an_error() -> None:
    config = CONFIG.model_copy(update={"lr": 1e30})
    with pytest.raises(NonFiniteError, match="phase d: gradient of"):
        trained_in_memory(config, CLASSES, MAPS, NUMBERS)
