"""Clips to train on: batches that ranks share, maps made once, labels that are not known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from medray.dist import context
from medray.errors import UsageError
from medray.models.encoder import Encoder, EncoderConfig
from medray.stream.clips import ClipSet
from medray.train.clips import ClipTraining, attention_of, encoder_of, standard_of
from medray.train.clips_config import ClipsConfig
from medray.train.clips_data import ClipBatches, ClipRoster
from medray.train.targets import Targets
from tests.jobs.clip_runs import FINDINGS, clips, made

MANY = Targets(FINDINGS, True)


@pytest.fixture
def roster(tmp_path: Path) -> ClipRoster:
    url = made(tmp_path / "set", clips("train", 10, unknown={"right": None}))
    return ClipRoster(ClipSet.open(url), "train", 4)


def config(**named: object) -> ClipsConfig:
    small = {"size_px": 32, "width": 8, "batch": 4, "frames": 4, "units": 4, "total_images": 200}
    return ClipsConfig.model_validate({"clips": True, "encoder": "random", **small, **named})


def training(roster: ClipRoster, **named: object) -> ClipTraining:
    settings, rank = config(**named), context.local(threads_per_rank=1)
    trunk = Encoder(EncoderConfig(1, 8)).seed_weights(1)
    encode = encoder_of(trunk, settings, rank)
    roster.encode_with(encode if settings.freeze else None)
    standard = standard_of(roster, list(roster.facts), encode)
    return ClipTraining(settings, MANY, trunk, np.ones((2, 3)), rank, standard)


def test_batches_are_permutations_and_two_ranks_share_what_one_would_have(
    roster: ClipRoster,
) -> None:
    alone = ClipBatches(roster, roster.facts, 5)
    keys = [key for _ in range(5) for key in alone.next(4).keys]
    assert len(set(keys[:10])) == len(set(keys[10:])) == 10 and keys[:10] != keys[10:]
    ranks = [ClipBatches(roster, roster.facts, 5, rank, 2) for rank in (0, 1)]
    shared = [key for _ in range(5) for batches in ranks for key in batches.next(4).keys]
    assert shared == keys
    again = ClipBatches(roster, roster.facts, 5)
    again.restore({**alone.state(), "images": 8})
    assert list(again.next(4).keys) == keys[8:12]
    with pytest.raises(UsageError, match="not those that the run began with"):
        ClipBatches(roster, roster.facts[:9], 5).restore(alone.state())


def test_maps_are_made_once_and_are_those_of_the_frames(
    roster: ClipRoster, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen, some = training(roster, freeze=True), list(roster.facts[:3])
    maps = roster.rows(some)
    assert maps.shape == (3, 4, 64, 2, 2) and maps.dtype == np.float32
    monkeypatch.setattr(roster, "picked", None)
    assert np.array_equal(roster.rows(some), maps), "they were read again"
    monkeypatch.undo()
    roster.encode_with(None)
    pixels = torch.from_numpy(next(roster.images(some))).float() / 127.5 - 1
    whole = frozen.whole()
    torch.testing.assert_close(whole(pixels), frozen.average(torch.from_numpy(maps)))


def test_a_label_that_is_not_known_moves_nothing(roster: ClipRoster) -> None:
    algorithm = training(roster, freeze=True)
    batch = ClipBatches(roster, roster.facts, 0).next(8)
    inputs, truth_NK = algorithm._inputs(batch)
    assert (truth_NK[:, 1] == -1).all() and (truth_NK[:, 0] >= 0).all()
    loss = algorithm.loss(algorithm.network(inputs), truth_NK)
    loss.backward()  # type: ignore[no-untyped-call]
    gradient = algorithm.network.head.weight.grad
    assert gradient is not None
    assert float(gradient[1].abs().max()) == 0 and float(gradient[0].abs().max()) > 0


def test_attention_of_clips_is_a_share_for_each_frame(roster: ClipRoster) -> None:
    for freeze in (True, False):
        algorithm = training(roster, freeze=freeze)
        device = torch.device("cpu")
        weights_NT = attention_of(algorithm.average, roster, list(roster.facts), device)
        assert weights_NT.shape == (10, 4)
        np.testing.assert_allclose(weights_NT.sum(1), 1, rtol=1e-5)
