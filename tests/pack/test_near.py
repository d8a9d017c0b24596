"""Near-duplicates: what is found, what is not, and that the report is exact and names nobody."""

import csv
import io
import json

import cv2
import numpy as np
import pytest

from medray import phantoms
from medray.errors import DataError
from medray.images import encode_png
from medray.pack import near, thumbs
from medray.pack.config import PackConfig
from medray.pack.pack import Job, pack
from medray.store import Store

PX = 64


@pytest.fixture(autouse=True)
def secret(monkeypatch):
    monkeypatch.setenv("MEDRAY_SECRET_KEY", "0123456789abcdef")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.fixture(scope="module")
def films():
    """24 phantoms of different patients."""
    return [phantoms.chest(0, index, PX).image for index in range(24)]


def jpeg(image, quality=30):
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], 0)


def noisy(image):
    noise = np.random.default_rng(1).normal(0, 6, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def gamma(image):
    return (255 * (image / 255.0) ** 0.7).astype(np.uint8)


ALTERED = {
    "compressed": jpeg,
    "noisier": noisy,
    "another grey curve": gamma,
    "half the size": lambda image: cv2.resize(image, (PX // 2, PX // 2), interpolation=3),
    "16 bits": lambda image: image.astype(np.uint16) * np.uint16(257),
    "colour": lambda image: np.stack([image] * 3, axis=-1),
}


def thumbnail(image):
    return thumbs.thumbnails([thumbs.reduced(image)], 8 * image.itemsize)[0]


def alike(one, other):
    pairs = zip(*(thumbnail(image).astype(np.float64) for image in (one, other)), strict=True)
    return max(float(a @ b / np.sqrt((a @ a) * (b @ b))) for a, b in pairs)


@pytest.mark.parametrize("change", ALTERED)
def test_a_film_that_was_exported_again_is_found_and_another_film_is_not(films, change):
    again = [ALTERED[change](film) for film in films]
    assert min(map(alike, films, again)) >= 0.95
    assert max(map(alike, films[1:], again)) < 0.95, "the control: other films"


def test_a_film_with_other_margins_is_found_by_what_is_within_them(films):
    bright = [film // 2 + np.uint8(99) for film in films]
    one = [np.pad(film, ((4, 44), (40, 8))) for film in bright]
    other = [np.pad(film, ((30, 18), (9, 39))) for film in bright]
    assert min(map(alike, one, other)) >= 0.95
    assert max(map(alike, one[1:], other)) < 0.95, "the control: other films"
    whole = [thumbnail(image)[0].astype(float) for image in (one[0], other[0])]
    assert whole[0] @ whole[1] < 0.9 * thumbs.NORM**2, "the control: the frames differ"


def test_a_picture_without_structure_is_like_no_other():
    black = np.random.default_rng(0).integers(0, 2, (PX, PX)).astype(np.uint8)
    assert not thumbnail(black).any()
    assert not thumbnail(np.full((PX, PX), 9, np.uint16)).any()
    assert thumbnail(black * np.uint8(99)).any()


def made_thumbs(count):
    """Thumbnails that are alike in part, some of them equal, some blank."""
    drawn = np.random.default_rng(0).normal(size=(count, 36)) + 2
    drawn *= thumbs.NORM / np.linalg.norm(drawn, axis=1, keepdims=True)
    found = np.rint(drawn).astype(np.int16)
    found[count // 3] = found[count - 2]
    found[[1, count // 2]] = 0
    return found


@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 16, 17, 40])
def test_pairs_in_blocks_are_those_of_a_loop_over_whole_numbers(monkeypatch, count):
    monkeypatch.setattr(near, "ROWS", 8)
    monkeypatch.setattr(near, "COLUMNS", 16)
    vectors = made_thumbs(max(count, 3))[:count]
    wanted = {}
    for i in range(count):
        for j in range(i + 1, count):
            a, b = (vectors[k].astype(object) for k in (i, j))
            lengths = int(a @ a) * int(b @ b)
            if lengths and int(a @ b) / lengths**0.5 >= 0.9:
                wanted[i, j] = int(a @ b) / lengths**0.5
    found = {}
    for _, i, j, similarity in near._pairs([vectors.astype(np.float32)], 0.9):
        found |= dict(zip(zip(i.tolist(), j.tolist(), strict=True), similarity, strict=True))
    assert found == wanted
    assert count < 40 or len(found) > 5


def test_of_two_forms_the_likest_counts():
    one = made_thumbs(40).astype(np.float32)
    other = one[::-1].copy()

    def found(forms):
        return {
            (i, j): alike
            for _, rows, columns, likes in near._pairs(forms, 0.9)
            for i, j, alike in zip(rows.tolist(), columns.tolist(), likes, strict=True)
        }

    mine, others, both = found([one]), found([other]), found([one, other])
    assert set(mine) != set(others) and set(both) == set(mine) | set(others)
    assert both == {pair: max(mine.get(pair, 0), others.get(pair, 0)) for pair in both}


def test_products_of_thumbnails_are_exact_in_float32():
    vectors = made_thumbs(64)
    as_floats = vectors.astype(np.float32)
    whole = vectors.astype(np.int64) @ vectors.astype(np.int64).T
    assert whole.max() < 2**24
    shuffled = np.random.default_rng(2).permutation(36)
    for order in (np.arange(36), shuffled):
        assert ((as_floats[:, order] @ as_floats[:, order].T).astype(np.int64) == whole).all()


def source_of(folder, films):
    """The films in splits, and among them copies: 20 is 3, 21 is 4, 22 is 5."""
    folder.mkdir()
    rows = ["file,label,split,patient"]
    films = [*films]
    films[20], films[21], films[22] = gamma(films[3]), jpeg(films[4]), films[5]
    films[23] = noisy(films[6])
    patients = {23: "Jones-6"}
    for k, film in enumerate(films):
        split = "test" if k in (18, 19, 20, 22) else "val" if k in (16, 17) else "train"
        (folder / f"Smith-{k:02d}.png").write_bytes(encode_png(film))
        rows.append(f"Smith-{k:02d}.png,a,{split},{patients.get(k, f'Jones-{k}')}")
    (folder / "labels.csv").write_text("\n".join(rows))
    return folder


def run(source, out, **options):
    options = {"size_px": PX, "samples_per_shard": 5, "name": "set", "workers": 0, **options}
    return pack(PackConfig(source=str(source), **options), Job(str(out)))


@pytest.fixture
def source(tmp_path, films):
    return source_of(tmp_path / "source", films)


def report(out):
    store = Store(out)
    rows = list(csv.DictReader(io.StringIO(store.read_bytes("near_duplicates.csv").decode())))
    return rows, json.loads(store.read_bytes("summary.json"))


def test_pairs_across_splits_and_patients_are_listed_and_nobody_is_named(source, tmp_path, capsys):
    run(source, tmp_path / "out")
    said = capsys.readouterr().err
    rows, facts = report(tmp_path / "out")
    pairs = {(row["key"], row["other_key"]) for row in rows}
    # Keys number the files of a split: 20 is the third of test, 21 the seventeenth of train.
    assert pairs == {
        ("train-00000003", "test-00000002"),
        ("train-00000004", "train-00000016"),
    }
    assert all(0.95 <= float(row["similarity"]) <= 1 for row in rows)
    assert {(row["split"], row["other_split"]) for row in rows} == {
        ("train", "test"),
        ("train", "train"),
    }
    assert facts["near_duplicates"] == {
        "similarity": 0.95,
        "across_splits": 1,
        "across_patients": 1,
    }
    assert facts["duplicates_across_splits"] == 1, "22 is 5, pixel for pixel"
    assert "MR-D222 warning  1 pairs are nearly the same in different splits, 1 of" in said
    assert "Jones" not in said and "Smith" not in said
    assert "Jones" not in str(rows) and "Smith" not in str(rows)


def test_of_one_patient_in_one_split_pictures_may_be_alike(films, tmp_path):
    source = tmp_path / "one"
    source.mkdir()
    table = ["file,label,split,patient"]
    for name, film in {"x": films[0], "y": gamma(films[0])}.items():
        (source / f"{name}.png").write_bytes(encode_png(film))
        table.append(f"{name}.png,a,train,P1")
    (source / "labels.csv").write_text("\n".join(table))
    run(source, tmp_path / "a")
    assert report(tmp_path / "a")[0] == []
    (source / "labels.csv").write_text(
        "\n".join(table).replace("y.png,a,train,P1", "y.png,a,train,")
    )
    run(source, tmp_path / "b")
    assert report(tmp_path / "b")[0] == [], "nobody knows whose the other is, and it leaks nowhere"
    (source / "labels.csv").write_text(
        "\n".join(table).replace("y.png,a,train,P1", "y.png,a,val,P2")
    )
    run(source, tmp_path / "c")
    assert len(report(tmp_path / "c")[0]) == 1


def test_refuse_ends_without_an_index_and_report_goes_on_from_there(source, tmp_path):
    with pytest.raises(DataError, match="MR-D222.*1 pictures are in two splits, 1 pairs"):
        run(source, tmp_path / "out", near_duplicates="refuse")
    assert not Store(tmp_path / "out").exists("index.json")
    assert len(report_rows := Store(tmp_path / "out").read_bytes("near_duplicates.csv")) > 100
    run(source, tmp_path / "out")
    assert Store(tmp_path / "out").read_bytes("near_duplicates.csv") == report_rows
    with pytest.raises(DataError, match="MR-D222"):
        run(source, tmp_path / "out", near_duplicates="refuse")


def test_refuse_takes_a_set_without_pairs_and_off_looks_for_none(source, tmp_path):
    run(source, tmp_path / "off", near_duplicates="off")
    store = Store(tmp_path / "off")
    assert not store.exists("near_duplicates.csv")
    assert "near_duplicates" not in json.loads(store.read_bytes("summary.json"))
    table = (source / "labels.csv").read_text().splitlines()
    (source / "labels.csv").write_text("\n".join(table[:20]))
    assert run(source, tmp_path / "out", near_duplicates="refuse") is not None


def test_clips_are_compared_too(films, tmp_path):
    source = tmp_path / "clips"
    source.mkdir()
    table = ["clip,patient,split,sign"]
    for n, (split, first) in enumerate({"train": 0, "val": 8, "test": 1}.items()):
        frames = np.stack(films[first : first + 6])
        np.save(source / f"{n}.npy", frames)
        table.append(f"{n}.npy,P{n},{split},1")
    np.save(source / "3.npy", np.stack([gamma(film) for film in films[0:6]]))
    table.append("3.npy,P3,val,0")
    (source / "clips.csv").write_text("\n".join(table))
    run(source, tmp_path / "out", clips=True, encoding="zstd")
    rows, facts = report(tmp_path / "out")
    assert [(row["key"], row["other_key"]) for row in rows] == [("train-00000000", "val-00000001")]
    assert facts["near_duplicates"]["across_splits"] == 1


def test_a_shard_that_an_older_version_finished_is_made_again_with_its_thumbnails(
    source, tmp_path, monkeypatch
):
    with pytest.raises(DataError, match="MR-D222"):
        run(source, tmp_path / "out", near_duplicates="refuse")
    store = Store(tmp_path / "out")
    states = [name for name in store.names(".pack/") if name.endswith(".json")]
    assert len(states) >= 4
    for name in states:
        state = json.loads(store.read_bytes(name))
        del state["thumbs"]
        store.write_bytes(name, json.dumps(state).encode())
    run(source, tmp_path / "out")
    assert len(report(tmp_path / "out")[0]) == 2


@pytest.mark.chaos
@pytest.mark.parametrize(
    "name, least, most",
    [("chest_pneumonia_kermany", 0, 0), ("lung_lidc_nodules", 0, 0), ("brain_tumor_classes", 4, 8)],
)
def test_on_real_sets_what_is_found_is_what_was_looked_at(unpacked, tmp_path, name, least, most):
    """The pairs of the brain set are the same heads, seen by eye; the others have none."""
    label = "signs" if name == "lung_lidc_nodules" else "label"
    run(unpacked(name) / "labels.csv", tmp_path / "out", label_column=label, samples_per_shard=1000)
    near_ones = report(tmp_path / "out")[1]["near_duplicates"]
    assert least <= near_ones["across_splits"] <= most and near_ones["across_patients"] == 0
