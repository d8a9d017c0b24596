"""--workers, --min-workers and --images-at-once: which numbers of workers share a batch."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from jobs import _pggan_run
from jobs.pggan import PgganJob
from medray import config as configuration


@pytest.mark.parametrize(
    ("given", "worlds"),
    [
        ({"workers": 4}, (4,)),
        ({"workers": 4, "min_workers": 4}, (4,)),
        ({"workers": 4, "min_workers": 1}, (1, 2, 4)),
        ({"workers": 4, "min_workers": 2}, (2, 4)),
        # A part of six is no whole number of pieces of four.
        ({"workers": 6, "min_workers": 1, "batch": 24}, (1, 2, 3, 6)),
        ({"workers": 4, "min_workers": 1, "batch_by_px": {32: 4}}, (1, 2, 4)),
        # Pieces of four: 12 images are shared by 3, 16 are not.
        ({"workers": 4, "min_workers": 1, "batch": 48, "images_at_once": 4}, (1, 2, 3, 4)),
        ({"workers": 4, "min_workers": 1, "batch": 48, "batch_by_px": {8: 16}}, (1, 2, 4)),
    ],
)
def test_a_number_of_workers_shares_every_batch_into_whole_pieces(
    given: dict[str, Any], worlds: tuple[int, ...]
) -> None:
    config = PgganJob(**given)
    assert config.worlds == worlds
    for world in worlds:
        for px in (4, 8, 32):
            part = config.batch_at(px) // world
            assert part % config.piece_of(part, px) == 0


def test_the_pieces_are_the_same_at_every_number_of_workers() -> None:
    config = PgganJob(workers=4, min_workers=1, batch=64, batch_by_px={32: 16})
    pieces = {
        px: {config.piece_of(config.batch_at(px) // n, px) for n in (1, 2, 4)} for px in (8, 32)
    }
    assert pieces == {8: {16}, 32: {4}}
    narrow = PgganJob(workers=4, min_workers=1, batch=64, batch_by_px={32: 16}, images_at_once=8)
    assert (narrow.piece_of(16, 8), narrow.piece_of(4, 32)) == (8, 4)
    # Without these flags a part is one piece.
    assert PgganJob(workers=4, batch=64).piece_of(16, 8) == 16


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"workers": 2, "min_workers": 3}, "min workers 3 are above workers 2"),
        (
            {"workers": 2, "min_workers": 1, "backend": "torchrun"},
            "min workers go with the backend ray, got torchrun",
        ),
        (
            {"workers": 4, "min_workers": 3},
            "3 workers cannot share batch 32 evenly.*allowed: 1, 2, 4",
        ),
        (
            {"workers": 2, "min_workers": 1, "engine": "deepspeed", "zero_stage": 3},
            "min workers go with zero stages 0 to 2, got 3",
        ),
        (
            {"images_at_once": 8, "engine": "deepspeed", "zero_stage": 3},
            "images at once go with zero stages 0 to 2, got 3",
        ),
        (
            {"workers": 2, "images_at_once": 6},
            "images at once 6: a worker's part of batch 32 is 16 images; allowed: 4, 8, 16 or more",
        ),
        ({"images_at_once": 2}, "images at once 2: .*allowed: 4, 8, 16, 32 or more"),
        ({"batch": 6, "images_at_once": 4}, "part of batch 6 is 6 images; allowed: 6 or more"),
        ({"min_workers": 0}, "greater than or equal to 1"),
        ({"resize_every_s": 0}, "greater than 0"),
    ],
)
def test_what_cannot_be_shared_is_refused_with_what_is_allowed(
    given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        PgganJob(**given)


def test_a_resumed_run_may_come_and_go_with_other_workers_and_pieces() -> None:
    plain = PgganJob()
    other = PgganJob(workers=4, min_workers=1, resize_every_s=5, images_at_once=8)
    hashes = {
        configuration.digest(config, leave_out=_pggan_run.CHANGEABLE) for config in (plain, other)
    }
    assert len(hashes) == 1
    assert "images_at_once" not in plain.model_dump(), "a run from before it can be resumed"
