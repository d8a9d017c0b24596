"""Jobs whose data, run folder and archive are on S3, over a network that fails."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest

from medray.store import Store
from tests.archive.made_parts import is_result, make_parts, run
from tests.chaos_budget import trials
from tests.faults.kill import kill_group, tree_sha256, wait_for
from tests.faults.proxy import RATES
from tests.jobs import pggan_runs
from tests.shard_sets import make_set
from tests.stores.conftest import S3
from tests.stores.test_s3 import cost


def digests(url: str) -> dict[str, str]:
    store = Store(url)
    names = [name for name in store.names() if is_result(name)]
    return {name: hashlib.sha256(store.read_bytes(name)).hexdigest() for name in names}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_parts(tmp_path_factory.mktemp("parts"))


@pytest.mark.parametrize(
    "images, seeds", [(8, 1), pytest.param(24, trials(3, 20), marks=pytest.mark.chaos)]
)
def test_an_archive_on_a_failing_s3_has_the_same_bytes_and_a_rerun_changes_nothing(
    s3: S3, bucket: str, parts: Path, tmp_path: Path, impatient: None, images: int, seeds: int
) -> None:
    assert run(parts, tmp_path / "archive", "--count", images) == 0
    clean = tree_sha256(tmp_path / "archive", is_result)
    for seed in range(seeds):
        out = f"{bucket}/archive{seed}"
        with s3.proxy.failing(seed, **RATES) as injected:
            assert run(parts, out, "--count", images) == 0
        assert sum(injected.values()) >= 5
        assert digests(out) == clean
        if images > 8:
            Store(out).remove("train-000001.idx")
            with s3.proxy.failing(seed, **RATES):
                assert run(parts, out, "--repair", "--count", images) == 0
        assert run(parts, out, "--count", images) == 0
        assert digests(out) == clean
    cost("archive", seeds, "shards")


def test_an_archive_whose_store_is_away_ends_with_4_and_says_what_goes_on(
    s3: S3, bucket: str, parts: Path, impatient: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with s3.proxy.down():
        assert run(parts, f"{bucket}/archive") == 4
    assert "the same command goes on" in capsys.readouterr().err


def copied(url: str, folder: Path) -> Path:
    """The objects below `url` as files."""
    store, target = Store(url), Store(folder)
    for name in store.names():
        target.write_bytes(name, store.read_bytes(name))
    return folder


def saved_past(store: Store, images: int) -> bool:
    """Whether a checkpoint of so many images or more is there: older ones do not stay."""
    names = [name.split("/") for name in store.names("checkpoints/")]
    return any(name[-1] == "manifest.json" and int(name[1]) >= images for name in names)


@pytest.mark.chaos
@pytest.mark.timeout(1200)
def test_a_gan_with_data_and_run_folder_on_a_failing_s3_killed_ends_as_one_on_disk(
    s3: S3, bucket: str, tmp_path: Path
) -> None:
    environment = pggan_runs.environment(tmp_path / "cache")
    clean = tmp_path / "clean"
    make_set(tmp_path / "set", 48, per_shard=16)
    make_set(f"{bucket}/set", 48, per_shard=16)
    done = pggan_runs.command(clean, "--data", str(tmp_path / "set"))
    subprocess.run(done, env=environment, check=True, capture_output=True)
    command = pggan_runs.command(Path("x"), "--data", f"{bucket}/set")
    command[command.index("--run-dir") + 1] = f"{bucket}/run"
    store = Store(f"{bucket}/run")
    rates = {name: rate / 2 for name, rate in RATES.items()}
    with s3.proxy.failing(1, **rates) as injected, (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        try:
            wait_for(lambda: saved_past(store, 32), 300)
        finally:
            kill_group(process)
        ended = subprocess.run(command, env=environment, stdout=log, stderr=log)
    assert ended.returncode == 0, (tmp_path / "log").read_text()[-3000:]
    assert sum(injected.values()) >= 20
    found = pggan_runs.results(copied(f"{bucket}/run", tmp_path / "copy"))
    assert found == pggan_runs.results(clean)
    cost("train", 1, "images")
