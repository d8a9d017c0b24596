"""What archives and latents say that they saw: what their generator, latents and classifier did."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from medray import lineage
from medray.lineage import Lineage, Saw
from medray.records import Sample
from medray.shards import write_set
from medray.store import Store
from tests.archive.made_parts import CLASSES, make_parts, run
from tests.jobs import small_search
from tests.sample import latents_toys as toys

G, L, C = (Saw(name, f"{name}-patient", "train", None) for name in ("g", "l", "c"))


@pytest.fixture(scope="module")
def silent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parts that do not say what they saw."""
    return make_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def parts(silent: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same parts, which do."""
    folder = tmp_path_factory.mktemp("told") / "parts"
    shutil.copytree(silent, folder)
    for name, saw in (("generator", G), ("latents", L), ("classifier", C)):
        lineage.write(Store(folder / name), Lineage([saw]))
    return folder


def test_an_archive_saw_what_its_parts_saw(parts: Path, tmp_path: Path) -> None:
    assert run(parts, tmp_path / "a") == 0
    assert lineage.read(str(tmp_path / "a")) == Lineage([G, L])
    judged = ("--classifier", parts / "classifier", "--min-probability", "0")
    assert run(parts, tmp_path / "b", *judged) == 0
    assert lineage.read(str(tmp_path / "b")) == Lineage([G, L, C])


def test_one_silent_part_silences_the_archive_and_it_is_said(
    silent: Path, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judged = ("--classifier", silent / "classifier", "--min-probability", "0")
    assert run(parts, tmp_path / "a", *judged) == 0
    assert lineage.read(str(tmp_path / "a")) is None
    assert "does not say what it saw" in capsys.readouterr().err
    # It can be used as before.
    assert run(parts, tmp_path / "a", "--verify", "--sample", 0) == 0


def test_natural_shares_are_labels_that_were_seen(parts: Path, tmp_path: Path) -> None:
    samples = (
        Sample(
            f"k{n}",
            np.zeros((16, 16), np.uint8),
            label=CLASSES[n % 2],
            patient=f"p{n}",
            split="train" if n < 4 else "val",
        )
        for n in range(6)
    )
    write_set(tmp_path / "set", samples, name="set", classes=CLASSES, size_px=16)
    data = ("--labels", "natural", "--data", tmp_path / "set")
    assert run(parts, tmp_path / "a", *data) == 0
    saw = lineage.read(str(tmp_path / "a"))
    assert saw is not None and saw.patients == {"g-patient", "l-patient", "p0", "p1", "p2", "p3"}
    assert saw.refusals(patients=(), labels={"set/train-00000000"}) != []
    assert saw.refusals(patients={"p4"}, labels=None) == []


def test_verify_finds_a_damaged_seen_file(
    parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a"
    assert run(parts, out) == 0
    assert run(parts, out, "--verify", "--sample", 0) == 0
    whole = (out / "seen.json").read_bytes()
    (out / "seen.json").write_bytes(whole.replace(b"g-patient", b"h-patient"))
    assert run(parts, out, "--verify", "--sample", 0) == 3
    assert "MR-D090" in capsys.readouterr().err


def test_latents_saw_what_generator_and_steering_classifier_saw_and_not_the_judge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    toys.save_generator(Store(tmp_path / "g"), toys.generator())
    toys.save_classifier(Store(tmp_path / "c"), toys.classifier())
    toys.save_classifier(Store(tmp_path / "j"), toys.classifier(2, "plain"))
    for name, saw in (("g", G), ("c", C), ("j", L)):
        lineage.write(Store(tmp_path / name), Lineage([saw]))
    assert small_search.make(tmp_path / "latents", str(tmp_path)) == 0
    assert lineage.read(str(tmp_path / "latents")) == Lineage([G, C])
    before = (tmp_path / "latents" / "seen.json").stat().st_mtime_ns
    # Complete, it is not written again.
    assert small_search.make(tmp_path / "latents", str(tmp_path)) == 0
    assert (tmp_path / "latents" / "seen.json").stat().st_mtime_ns == before
