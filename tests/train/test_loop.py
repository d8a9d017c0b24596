"""The loop: exact resume, cadence in images, non-finite values, stop on request."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from medray.checkpoints import Checkpoints
from medray.dist.context import Context, local
from medray.errors import Stopped
from medray.records import Batch
from medray.rundir import RunDir
from medray.store import Store
from medray.train.loop import Cadence, Fit, NonFiniteError, due


class Walk:
    """Weights that depend on every batch in its order: a step lost or repeated changes them."""

    def __init__(self, poison_at: int | None = None, fail_at: int | None = None) -> None:
        self.weights = torch.zeros(3, dtype=torch.float64)
        self.poison_at, self.fail_at = poison_at, fail_at

    def step(self, batch: Batch, images: int) -> dict[str, Tensor]:
        if images == self.fail_at:
            raise KeyboardInterrupt
        mean = torch.from_numpy(batch.images_NCHW.astype(np.float64)).mean()
        self.weights = torch.sin(self.weights * 1.1 + mean + images / 100)
        if images == self.poison_at:
            self.weights = self.weights * float("nan")
        return {"loss": self.weights.sum(), **({"rare": mean} if images % 3 == 0 else {})}

    def nonfinite(self) -> str | None:
        return None

    def state_dict(self) -> dict[str, Tensor]:
        return {"weights": self.weights}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.weights = state["weights"]


class Numbers:
    """Batches whose pixels are their own number."""

    def __init__(self) -> None:
        self.position = 0

    def next(self, batch_images: int) -> Batch:
        numbers = np.arange(self.position, self.position + batch_images, dtype=np.uint8)
        batch = Batch(
            keys=tuple(map(str, numbers)),
            images_NCHW=numbers[:, None, None, None],
            labels_N=np.full(batch_images, -1, np.int64),
            records=[{}] * batch_images,
            first_index=self.position,
        )
        self.position += batch_images
        return batch

    def state(self) -> dict[str, Any]:
        return {"position": self.position}

    def restore(self, state: dict[str, Any]) -> None:
        self.position = state["position"]


CADENCE = Cadence(total_images=62, log_images=8, snapshot_images=20, checkpoint_images=12)


def start(folder: Path, *, resume: bool = False) -> RunDir:
    return RunDir.start(
        str(folder), config_yaml="a: 1\n", config_hash="0", command="test", resume=resume,
        overwrite=False,
    )  # fmt: skip


def train(
    folder: Path,
    algorithm: Walk,
    *,
    resume: bool = False,
    context: Context | None = None,
    snapshot: Callable[[int], dict[str, float]] = lambda images: {},
    enough: Callable[[], bool] | None = None,
) -> dict[str, Any]:
    with start(folder, resume=resume) as run:
        fit = Fit(
            algorithm, Numbers(), context or local(), run, CADENCE,
            batch_at=lambda images: 2 if images < 30 else 4, snapshot=snapshot, enough=enough,
        )  # fmt: skip
        return fit.run()


def rows(folder: Path) -> list[dict[str, float]]:
    """Rows of metrics.jsonl, clocks and memory aside."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if k.startswith(("images", "train", "snapshot"))}
        for line in lines
    ]


@pytest.mark.parametrize("fail_at", [0, 2, 12, 14, 28, 42, 58])
def test_a_run_that_broke_off_anywhere_ends_with_the_weights_and_rows_of_one_that_did_not(
    tmp_path: Path, fail_at: int
) -> None:
    whole, broken = Walk(), Walk(fail_at=fail_at)
    train(tmp_path / "whole", whole)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "broken", broken)
    again = Walk()
    train(tmp_path / "broken", again, resume=True)
    assert torch.equal(again.weights, whole.weights)
    assert rows(tmp_path / "broken") == rows(tmp_path / "whole")


def test_the_comparison_above_can_fail_when_a_batch_is_repeated(tmp_path: Path) -> None:
    whole, other = Walk(), Walk()
    train(tmp_path / "whole", whole)
    other.step(Numbers().next(2), 0)
    train(tmp_path / "other", other)
    assert not torch.equal(other.weights, whole.weights)


