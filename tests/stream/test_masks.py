"""Which samples have masks, and images with their masks by name."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np

from medray.shards import write_set
from medray.stream import Source
from medray.stream.masks import MaskRoster
from tests.shard_sets import CLASSES, samples


def test_samples_with_masks_are_found_and_come_with_them(tmp_path: Path) -> None:
    with_masks = list(samples(9, masks=True))
    without = [replace(s, key=f"x{s.key}") for s in samples(5)]
    empty = replace(with_masks[2], mask=np.zeros((16, 16), np.uint8))
    made = [*with_masks[:2], empty, *with_masks[3:], *without]
    write_set(tmp_path, iter(made), name="some", classes=CLASSES, size_px=16, samples_per_shard=4)
    roster = MaskRoster([Source(str(tmp_path))], "train")
    facts = roster.masked()
    assert len(roster.facts) == 14 and len(facts) == 9
    wanted = facts[::-1]
    parts = list(roster.pairs(wanted, batch=4))
    assert [len(images) for images, _ in parts] == [4, 4, 1]
    pairs = itertools.chain.from_iterable(zip(*part, strict=True) for part in parts)
    for (image_CHW, mask_HW), sample in zip(pairs, made[:9][::-1], strict=True):
        assert sample.mask is not None and mask_HW.dtype == np.bool_
        assert (image_CHW[0] == sample.image).all() and (mask_HW == (sample.mask > 0)).all()
