"""An archive in this process: what is in it, what is kept out of it, and what is refused."""

import csv
import gc
import io
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset as wds
from PIL import Image

from medray.archive import load
from medray.archive.plan import Places, read_plan
from medray.archive.worker import Worker, make_shard
from medray.evaluate.memorisation import Gate
from medray.images import decode
from medray.models.pixels import to_unit
from medray.models.weights import load_generator
from medray.sample.images import Renderer
from medray.sample.latents import prior
from medray.shards import INDEX, open_shard, read_index, verify
from medray.store import Store
from tests.archive.made_parts import (
    CLASSES,
    DIMS,
    arguments,
    is_result,
    make_classifier,
    make_generator,
    make_latents,
    make_parts,
    run,
)
from tests.faults.kill import tree_sha256
from tests.shard_sets import drain, stream


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return make_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def made(parts, tmp_path_factory):
    """A finished archive of 24 images in three shards."""
    out = tmp_path_factory.mktemp("made") / "archive"
    assert run(parts, out) == 0
    return out


def by_webdataset(out):
    """All that plain webdataset finds, undecoded."""
    with warnings.catch_warnings():
        # It leaves files open for the collector to close.
        warnings.simplefilter("ignore", ResourceWarning)
        tars = sorted(str(path) for path in out.glob("*.tar"))
        plain = wds.WebDataset(tars, shardshuffle=False)
        found = list(plain)
        del plain
        gc.collect()
    return found


def samples(out):
    store = Store(out)
    for shard in read_index(store).shards:
        reader = open_shard(store, shard)
        yield from (reader.sample(number) for number in range(len(reader)))


# --- what is in it ------------------------------------------------------------------------------


def test_labels_are_balanced_and_every_image_has_its_provenance(parts, made):
    index, found = read_index(Store(made)), list(samples(made))
    assert [shard.samples for shard in index.shards] == [8, 8, 8]
    assert all(shard.class_counts == {"clear": 4, "opacity": 4} for shard in index.shards)
    assert (index.classes, index.bits, index.size_px, index.audited) == (CLASSES, 8, 16, False)
    assert [sample.key for sample in found] == [f"train-{number:08d}" for number in range(24)]
    plan, _ = read_plan(Store(made))
    for sample in found:
        about = sample.provenance
        assert about.address == plan.address(about.index)
        assert sample.labels == about.wanted == {n: int(n == sample.label) for n in CLASSES}
        assert about.render == plan.render
        assert (about.audited, about.nearest) == (False, None)
    assert len({sample.provenance.address for sample in found}) == 24
    assert len({sample.image.tobytes() for sample in found}) == 24


def test_medray_streams_it_and_plain_webdataset_reads_it(made):
    pixels = {sample.key: sample.image for sample in samples(made)}
    streamed = drain(stream(made), 24)
    assert {key: pixels[key].tobytes() for key, _ in streamed} == dict(streamed)
    found = by_webdataset(made)
    for sample in found:
        image = np.asarray(Image.open(io.BytesIO(sample["png"])))
        np.testing.assert_array_equal(image, pixels[sample["__key__"]])
        assert json.loads(sample["json"])["provenance"]["address"].startswith("mr1:")
    assert len(found) == 24


def test_a_png_says_that_it_is_synthetic_and_what_makes_it_again(made):
    first = by_webdataset(made)[0]
    text = Image.open(io.BytesIO(first["png"])).text
    assert text["SyntheticData"] == "YES"
    assert text["Address"].startswith("mr1:")
    assert json.loads(text["Provenance"]) == json.loads(first["json"])["provenance"]


@pytest.mark.parametrize("form, member", [("npy", "npy"), ("dicom", "dcm")])
def test_other_formats_hold_the_same_pixels(parts, made, tmp_path, form, member):
    assert run(parts, tmp_path / "out", "--format", form, "--body-part", "CHEST") == 0
    assert verify(Store(tmp_path / "out")) == []
    for sample, same in zip(samples(tmp_path / "out"), samples(made), strict=True):
        np.testing.assert_array_equal(sample.image, same.image)
    first, image = by_webdataset(tmp_path / "out")[0], next(samples(made)).image
    read = decode(first[member]).image if form == "dicom" else np.load(io.BytesIO(first["npy"]))
    np.testing.assert_array_equal(read, image)


