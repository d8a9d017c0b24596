"""The 1024 px preset in small: two steps on two gloo ranks under ZeRO 2, then two more resumed."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.numpy import load_file

from medray.train.pggan_config import PgganConfig
from tests.faults.kill import kill_group, wait_for
from tests.jobs import pggan_runs
from tests.jobs.pggan_runs import ROOT
from tests.shard_sets import make_set

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
PRESET = ROOT / "jobs" / "configs" / "chest-1024.yaml"
# The width is 1/32 of the preset's; the rest is what two ranks without a GPU need.
WIDTH_SHARE = 32
BATCH, TOTAL_IMAGES = 2, 8
OVERRIDES = {
    "workers": 2,
    "gpus_per_worker": 0,
    "backend": "torchrun",
    "threads_per_worker": 1,
    "precision": "fp32",
    "batch": BATCH,
    "batch_by_px": f"1024={BATCH}",
    # From its last level on: the eight levels below it would take half an hour.
    "start_px": 1024,
    "fade_images": 0,
    "total_images": TOTAL_IMAGES,
    "log_images": BATCH,
    "checkpoint_images": 2 * BATCH,
    "snapshot_images": TOTAL_IMAGES,
}
KEPT = ("final_px", "loss", "engine", "zero_stage", "lr", "lr_by_px", "latent_dims")


def flags(folder: Path, data: Path) -> list[str]:
    """The preset with the overrides, resumable."""
    widths = {n: _preset()[n] // WIDTH_SHARE for n in ("fmap_base", "fmap_max")}
    given = {**OVERRIDES, **widths, "run_dir": folder, "data": data}
    words = [(f"--{name.replace('_', '-')}", f"{value}") for name, value in given.items()]
    return ["--config", str(PRESET), "--resume", *(word for pair in words for word in pair)]


def _preset() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(PRESET.read_text())
    return content


def start(folder: Path, data: Path) -> subprocess.Popen[bytes]:
    """The command; it goes on with what is in `folder`."""
    command = [*pggan_runs.command(folder)[:2], *flags(folder, data)]
    with folder.with_suffix(".log").open("ab") as output:
        return subprocess.Popen(
            command,
            env=pggan_runs.environment(folder.parent),
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def train(folder: Path, data: Path) -> str:
    """Trains to the end; what it said."""
    code, said = start(folder, data).wait(), folder.with_suffix(".log").read_text()
    assert code == 0, said
    return said


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "chest1024"
    make_set(folder, 6, px=1024, encoding="zstd", per_shard=3)
    return folder


def test_two_steps_and_two_more_after_a_resume_are_the_four_of_an_undisturbed_run(
    data: Path, tmp_path: Path
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(whole, data)
    process = start(parts, data)
    half = parts / "checkpoints" / f"{TOTAL_IMAGES // 2:010d}" / "manifest.json"
    wait_for(lambda: half.exists() or process.poll() is not None, 900)
    kill_group(process)
    assert pggan_runs.sound_checkpoints(parts) == [TOTAL_IMAGES // 2]
    assert f"resumed at {TOTAL_IMAGES // 2} images" in train(parts, data)
    assert pggan_runs.results(parts, TOTAL_IMAGES) == pggan_runs.results(whole, TOTAL_IMAGES)
    check(whole)


def check(folder: Path) -> None:
    """The run is the preset's: its networks at 1024 px, its loss, engine and learning rates."""
    preset = PgganConfig.model_validate({n: v for n, v in _preset().items() if n in KEPT})
    run = yaml.safe_load((folder / "config.yaml").read_text())
    config = PgganConfig.model_validate({n: v for n, v in run.items() if n in KEPT})
    assert config == preset
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["px"], summary["images"], summary["workers"]) == (1024, TOTAL_IMAGES, 2)
    tensors = load_file(folder / "checkpoints" / f"{TOTAL_IMAGES:010d}" / "state.safetensors")
    assert tensors["generator.rgb1024.weight"].shape[:2] == (1, 1)
    assert int(tensors["adam_g.step"]) == int(tensors["adam_d.step"]) == 4
