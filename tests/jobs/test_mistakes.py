"""What people get wrong: the right exit code, a message that names the thing and a way out, no
traceback, fifteen lines at most; and nothing of a good run is touched.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from medray import cli, lease, log
from medray.checkpoints import Checkpoints
from medray.rundir import RunDir
from medray.shards import read_index, write_index
from medray.store import Store
from tests.faults import damage
from tests.faults.kill import tree_sha256
from tests.shard_sets import make_set

TINY = (
    *("--backend", "local", "--final-px", "8", "--start-px", "8", "--precision", "fp32"),
    *("--fmap-base", "32", "--fmap-max", "8", "--latent-dims", "4", "--threads-per-worker", "1"),
    *("--batch", "4", "--total-images", "8"),
)
LONGEST_LINES = 15


@dataclasses.dataclass(frozen=True)
class Place:
    """A set of shards, a finished run on it, and room for what goes wrong."""

    data: Path
    run: Path
    spare: Path

    def config(self, text: str) -> tuple[str, str]:
        """The flag that names a configuration with this text."""
        path = self.spare / "my.yaml"
        path.write_text(text)
        return "--config", str(path)

    def copy_of(self, what: Path) -> Path:
        """A copy to spoil."""
        target = self.spare / what.name
        shutil.copytree(what, target)
        return target


Mistake = Callable[[Place], list[str]]
TABLE: dict[str, tuple[int, tuple[str, ...], Mistake]] = {}


def mistake(code: int, *said: str) -> Callable[[Mistake], Mistake]:
    """Enters a mistake into the table: its exit code and what the message must name."""

    def enter(function: Mistake) -> Mistake:
        TABLE[function.__name__.removeprefix("_")] = (code, said, function)
        return function

    return enter


def flags(code: int, said: tuple[str, ...], *argv: str) -> None:
    """Enters a mistake that is a matter of flags alone."""
    TABLE[" ".join(argv)] = (code, said, lambda place: ["pggan", *TINY, *argv])


# --- flags ------------------------------------------------------------------------------------

flags(2, ("--final-pxx", "did you mean --final-px?"), "--final-pxx", "16")
flags(2, ("--final-px", "power of two", "20"), "--final-px", "20")
flags(2, ("--final-px", "integer", "sixteen"), "--final-px", "sixteen")
flags(2, ("--loss", "'r1' or 'wgan-gp'", "wgan"), "--loss", "wgan")
flags(2, ("--batch", "greater than or equal to 1", "0"), "--batch", "0")
flags(2, ("batch 4", "multiple of workers 3"), "--workers", "3", "--backend", "torchrun")
flags(2, ("workers = 2", "backend local", "allowed: 1"), "--workers", "2")
flags(2, ("--backend", "slurm", "'torchrun'"), "--backend", "slurm")
flags(2, ("zero stage 2", "deepspeed"), "--zero-stage", "2")
flags(2, ("start px 16", "final px 8"), "--start-px", "16")
flags(2, ("--lr", "greater than 0"), "--lr", "-0.1")
flags(2, ("--batch-by-px", "KEY=VALUE"), "--batch-by-px", "8:4")
flags(2, ("--resume", "--init-from"), "--resume", "--init-from", "/absent")
flags(2, ("--resume", "--overwrite"), "--resume", "--overwrite")
flags(2, ("--run-dir", "expected one argument", "--help"), "--run-dir")
flags(4, ("GPU", "--gpus-per-worker 0"), "--gpus-per-worker", "1", "--run-dir", "SPARE/r")


@mistake(2, "pgan", "pggan")
def _unknown_command(place: Place) -> list[str]:
    return ["pgan", *TINY]


@mistake(2, "'train'", "pggan")
def _submit_without_the_name_of_a_job(place: Place) -> list[str]:
    return ["submit", "train"]


@mistake(2, "$MEDRAY_BATCH", "integer", "many")
def _word_in_an_environment_variable(place: Place) -> list[str]:
    return ["pggan", "MEDRAY_BATCH=many"]


# --- configuration files ----------------------------------------------------------------------


@mistake(2, "my.yaml", "batchsize", "did you mean batch", "valid are:", "fmap_base", "zero_stage")
def _unknown_key(place: Place) -> list[str]:
    return ["pggan", *place.config("batchsize: 8\n")]


@mistake(2, "my.yaml: lr:", "number", "'fast'")
def _yaml_of_a_wrong_type(place: Place) -> list[str]:
    return ["pggan", *place.config("lr: fast\n")]


@mistake(2, "my.yaml: data:", "'train': 'x'")
def _yaml_with_a_mapping_for_a_list(place: Place) -> list[str]:
    return ["pggan", *place.config("data: {train: x}\n")]


@mistake(2, "my.yaml", "not YAML", "line 2")
def _broken_yaml(place: Place) -> list[str]:
    return ["pggan", *place.config("batch: 8\n  lr: [1,\n")]


@mistake(2, "my.yaml", "keys and values", "list")
def _yaml_that_is_a_list(place: Place) -> list[str]:
    return ["pggan", *place.config("- batch\n- lr\n")]


@mistake(2, "absent.yaml", "No such file")
def _absent_configuration(place: Place) -> list[str]:
    return ["pggan", "--config", "absent.yaml"]


# --- data -------------------------------------------------------------------------------------


def _on(place: Place, data: str | Path, *more: str) -> list[str]:
    return ["pggan", *TINY, "--run-dir", str(place.spare / "r"), "--data", str(data), *more]


@mistake(3, "absent", "index.json", "fix:")
def _wrong_folder(place: Place) -> list[str]:
    return _on(place, place.spare / "absent")


@mistake(3, "empty", "fix:", "pack")
def _empty_folder(place: Place) -> list[str]:
    (place.spare / "empty").mkdir()
    return _on(place, place.spare / "empty")


@mistake(3, "pictures", "fix:", "pack")
def _folder_of_pictures_that_nobody_packed(place: Place) -> list[str]:
    (place.spare / "pictures").mkdir()
    (place.spare / "pictures" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return _on(place, place.spare / "pictures")


@mistake(3, "$DATA/chest64", "fix:")
def _quoted_variable(place: Place) -> list[str]:
    return _on(place, "$DATA/chest64")


@mistake(2, "s4://bucket/set", "s4")
def _unknown_kind_of_url(place: Place) -> list[str]:
    return _on(place, "s4://bucket/set")


@mistake(4, "127.0.0.1:9")
def _url_that_nobody_answers(place: Place) -> list[str]:
    return _on(place, "http://127.0.0.1:9/set")


@mistake(3, "MR-D", "index.json")
def _index_that_is_cut_short(place: Place) -> list[str]:
    data = place.copy_of(place.data)
    damage.cut(data / "index.json", to_bytes=100)
    return _on(place, data)


@mistake(3, "MR-D", ".tar", "bytes")
def _shard_that_is_cut_short(place: Place) -> list[str]:
    data = place.copy_of(place.data)
    damage.cut(next(data.glob("*.tar")), to_bytes=3000)
    return _on(place, data)


@mistake(3, "MR-D", ".tar")
def _shard_with_a_flipped_bit(place: Place) -> list[str]:
    data = place.copy_of(place.data)
    for shard in data.glob("*.tar"):
        damage.flip_bit(shard, at_byte=1600)
    return _on(place, data)


@mistake(3, "MR-D", ".idx")
def _index_that_disagrees_with_a_shard(place: Place) -> list[str]:
    data = place.copy_of(place.data)
    store = Store(data)
    index = read_index(store)
    shards = tuple(dataclasses.replace(s, samples=s.samples + 1) for s in index.shards)
    write_index(store, dataclasses.replace(index, shards=shards))
    return _on(place, data)


@mistake(2, "--channels", "the set has 3, got 1", "--channels 3")
def _colour_for_grey(place: Place) -> list[str]:
    make_set(place.spare / "rgb", 8, px=8, channels=3)
    return _on(place, place.spare / "rgb")


@mistake(2, "--final-px", "8 px", "--size-px 16")
def _set_smaller_than_the_networks(place: Place) -> list[str]:
    return _on(place, place.data, "--final-px", "16")


@mistake(3, "val", "train")
def _split_that_is_not_there(place: Place) -> list[str]:
    return _on(place, place.data, "--split", "val")


# --- run folders ------------------------------------------------------------------------------


def _in(folder: Path, place: Place, *more: str) -> list[str]:
    return ["pggan", *TINY, "--data", str(place.data), "--run-dir", str(folder), *more]


@mistake(2, "not empty", "--resume", "--overwrite", "--run-dir", "--init-from")
def _run_folder_in_use_without_a_flag(place: Place) -> list[str]:
    return _in(place.run, place)


@mistake(2, "differs", "batch: 4 -> 8", "lr: 0.001 -> 0.01", "--overwrite", "--init-from")
def _resume_with_an_edited_configuration(place: Place) -> list[str]:
    return _in(place.run, place, "--resume", "--batch", "8", "--lr", "0.01")


def _garbled(place: Place, name: str, text: str | bytes, *more: str) -> list[str]:
    run = _unfinished(place)
    (run / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return _in(run, place, "--resume", *more)


@mistake(3, "MR-D046", "is not YAML", "run/config.yaml", "fix:", "command.txt", "--overwrite")
def _resume_with_a_garbled_configuration(place: Place) -> list[str]:
    return _garbled(place, "config.yaml", "batch: [4,\n  lr: }")


@mistake(3, "MR-D046", "is not YAML", "run/config.yaml", "fix:")
def _resume_with_a_configuration_of_noise(place: Place) -> list[str]:
    return _garbled(place, "config.yaml", bytes(range(128, 256)))


@mistake(3, "MR-D046", "keys and values", "NoneType", "run/config.yaml", "fix:")
def _resume_with_an_empty_configuration(place: Place) -> list[str]:
    return _garbled(place, "config.yaml", "")


@mistake(3, "MR-D046", "keys and values", "list", "run/config.yaml", "fix:")
def _resume_with_a_configuration_that_is_a_list(place: Place) -> list[str]:
    return _garbled(place, "config.yaml", "- batch\n- lr\n", "--precision", "auto")


@mistake(2, "differs", "batch: (absent) -> 4", "precision: (absent) -> auto", "fix:")
def _resume_with_a_configuration_that_lacks_keys(place: Place) -> list[str]:
    text = (place.run / "config.yaml").read_text()
    kept = [x for x in text.splitlines() if not x.startswith(("batch:", "precision:"))]
    return _garbled(place, "config.yaml", "\n".join(kept), "--precision", "auto")


@mistake(2, "run/config.yaml: precision", "'auto'", "'potato'")
def _resume_with_a_precision_that_is_none(place: Place) -> list[str]:
    text = (place.run / "config.yaml").read_text().replace("precision: fp32", "precision: potato")
    return _garbled(place, "config.yaml", text, "--precision", "auto")


@mistake(3, "MR-D046", "is not JSON", "run/env.json", "fix:")
def _resume_with_garbled_versions(place: Place) -> list[str]:
    return _garbled(place, "env.json", "{")


@mistake(3, "MR-D046", "is not JSON", "run/metrics.jsonl", "fix:")
def _resume_with_garbled_curves(place: Place) -> list[str]:
    return _garbled(place, "metrics.jsonl", "torn\n")


@mistake(2, "no run folder", "--run-dir")
def _resume_in_a_folder_of_something_else(place: Place) -> list[str]:
    (place.spare / "notes.txt").write_text("mine")
    return _in(place.spare, place, "--resume")


@mistake(2, "no run folder", "--run-dir")
def _overwrite_a_folder_of_something_else(place: Place) -> list[str]:
    (place.spare / "notes.txt").write_text("mine")
    return _in(place.spare, place, "--overwrite")


@mistake(2, "must be a folder", "is a file")
def _run_folder_that_is_a_file(place: Place) -> list[str]:
    (place.spare / "file").write_text("mine")
    return _in(place.spare / "file", place)


@mistake(4, "/proc/medray", "fix:")
def _run_folder_that_cannot_be_written(place: Place) -> list[str]:
    return _in(Path("/proc/medray"), place)


@mistake(4, "/proc/medray")
def _cache_that_cannot_be_written(place: Place) -> list[str]:
    folder = str(place.spare / "r")
    return ["pggan", *TINY, "--run-dir", folder, "--cache-dir", "/proc/medray"]


@mistake(4, "another", "process", "fix:")
def _two_starts_on_one_run_folder(place: Place) -> list[str]:
    run = _unfinished(place)
    # The lock belongs to an open file, so this process can be in its own way.
    HELD.append(lease.acquire(Store(run)))
    return _in(run, place, "--resume")


HELD: list[lease.Lease] = []


# --- checkpoints ------------------------------------------------------------------------------


def _unfinished(place: Place) -> Path:
    run = place.copy_of(place.run)
    (run / "DONE").unlink()
    return run


@mistake(2, "--init-from", "absent", "holds no checkpoint", "run folder")
def _warm_start_from_nothing(place: Place) -> list[str]:
    return _in(place.spare / "r", place, "--init-from", str(place.spare / "absent"))


@mistake(3, "does not fit", "must have shape", "width", "--init-from")
def _warm_start_from_another_width(place: Place) -> list[str]:
    return _in(place.spare / "r", place, "--init-from", str(place.run), "--fmap-max", "4")


@mistake(3, "MR-D040", "no checkpoint", "sha256", "--overwrite")
def _damaged_checkpoints(place: Place) -> list[str]:
    run = _unfinished(place)
    for path in run.glob("checkpoints/*/state.safetensors"):
        damage.flip_bit(path)
    return _in(run, place, "--resume")


@mistake(3, "generator.dense.weight", "shape (1, 4)", "fix:")
def _checkpoint_of_other_networks(place: Place) -> list[str]:
    run = _unfinished(place)
    checkpoints = Checkpoints(Store(run), None)
    tensors, state = checkpoints.load(checkpoints.at(8))
    tensors["generator.dense.weight"] = tensors["generator.dense.weight"][:1]
    with RunDir.attach(str(run), 1) as folder:
        Checkpoints(folder.store, folder.lease).save(8, tensors, state)
    return _in(run, place, "--resume")


# --- the test ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("good")
    make_set(folder / "data", 12, px=8)
    place = Place(folder / "data", folder / "run", folder)
    assert cli.main(_in(place.run, place)) == 0
    return place


@pytest.fixture
def place(made: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    for name in ("RAY_ADDRESS", "MEDRAY_SUBMIT_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MEDRAY_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(RunDir.start.__func__.__kwdefaults__, "wait_s", 0.3)  # type: ignore[attr-defined]
    yield dataclasses.replace(made, spare=tmp_path)
    while HELD:
        HELD.pop().release()
    log.setup()


@pytest.mark.parametrize("name", TABLE)
def test_a_mistake_is_named_with_a_way_out(
    name: str, place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, said, make = TABLE[name]
    argv = [word.replace("SPARE", str(place.spare)) for word in make(place)]
    for setting in [word for word in argv if word.startswith("MEDRAY_")]:
        monkeypatch.setenv(*setting.split("=", 1))
        argv.remove(setting)
    before = tree_sha256(place.run)
    capsys.readouterr()
    found = cli.main(argv)
    out, err = capsys.readouterr()
    text = out + err
    assert found == code, text
    assert [word for word in said if word not in text] == [], text
    assert "Traceback" not in text and len(text.splitlines()) <= LONGEST_LINES, text
    assert tree_sha256(place.run) == before, "the good run is as it was"
    _the_status_agrees(place.spare / "r", code)


def _the_status_agrees(folder: Path, code: int) -> None:
    if (folder / "status.json").exists():
        status = json.loads((folder / "status.json").read_text())
        assert (status["exit_code"], status["state"]) == (code, "failed") and status["reason"]


def test_there_are_thirty_mistakes_at_least() -> None:
    assert len(TABLE) >= 30


def test_control_without_a_mistake_the_same_arguments_train(place: Place) -> None:
    assert cli.main(_in(place.spare / "r", place)) == 0
    assert cli.main(_in(place.spare / "r", place, "--resume")) == 0
