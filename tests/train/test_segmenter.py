"""The segmenter's training: it learns, resumes exactly, on any ranks; its figures by patient."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from medray.dist import context
from medray.dist.context import Context
from medray.errors import DataError
from medray.metrics import overlap
from medray.models.pixels import to_unit
from medray.models.segmenter import Segmenter
from medray.records import Batch
from medray.train import segmenter_validation
from medray.train.segmenter import SegmenterTraining, loss_of
from medray.train.segmenter_config import SegmenterConfig
from medray.train.segmenter_validation import Judged, figures

BATCH = 8


def config(**named: Any) -> SegmenterConfig:
    small = {"size_px": 32, "width": 4, "total_images": 480, "batch": BATCH, "lr": 0.03}
    return SegmenterConfig.model_validate({**small, "ema_half_life_images": 40, **named})


def batch_of(first: int, count: int, bits: int = 8, px: int = 32) -> Batch:
    """Noise with a bright square, the mask; a third of the images have none."""
    images, masks = [], []
    for number in range(first, first + count):
        generator = np.random.default_rng(number)
        pixels, mask = generator.integers(0, 80, (px, px)), np.zeros((px, px), np.uint8)
        top, left = generator.integers(2, px - 14, 2)
        if number % 3:
            mask[top : top + 10, left : left + 10] = 255
        images.append(pixels + 110 * (mask > 0))
        masks.append(mask)
    scale, dtype = (1, np.uint8) if bits == 8 else (257, np.uint16)
    return Batch(
        keys=tuple(f"train-{n:08d}" for n in range(first, first + count)),
        images_NCHW=(np.stack(images)[:, None] * scale).astype(dtype),
        labels_N=np.zeros(count, np.int64),
        records=[{}] * count,
        first_index=first,
        masks_NHW=np.stack(masks),
    )


def made(rank: Context | None = None, **named: Any) -> SegmenterTraining:
    return SegmenterTraining(config(**named), 1, rank or context.local(threads_per_rank=1))


def train(algorithm: SegmenterTraining, first: int, end: int, **form: int) -> None:
    for images in range(first, end, BATCH):
        algorithm.step(batch_of(images, BATCH, **form), images)


def dice_on_unseen(network: Segmenter, **form: int) -> float:
    unseen = batch_of(5000, 30, **form)
    with torch.no_grad():
        said_NHW = (network(to_unit(torch.from_numpy(unseen.images_NCHW)))[:, 0] > 0).numpy()
    assert unseen.masks_NHW is not None
    one = overlap.of_masks(said_NHW, unseen.masks_NHW > 0).by_group(np.zeros(30))
    return float(one.dice()[0])


@pytest.mark.parametrize("named", [{}, {"loss": "dice-bce", "dice_over": "image"}], ids=str)
def test_it_learns_to_find_squares(named: dict[str, Any]) -> None:
    algorithm = made(**named)
    before = dice_on_unseen(algorithm.average)
    train(algorithm, 0, algorithm.config.total_images)
    assert before < 0.2 and dice_on_unseen(algorithm.average) > 0.6
    assert algorithm.nonfinite() is None


def test_bfloat16_takes_a_step_near_that_of_float32() -> None:
    one, other = made(), made(precision="bf16")
    losses = [float(a.step(batch_of(0, BATCH), 0)["loss"]) for a in (one, other)]
    assert losses[0] == pytest.approx(losses[1], rel=0.02) and losses[0] != losses[1]


def test_images_of_16_bits_and_another_size_are_taken() -> None:
    algorithm = made()
    train(algorithm, 0, 480, bits=16, px=40)
    assert dice_on_unseen(algorithm.average, bits=16, px=40) > 0.6


def test_a_batch_without_masks_is_refused() -> None:
    batch = batch_of(0, BATCH)
    bare = Batch(**{name: getattr(batch, name) for name in Batch.__slots__} | {"masks_NHW": None})
    with pytest.raises(DataError, match="no sample of a batch has a mask"):
        made().step(bare, 0)


def test_the_loss_is_the_textbook_soft_dice() -> None:
    logits, true = torch.randn(3, 1, 5, 5), (torch.rand(3, 1, 5, 5) > 0.6).float()
    p = logits.sigmoid()
    whole = 1 - 2 * (p * true).sum() / (p.sum() + true.sum())
    assert torch.allclose(loss_of(config())(logits, true), whole, atol=1e-5)
    each = 1 - 2 * (p * true).sum((1, 2, 3)) / (p.sum((1, 2, 3)) + true.sum((1, 2, 3)))
    assert torch.allclose(loss_of(config(dice_over="image"))(logits, true), each.mean(), atol=1e-5)
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits, true)
    both = loss_of(config(loss="dice-bce"))(logits, true)
    assert torch.allclose(both, whole + entropy, atol=1e-5)


def test_a_resumed_training_ends_with_the_same_weights_and_the_same_best() -> None:
    whole = made()
    train(whole, 0, 48)
    assert whole.keep_if_best(0.5, 48) and not whole.keep_if_best(0.5, 48)
    train(whole, 48, 80)
    state = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
    same, other_seed = made(), made(seed=9)
    for algorithm in (same, other_seed):
        algorithm.load_state_dict(state)
        assert (algorithm.best_score, algorithm.best_images) == (0.5, 48)
    for algorithm in (whole, same, other_seed):
        train(algorithm, 80, 128)
    one, found, other = (a.state_dict() for a in (whole, same, other_seed))
    assert found.keys() == one.keys() and all(torch.equal(found[n], one[n]) for n in one)
    # The augmentation goes by the seed: with another one the run goes on elsewhere.
    name = "network.unet.final_conv.weight"
    assert not torch.equal(one[name], other[name])


def test_the_model_is_the_average_at_its_best() -> None:
    algorithm = made()
    train(algorithm, 0, 40)
    algorithm.keep_if_best(0.5, 40)
    image = torch.rand(1, 1, 32, 32)
    best = algorithm.average(image)
    train(algorithm, 40, 80)
    assert not torch.equal(algorithm.average(image), best)
    assert torch.equal(algorithm.take_best()(image), best)


def test_a_checkpoint_of_another_network_is_refused() -> None:
    state = made().state_dict()
    with pytest.raises(DataError, match="has shape"):
        made(width=5).load_state_dict(state)
    with pytest.raises(DataError, match="best_score"):
        made().load_state_dict({n: t for n, t in state.items() if n != "progress.best_score"})


def test_the_learning_rate_rises_and_falls_with_the_images_seen() -> None:
    c = config(total_images=1000, warmup_images=100, lr=0.01)
    assert c.lr_at(0) == pytest.approx(0.0001) and c.lr_at(99) == pytest.approx(0.01)
    assert c.lr_at(550) == pytest.approx(0.005) and c.lr_at(1000) == 0
    assert c.patience == 500 and config(patience_images=7).patience == 7


def ranked(rank: Context, task: dict[str, Any]) -> dict[str, list[float]]:
    """Two steps from this rank's part of two batches; averages and Adam's state by name."""
    algorithm = made(rank, **task)
    part = BATCH // rank.world
    for images in (0, BATCH):
        algorithm.step(batch_of(images + rank.rank * part, part), images)
    state = algorithm.state_dict()
    return {n: t.flatten().tolist() for n, t in state.items() if n.startswith(("average", "adam"))}


@pytest.mark.chaos  # Each rank imports MONAI: most of half a minute.
def test_two_ranks_take_the_steps_of_one() -> None:
    # By image, so that the mean over ranks is that over the batch.
    task = {"lr": 1e-6, "dice_over": "image"}
    two = context.launch(ranked, task, backend="torchrun", workers=2, threads_per_rank=1)
    one = context.launch(ranked, task, backend="local", threads_per_rank=1)
    assert one.keys() == two.keys() and len(one) > 20
    for name, values in one.items():
        # A bias before a normalisation has no gradient but rounding.
        if not name.endswith(".conv.bias"):
            scale = max(map(abs, values)) or 1.0
            assert np.allclose(two[name], values, atol=2e-3 * scale), name


# --- figures --------------------------------------------------------------------------------------


def judged(said_NHW: Any, true_NHW: Any, patients: str) -> Judged:
    pixels = overlap.of_masks(np.asarray(said_NHW, bool), np.asarray(true_NHW, bool))
    return Judged(pixels, np.array(list(patients)), True)


def random_masks(seed: int, count: int) -> Any:
    return np.random.default_rng(seed).random((count, 4, 4)) < 0.5


def test_figures_are_means_over_patients_with_intervals_over_them() -> None:
    true = random_masks(0, 12)
    said = true ^ (np.random.default_rng(1).random((12, 4, 4)) < 0.2)
    true[0] = said[0] = False
    true[1], said[1] = False, True
    found = figures(judged(said, true, "abcdefaabbcc"), 0, 200)
    of_P = overlap.of_masks(said, true).by_group(np.array(list("abcdefaabbcc")))
    assert found["dice"]["estimate"] == pytest.approx(of_P.dice().mean())
    assert found["iou"]["estimate"] == pytest.approx(of_P.iou().mean())
    assert found["dice"]["low"] < found["dice"]["estimate"] < found["dice"]["high"]
    assert (found["patients"], found["samples"], found["samples_with_mask_pixels"]) == (6, 12, 10)
    assert found["image_dice"]["estimate"] == pytest.approx(
        overlap.of_masks(said[2:], true[2:]).dice().mean()
    )
    assert found["left_empty"]["estimate"] == 0.5


def test_one_patient_has_figures_without_an_interval_and_no_empty_mask_has_no_share() -> None:
    true = random_masks(0, 3)
    found = figures(judged(true, true, "aaa"), 0, 50)
    assert found["dice"] == {"estimate": 1.0, "low": None, "high": None}
    assert found["left_empty"] is None


def test_weights_that_answer_with_nan_are_never_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm = made()
    said = judged(random_masks(0, 2), random_masks(1, 2), "ab")
    monkeypatch.setattr(segmenter_validation, "draw_progress", lambda run: None)
    answers = iter((Judged(said.pixels, said.groups_N, False), said))
    monkeypatch.setattr(segmenter_validation, "judge", lambda *arguments: next(answers))
    snapshot = segmenter_validation.Validation(algorithm, None, None, [])  # type: ignore[arg-type]
    assert snapshot(8) == {"score": 2.0}
    assert snapshot(16)["score"] == pytest.approx(1 - said.of_patients().dice().mean())
    assert algorithm.best_images == 16 and not snapshot.enough()
