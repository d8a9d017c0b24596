"""`jobs/reader_study.py`: blinded, balanced, the same bytes again; the report on answers."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from jobs.reader_study import main
from medray.evaluate import reader_report
from medray.evaluate.reader_set import ReaderSet, decode_image, parted
from medray.images import to_bits
from medray.metrics.classification import auroc
from tests.faults.kill import tree_sha256
from tests.reader_sets import make_sets, make_study, run


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("readers")
    make_sets(folder)
    return folder


def test_half_the_images_are_real_and_a_tenth_is_shown_twice(made) -> None:
    study = make_study(made, images=40, name="balanced")
    truth = study.truth()
    first = [of for of in truth.values() if of.repeats is None]
    assert Counter(of.answer for of in first) == {0: 20, 1: 20}
    again = [name for name, of in truth.items() if of.repeats]
    assert len(again) == 4 and len(study.items) == 44
    for name in again:
        twin = study.item(truth[name].repeats)
        own = study.item(name)
        assert not set(own.images) & set(twin.images)
        assert study.image(own.images[0]) == study.image(twin.images[0])
    assert len({of.sources for of in first}) == 40


def test_every_image_has_the_same_length_type_and_shape(made) -> None:
    study = make_study(made, images=40, name="alike")
    truth = study.truth()
    data = {item.id: study.image(item.images[0]) for item in study.items}
    kinds = np.array([truth[name].answer for name in data])
    assert set(map(len, data.values())) == {study.image_bytes}
    assert auroc(np.array([len(d) for d in data.values()]), kinds) == 0.5
    assert {d[:128] for d in data.values()} == {next(iter(data.values()))[:128]}
    assert {decode_image(d).shape for d in data.values()} == {(16, 16)}
    # The control: as PNGs the darker synthetic images would be told by their length alone.
    from medray.images import encode_png

    lengths = np.array([len(encode_png(decode_image(d))) for d in data.values()])
    assert abs(auroc(lengths, kinds) - 0.5) > 0.3


def test_what_readers_get_names_no_source_label_or_kind(made) -> None:
    study = make_study(made, images=20, name="blind")
    text = (made / "blind" / "study.json").read_text()
    assert not [word for word in ("real", "synthetic", "mr1:", "source", "clear") if word in text]
    ids = [item.id for item in study.items]
    kinds = np.array([study.truth()[name].answer for name in ids])
    assert ids == sorted(ids) and 0.2 < auroc(np.arange(len(ids)), kinds) < 0.8


def test_the_same_flags_give_the_same_bytes_and_another_seed_others(made) -> None:
    for name in ("one", "two"):
        make_study(made, name=name)
    make_study(made, "--seed", "5", name="other")
    assert tree_sha256(made / "one") == tree_sha256(made / "two")
    first, other = (ReaderSet.open(str(made / n)) for n in ("one", "other"))
    assert {i.id for i in first.items}.isdisjoint(i.id for i in other.items)
    assert run(made, "one") == 0
    assert run(made, "one", "--seed", "9") == 2


def test_a_study_stopped_before_its_end_goes_on_to_the_same_bytes(made) -> None:
    make_study(made, name="whole")
    make_study(made, name="stopped")
    (made / "stopped" / "study.json").unlink()
    for image in sorted((made / "stopped" / "images").iterdir())[::2]:
        image.unlink()
    assert run(made, "stopped") == 0
    assert tree_sha256(made / "whole") == tree_sha256(made / "stopped")


def test_with_classes_both_kinds_have_as_many_of_each(made) -> None:
    study = make_study(made, "--classes", images=18, name="classes")
    counts = Counter((of.answer, of.label) for of in study.truth().values() if of.repeats is None)
    assert set(counts.values()) == {3} and len(counts) == 6
    assert study.classes == ("clear", "opacity", "rare")


def test_pairs_hold_one_of_each_and_the_side_varies(made) -> None:
    study = make_study(made, images=40, mode="2afc", name="pairs")
    truth = study.truth()
    assert all(sorted(of.synthetic) == [0, 1] for of in truth.values())
    assert len({of.answer for of in truth.values()}) == 2
    assert len(study.items) == 22 and all(len(item.images) == 2 for item in study.items)


def test_deep_and_shallow_sets_leave_as_one_depth(tmp_path) -> None:
    make_sets(tmp_path, 20, bits=(16, 8))
    study = make_study(tmp_path, images=12)
    assert study.bits == 8
    assert {decode_image(study.image(i)).dtype for i in study.image_sha256} == {np.dtype("u1")}


def test_sixteen_bits_arrive_with_every_value(tmp_path) -> None:
    make_sets(tmp_path, 20, bits=(16, 16))
    study = make_study(tmp_path, images=12)
    seen = decode_image(study.image(study.items[0].images[0]))
    assert seen.dtype == np.uint16 and not (to_bits(to_bits(seen, 8), 16) == seen).all()


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (("--images", "400"), 3, "are needed"),
        (("--images", "7"), 2, "must be even"),
        (("--mode", "2afc", "--classes"), 2, "one image"),
        (("--real-split", "val"), 3, "split"),
        (("--mode", "quiz"), 2, "mode"),
    ],
)
def test_a_wrong_flag_is_told_with_what_is_allowed(
    made, tmp_path, capfd, flags, code, words
) -> None:
    sets = ("--real", f"{made}/real", "--synthetic", f"{made}/synthetic")
    assert main([*sets, "--out", str(tmp_path / "o"), *flags]) == code
    assert words in capfd.readouterr().err
    assert not (tmp_path / "o" / "study.json").exists()


def test_sets_of_the_other_kind_are_refused(made, tmp_path, capfd) -> None:
    swapped = ("--real", f"{made}/synthetic", "--synthetic", f"{made}/real")
    splits = ("--real-split", "train", "--synthetic-split", "test")
    assert main([*swapped, *splits, "--out", str(tmp_path / "o")]) == 3
    assert "that are synthetic" in capfd.readouterr().err


@pytest.mark.parametrize("share", [0.1, 0.5])
@pytest.mark.parametrize("count", [4, 5, 20, 101])
def test_a_repeat_comes_a_quarter_of_the_study_after_what_it_repeats(count, share) -> None:
    names = [f"n{number}" for number in range(count)]
    generator = np.random.default_rng(count)
    for _ in range(20):
        twice = generator.permutation(count)[: int(share * count)]
        repeats = {f"r{number}": f"n{number}" for number in twice}
        order = list(generator.permutation([*names, *repeats]))
        found = parted(order, repeats)
        assert sorted(found) == sorted(order)
        for again, before in repeats.items():
            assert found.index(again) - found.index(before) >= count // 4


def test_readers_have_different_orders_that_stay(made) -> None:
    study = make_study(made, images=40, name="orders")
    repeats = {name: of.repeats for name, of in study.truth().items() if of.repeats}
    orders = [study.order(reader, repeats) for reader in range(3)]
    assert orders[0] == study.order(0, repeats) and orders[0] != orders[1] != orders[2]


def answers_of(study, skill, reader, seed=0):
    """Answers of a reader who is right with probability `skill`."""
    truth = study.truth()
    generator = np.random.default_rng(seed)
    found = []
    for position, item in enumerate(study.items):
        right = generator.random() < skill
        synthetic = truth[item.id].answer == int(right)
        found.append(
            {
                "reader": reader,
                "item": item.id,
                "position": position,
                "version": 0,
                "score": 5 if synthetic else 1,
                "choice": "right" if synthetic else "left",
                "label": None,
                "seconds": 3.0,
                "hidden": False,
                "idle": False,
            }
        )
    return found


def test_the_report_is_written_beside_the_study_in_four_forms(made, tmp_path) -> None:
    study = make_study(made, images=40, name="reported")
    answers = [*answers_of(study, 1.0, "ann"), *answers_of(study, 0.6, "=bob", seed=3)]
    wrong_first = {**answers[0], "score": 6 - answers[0]["score"]}
    answers[0] = {**answers[0], "version": 1}
    file = tmp_path / "answers.jsonl"
    file.write_text("".join(json.dumps(a) + "\n" for a in [wrong_first, *answers]))
    assert main(["--out", str(made / "reported"), "--report", str(file)]) == 0
    folder = made / "reported" / "report"
    figures = json.loads((folder / "report.json").read_text())
    assert figures["readers"]["ann"]["accuracy"]["share"] == 1.0
    assert figures["readers"]["=bob"]["accuracy"]["count"] == 40
    assert figures["kappa"]["cases"] == 40 and figures["pooled"]["auc"]["value"] > 0.6
    page = (folder / "report.html").read_text()
    assert "ann" in page and "data:image/png" in page and "Not for diagnosis" in page
    rows = (folder / "answers.csv").read_text().splitlines()
    assert len(rows) == 1 + 88 and sum(row.startswith("'=bob,") for row in rows) == 44
    assert "BEGIN DATA:" in (folder / "readings.imrmc").read_text()


def test_the_report_on_pairs_has_shares_and_no_sensitivity(made) -> None:
    study = make_study(made, images=40, mode="2afc", name="pairs2")
    answers = answers_of(study, 0.8, "ann")
    files = reader_report.files(study, study.truth(), answers)
    figures = json.loads(files["report.json"])
    assert figures["pooled"]["accuracy"]["count"] == 20 and figures["pooled"]["auc"] is None
    assert "sensitivity" not in figures["pooled"] and b"left" in files["report.html"]


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"reader": "a"}', '{"reader":"a","item":"x","version":0,"position":0}']
)
def test_answers_that_do_not_fit_are_refused(made, tmp_path, capfd, line) -> None:
    make_study(made, name="garbled")
    (tmp_path / "a").write_text(line + "\n")
    assert main(["--out", str(made / "garbled"), "--report", str(tmp_path / "a")]) == 3
    assert "MR-D173" in capfd.readouterr().err


def test_a_damaged_image_or_a_foreign_truth_is_refused(made) -> None:
    from medray.errors import DataError

    study = make_study(made, name="damaged")
    image = made / "damaged" / "images" / f"{study.items[0].images[0]}.npy"
    image.write_bytes(image.read_bytes()[:-1] + b"\0\0")
    with pytest.raises(DataError, match="damaged"):
        study.image(study.items[0].images[0])
    (made / "damaged" / "truth.json").write_text('{"items": {}}')
    with pytest.raises(DataError, match="not this study"):
        study.truth()
