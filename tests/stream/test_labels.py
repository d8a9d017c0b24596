"""Labels counted from the idx files, as the stream would give them."""

from pathlib import Path

import numpy as np
import pytest

from medray.errors import DataError
from medray.records import Sample
from medray.shards import write_set
from medray.stream.labels import count_labels
from medray.stream.loader import Stream
from medray.stream.sets import Source


def _sample(number: int, label: str | None, split: str = "train") -> Sample:
    image = np.full((4, 4), number, np.uint8)
    findings = {"a": 1}  # a finding is no label
    return Sample(f"{split}-{number:08d}", image, label=label, labels=findings, split=split)


@pytest.fixture
def sets(tmp_path: Path) -> list[str]:
    labels = ["a", None, "b", "a", "a"]
    first = [_sample(n, label) for n, label in enumerate(labels)]
    first.append(_sample(9, "absent", "val"))
    second = [_sample(n, "c") for n in range(3)]
    for name, samples, classes in (("one", first, "b a absent"), ("two", second, "c a")):
        url = str(tmp_path / name)
        write_set(url, iter(samples), name=name, classes=classes.split(), size_px=4)
    return [str(tmp_path / name) for name in ("one", "two")]


def test_labels_are_counted_by_split_in_the_streams_order(sets: list[str]) -> None:
    sources = [Source(url) for url in sets]
    counts = count_labels(sources, "train")
    assert counts == {"b": 1, "a": 3, "absent": 0, "c": 3}
    with Stream(sources) as stream:
        assert stream.classes == tuple(counts)
    with Stream(sources[:1]) as stream:
        labels_N = stream.next(5).labels_N
    assert np.bincount(labels_N + 1).tolist() == [1, 1, 3]


def test_plain_tars_are_counted_too(sets: list[str], tmp_path: Path) -> None:
    tars = sorted(Path(sets[0]).glob("train*.tar"))
    assert count_labels([Source([str(tar) for tar in tars])], "train") == {"a": 3, "b": 1}


def test_a_split_that_is_not_there_is_refused(sets: list[str]) -> None:
    with pytest.raises(DataError, match="no shard of split 'test'"):
        count_labels([Source(sets[0])], "test")
