"""Jigsaw training: batches by address, exact resume, ranks, what is judged and probed."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from pydantic import ValidationError

from medray import rng
from medray.dist.context import Context, local
from medray.errors import UsageError
from medray.metrics import UndefinedMetricError
from medray.stream.frames import Frames
from medray.stream.roster import Fact
from medray.stream.views import Views, cut_of
from medray.train import jigsaw_validation as judging
from medray.train import permutations
from medray.train.jigsaw import JigsawTraining
from medray.train.jigsaw_batches import PuzzleBatches
from medray.train.jigsaw_config import JigsawConfig

PX = 48
ORDERS = permutations.choose(8, 0)


def config(**named: Any) -> JigsawConfig:
    given = {"width": 8, "batch": 8, "permutations": 8, "total_images": 400, "precision": "fp32"}
    return JigsawConfig(**{**given, **named})


@pytest.fixture
def context() -> Any:
    with_one = local(threads_per_rank=1)
    yield with_one
    with_one.close()


def facts(count: int, label: str | None = None) -> tuple[Fact, ...]:
    return tuple(Fact((0, 0, n), f"k{n}", label, {}, f"p{n}") for n in range(count))


def ramps(clips: int = 6, each: int = 3) -> Frames:
    """Frames that are brighter to the right and below, so that a patch's place can be seen."""
    y, x = np.mgrid[0:PX, 0:PX] / PX
    noise = rng.normals(0, "test.ramps", np.arange(clips * each), PX * PX).reshape(-1, 1, PX, PX)
    shown = 200 * (0.35 * y**2 + 0.65 * x) + 6 * noise
    frames = np.clip(shown, 0, 255).astype(np.uint8)
    return Frames(frames, np.arange(clips + 1) * each, facts(clips), 0)


def batches(frames: Frames | None = None, **named: Any) -> PuzzleBatches:
    return PuzzleBatches(
        frames or ramps(), Views(cut_of(PX), seed=0, noise=0.02), ORDERS, seed=0, **named
    )


def trained(context: Context, steps: int, **named: Any) -> JigsawTraining:
    algorithm = JigsawTraining(config(**named), ORDERS, 1, context)
    with batches() as source:
        for step in range(steps):
            algorithm.step(source.next(8), 8 * step)
    return algorithm


# --- batches ------------------------------------------------------------------------------------


def test_a_puzzle_is_a_function_of_its_number_whatever_ranks_and_batches_there_are() -> None:
    with batches() as one, batches(rank=0, world=2) as left, batches(rank=1, world=2) as right:
        whole = one.next(8)
        halves = left.next(8), right.next(8)
        assert [half.first_index for half in halves] == [0, 4]
        joined = np.concatenate([half.images_NCHW for half in halves])
        np.testing.assert_array_equal(joined, whole.images_NCHW)
        assert halves[0].keys + halves[1].keys == whole.keys
        following = one.next(4)
        np.testing.assert_array_equal(following.images_NCHW, one.make(8, 4).images_NCHW)


def test_an_epoch_shows_one_frame_of_each_clip_and_frames_and_orders_are_drawn() -> None:
    with batches(ramps(clips=5, each=4)) as source:
        made = [source.next(5) for _ in range(40)]
    for batch in made:
        assert sorted(batch.keys) == [f"k{n}" for n in range(5)]
    assert len({batch.keys for batch in made}) > 10
    seen = np.bincount(np.concatenate([batch.labels_N for batch in made]), minlength=8)
    assert seen.min() > 10


def test_batches_go_on_where_they_were_and_refuse_other_frames() -> None:
    with batches() as source:
        source.next(8)
        state, wanted = source.state(), source.next(8)
    with batches() as again:
        again.next(4)
        again.restore(state)
        np.testing.assert_array_equal(again.next(8).images_NCHW, wanted.images_NCHW)
    with batches(ramps(clips=7)) as other, pytest.raises(UsageError, match="frames_sha256"):
        other.restore(state)
    with batches(world=3) as three, pytest.raises(UsageError, match="shared by 3 ranks"):
        three.next(8)


# --- training -----------------------------------------------------------------------------------


def puzzles(frames: Frames, count: int = 32) -> judging.Puzzles:
    plain, changed = Views(cut_of(PX), seed=0, augment=False), Views(cut_of(PX), seed=0)
    return judging.puzzles_of(frames, ORDERS, plain, changed, count)


def test_where_places_can_be_seen_the_pretext_is_learnt(context: Context) -> None:
    held = puzzles(ramps(clips=4))
    accuracies = []
    for steps in (0, 40):
        network = trained(context, steps, ema_half_life_images=20, lr=3e-3).ready()
        judged = judging.judge(network, held.views_NSCpp, held.order_N, context.device)
        accuracies.append(float(judged.right_N.mean()))
    assert accuracies[0] < 0.5 and accuracies[1] > 0.9


def test_a_resumed_training_ends_with_the_same_bits(context: Context) -> None:
    straight = trained(context, 6)
    first = trained(context, 3)
    first.keep_if_best(0.5, 24)
    state = {name: tensor.clone() for name, tensor in first.state_dict().items()}
    again = JigsawTraining(config(), ORDERS, 1, context)
    again.load_state_dict(state)
    with batches() as source:
        source.next(8), source.next(8), source.next(8)
        for step in range(3, 6):
            again.step(source.next(8), 8 * step)
    wanted, got = straight.state_dict(), again.state_dict()
    for name in wanted:
        if not name.startswith(("best", "progress")):
            assert torch.equal(wanted[name], got[name]), name
    assert again.best_score == 0.5
    assert not torch.equal(got["network.trunk.table.weight"], state["network.trunk.table.weight"])


