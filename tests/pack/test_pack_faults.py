"""Kill -9 while a shard is written, damaged leftovers, two at once: the same bytes in the end."""

import contextlib
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from medray.errors import UsageError
from medray.images import encode_png
from medray.pack import pack as pack_module
from medray.pack import worker
from medray.pack.config import PackConfig
from medray.pack.pack import Job, pack
from medray.store import Store

IMAGES, PER_SHARD = 24, 8
# Packs, and dies by SIGKILL at the k-th sample that is added to a shard.
DIES = """
import os, signal, sys
from medray import shards
from medray.shards import writer
from medray.pack.config import PackConfig
from medray.pack.pack import Job, pack
source, out, at, how = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
count = 0
def killed(add):
    def wrapped(self, sample):
        global count
        count += 1
        if count == at:
            self._file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        add(self, sample)
    return wrapped
writer.ShardWriter.add = killed(writer.ShardWriter.add)
if how == "unguarded":
    writer._part_path = lambda store, name: store.path(name + ".tar")
options = {"size_px": 8, "samples_per_shard": 8, "workers": 0, "val": 0, "test": 0, "name": "s"}
pack(PackConfig(source=source, **options), Job(out))
"""


@pytest.fixture(autouse=True)
def secret(monkeypatch):
    monkeypatch.setenv("MEDRAY_SECRET_KEY", "0123456789abcdef")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    rng = np.random.default_rng(0)
    for k in range(IMAGES):
        (folder / f"{k:02d}.png").write_bytes(encode_png(rng.integers(0, 256, (9, 9), np.uint8)))
    return folder


def run(source, out):
    config = PackConfig(
        source=str(source),
        size_px=8,
        samples_per_shard=PER_SHARD,
        workers=0,
        val=0,
        test=0,
        name="s",
    )
    return pack(config, Job(str(out)))


def tree(out):
    return {name: Store(out).read_bytes(name) for name in Store(out).names()}


def dies(source, out, at, how="guarded"):
    done = subprocess.run([sys.executable, "-c", DIES, str(source), str(out), str(at), how])
    assert done.returncode == -signal.SIGKILL


def half_written(out, clean):
    """Names that a reader would take for finished files though they are not."""
    there = {name: data for name, data in tree(out).items() if name.endswith((".tar", ".idx"))}
    return [name for name, data in there.items() if data != clean[name]]


@pytest.mark.parametrize("at", [1, 5, 8, 9, 20])
def test_killed_while_a_shard_is_written_the_same_command_gives_the_same_bytes(
    source, tmp_path, at
):
    run(source, tmp_path / "clean")
    clean = tree(tmp_path / "clean")
    dies(source, tmp_path / "out", at)
    assert half_written(tmp_path / "out", clean) == []
    assert not (tmp_path / "out" / "index.json").exists()
    run(source, tmp_path / "out")
    assert tree(tmp_path / "out") == clean


def test_without_part_and_rename_a_kill_leaves_half_a_shard_under_its_name(source, tmp_path):
    """The negative control of the test above."""
    run(source, tmp_path / "clean")
    dies(source, tmp_path / "out", 5, "unguarded")
    assert half_written(tmp_path / "out", tree(tmp_path / "clean")) == ["train-000000.tar"]


def parts(out):
    return sorted(path.name for path in out.rglob("*.part"))


@pytest.mark.parametrize("removes", [True, False])
def test_what_a_killed_writer_left_is_gone_after_the_same_command(
    source, tmp_path, monkeypatch, removes
):
    out = tmp_path / "out"
    dies(source, out, 12)
    left = parts(out)
    assert [name.split(".tar.")[0] for name in left] == ["train-000001"]
    if not removes:  # the negative control
        monkeypatch.setattr("medray.shards.writer.remove_dead", lambda *_: None)
        monkeypatch.setattr("medray.shards._index.remove_dead", lambda *_: None)
    run(source, out)
    assert parts(out) == ([] if removes else left)


def interrupted(source, out, monkeypatch):
    """A pack that ends after two of its three shards."""
    made = pack_module.pack_shard

    def stops(out, rules, shard, plan_hash):
        if shard.name == "train-000002":
            raise KeyboardInterrupt
        return made(out, rules, shard, plan_hash)

    monkeypatch.setattr(pack_module, "pack_shard", stops)
    with contextlib.suppress(KeyboardInterrupt):
        run(source, out)
    monkeypatch.setattr(pack_module, "pack_shard", made)


def test_finished_shards_are_skipped(source, tmp_path, monkeypatch, capsys):
    interrupted(source, tmp_path / "out", monkeypatch)
    before = (tmp_path / "out" / "train-000000.tar").stat().st_mtime_ns
    run(source, tmp_path / "out")
    assert (tmp_path / "out" / "train-000000.tar").stat().st_mtime_ns == before
    assert "2 shards are there already" in capsys.readouterr().err


@pytest.mark.parametrize("checked", [True, False])
def test_a_finished_shard_that_was_damaged_is_made_again(source, tmp_path, monkeypatch, checked):
    run(source, tmp_path / "clean")
    interrupted(source, tmp_path / "out", monkeypatch)
    damaged = tmp_path / "out" / "train-000001.tar"
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    if not checked:  # the negative control: without the digest the damage stays
        monkeypatch.setattr(worker, "_is_whole", lambda store, shard: True)
    run(source, tmp_path / "out")
    assert (tree(tmp_path / "out") == tree(tmp_path / "clean")) is checked


def test_another_plan_does_not_go_on_with_this_one(source, tmp_path, monkeypatch):
    interrupted(source, tmp_path / "out", monkeypatch)
    (source / "99.png").write_bytes(encode_png(np.zeros((3, 3), np.uint8)))
    try:
        with pytest.raises(UsageError, match="files was 24, is 25"):
            run(source, tmp_path / "out")
    finally:
        (source / "99.png").unlink()


def test_a_file_that_changed_after_the_plan_is_another_plan(source, tmp_path, monkeypatch):
    interrupted(source, tmp_path / "out", monkeypatch)
    status = (source / "03.png").stat()
    os.utime(source / "03.png", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    with pytest.raises(UsageError, match="files_sha256 was"):
        run(source, tmp_path / "out")


def test_a_second_pack_on_the_same_place_is_refused_while_the_first_runs(source, tmp_path):
    with (
        pack_module._alone(Store(tmp_path / "out")),
        pytest.raises(UsageError, match="another pack is writing"),
    ):
        run(source, tmp_path / "out")
    run(source, tmp_path / "out")  # and not a moment longer


@pytest.mark.parametrize("goes", ["before it is opened", "before it is locked"])
def test_a_lock_that_its_holder_takes_away_meanwhile_is_asked_for_again(
    source, tmp_path, monkeypatch, goes
):
    """Else two packs that start just then would both go on, each with a lock of its own."""
    store = Store(tmp_path / "out")
    first = contextlib.ExitStack()
    first.enter_context(pack_module._alone(store))
    made, lock = pack_module.make_folder, pack_module.fcntl.flock
    if goes == "before it is opened":
        monkeypatch.setattr(
            pack_module, "make_folder", lambda folder: (made(folder), first.close())
        )
    else:
        monkeypatch.setattr(
            pack_module.fcntl, "flock", lambda *given: (first.close(), lock(*given))
        )
    with pack_module._alone(store):
        monkeypatch.undo()
        monkeypatch.setenv("MEDRAY_SECRET_KEY", "0123456789abcdef")
        with pytest.raises(UsageError, match="another pack is writing"):
            run(source, tmp_path / "out")
