"""`jobs/features.py` as a person uses it: what it leaves, resume, exit codes, messages."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs import _features_run as features_run
from jobs.features import main
from medray import lineage
from medray._parts import part_path
from medray.models import named_layers
from medray.models.pixels import to_unit
from medray.shards import read_index, verify, write_set
from medray.store import Store
from medray.stream.table import read_table
from tests.faults.kill import tree_sha256
from tests.models.toy_segmenter import Bright, save_segmenter
from tests.sample import latents_toys as toys
from tests.shard_sets import CLASSES, image, samples

ROOT = Path(__file__).resolve().parents[2]
SEEN = lineage.Lineage([lineage.Saw("s1", "p1", "train", "clear")])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Networks, and a set of two splits with masks."""
    folder = tmp_path_factory.mktemp("made")
    toys.save_classifier(Store(folder / "c"), toys.classifier())
    save_segmenter(Store(folder / "s"), Bright())
    lineage.write(Store(folder / "s").child("model"), SEEN)
    write_set(
        folder / "set",
        [*samples(40, masks=True), *samples(9, "test", masks=True)],
        name="small",
        classes=CLASSES,
        size_px=16,
        samples_per_shard=16,
    )
    return folder


@pytest.fixture(autouse=True)
def toy_segmenter(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setitem(
        named_layers.LOADERS, "segmenter", ("tests.models.toy_segmenter", "load_segmenter")
    )


def run(made, out, *more, model="s", layer="bottleneck"):
    flags = ("--model", str(Path(made, model)), "--data", f"{made}/set", "--out", f"{out}")
    return main([*flags, "--layer", layer, *more])


def test_every_sample_of_all_splits_has_its_features_beside_its_record(made, tmp_path) -> None:
    assert run(made, tmp_path / "f") == 0
    assert not verify(Store(tmp_path / "f"))
    index, source = read_index(Store(tmp_path / "f")), read_index(Store(made / "set"))
    assert (index.channels, index.size_px, index.bits, index.encoding) == (4, 1, 32, "raw")
    assert [s.name for s in index.shards] == [s.name for s in source.shards]
    table, test = read_table(tmp_path / "f", "train"), read_table(tmp_path / "f", "test")
    assert (len(table), len(test)) == (40, 9) and table.features.shape == (40, 4)
    expected = list(samples(40))
    assert table.labels == tuple(s.label for s in expected)
    assert table.patients == tuple(s.patient for s in expected)
    network, about = (
        named_layers.load_network(f"{made}/s").network,
        json.loads((tmp_path / "f" / "summary.json").read_text()),
    )
    images = torch.from_numpy(np.stack([image(n)[None] for n in range(40)]))
    with torch.inference_mode():
        naive = network.down[0](to_unit(images)).mean((2, 3)).numpy()
    np.testing.assert_allclose(table.features, naive, rtol=1e-4, atol=1e-5)
    assert table.tag == f"{about['network_sha256']}:bottleneck:mean"
    assert about["samples"] == {"train": 40, "test": 9}


def test_a_set_in_another_order_gives_each_image_the_same_features_and_label(
    made, tmp_path
) -> None:
    order = np.random.default_rng(3).permutation(40)
    written = list(samples(40))
    write_set(
        tmp_path / "set",
        [written[n] for n in order],
        name="small",
        classes=CLASSES,
        size_px=16,
        samples_per_shard=11,
    )
    assert (
        run(made, tmp_path / "f") == 0 and run(tmp_path, tmp_path / "g", model=str(made / "s")) == 0
    )
    plain, shuffled = (read_table(tmp_path / name, "train") for name in "fg")
    assert np.array_equal(shuffled.features, plain.features[order])
    assert shuffled.labels == tuple(plain.labels[n] for n in order)
    # A control: the order is another one.
    assert shuffled.labels != plain.labels


def test_what_the_network_saw_goes_with_its_features(made, tmp_path) -> None:
    assert run(made, tmp_path / "f") == 0
    assert lineage.read(str(tmp_path / "f")) == SEEN
    assert run(made, tmp_path / "c", model="c", layer="body") == 0
    assert lineage.read(str(tmp_path / "c")) is None


def test_predicted_and_true_regions_differ_and_empty_ones_are_counted(made, tmp_path, capsys):
    assert run(made, tmp_path / "p", "--pool", "masked") == 0
    assert run(made, tmp_path / "t", "--pool", "masked", "--mask", "true") == 0
    assert run(made, tmp_path / "m") == 0
    predicted, true, mean = (read_table(tmp_path / name, "train") for name in "ptm")
    assert (predicted.pooling, true.pooling) == ("masked", "masked-true")
    assert not np.allclose(predicted.features, mean.features)
    assert not np.allclose(predicted.features, true.features)
    dark = [np.zeros((16, 16), np.uint8), np.full((16, 16), 200, np.uint8)]
    pixels = [s.__class__(f"k{n}", dark[n % 2], "clear") for n, s in enumerate(samples(6))]
    write_set(tmp_path / "set", pixels, name="dark", classes=CLASSES, size_px=16)
    capsys.readouterr()
    assert run(tmp_path, tmp_path / "d", "--pool", "masked", model=str(made / "s")) == 0
    assert "3 of 6 samples have an empty region" in capsys.readouterr().err
    found = json.loads((tmp_path / "d" / "summary.json").read_text())
    assert found["empty_regions"]["train"] == 3


def test_maps_are_kept_whole(made, tmp_path) -> None:
    assert run(made, tmp_path / "w", "--pool", "whole") == 0
    index = read_index(Store(tmp_path / "w"))
    assert (index.channels, index.size_px) == (4, 8)
    assert read_table(tmp_path / "w", "test").features.shape == (9, 4, 8, 8)


def test_the_same_command_again_does_nothing_and_another_plan_is_refused(made, tmp_path, capsys):
    assert run(made, tmp_path / "f") == 0
    before = tree_sha256(tmp_path / "f")
    assert run(made, tmp_path / "f") == 0
    assert "is complete: nothing to do" in capsys.readouterr().err
    assert run(made, tmp_path / "f", "--pool", "max") == 2
    assert "pooling was 'mean', is 'max'" in capsys.readouterr().err
    assert tree_sha256(tmp_path / "f") == before
    assert run(made, tmp_path / "f", "--pool", "max", "--overwrite") == 0
    assert read_table(tmp_path / "f", "train").pooling == "max"


def test_a_stopped_command_goes_on_to_the_same_bytes(made, tmp_path, monkeypatch) -> None:
    assert run(made, tmp_path / "whole") == 0
    work, calls = features_run.work, []

    def stopping(state, out, plan, split, number):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append((split, number))
        return work(state, out, plan, split, number)

    monkeypatch.setattr(features_run, "work", stopping)
    assert run(made, tmp_path / "f") == 130
    assert not (tmp_path / "f" / "index.json").exists()
    tar = tmp_path / "f" / "train-000001.tar"
    tar.write_bytes(tar.read_bytes()[:-1])
    calls[:] = [None] * 3
    assert run(made, tmp_path / "f") == 0
    # The whole shard is kept, the cut one made again.
    assert calls[3:] == [("train", 1), ("train", 2), ("test", 0)]
    assert tree_sha256(tmp_path / "f") == tree_sha256(tmp_path / "whole")


def test_killed_at_a_random_moment_it_ends_with_the_same_bytes(made, tmp_path) -> None:
    assert run(made, tmp_path / "whole", model="c", layer="body") == 0
    flags = ("--model", f"{made}/c", "--data", f"{made}/set", "--layer", "body")
    command = [sys.executable, "-m", "jobs.features", *flags, "--out", f"{tmp_path}/f"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        for _ in range(600):
            if list((tmp_path / "f").glob("*.idx")) or process.poll() is not None:
                break
            time.sleep(0.02)
        process.kill()
    assert run(made, tmp_path / "f", model="c", layer="body") == 0
    assert tree_sha256(tmp_path / "f") == tree_sha256(tmp_path / "whole")


def test_layers_are_listed_and_a_wrong_name_is_exit_2(made, tmp_path, capsys) -> None:
    flags = ["--model", f"{made}/c", "--data", f"{made}/set", "--layer"]
    assert main([*flags, "?"]) == 0
    assert "body.stem" in capsys.readouterr().err
    assert run(made, tmp_path / "f", layer="bottlenek") == 2
    said = capsys.readouterr().err
    assert "down.0" in said and "fix: --layer bottleneck" in said
    assert main([*flags, "body"]) == 2
    assert "--out is required" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--pool", "masked"), "predicts no region"),
        (("--pool", "masked", "--mask", "true", "--layer", "body"), "no maps"),
        (("--mask", "true"), "--mask true is for --pool masked"),
        (("--pool", "masked", "--mask-model", "{made}/c"), "must be a segmenter"),
        (("--workers", "0", "--gpus-per-worker", "1"), "for Ray actors"),
    ],
)
def test_what_does_not_fit_is_exit_2(made, tmp_path, capsys, more, said) -> None:
    more = tuple(text.format(made=made) for text in more)
    assert run(made, tmp_path / "f", *more, model="c", layer="body.stem") == 2
    assert said in capsys.readouterr().err and not (tmp_path / "f").exists()