def test_pictures_and_figures_stand_beside_it(made):
    assert {path.name for path in made.glob("contact-*.png")} == {
        "contact-clear.png",
        "contact-opacity.png",
    }
    summary = json.loads((made / "summary.json").read_text())
    assert (summary["images"], summary["tried"], summary["copies"]) == (24, 24, 0)
    assert summary["accepted"] == {"clear": 12, "opacity": 12}
    assert summary["images_per_s"] > 0


def test_neither_threads_nor_speed_nor_where_it_is_change_a_byte(parts, made, tmp_path, capsys):
    clean = tree_sha256(made, is_result)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert run(parts, tmp_path / "threads", "--cost-per-hour", 2.5) == 0
    finally:
        torch.set_num_threads(before)
    assert tree_sha256(tmp_path / "threads", is_result) == clean
    assert "per million" in capsys.readouterr().err
    assert run(parts, "memory://archive-of-a-test") == 0
    store = Store("memory://archive-of-a-test")
    for name in ("train-000002.tar", "train-000002.idx", INDEX, "plan.json"):
        assert store.read_bytes(name) == (made / name).read_bytes()
    store.remove_tree()


def test_natural_labels_have_the_shares_of_a_set_and_a_file_its_counts(parts, tmp_path):
    from tests.shard_sets import make_set

    make_set(tmp_path / "set", 20)
    assert run(parts, tmp_path / "a", "--labels", "natural", "--data", tmp_path / "set") == 0
    counts = read_index(Store(tmp_path / "set")).shards[0].class_counts
    assert counts.keys() >= set(CLASSES)
    goals = {goal.target: goal.count for goal in read_plan(Store(tmp_path / "a"))[0].goals}
    assert sum(goals.values()) == 24 and abs(goals["clear"] - 12) <= 2
    with open(tmp_path / "counts.csv", "w", newline="") as file:
        csv.writer(file).writerows([("label", "count"), ("clear", 3), ("opacity", 14)])
    words = [*arguments(parts, tmp_path / "b", "--labels", tmp_path / "counts.csv")]
    at = words.index("--count")
    from jobs import archive

    assert archive.main(words[:at] + words[at + 2 :]) == 0
    assert sum(s.label == "opacity" for s in samples(tmp_path / "b")) == 14


def test_plain_latents_without_labels_make_an_unlabelled_set(parts, tmp_path):
    assert run(parts, tmp_path / "out", "--labels", "natural", latents=False) == 0
    found = list(samples(tmp_path / "out"))
    assert {(s.label, s.provenance.latents_sha256) for s in found} == {(None, None)}
    assert [s.provenance.index for s in found[:8]] == list(range(8))
    assert (tmp_path / "out" / "contact-unlabelled.png").exists()


# --- what is kept out of it -----------------------------------------------------------------------


@pytest.mark.parametrize("labels", ["balanced", "natural"])
def test_a_classifier_lets_in_only_images_on_which_it_sees_the_label(parts, tmp_path, labels):
    words = ("--classifier", parts / "classifier", "--labels", labels)
    assert run(parts, tmp_path / "out", *words, latents=False) == 0
    loaded = load.load_classifier(str(parts / "classifier"))[0]
    for sample in samples(tmp_path / "out"):
        with torch.inference_mode():
            image_NCHW = torch.from_numpy(sample.image[None, None])
            chances = loaded.probabilities(to_unit(image_NCHW))[0].numpy()
        seen = dict(zip(CLASSES, chances.tolist(), strict=True))
        assert sample.provenance.probabilities == pytest.approx(seen, abs=1e-4)
        assert seen[sample.label] == max(seen.values())
        assert labels == "natural" or seen[sample.label] >= 0.5 - 1e-4
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["tried"] == 24 + summary["wrong_label"]
    assert (summary["wrong_label"] > 0) == (labels == "balanced")


def test_a_shard_that_its_addresses_do_not_fill_is_exit_code_5(parts, tmp_path, capsys):
    words = ("--classifier", parts / "classifier", "--min-probability", 1.0)
    assert run(parts, tmp_path / "out", *words) == 5
    said = capsys.readouterr().err
    assert "shard 0 could not be filled from its 32 addresses" in said
    assert "did not have the wanted label" in said
    assert not (tmp_path / "out" / INDEX).exists()
    assert not list((tmp_path / "out").glob("*.tar*"))


