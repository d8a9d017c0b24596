"""Two ranks against one process on the joined batch, for every engine and ZeRO stage."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from medray.dist import context
from medray.dist.engine import joined, make_engine, part_of
from medray.errors import DataError, UsageError
from tests.dist import rank_tasks, small_gan

ENGINES = rank_tasks.ENGINES
# Stage 3 takes no gradient outside a forward pass, which the two smallest tasks do without.
PLAIN = [pair for pair in ENGINES if pair[1] < 3]


def on_one(task: context.Worker, **config: Any) -> Any:
    return context.launch(task, config, backend="local", threads_per_rank=1)


def gap(one: Any, other: Any) -> float:
    """The largest difference between two nested results of the same form."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        return max((gap(one[key], other[key]) for key in one), default=0.0)
    left, right = torch.tensor(one).double(), torch.tensor(other).double()
    return float((left - right).abs().max())


@pytest.fixture(scope="module")
def whole() -> Any:
    """One process on the joined batch."""
    return on_one(rank_tasks.parity, engines=[("torch", 0)], dtype="float32")["torch-0"][0]


@pytest.fixture(scope="module")
def ranks() -> Any:
    """What two ranks did: see `rank_tasks.everything`."""
    return context.launch(
        rank_tasks.everything, {}, backend="torchrun", workers=2, threads_per_rank=1
    )


@pytest.mark.parametrize("kind, stage", ENGINES)
def test_two_ranks_train_as_one_process_on_the_joined_batch(
    ranks: Any, whole: Any, kind: str, stage: int
) -> None:
    assert gap(ranks["float32"][f"{kind}-{stage}"][0], whole) < 2e-5


def test_in_float64_the_torch_engine_agrees_with_one_process_to_rounding(ranks: Any) -> None:
    one = on_one(rank_tasks.parity, engines=[("torch", 0)], dtype="float64")["torch-0"][0]
    assert gap(ranks["float64"]["torch-0"][0], one) < 1e-12


def test_a_parity_test_would_see_a_rank_that_keeps_its_gradients(
    whole: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(small_gan, "BATCH_IMAGES", small_gan.BATCH_IMAGES // 2)
    half = on_one(rank_tasks.parity, engines=[("torch", 0)], dtype="float32")["torch-0"][0]
    assert gap(half, whole) > 1e-3


@pytest.mark.parametrize("kind, stage", ENGINES)
def test_parameters_are_bit_equal_on_all_ranks(ranks: Any, kind: str, stage: int) -> None:
    first, second = ranks["float32"][f"{kind}-{stage}"]
    assert gap(first, second) == 0.0


def test_weights_and_adam_pass_from_engine_to_engine_bit_for_bit(ranks: Any) -> None:
    states = dict(ranks["hand_over"])
    start = states.pop("start")
    after = states.pop("one more step")
    assert len(states) == len(ENGINES) + 1
    assert {name: gap(state, start) for name, state in states.items()} == dict.fromkeys(states, 0.0)
    alone = on_one(rank_tasks.continued, kind="torch", stage=0, state=start)
    assert gap(alone["before"], start) == 0.0
    assert gap(alone["after"], after) < 2e-5


def test_a_non_finite_gradient_is_named_on_every_rank_once(ranks: Any) -> None:
    assert ranks["faulty"] == {f"{kind}-{stage}": [["1.bias", None]] * 2 for kind, stage in PLAIN}


def test_a_non_finite_gradient_in_one_piece_of_a_step_is_named_too(ranks: Any) -> None:
    found = ranks["faulty pieces"]
    assert found == {f"{kind}-{stage}": [["bias", None]] * 2 for kind, stage in PLAIN}


def test_finite_gradients_name_nothing() -> None:
    told = on_one(rank_tasks.faulty, engines=[("torch", 0)], bad_step=99)
    assert told == {"torch-0": [[None, None]]}


def test_a_gradient_missing_on_a_rank_counts_as_zero(ranks: Any) -> None:
    for kind, stage in [("torch", 0), ("deepspeed", 0), ("deepspeed", 1)]:
        assert ranks["lopsided"][f"{kind}-{stage} says"] is None
        for rank in ranks["lopsided"][f"{kind}-{stage}"]:
            assert rank["exp_avg.both"] == [2.0] * 3
            assert rank["exp_avg.first"] == [2.0] * 3
            assert rank["exp_avg.none"] == [0.0] * 3
            assert rank["step"] == 1


def test_zero_stage_2_says_so_when_losses_differ_in_form_between_ranks(ranks: Any) -> None:
    assert "another order on another rank" in ranks["lopsided"]["deepspeed-2 says"]


def test_a_network_grows_under_every_engine_alike(ranks: Any) -> None:
    weights = dict(ranks["grow"])
    torch_weights = weights.pop("torch-0")
    assert max(gap(other, torch_weights) for other in weights.values()) < 2e-5


@pytest.mark.parametrize(
    "kind, stage, message",
    [
        ("horovod", 0, "allowed: torch, deepspeed"),
        ("torch", 2, "zero_stage = 2 with engine torch, allowed: 0"),
        ("deepspeed", 4, "zero_stage = 4, allowed: 0, 1, 2, 3"),
    ],
)
def test_an_impossible_engine_is_refused_with_what_is_allowed(
    kind: str, stage: int, message: str
) -> None:
    here = context.local(threads_per_rank=1)
    network = torch.nn.Linear(2, 2)
    with pytest.raises(UsageError, match=message):
        make_engine(kind, network, list(network.named_parameters()), here, lr=1, zero_stage=stage)
    here.close()


def test_a_part_of_a_joined_state_comes_back_and_takes_nothing_of_another() -> None:
    parts = {"g": {"a.weight": torch.tensor(1.0)}, "g_adam": {"a.weight": torch.tensor(0.0)}}
    state = joined(parts)
    assert list(state) == ["g.a.weight", "g_adam.a.weight"]
    assert part_of(state, "g") == parts["g"] and part_of(state, "a") == {}


def test_a_checkpoint_of_another_shape_is_refused_by_name() -> None:
    here = context.local(threads_per_rank=1)
    network = torch.nn.Linear(2, 2)
    engine = make_engine("torch", network, list(network.named_parameters()), here, lr=1.0)
    state = {**engine.optimizer_state(), "exp_avg.weight": torch.zeros(3, 2)}
    with pytest.raises(DataError, match=r"exp_avg.weight has shape \(3, 2\).*\(2, 2\)"):
        engine.load_optimizer_state(state)
    with pytest.raises(DataError, match="lacks weight"):
        engine.load_parameters({"bias": torch.zeros(2)})
    here.close()
