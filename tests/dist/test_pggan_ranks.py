"""The real networks on two ranks against one process, for every engine and ZeRO stage."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from medray.dist import context
from tests.dist import pggan_ranks
from tests.dist.rank_tasks import ENGINES


@pytest.fixture(scope="module")
def ranks() -> Any:
    """Gradients of two ranks, whole and in pieces, by loss, engine and stage."""
    asked = {"engines": ENGINES}
    return context.launch(
        pggan_ranks.both, asked, backend="torchrun", workers=2, threads_per_rank=1
    )


@pytest.fixture(scope="module")
def whole() -> Any:
    """Gradients of one process on the joined batch, by loss."""
    asked = {"engines": [("torch", 0)]}
    return context.launch(pggan_ranks.both, asked, backend="local", threads_per_rank=1)


def relative_gap(one: Any, other: Any) -> float:
    """The largest difference of a tensor's elements over its largest element."""
    left, right = torch.tensor(one), torch.tensor(other)
    return float((left - right).abs().max() / right.abs().max().clamp_min(1e-12))


def gaps(found: Any, wanted: Any) -> dict[str, float]:
    return {name: relative_gap(found[name], wanted[name]) for name in wanted}


@pytest.mark.parametrize("kind, stage", ENGINES)
@pytest.mark.parametrize("loss", pggan_ranks.LOSSES)
def test_two_ranks_find_the_gradients_of_the_joined_batch(
    ranks: Any, whole: Any, loss: str, kind: str, stage: int
) -> None:
    found, wanted = ranks["whole"][f"{loss} {kind} {stage}"], whole["whole"][f"{loss} torch 0"]
    assert found.keys() == wanted.keys() and len(found) > 10
    assert max(gaps(found, wanted).values()) < 1e-4


@pytest.mark.parametrize("kind, stage", [pair for pair in ENGINES if pair[1] < 3])
@pytest.mark.parametrize("loss", pggan_ranks.LOSSES)
def test_two_ranks_and_one_process_find_the_same_gradients_in_the_same_pieces(
    ranks: Any, whole: Any, loss: str, kind: str, stage: int
) -> None:
    found, wanted = ranks["pieces"][f"{loss} {kind} {stage}"], whole["pieces"][f"{loss} torch 0"]
    assert found.keys() == wanted.keys() and len(found) > 10
    assert max(gaps(found, wanted).values()) < 1e-5
    # The control: other pieces are other groups of the deviation, and other gradients.
    assert max(gaps(ranks["whole"][f"{loss} {kind} {stage}"], wanted).values()) > 1e-3