def test_a_dry_run_writes_nothing(made, tmp_path, capsys) -> None:
    assert run(made, tmp_path / "f", "--dry-run") == 0
    assert "49 samples, features 4 float32" in capsys.readouterr().err
    assert not (tmp_path / "f").exists()


def test_a_url_is_as_good_as_a_folder(made) -> None:
    url = "memory://features-of-small"
    assert run(made, url) == 0
    assert len(read_table(url, "train")) == 40


def test_what_a_killed_writer_left_is_removed(made, tmp_path) -> None:
    assert run(made, tmp_path / "f") == 0
    whole = tree_sha256(tmp_path / "f")
    for name in ("parts/train-000000.json", "train-000000.tar", "index.json"):
        left = part_path(tmp_path / "f" / name)
        left.write_bytes(b"half")
    (tmp_path / "f" / "index.json").unlink()
    assert run(made, tmp_path / "f") == 0
    assert tree_sha256(tmp_path / "f") == whole


@pytest.mark.ray
def test_workers_of_a_cluster_give_the_same_bytes(made, tmp_path, ray_cluster) -> None:
    alone = tmp_path / "alone"
    assert run(made, alone, model="c", layer="body") == 0
    assert run(made, tmp_path / "two", "--workers", "2", model="c", layer="body") == 0
    assert tree_sha256(tmp_path / "two") == tree_sha256(alone)