@pytest.fixture(scope="module")
def copied(parts, made, tmp_path_factory):
    """A gate whose training images contain two of the archive's."""
    renderer = Renderer(*load_generator(str(parts / "generator")))
    others = renderer.render(prior(77, np.arange(90), DIMS))
    copies = np.stack([sample.image for sample in [*samples(made)][:2]])
    folder = tmp_path_factory.mktemp("gate")
    gate = Gate.fit(np.concatenate([copies, others[:60]]), others[60:], seed=0)
    gate.save(Store(folder / "gate"))
    return folder / "gate", gate, {sample.provenance.address for sample in [*samples(made)][:2]}


def test_copies_of_training_images_are_dropped_counted_and_made_up_for(parts, copied, tmp_path):
    folder, gate, addresses = copied
    assert gate.audits
    assert run(parts, tmp_path / "out", "--gate", folder) == 0
    index, found = read_index(Store(tmp_path / "out")), list(samples(tmp_path / "out"))
    assert index.audited and all(sample.provenance.audited for sample in found)
    assert [shard.samples for shard in index.shards] == [8, 8, 8]
    assert not addresses & {sample.provenance.address for sample in found}
    assert not gate.judge(np.stack([sample.image for sample in found])).copies_N.any()
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["copies"] >= 2
    nearest = [sample.provenance.nearest for sample in found]
    assert all(0 <= value <= gate.facts.pixel_threshold for value in nearest)


def test_a_gate_that_misses_its_planted_copies_audits_nothing(parts, copied, tmp_path, monkeypatch):
    monkeypatch.setattr(Gate, "audits", False)
    assert run(parts, tmp_path / "out", "--gate", copied[0]) == 0
    assert not read_index(Store(tmp_path / "out")).audited
    assert not any(sample.provenance.audited for sample in samples(tmp_path / "out"))


def test_values_that_are_not_finite_are_never_written(parts, tmp_path, capsys):
    make_generator(tmp_path / "generator", broken=True)
    words = ("--generator", tmp_path / "generator", "--labels", "natural")
    assert run(parts, tmp_path / "out", *words, latents=False) == 3
    assert "not finite" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*.tar*"))


# --- again ----------------------------------------------------------------------------------------


def test_the_same_command_on_a_finished_archive_does_nothing(parts, made, capsys):
    before = tree_sha256(made)
    assert run(parts, made) == 0
    assert "complete already" in capsys.readouterr().err
    assert tree_sha256(made) == before