def test_a_non_finite_value_stops_the_run_and_leaves_the_last_sound_checkpoint(
    tmp_path: Path,
) -> None:
    with pytest.raises(NonFiniteError, match="train/loss is nan"):
        train(tmp_path / "run", Walk(poison_at=26))
    with start(tmp_path / "run", resume=True) as run:
        newest = Checkpoints(run.store, run.lease).newest()
        assert newest is not None and newest.images == 24


@pytest.mark.parametrize("steps, images", [(5, 10), (22, 58)])
def test_a_request_to_stop_saves_and_says_that_it_can_go_on(
    tmp_path: Path, steps: int, images: int
) -> None:
    class Asked(Context):
        def agree_to_stop(self) -> str | None:
            return "SIGTERM" if whole_context.steps(self) == steps else None

    whole_context = _Counter()
    whole = Walk()
    train(tmp_path / "whole", whole)
    stopped = Asked(0, 1, 0, torch.device("cpu"), threads_per_rank=1)
    with pytest.raises(Stopped, match=f"{images} images"):
        train(tmp_path / "run", Walk(), context=stopped)
    again = Walk()
    summary = train(tmp_path / "run", again, resume=True)
    assert summary["resumed_at_images"] == images
    assert torch.equal(again.weights, whole.weights)
    kept = [Checkpoints(Store(tmp_path / name), None).complete() for name in ("whole", "run")]
    assert kept[0] == kept[1] and 62 in kept[0] and images not in kept[0]
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")


class _Counter:
    def __init__(self) -> None:
        self.count = 0

    def steps(self, context: Context) -> int:
        self.count += 1
        return self.count


def test_pictures_are_drawn_at_the_start_at_their_cadence_and_at_the_end(tmp_path: Path) -> None:
    seen: list[int] = []
    train(tmp_path / "run", Walk(), snapshot=lambda images: seen.append(images) or {"score": 1.0})
    assert seen == [0, 20, 42, 62]
    assert [r["images"] for r in rows(tmp_path / "run") if "snapshot/score" in r] == seen


def test_due_is_true_once_per_multiple_whatever_the_batch() -> None:
    for batch in (1, 3, 4, 7, 10):
        steps = range(batch, 1000, batch)
        assert sum(due(images, batch, 10) for images in steps) == steps[-1] // 10


def test_the_best_checkpoint_outlives_newer_ones(tmp_path: Path) -> None:
    scores = {0: 9.0, 20: 1.0}
    train(tmp_path / "run", Walk(), snapshot=lambda images: {"score": scores.get(images, 5.0)})
    kept = sorted(int(p.name) for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert len(kept) == 3 and 24 in kept and kept[-1] == 62


def test_a_run_that_is_told_it_is_enough_ends_at_that_snapshot_and_stays_ended(
    tmp_path: Path,
) -> None:
    seen: list[int] = []

    def run(algorithm: Walk, **named: bool) -> dict[str, Any]:
        return train(
            tmp_path / "run",
            algorithm,
            snapshot=lambda images: seen.append(images) or {},
            enough=lambda: seen[-1] >= 40,
            **named,
        )

    first, again = Walk(), Walk()
    assert run(first)["images"] == 42 and seen == [0, 20, 42]
    assert run(again, resume=True)["images"] == 42 and seen == [0, 20, 42]
    assert torch.equal(again.weights, first.weights)


def test_a_run_that_broke_off_after_it_was_enough_ends_where_the_whole_one_did(
    tmp_path: Path,
) -> None:
    def run(name: str, algorithm: Walk, resume: bool = False) -> None:
        train(
            tmp_path / name,
            algorithm,
            resume=resume,
            snapshot=lambda images: {"score": float(images)},
            enough=lambda: bool(algorithm.weights[0] != 0 and float(algorithm.weights.sum()) > -9),
        )

    whole, broken, again = Walk(), Walk(fail_at=18), Walk()
    run("whole", whole)
    with pytest.raises(KeyboardInterrupt):
        run("broken", broken)
    run("broken", again, resume=True)
    assert torch.equal(again.weights, whole.weights)
    assert rows(tmp_path / "broken") == rows(tmp_path / "whole")
    assert rows(tmp_path / "whole")[-1]["images"] == 20
