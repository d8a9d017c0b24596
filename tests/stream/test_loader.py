"""Batches: the same global order whatever the ranks, the batch size and the interruptions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medray.errors import DataError, UsageError
from medray.stream import Source, Stream
from tests.shard_sets import CLASSES, drain, image, make_set, samples, stream


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 samples in shards of 8, 8 and 4."""
    folder = tmp_path_factory.mktemp("small")
    make_set(folder)
    return folder


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine samples more, of a raw set."""
    folder = tmp_path_factory.mktemp("other")
    make_set(folder, 9, encoding="raw", per_shard=4)
    return folder


def ranks(folder: Path, world: int, **named: int) -> list[Stream]:
    return [stream(folder, rank=rank, world=world, **named) for rank in range(world)]


def closing(streams: list[Stream]) -> Iterator[Stream]:
    for one in streams:
        yield one
        one.close()


@pytest.mark.parametrize("encoding", ["png", "raw", "zstd"])
@pytest.mark.parametrize(("bits", "channels"), [(8, 1), (16, 1), (8, 3), (16, 3)])
def test_a_batch_holds_the_pixels_labels_masks_and_records_that_were_packed(
    tmp_path: Path, encoding: str, bits: int, channels: int
) -> None:
    form = {"px": 9, "bits": bits, "channels": channels}
    make_set(tmp_path, encoding=encoding, masks=True, **form)
    given_samples = list(samples(20, masks=True, **form))
    with stream(tmp_path) as batches:
        assert (batches.channels, batches.size_px, batches.bits) == (channels, 9, bits)
        assert batches.classes == CLASSES and batches.samples_per_epoch == 20
        batch = batches.next(20)
    assert batch.images_NCHW.shape == (20, channels, 9, 9) and batch.images_NCHW.flags.c_contiguous
    for slot, key in enumerate(batch.keys):
        wanted = given_samples[int(key.rpartition("-")[2])]
        pixels = wanted.image[None] if channels == 1 else wanted.image.transpose(2, 0, 1)
        assert np.array_equal(batch.images_NCHW[slot], pixels)
        label = -1 if wanted.label is None else CLASSES.index(wanted.label)
        assert batch.labels_N[slot] == label and batch.records[slot]["patient"] == wanted.patient
        assert batch.masks_NHW is not None and np.array_equal(batch.masks_NHW[slot], wanted.mask)
    assert [record["label"] for record in batch.records] == [
        record["label"] for record in batch.records[:]
    ]


def test_without_masks_a_batch_has_none(small: Path) -> None:
    with stream(small) as batches:
        assert batches.next(4).masks_NHW is None


def test_every_epoch_has_every_sample_once_and_batches_straddle_epochs(small: Path) -> None:
    with stream(small) as batches:
        keys = [key for key, _ in drain(batches, 63, batch=3)]
    wanted = sorted(f"train-{number:08d}" for number in range(20))
    epochs = [keys[first : first + 20] for first in (0, 20, 40)]
    assert all(sorted(epoch) == wanted for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("prefetch", [0, 1, 7])
def test_threads_and_prefetch_change_nothing(small: Path, threads: int, prefetch: int) -> None:
    with stream(small) as batches:
        wanted = drain(batches, 52)
    with stream(small, threads=threads, prefetch=prefetch) as batches:
        assert drain(batches, 52) == wanted


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_the_ranks_parts_joined_are_the_global_batches(small: Path, world: int) -> None:
    with stream(small) as batches:
        wanted = [batches.next(12) for _ in range(5)]
    for number, rank in enumerate(closing(ranks(small, world))):
        part = 12 // world
        for step, whole in enumerate(wanted):
            batch = rank.next(12)
            mine = slice(number * part, (number + 1) * part)
            assert batch.keys == whole.keys[mine]
            assert np.array_equal(batch.images_NCHW, whole.images_NCHW[mine])
            assert batch.first_index == 12 * step + number * part


STEPS = st.lists(
    st.tuples(st.sampled_from([1, 2, 3, 4]), st.integers(1, 4), st.integers(1, 3)),
    min_size=1,
    max_size=5,
)


@settings(max_examples=25, deadline=None)
@given(steps=STEPS, seed=st.integers(0, 99))
def test_interrupted_and_resumed_at_other_sizes_the_global_order_is_the_same(
    small: Path, steps: list[tuple[int, int, int]], seed: int
) -> None:
    """Each step: a world size, images a rank, batches until the interruption."""
    joined: list[str] = []
    state: str | None = None
    for world, part, count in steps:
        streams = ranks(small, world, seed=seed)
        for rank in streams:
            if state is not None:
                rank.restore(json.loads(state))
        parts = [[rank.next(world * part).keys for rank in streams] for _ in range(count)]
        joined += [key for step in parts for keys in step for key in keys]
        states = {json.dumps(rank.state()) for rank in closing(streams)}
        assert len(states) == 1, "all ranks must save the same"
        state = states.pop()
    with stream(small, seed=seed) as batches:
        assert [key for key, _ in drain(batches, len(joined), batch=1)] == joined


def test_what_was_prefetched_is_not_counted_as_taken(small: Path) -> None:
    with stream(small, prefetch=6, threads=3) as batches:
        batches.next(4)
        assert (batches.state()["images"], batches.state()["epoch"]) == (4, 0)
        drain(batches, 17, batch=1)
        assert (batches.state()["images"], batches.state()["epoch"]) == (21, 1)


def test_a_batch_size_may_change_from_call_to_call(small: Path) -> None:
    with stream(small) as batches:
        wanted = [key for key, _ in drain(batches, 30, batch=1)]
    with stream(small, prefetch=3) as batches:
        found = [key for size in (4, 4, 1, 9, 2, 10) for key in batches.next(size).keys]
    assert found == wanted


@pytest.mark.parametrize(
    ("change", "word"),
    [({"seed": 1}, "seed"), ({"split": "val"}, "split"), ({"samples": [3]}, "samples")],
)
def test_a_state_of_another_stream_is_refused_with_the_difference(
    small: Path, change: dict[str, object], word: str
) -> None:
    with stream(small) as batches, pytest.raises(UsageError, match=rf"{word}: .* -> "):
        batches.restore({**batches.state(), **change})


def test_a_state_saved_on_other_data_is_refused(small: Path, tmp_path: Path) -> None:
    make_set(tmp_path, encoding="zstd")
    with stream(small) as one, stream(tmp_path) as two:
        with pytest.raises(UsageError, match="content_sha256"):
            two.restore(one.state())


def test_sources_are_mixed_in_the_given_proportions(small: Path, other: Path) -> None:
    sources = [Source(small, 0.75), Source(other, 0.25)]
    pixels = {image(number).tobytes() for number in range(9)}
    with Stream(sources, threads=1) as batches:
        assert batches.samples_per_epoch == 29
        found = drain(batches, 96, batch=32)
        state = batches.state()
    assert state["proportions"] == [3, 1] and state["samples"] == [20, 9]
    # Each source runs through its own epochs: 72 of the one, 24 of the other.
    counts = {key: [k for k, _ in found].count(key) for key, _ in found}
    assert sum(counts.values()) == 96
    assert all(data in pixels or key > "train-00000008" for key, data in found)


def test_mixed_sources_resume_at_another_world_size(small: Path, other: Path) -> None:
    sources = [Source(small, 0.7), Source(other, 0.3)]
    with Stream(sources) as batches:
        wanted = drain(batches, 60, batch=12)
    halves = [Stream(sources, rank=rank, world=2) for rank in range(2)]
    found = [part for _ in range(2) for rank in halves for part in drain(rank, 6, batch=12)]
    saved = halves[0].state()
    list(closing(halves))
    with Stream(sources, threads=1) as batches:
        batches.restore(saved)
        assert found + drain(batches, 36, batch=4) == wanted


def test_classes_of_sources_are_united(small: Path, tmp_path: Path) -> None:
    from medray.shards import write_set

    more = ("opacity", "tumour")
    extra = [s for s in samples(9) if s.label == "opacity"]
    write_set(tmp_path, extra, name="n", classes=more, size_px=16)
    with stream(small, tmp_path) as batches:
        assert batches.classes == (*CLASSES, "tumour")
        batch = batches.next(40)
    names = [batch.records[slot]["label"] for slot in range(40)]
    assert [batches.classes[n] if n >= 0 else None for n in batch.labels_N] == names


@pytest.mark.parametrize("form", [{"px": 32}, {"bits": 16}, {"channels": 3}])
def test_sources_that_differ_in_form_are_refused_naming_both(
    small: Path, tmp_path: Path, form: dict[str, int]
) -> None:
    make_set(tmp_path, **form)
    with pytest.raises(DataError) as caught:
        stream(small, tmp_path)
    assert str(small) in caught.value.message and str(tmp_path) in caught.value.message


def test_another_size_than_the_wanted_one_is_refused(small: Path) -> None:
    with pytest.raises(DataError, match="images of 64 px are wanted"):
        stream(small, size_px=64)


def test_a_split_that_is_not_there_names_those_that_are(small: Path) -> None:
    with pytest.raises(DataError, match=r"no shard of split 'val', only of \['train'\]"):
        stream(small, split="val")


@pytest.mark.parametrize(
    ("named", "text"),
    [
        ({"rank": 2, "world": 2}, "rank must be 0 to 1"),
        ({"on_error": "ignore"}, "on_error must be one of"),
        ({"threads": 0}, "threads must be 1 or more"),
        ({"prefetch": -1}, "prefetch must be 0 or more"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(
    small: Path, named: dict[str, object], text: str
) -> None:
    with pytest.raises(UsageError, match=text):
        stream(small, **named)


def test_a_batch_that_the_ranks_cannot_share_is_refused(small: Path) -> None:
    with stream(small, world=3) as batches, pytest.raises(UsageError, match="shared by 3 ranks"):
        batches.next(8)
