"""What jobs/pggan.py trains on: label fractions, excluded patients, what it says that it saw."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from jobs import _pggan_data
from jobs.pggan import PgganJob
from medray import lineage
from medray.errors import DataError, UsageError
from medray.lineage import Lineage, Saw
from medray.records import Sample
from medray.shards import write_set
from medray.store import Store

CLASSES = ("a", "b")


def samples() -> Iterator[Sample]:
    """40 images of a, 20 of b, 4 without a label; two a patient."""
    for number in range(64):
        yield Sample(
            f"k{number}",
            np.full((16, 16), number, np.uint8),
            label="a" if number < 40 else "b" if number < 60 else None,
            patient=f"p{number // 2}",
        )


@pytest.fixture
def data(tmp_path: Path) -> str:
    write_set(tmp_path / "set", samples(), name="set", classes=CLASSES, size_px=16)
    return str(tmp_path / "set")


def job(data: str, conditional: bool = True, **more: object) -> PgganJob:
    small = {"final_px": 16, "batch": 8, "loader_threads": 1, "conditional": conditional}
    return _pggan_data.classified(PgganJob.model_validate({"data": (data,), **small, **more}))


def drawn(config: PgganJob) -> tuple[set[int], Counter[int]]:
    """Which images an epoch has, and its labels as the networks get them."""
    with _pggan_data.stream_of(config, config.data, 0, 1) as stream:
        batch = stream.next(stream.samples_per_epoch)
    return set(batch.images_NCHW[:, 0, 0, 0].tolist()), Counter(batch.labels_N.tolist())


def test_at_a_fraction_the_other_images_are_left_out(data: str) -> None:
    config = job(data, fraction=0.25)
    assert dict(zip(config.classes, config.class_counts, strict=True)) == {"a": 10, "b": 6}
    images, labels = drawn(config)
    assert len(images) == 16 and labels == {0: 10, 1: 6}
    more, _ = drawn(job(data, fraction=0.5))
    assert images < more
    assert drawn(job(data, fraction=0.25, fraction_seed=1))[0] != images


def test_the_rest_can_stay_without_its_labels(data: str) -> None:
    config = job(data, fraction=0.25, unlabelled_rest=True)
    assert config.class_counts == (10, 6)
    images, labels = drawn(config)
    assert len(images) == 64 and labels == {0: 10, 1: 6, -1: 48}
    saw = _pggan_data.seen(config)
    assert saw is not None and len(saw) == 64
    assert Counter(entry.label for entry in saw.entries) == {"a": 10, "b": 6, None: 48}


def test_a_stream_whose_labels_are_hidden_is_another_stream(data: str) -> None:
    with _pggan_data.stream_of(job(data, fraction=0.25, unlabelled_rest=True), (data,), 0, 1) as s:
        state = s.state()
    other = job(data, fraction=0.5, unlabelled_rest=True)
    with (
        _pggan_data.stream_of(other, (data,), 0, 1) as s,
        pytest.raises(UsageError, match="not the one that was saved"),
    ):
        s.restore(state)


def test_the_whole_set_is_trained_on_as_before(data: str) -> None:
    images, labels = drawn(job(data))
    assert len(images) == 64 and labels == {0: 40, 1: 20, -1: 4}
    saw = _pggan_data.seen(job(data))
    assert saw is not None and len(saw.patients) == 32
    assert saw.entries[0] == Saw("set/train-00000000", "p0", "train", "a")


def test_a_gan_without_classes_saw_images_and_no_label(data: str, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("\n".join(f"p{n}" for n in range(10)))
    config = job(data, conditional=False, exclude_patients=str(tmp_path / "out"))
    images, _ = drawn(config)
    assert images == set(range(20, 64))
    saw = _pggan_data.seen(config)
    assert saw is not None and {entry.label for entry in saw.entries} == {None}
    assert saw.patients == {f"p{n}" for n in range(10, 32)}
    assert saw.refusals(patients={"p9"}, labels=()) == []
    assert saw.refusals(patients={"p10"}, labels=()) != []


def test_a_warm_start_saw_what_its_weights_saw(data: str, tmp_path: Path) -> None:
    before = Lineage([Saw("x", "q", "train", None)])
    lineage.write(Store(tmp_path / "run").child("model"), before)
    saw = _pggan_data.seen(job(data, init_from=str(tmp_path / "run")))
    assert saw is not None and len(saw) == 65 and "q" in saw.patients
    assert _pggan_data.seen(job(data, init_from=str(tmp_path / "old"))) is None


def test_excluding_everybody_is_refused_and_names_the_set(data: str, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("\n".join(f"p{n}" for n in range(32)))
    config = job(data, conditional=False, exclude_patients=str(tmp_path / "out"))
    with pytest.raises(DataError, match="no sample of the patients"):
        _pggan_data.stream_of(config, config.data, 0, 1)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"conditional": False, "fraction": 0.5}, "goes with --conditional"),
        ({"unlabelled_rest": True}, "below 1"),
        ({"fraction": 0.0}, "greater than 0"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(
    data: str, more: dict[str, object], said: str
) -> None:
    with pytest.raises(ValidationError, match=said):
        job(data, **more)  # type: ignore[arg-type]
