"""The PGGAN job with --conditional: what it leaves, killed and resumed, and what it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml

from jobs import _pggan_run
from jobs.pggan import PgganJob
from medray import lineage
from medray.images.png import decode_png
from medray.models.weights import load_generator
from medray.records import Sample
from medray.sample.images import Renderer
from medray.sample.latents import LatentModel
from medray.shards import write_set
from tests.jobs.pggan_runs import Nursery, results

pytestmark = pytest.mark.slow
CLASSES = ["solid_smooth", "calcification", "ground_glass", "part_solid"]
LUNG = (
    "--phantoms",
    "lung",
    "--phantom-images",
    "24",
    "--conditional",
    "--fake-labels",
    "balanced",
)
FLAGS = (*LUNG, "--diffaugment", "translation,cutout,tone")


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    cache = tmp_path_factory.mktemp("cache")
    with Nursery(cache, cache / "runs.log") as found:
        yield found


@pytest.fixture(scope="module")
def clean(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clean") / "run"
    assert nursery.run(folder, *FLAGS) == 0, nursery.said()
    return folder


def test_a_conditional_run_leaves_a_generator_that_knows_its_classes(clean: Path) -> None:
    generator, about = load_generator(str(clean))
    assert about["classes"] == CLASSES and about["arguments"]["classes"] == 4
    assert generator.latent_dims == 8 + 4
    latents = LatentModel.load(str(clean / "latents"))
    assert latents.generator_sha256 == about["generator_sha256"]
    assert [target.name for target in latents.targets] == CLASSES
    drawn = latents.draw(0, np.arange(4), np.arange(4))
    assert Renderer(generator, about).render(drawn).shape == (4, 16, 16)
    assert "1 for the class" in (clean / "model" / "README.md").read_text()
    saw = lineage.read(str(clean))
    assert saw is not None and {entry.label for entry in saw.entries} > {"calcification"}
    assert lineage.read(str(clean / "latents")) == saw


def test_pictures_have_a_row_a_class_and_the_report_names_them(clean: Path) -> None:
    for name in ("reals.png", "fakes-00000096.png"):
        assert decode_png((clean / name).read_bytes()).shape == (4 * 66 - 2, 8 * 66 - 2)
    report = (clean / "report.html").read_text()
    assert all(name in report for name in CLASSES)


def test_classes_without_an_image_are_told_and_left_out(nursery: Nursery, clean: Path) -> None:
    stored = yaml.safe_load((clean / "config.yaml").read_text())
    assert stored["classes"] == [*CLASSES, "spiculation", "lobulation"]
    assert stored["class_counts"][4:] == [0, 0] and min(stored["class_counts"][:4]) > 0
    assert "has no image of spiculation, lobulation" in (clean / "train.log").read_text()


@pytest.mark.parametrize("images", [8, 56])
def test_a_conditional_run_that_is_killed_ends_with_the_same_bytes(
    images: int, nursery: Nursery, clean: Path, tmp_path: Path
) -> None:
    assert nursery.run(tmp_path / "run", *FLAGS, patch=f"die_at={images}") == -9
    assert nursery.run(tmp_path / "run", *FLAGS) == 0, nursery.said()
    assert results(tmp_path / "run") == results(clean)
    name = "latents/latents.safetensors"
    assert (tmp_path / "run" / name).read_bytes() == (clean / name).read_bytes()


@pytest.mark.parametrize(
    ("flags", "key"),
    [
        ((*LUNG, "--diffaugment", "cutout"), "diffaugment"),
        ((*FLAGS, "--class-weight", "2"), "class_weight"),
        (("--phantoms", "lung", "--phantom-images", "24"), "conditional"),
    ],
)
def test_a_run_cannot_be_resumed_with_other_classes_or_augmentation(
    flags: tuple[str, ...], key: str, nursery: Nursery, clean: Path
) -> None:
    nursery.log.unlink()
    assert nursery.run(clean, *flags) == 2
    assert "differs from that of the run" in nursery.said() and key in nursery.said()


def _set(folder: Path, labels: list[str | None]) -> str:
    samples = [
        Sample(f"train-{n:08d}", np.full((16, 16), n, np.uint8), label=label)
        for n, label in enumerate(labels)
    ]
    write_set(folder, iter(samples), name="set", classes=("a", "b"), size_px=16)
    return str(folder)


@pytest.mark.parametrize(
    ("labels", "said"),
    [([None] * 16, "the split has no labels"), (["a"] * 15 + [None], "one class only (a)")],
)
def test_a_set_without_classes_is_refused_before_a_folder_is_made(
    labels: list[str | None], said: str, nursery: Nursery, tmp_path: Path
) -> None:
    data = _set(tmp_path / "set", labels)
    nursery.log.unlink(missing_ok=True)
    assert nursery.run(tmp_path / "run", "--data", data, "--conditional") == 3
    assert "MR-D075" in nursery.said() and said in nursery.said()
    assert "fix: pack the set with labels" in nursery.said()
    assert not (tmp_path / "run").exists()


def test_a_set_with_some_labels_trains_with_them_and_without_conditional_as_ever(
    nursery: Nursery, tmp_path: Path
) -> None:
    data = _set(tmp_path / "set", [None, "a", "b", None] * 8)
    common = ("--data", data, "--total-images", "16", "--final-px", "8")
    assert nursery.run(tmp_path / "some", *common, "--conditional") == 0, nursery.said()
    _, about = load_generator(str(tmp_path / "some"))
    assert about["classes"] == ["a", "b"]
    assert nursery.run(tmp_path / "plain", *common) == 0, nursery.said()
    _, about = load_generator(str(tmp_path / "plain"))
    assert "classes" not in about and "classes" not in about["arguments"]
    # A run folder of an earlier version has none of these keys, and can be resumed all the same.
    stored = yaml.safe_load((tmp_path / "plain" / "config.yaml").read_text())
    assert not {"conditional", "classes", "diffaugment", "fake_labels"} & set(stored)


def test_other_classes_than_the_sets_are_refused(tmp_path: Path) -> None:
    data = (_set(tmp_path / "set", ["a", "b"] * 8),)
    with pytest.raises(Exception, match="--classes b a: the set has a b"):
        _pggan_run.classified(PgganJob(data=data, conditional=True, classes=("b", "a")))


def test_a_dry_run_makes_no_phantoms(tmp_path: Path) -> None:
    config = PgganJob(conditional=True, dry_run=True, cache_dir=str(tmp_path), phantoms="lung")
    assert len(_pggan_run.classified(config).class_names) == 6
    assert not list(tmp_path.iterdir())