def test_a_checkpoint_of_other_permutations_is_refused(context: Context) -> None:
    state = trained(context, 0).state_dict()
    JigsawTraining(config(), ORDERS, 1, context).load_state_dict(state)
    for others in (permutations.choose(8, 1), ORDERS[:7]):
        other = JigsawTraining(config(), others, 1, context)
        with pytest.raises(UsageError, match="tells 8 permutations apart, not these"):
            other.load_state_dict(state)


def test_what_batch_norms_keep_is_part_of_the_state_and_of_the_best(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("BRANCH_CHANNELS", "FIRST_CHANNELS", "DENSE"):
        monkeypatch.setattr(f"medray.models.jigsaw.{name}", 4)
    algorithm = trained(context, 2, form="published")
    algorithm.keep_if_best(0.5, 16)
    mean = "trunk.branches.0.0.1.running_mean"
    kept = algorithm.state_dict()[f"best_moving.{mean}"].clone()
    assert float(kept.abs().max()) > 0
    with batches() as source:
        algorithm.step(source.next(8), 16)
    state = {name: tensor.clone() for name, tensor in algorithm.state_dict().items()}
    assert not torch.equal(state[f"moving.{mean}"], kept)
    again = JigsawTraining(config(form="published"), ORDERS, 1, context)
    again.load_state_dict(state)
    assert torch.equal(dict(again.ready().named_buffers())[mean], state[f"moving.{mean}"])
    assert torch.equal(dict(again.take_best().named_buffers())[mean], kept)


@pytest.mark.parametrize(
    ("named", "says"),
    [
        ({"zero_stage": 1}, "needs the engine deepspeed"),
        ({"zero_stage": 1, "engine": "deepspeed"}, "--weight-decay 0"),
    ],
)
def test_engines_that_do_not_fit_are_refused(named: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        config(**named)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_deepspeed_takes_the_same_steps(context: Context) -> None:
    pytest.importorskip("deepspeed")
    named = {"weight_decay": 0.0, "lr": 1e-3}
    plain = trained(context, 3, **named).state_dict()
    sharded = trained(context, 3, **named, engine="deepspeed", zero_stage=1).state_dict()
    assert sharded.keys() == plain.keys()
    for name in (n for n in plain if n.startswith(("network", "average"))):
        torch.testing.assert_close(sharded[name], plain[name], rtol=1e-4, atol=1e-5, msg=name)


# --- what is judged -----------------------------------------------------------------------------


def test_the_puzzles_of_validation_are_the_same_each_time_and_name_their_patients() -> None:
    one, same = puzzles(ramps(clips=4)), puzzles(ramps(clips=4))
    np.testing.assert_array_equal(one.views_NSCpp, same.views_NSCpp)
    assert not np.array_equal(one.views_NSCpp, one.augmented_NSCpp)
    assert np.unique(one.patient_N).tolist() == ["p0", "p1", "p2", "p3"]


class Knows(torch.nn.Module):
    """Says permutation 0 of everything."""

    orders = torch.tensor([[int(place) for place in text] for text in ORDERS])

    def forward(self, views: torch.Tensor) -> torch.Tensor:
        return torch.eye(len(ORDERS))[:1].expand(len(views), -1)


def test_figures_are_shares_with_intervals_over_patients() -> None:
    held = puzzles(ramps(clips=4))
    network: Any = Knows()
    judged = judging.judge(network, held.views_NSCpp, held.order_N, torch.device("cpu"))
    found = judging.figures(judged, held, seed=0, draws=50)
    share = float((held.order_N == 0).mean())
    assert found["accuracy"]["estimate"] == share and found["patients"] == 4
    assert found["accuracy"]["low"] <= share <= found["accuracy"]["high"]
    assert found["pieces"]["estimate"] >= share
    assert judging.puzzles_png(held, judged)[:4] == b"\x89PNG"


def rows(*values: float) -> npt.NDArray[np.float64]:
    return np.array([[value, 1.0] for value in values])


def test_neighbours_of_the_same_patient_do_not_vote() -> None:
    points = rows(0, 0.1, 0.2, 0.3, 5, 5.1, 5.2, 5.3)
    truth = np.repeat(["a", "b"], 4)
    everyone = np.array([f"p{n}" for n in range(8)])
    assert judging.neighbours_accuracy(points, truth, everyone) == 1.0
    assert judging.neighbours_accuracy(points, truth, np.repeat(["p", "q"], 4)) == 0.0


def test_enough_neighbours_of_ones_class_are_right() -> None:
    points = rows(*[0.1 * n for n in range(8)], *[9 + 0.1 * n for n in range(8)])
    truth, patients = np.repeat(["a", "b"], 8), np.array([f"p{n}" for n in range(16)])
    assert judging.neighbours_accuracy(points, truth, patients) == 1.0
    mixed = np.tile(["a", "b"], 8)
    assert judging.neighbours_accuracy(points, mixed, patients) < 0.8
    with pytest.raises(UndefinedMetricError, match="two classes"):
        judging.neighbours_accuracy(points, np.repeat("a", 16), patients)


def test_the_probe_has_a_figure_for_labels_with_two_values_alone(context: Context) -> None:
    frames = ramps(clips=8, each=1)
    named = [
        Fact((0, 0, n), f"k{n}", "one", {"left": n % 2, "rare": None, "known": 1}, f"p{n}")
        for n in range(8)
    ]
    probe = judging.Probe(Frames(frames.frames_FCHW, frames.starts, tuple(named), 0), 8)
    found = probe(trained(context, 0).ready(), context.device)
    assert list(found) == ["left"] and 0 <= found["left"] <= 1
    assert judging.Probe(ramps(), 8)(trained(context, 0).ready(), context.device) == {}
