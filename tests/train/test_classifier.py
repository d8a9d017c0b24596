"""The classifier's training: it learns, masks what is not known, resumes exactly, on any ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from medray.dist import context
from medray.dist.context import Context
from medray.errors import DataError
from medray.records import Batch
from medray.train import targets
from medray.train.classifier import ClassifierTraining
from medray.train.classifier_config import ClassifierConfig
from medray.train.targets import Targets

ONE, MANY = Targets(("upright", "lying"), False), Targets(("upright", "bright"), True)
BATCH = 8


def config(**named: Any) -> ClassifierConfig:
    small = {"size_px": 16, "width": 8, "total_images": 400, "batch": BATCH, "lr": 0.004}
    return ClassifierConfig.model_validate({**small, "ema_half_life_images": 40, **named})


def batch_of(first: int, count: int, bits: int = 8) -> Batch:
    """Images with stripes (upright or lying) and some of them bright, with noise."""
    generator = np.random.default_rng(5)
    pixels = generator.integers(0, 80, (4096, 1, 16, 16))
    upright, bright = generator.random(4096) < 0.5, generator.random(4096) < 0.3
    pixels[upright] += 70 * (np.arange(16) // 4 % 2)[None, None, :]
    pixels[~upright] += 70 * (np.arange(16) // 4 % 2)[None, :, None]
    pixels[bright] += 90
    here = slice(first, first + count)
    records = [
        {"label": "upright" if a else "lying", "labels": {"upright": int(a), "bright": int(b)}}
        for a, b in zip(upright[here], bright[here], strict=True)
    ]
    scale, dtype = (1, np.uint8) if bits == 8 else (257, np.uint16)
    return Batch(
        keys=tuple(f"train-{n:08d}" for n in range(first, first + count)),
        images_NCHW=(pixels[here] * scale).astype(dtype),
        labels_N=np.zeros(count, np.int64),
        records=records,
        first_index=first,
    )


def made(wanted: Targets = ONE, rank: Context | None = None, **named: Any) -> ClassifierTraining:
    weights_2K = np.ones((2, len(wanted.classes)))
    rank = rank or context.local(threads_per_rank=1)
    return ClassifierTraining(config(**named), wanted, 1, weights_2K, rank)


def train(algorithm: ClassifierTraining, first: int, end: int) -> None:
    for images in range(first, end, BATCH):
        algorithm.step(batch_of(images, BATCH), images)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("architecture", ["residual", "plain"])
def test_it_learns_to_tell_two_classes_apart(architecture: str, bits: int) -> None:
    algorithm = made(architecture=architecture)
    for images in range(0, 400, BATCH):
        scalars = algorithm.step(batch_of(images, BATCH, bits), images)
    unseen = batch_of(3000, 100, bits)
    right = algorithm.logits(unseen.images_NCHW).argmax(1) == ONE.of_records(unseen.records)[:, 1]
    assert right.mean() > 0.95 and float(scalars["loss"]) < 0.5
    assert algorithm.nonfinite() is None


def test_it_learns_findings_that_occur_together() -> None:
    algorithm = made(MANY, total_images=800)
    train(algorithm, 0, 800)
    unseen = batch_of(3000, 100)
    said = algorithm.logits(unseen.images_NCHW) > 0
    assert ((said == MANY.of_records(unseen.records)).mean(0) > 0.9).all()


@pytest.mark.parametrize("wanted", [ONE, MANY])
def test_what_is_not_known_moves_nothing(wanted: Targets) -> None:
    algorithm = made(wanted)
    logits = torch.randn(3, 2, requires_grad=True)
    unknown = [[-1, -1], [1, 0], [-1, -1]] if wanted is ONE else [[-1, 1], [0, -1], [-1, -1]]
    truth = torch.tensor(unknown, dtype=torch.int8)
    algorithm.loss(logits, truth).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    hidden = truth < 0
    assert bool((logits.grad[hidden] == 0).all()) and bool((logits.grad[~hidden] != 0).all())


def test_the_loss_is_the_weighted_mean_of_the_textbook_losses() -> None:
    logits, truth = torch.randn(5, 2), torch.eye(2, dtype=torch.int8)[[0, 1, 1, 0, 1]]
    one = made(label_smoothing=0)
    one._weights_2K = torch.tensor([[0.0, 0.0], [0.5, 2.0]])
    each = torch.nn.functional.cross_entropy(logits, truth.argmax(1), reduction="none")
    weight = torch.tensor([0.5, 2.0])[truth.argmax(1)]
    assert torch.allclose(one.loss(logits, truth), (each * weight).mean())
    many = made(MANY, label_smoothing=0)
    many._weights_2K = torch.tensor([[1.0, 0.5], [3.0, 2.0]])
    p = logits.sigmoid()
    wanted = truth * torch.tensor([3.0, 2.0]) * p.log()
    wanted = wanted + (1 - truth) * torch.tensor([1.0, 0.5]) * (1 - p).log()
    assert torch.allclose(many.loss(logits, truth), -wanted.mean(), atol=1e-6)


def test_a_rare_class_is_found_when_it_is_weighted_up() -> None:
    truth = np.concatenate([np.tile([[1, 0]], (95, 1)), np.tile([[0, 1]], (5, 1))]).astype(np.int8)
    weights_2K = targets.weights(truth, False, 20)
    logits = torch.zeros(2, requires_grad=True)
    optimiser = torch.optim.Adam([logits], lr=0.1)
    algorithm = made(label_smoothing=0)
    algorithm._weights_2K = torch.from_numpy(weights_2K).float()
    for _ in range(200):
        optimiser.zero_grad()
        algorithm.loss(logits.expand(100, 2), torch.from_numpy(truth)).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    # Nothing is known of an image: with weights both classes are as likely, with bias as they are.
    assert abs(float((logits[0] - logits[1]).detach())) < 0.02
    settled = logits.detach().double().numpy() + targets.bias_of(weights_2K, False)
    assert settled[0] - settled[1] == pytest.approx(np.log(95 / 5), abs=0.02)


def test_a_resumed_training_ends_with_the_same_weights_and_the_same_best() -> None:
    whole = made()
    train(whole, 0, 80)
    assert whole.keep_if_best(0.5, 80) and not whole.keep_if_best(0.5, 80)
    train(whole, 80, 120)
    state = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
    again = made(seed=9)
    again.load_state_dict(state)
    assert (again.best_score, again.best_images) == (0.5, 80)
    for algorithm in (whole, again):
        train(algorithm, 120, 200)
    one, other = whole.state_dict(), again.state_dict()
    # The noise of the augmentation goes by the seed, so the second must have had another.
    assert not torch.equal(one["network.head.weight"], other["network.head.weight"])
    same = made()
    same.load_state_dict(state)
    train(same, 120, 200)
    found = same.state_dict()
    assert found.keys() == one.keys() and all(torch.equal(found[n], one[n]) for n in one)


def test_the_model_is_the_average_at_its_best() -> None:
    algorithm = made()
    train(algorithm, 0, 80)
    algorithm.keep_if_best(0.5, 80)
    best = algorithm.logits(batch_of(0, 4).images_NCHW)
    train(algorithm, 80, 160)
    assert not np.array_equal(algorithm.logits(batch_of(0, 4).images_NCHW), best)
    algorithm.take_best()
    assert np.array_equal(algorithm.logits(batch_of(0, 4).images_NCHW), best)


def test_a_checkpoint_of_another_network_is_refused() -> None:
    state = made().state_dict()
    with pytest.raises(DataError, match="has shape"):
        made(width=16).load_state_dict(state)
    with pytest.raises(DataError, match="best_score"):
        made().load_state_dict({n: t for n, t in state.items() if n != "progress.best_score"})


def test_bfloat16_takes_a_step_near_that_of_float32() -> None:
    one, other = made(), made(precision="bf16")
    losses = [float(a.step(batch_of(0, BATCH), 0)["loss"]) for a in (one, other)]
    assert losses[0] == pytest.approx(losses[1], rel=0.02) and losses[0] != losses[1]


def test_the_learning_rate_rises_and_falls_with_the_images_seen() -> None:
    c = config(total_images=1000, warmup_images=100, lr=0.01)
    assert c.lr_at(0) == pytest.approx(0.0001) and c.lr_at(99) == pytest.approx(0.01)
    assert c.lr_at(550) == pytest.approx(0.005) and c.lr_at(1000) == 0
    assert c.patience == 400 and config(patience_images=7).patience == 7


def ranked(rank: Context, task: dict[str, Any]) -> dict[str, list[float]]:
    """Two steps from this rank's part of two batches; mean gradients' traces by name."""
    algorithm = made(rank=rank, **task)
    part = BATCH // rank.world
    for images in (0, BATCH):
        algorithm.step(batch_of(images + rank.rank * part, part), images)
    state = algorithm.state_dict()
    return {n: t.flatten().tolist() for n, t in state.items() if n.startswith(("average", "adam"))}


def test_two_ranks_take_the_steps_of_one() -> None:
    task = {"lr": 1e-6}
    two = context.launch(ranked, task, backend="torchrun", workers=2, threads_per_rank=1)
    one = context.launch(ranked, task, backend="local", threads_per_rank=1)
    assert one.keys() == two.keys() and len(one) > 20
    for name, values in one.items():
        scale = max(map(abs, values)) or 1.0
        assert np.allclose(two[name], values, atol=2e-4 * scale), name
