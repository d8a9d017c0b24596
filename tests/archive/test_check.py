"""An archive checked and mended: damage is found and named, repair gives the original bytes."""

import json
import shutil

import numpy as np
import pytest

from jobs import _archive_run as archive_run
from jobs import archive, regenerate
from medray import cli
from medray.archive import check
from medray.archive.plan import PLAN, digest_of, read_plan, write_plan
from medray.archive.worker import Worker
from medray.images import decode_png
from medray.shards import INDEX, open_shard, read_index
from medray.store import Store
from tests import outcomes
from tests.archive.made_parts import is_result, make_generator, make_latents, make_parts, run
from tests.chaos_budget import trials
from tests.faults import damage
from tests.faults.kill import tree_sha256


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return make_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def made(parts, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "archive"
    assert run(parts, out) == 0
    return out


@pytest.fixture
def out(made, tmp_path):
    """A copy to spoil."""
    shutil.copytree(made, tmp_path / "archive")
    return tmp_path / "archive"


def job(out, *words):
    return archive.main(["--out", str(out), *map(str, words)])


def test_a_whole_archive_is_verified_and_its_promise_named(out, capsys):
    before = tree_sha256(out)
    assert job(out, "--verify") == 0
    said = capsys.readouterr().err
    assert "0 differ" in said and "same render, equal bytes" in said
    assert job(out, "--repair") == 0
    assert "nothing was damaged" in capsys.readouterr().err
    assert tree_sha256(out, is_result) == tree_sha256(out, is_result)
    assert {n: d for n, d in tree_sha256(out).items() if is_result(n)} == {
        n: d for n, d in before.items() if is_result(n)
    }


def spoil(out, kind):
    """Damages an archive; what the error must name."""
    first, second = out / "train-000000.tar", out / "train-000001.tar"
    if kind == "flip":
        damage.flip_bit(second, at_byte=3000)
    elif kind == "cut":
        damage.cut(second, to_bytes=4000)
    elif kind == "swap":
        damage.swap(first, second)
    elif kind == "swapped with its idx":
        damage.swap(first, second)
        damage.swap(out / "train-000000.idx", out / "train-000001.idx")
    elif kind == "missing":
        damage.drop(second)
    elif kind == "missing idx":
        damage.drop(out / "train-000001.idx")
    elif kind == "missing manifest":
        damage.drop(out / ".archive" / "train-000001.json")
    elif kind == "stray":
        damage.double(first, out / "train-000009.tar")
        return "train-000009"
    elif kind == "index":
        damage.flip_bit(out / INDEX, at_byte=300)
        return INDEX
    return "train-000001"


KINDS = [
    "flip",
    "cut",
    "swap",
    "swapped with its idx",
    "missing",
    "missing idx",
    "missing manifest",
    "stray",
    "index",
]


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_found_and_repair_gives_the_original_bytes(made, out, capsys, kind):
    named = spoil(out, kind)
    assert job(out, "--verify") == 3
    assert named in capsys.readouterr().err
    assert job(out, "--repair") == 0
    assert tree_sha256(out, is_result) == tree_sha256(made, is_result)
    assert job(out, "--verify", "--sample", 0) == 0


@pytest.mark.parametrize("count", [60, pytest.param(trials(1200, 6000), marks=pytest.mark.chaos)])
def test_every_flip_and_every_cut_is_found(out, count):
    """Five flips for each cut, of shards, their idx, manifests, index and plan: none is missed."""
    files = [path for path in sorted(out.rglob("*")) if path.suffix in (".tar", ".idx", ".json")]
    files = [path for path in files if ".lease" not in path.parts and path.name != "summary.json"]
    missed = []
    for trial in range(count):
        path = files[trial % len(files)]
        whole = path.read_bytes()
        place = damage.cut(path, trial) if trial % 6 == 5 else damage.flip_bit(path, trial)
        try:
            found = check.verify(Store(out))
        except Exception as error:  # the plan itself: no archive, or a damaged one
            found = [error]
        if not found:
            missed.append((path.name, place))
        path.write_bytes(whole)
    assert missed == []
    assert check.verify(Store(out)) == []
    outcomes.record(
        part="archive",
        fault="flip, cut, swap, missing or double shard",
        trials=count,
        lost=0,
        unit="shards",
        recovered_s=None,
        wrong=len(missed),
    )


def rewritten(out, number, change):
    """Writes shard `number` again with changed records and digests that agree with them."""
    from dataclasses import asdict, replace

    from medray.archive.members import encoded
    from medray.archive.worker import Result, finished, manifest_name
    from medray.shards import ShardWriter, write_index

    store = Store(out)
    plan, _ = read_plan(store)
    result = finished(store, plan, number)
    reader = open_shard(store, result.shard)
    with ShardWriter(store, result.shard.name, "train") as writer:
        for sample in change([reader.sample(n) for n in range(len(reader))]):
            writer.add(sample, encoded(sample, plan))
        shard = writer.close()
    store.write_bytes(
        manifest_name(shard.name), Result(**{**asdict(result), "shard": shard}).to_json()
    )
    index = read_index(store)
    shards = tuple(shard if old.name == shard.name else old for old in index.shards)
    write_index(store, replace(index, shards=shards))


def test_addresses_that_are_double_or_of_another_shard_are_found(made, out):
    from dataclasses import replace

    def doubled(samples):
        again = replace(samples[2], key=samples[3].key)
        return [*samples[:3], again, *samples[4:]]

    rewritten(out, 1, lambda samples: samples)
    assert check.verify(Store(out)) == []
    rewritten(out, 1, doubled)
    texts = [str(error) for error in check.verify(Store(out))]
    assert any("there twice" in text for text in texts)
    assert any("of its goals" in text for text in texts)
    shutil.rmtree(out)
    shutil.copytree(made, out)
    store = Store(out)
    foreign = open_shard(store, read_index(store).shards[0]).sample(0)
    rewritten(out, 1, lambda samples: [replace(foreign, key=samples[0].key), *samples[1:]])
    assert any("not of this shard" in str(error) for error in check.verify(store))


def test_an_image_that_its_address_does_not_make_is_found(made, out, capsys):
    from dataclasses import replace

    def darker(samples):
        return [replace(sample, image=sample.image // 2) for sample in samples]

    rewritten(out, 1, darker)
    assert job(out, "--verify", "--sample", 200) == 3
    said = capsys.readouterr().err
    assert "made again it differs by" in said and "train-000001" in said


def test_under_another_render_one_grey_level_is_allowed_and_said(parts, made, out):
    """The archive says that another version of torch made it: equal bytes are not promised then."""
    from dataclasses import replace

    store = Store(out)
    plan, places = read_plan(store)
    other = replace(plan, render={**plan.render, "torch": "1.0"})
    loaded = archive_run._parts(plan, places, "cpu")
    worker = Worker(other, loaded, store, None, 1)
    (out / PLAN).unlink()
    write_plan(store, other, places)
    for name in (out / ".archive").iterdir():
        body = {**json.loads(name.read_text()), "plan": other.hash}
        body.pop("sha256")
        name.write_text(json.dumps({**body, "sha256": digest_of(body)}))
    remade, found = check.remake(worker, 10, 0)
    assert (remade.largest, found) == (0, [])
    assert "other render, 1 grey level" in remade.text()
    for sample_off, faults in ((1, 0), (2, 1)):
        shifted = _Shifted(loaded.renderer, sample_off)
        changed = Worker(other, replace(loaded, renderer=shifted), store, None, 1)
        remade, found = check.remake(changed, 10, 0)
        assert remade.largest == sample_off
        assert bool(found) == bool(faults)
    assert job(out, "--repair") == 2  # and what is made here cannot be the original


class _Shifted:
    """A renderer whose images are a few levels off."""

    def __init__(self, renderer, off):
        self.renderer, self.off, self.dims = renderer, off, renderer.dims

    def record(self):
        return self.renderer.record()

    def render(self, latents_ND):
        return (self.renderer.render(latents_ND).astype(int) + self.off).clip(0, 255).astype("u1")


def test_a_generator_that_moved_is_given_by_flag_and_another_one_refused(parts, made, out, capsys):
    store = Store(out)
    plan, places = read_plan(store)
    (out / PLAN).unlink()
    from dataclasses import replace

    write_plan(store, plan, replace(places, generator="/gone"))
    assert job(out, "--verify") == 2
    assert "/gone holds no generator" in capsys.readouterr().err
    assert job(out, "--verify", "--generator", parts / "generator") == 0
    sha256 = make_generator(out.parent / "other", seed=3)
    make_latents(out.parent / "latents", sha256)
    words = ("--generator", out.parent / "other", "--latents", out.parent / "latents")
    assert job(out, "--verify", *words) == 2
    assert "is not the one this archive was made with" in capsys.readouterr().err


@pytest.mark.parametrize("ending", ["png", "npy", "dcm"])
def test_one_image_is_made_again_from_its_address(made, tmp_path, ending):
    store = Store(made)
    sample = open_shard(store, read_index(store).shards[1]).sample(3)
    target = tmp_path / f"again.{ending}"
    address = sample.provenance.address
    assert cli.main(["regenerate", str(made), address, "--out", str(target)]) == 0
    if ending == "png":
        row = open_shard(store, read_index(store).shards[1]).rows[3]
        (member,) = [m for m in row["members"] if m[0] == "png"]
        whole = (made / "train-000001.tar").read_bytes()
        assert target.read_bytes() == whole[member[1] : member[1] + member[2]]
        np.testing.assert_array_equal(decode_png(target.read_bytes()), sample.image)


def test_an_address_that_was_not_kept_is_made_all_the_same(made, tmp_path, capsys):
    plan, _ = read_plan(Store(made))
    words = ["--archive", str(made), "--address", plan.address(9), "--out", str(tmp_path / "a.png")]
    assert regenerate.main(words) == 0
    assert "not in the archive" in capsys.readouterr().err
    assert decode_png((tmp_path / "a.png").read_bytes()).shape == (16, 16)


@pytest.mark.parametrize(
    "address, out, said",
    [
        ("mr1:a:b:0:1", "a.png", "not of this archive"),
        ("nonsense", "a.png", "an address is"),
        ("mr1:a:b:0:1", "a.jpg", "must end in"),
    ],
)
def test_an_address_or_a_file_that_cannot_be_is_refused(made, tmp_path, capsys, address, out, said):
    assert cli.main(["regenerate", str(made), address, "--out", str(tmp_path / out)]) == 2
    assert said in capsys.readouterr().err


def test_regenerate_says_how_it_is_used(made, capsys):
    assert cli.main(["regenerate", str(made)]) == 2
    assert "ARCHIVE ADDRESS --out FILE" in capsys.readouterr().err