def test_shards_that_are_there_and_whole_are_skipped(parts, made, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setattr("medray.archive.archive.write_index", _stops)
    assert run(parts, out) == 130
    (out / "train-000001.tar").write_bytes(b"damaged")
    (out / "train-000002.tar.host-1-ab.part").write_bytes(b"left by a killed writer")
    before = (out / "train-000000.tar").stat().st_mtime_ns
    monkeypatch.undo()
    assert run(parts, out) == 0
    assert "2 shards are there already" in capsys.readouterr().err
    assert (out / "train-000000.tar").stat().st_mtime_ns == before
    assert tree_sha256(out, is_result) == tree_sha256(made, is_result)


def _stops(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "changed, said",
    [
        (("--seed", 1), "seed was 0, is 1"),
        (("--format", "npy"), "format was 'png', is 'npy'"),
        (("--count", 32), "goals was"),
        (("--batch", 8), "render was"),
        (("--min-probability", 0.9), "min_probability was 0.5, is 0.9"),
    ],
)
def test_another_plan_does_not_go_on_with_this_one(parts, made, capsys, changed, said):
    before = tree_sha256(made)
    assert run(parts, made, *changed) == 2
    assert said in capsys.readouterr().err
    assert tree_sha256(made) == before


def test_overwrite_empties_the_place_first(parts, tmp_path):
    assert run(parts, tmp_path, "--seed", 1) == 0
    assert run(parts, tmp_path, "--overwrite") == 0
    assert read_plan(Store(tmp_path))[0].seed == 0


def test_a_place_with_other_things_in_it_is_refused(parts, tmp_path, capsys):
    (tmp_path / "thesis.docx").write_text("years of work")
    assert run(parts, tmp_path) == 2
    assert "not empty" in capsys.readouterr().err


def test_a_dry_run_says_what_would_be_made_and_makes_nothing(parts, tmp_path, capsys):
    assert run(parts, tmp_path / "out", "--dry-run") == 0
    assert "24 images of 16 px in 3 shards" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# --- mistakes -------------------------------------------------------------------------------------


def labels_file(folder: Path, text: str) -> tuple[str, Path]:
    (folder / "labels.csv").write_text(text)
    return "--labels", folder / "labels.csv"


def test_mistakes_are_named_with_the_way_out(parts, tmp_path, capsys):
    other = make_generator(tmp_path / "other", seed=5)
    make_latents(tmp_path / "stranger", other)
    make_classifier(tmp_path / "wrong", parts / "generator", ("cat", "dog"))
    make_generator(tmp_path / "wide", latent_dims=DIMS + 1)
    table = [
        (2, "greater than or equal to 1", ("--count", 0)),
        (2, "holds no generator", ("--generator", tmp_path / "nothing")),
        (2, "were made for generator", ("--latents", tmp_path / "stranger")),
        (2, "were made for generator", ("--generator", tmp_path / "wide")),
        (2, "does not know 'clear', 'opacity'", ("--classifier", tmp_path / "wrong")),
        (2, "holds no classifier", ("--classifier", parts / "generator")),
        (2, "holds no gate", ("--gate", parts / "generator")),
        (3, "'rare' is not one of clear, opacity", labels_file(tmp_path, "label,count\nrare,24\n")),
        (2, "give --data", ("--labels", "natural")),
        (2, "cannot be read", ("--labels", tmp_path / "absent.csv")),
        (2, "--verify looks and --repair mends", ("--verify", "--repair")),
        (2, "above --workers", ("--workers", 1, "--min-workers", 2)),
        (4, "has no GPU", ("--gpus-per-worker", 1)),
    ]
    for code, said, words in table:
        given = run(parts, tmp_path / "out", *words)
        text = capsys.readouterr().err
        assert (given, said in text) == (code, True), f"{words}: {given}, {text}"
        assert len(text.splitlines()) < 12, text
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "code, text, said",
    [
        (3, "label,count\nclear,24\nclear,1\n", "there twice"),
        (3, "label,count\nclear,many\n", "whole number"),
        (3, "name,n\nclear,24\n", "wanted are label and count"),
        (2, "label,count\nclear,0\n", "asks for no image"),
        (2, "label,count\nclear,23\n", "--count says 24"),
    ],
)
def test_a_labels_file_that_cannot_be_right_is_refused(parts, tmp_path, capsys, code, text, said):
    assert run(parts, tmp_path / "out", *labels_file(tmp_path, text)) == code
    assert said in capsys.readouterr().err


def test_balanced_labels_need_labels(parts, tmp_path, capsys):
    assert run(parts, tmp_path / "out", latents=False) == 2
    assert "plain latents have none" in capsys.readouterr().err


def test_only_the_addresses_that_are_needed_are_made(parts, made, monkeypatch):
    """Batches made ahead are no more than what is still wanted."""
    plan, places = read_plan(Store(made))
    loaded = load.load_parts(Places(**vars(places)), batch=4, dtype="float32", device="cpu")
    worker = Worker(plan, loaded, Store("memory://thrifty"), None, 3)
    seen, judge = [], worker.candidates
    monkeypatch.setattr(worker, "candidates", lambda batch: seen.append(len(batch)) or judge(batch))
    assert make_shard(worker, 0)["tried"] == sum(seen) == 8
    Store("memory://thrifty").remove_tree()


def test_colour_is_stored_as_colour(tmp_path):
    make_generator(tmp_path / "generator", channels=3)
    found = {}
    for form in ("png", "npy", "dicom"):
        words = ("--format", form, "--labels", "natural")
        assert run(tmp_path, tmp_path / form, *words, latents=False) == 0
        found[form] = np.stack([sample.image for sample in samples(tmp_path / form)])
        assert verify(Store(tmp_path / form)) == []
    assert found["png"].shape == (24, 16, 16, 3)
    np.testing.assert_array_equal(found["png"], found["npy"])
    np.testing.assert_array_equal(found["png"], found["dicom"])


def test_a_classifier_of_another_form_is_refused(parts, tmp_path, capsys):
    make_generator(tmp_path / "generator", channels=3)
    words = ("--labels", "natural", "--classifier", parts / "classifier")
    assert run(tmp_path, tmp_path / "out", *words, latents=False) == 2
    assert "of 1 channel(s), the generator makes 16 px of 3" in capsys.readouterr().err
