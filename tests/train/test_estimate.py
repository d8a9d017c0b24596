"""The estimate: tensors against torch's own bytes, sums by hand, and a dry run end to end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from medray.dist.context import Context
from medray.models.pggan import Discriminator, Generator
from medray.records import Batch
from medray.train import estimate, malloc_replay, rehearsal
from medray.train.pggan import Pggan
from medray.train.pggan_config import PgganConfig

ROOT = Path(__file__).resolve().parents[2]


def small(**changes: object) -> PgganConfig:
    values: dict[str, object] = {
        "final_px": 16,
        "start_px": 8,
        "fmap_base": 256,
        "fmap_max": 16,
        "latent_dims": 8,
        "batch": 8,
        "total_images": 160,
        "fade_images": 32,
        "stable_images": 64,
        "precision": "fp32",
    }
    return PgganConfig.model_validate(values | changes)


def memory_of(config: PgganConfig, base_bytes: int = 0) -> estimate.Memory:
    return estimate.memory(config, rehearsal.rehearse(config), base_bytes=base_bytes)


def fresh(config: PgganConfig) -> Pggan:
    return Pggan(config, Context(0, 1, 0, torch.device("cpu"), threads_per_rank=1))


def noise(config: PgganConfig, count: int) -> Batch:
    shape = (count, config.channels, config.final_px, config.final_px)
    images_NCHW = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    return Batch(("",) * count, images_NCHW, np.full(count, -1, np.int64), (), 0)


def live_peak_bytes(config: PgganConfig, images: int, steps: int) -> int:
    """Peak of torch's allocator while `steps` steps are done, from the events of its profiler."""
    with profile(
        activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as recorded:
        algorithm = fresh(config)
        for _ in range(steps):
            algorithm.step(noise(config, config.batch), images)
    live = peak = 0
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak


@pytest.mark.parametrize(
    ("loss", "precision", "images"),
    [("r1", "fp32", 0), ("r1", "bf16", 64), ("wgan-gp", "fp32", 64), ("wgan-gp", "bf16", 96)],
)
def test_counted_bytes_are_those_that_torch_allocates(
    loss: str, precision: str, images: int
) -> None:
    config = small(loss=loss, precision=precision, r1_every=1)
    with rehearsal.on_stage(config) as stage:
        counted = max(stage.step(images, penalty=True).peak_bytes for _ in range(2))
    # torch's own count holds what a convolution takes for itself for a moment, too.
    measured = live_peak_bytes(config, images, 2)
    assert counted == pytest.approx(measured, rel=0.05)


CLASSES = {
    "conditional": True,
    "classes": ("a", "absent", "b"),
    "class_counts": (9, 0, 4),
    "diffaugment": "translation,cutout,tone",
}


@pytest.mark.parametrize("loss", ["r1", "wgan-gp"])
def test_classes_and_augmentation_are_counted(loss: str) -> None:
    config = small(loss=loss, r1_every=1, **CLASSES)
    with rehearsal.on_stage(config) as stage:
        counted = max(stage.step(64, penalty=True).peak_bytes for _ in range(2))
    assert counted == pytest.approx(live_peak_bytes(config, 64, 2), rel=0.05)
    number, plain = estimate.counts(config, 16), estimate.counts(small(), 16)
    # Two columns more for G's first layer, two outputs more for D's last.
    assert number["generator"] - plain["generator"] == 2 * 16 * 16
    assert number["discriminator"] - plain["discriminator"] == 2 * (16 + 1)
    pictures = [estimate.disk_bytes(c, 1, 1, 1)["pictures"] for c in (config, small())]
    assert 2 * pictures[0] == pictures[1], "two rows instead of four"


@pytest.mark.parametrize("changes", [{}, CLASSES])
def test_a_rehearsal_has_every_part_of_the_real_thing(changes: dict[str, object]) -> None:
    config = small(**changes)
    with rehearsal.on_stage(config) as stage:
        extra = {"trace", "penalty_due"}
        assert vars(stage.actor).keys() - extra == vars(fresh(config)).keys()


def test_a_rehearsal_leaves_nothing_behind() -> None:
    threads = torch.get_num_threads()
    with rehearsal.on_stage(small()) as stage:
        stage.step(0, penalty=True)
        before = stage.trace.live_bytes
        stage.step(0, penalty=True)
        assert stage.trace.live_bytes == before, "a step keeps tensors"
    assert torch.get_num_threads() == threads
    assert type(torch.empty(1)) is torch.Tensor


def test_operations_of_the_discriminator_are_those_counted_by_hand() -> None:
    # 8 px, widths 16: rgb 1x1 (1 -> 16), two 3x3, the last conv (17 -> 16), dense 256 -> 16, out.
    config = small(final_px=8, start_px=8)
    macs = 64 * 16 + 64 * 16 * 16 * 9 * 2 + 16 * 17 * 16 * 9 + 256 * 16 + 16
    with rehearsal.on_stage(config) as stage:
        stage.trace.restart()
        stage.actor._logits(torch.empty(2, 1, 8, 8), config.growth_at(0))
        assert stage.trace.flops == 2 * 2 * macs


def test_parameters_are_those_of_the_networks() -> None:
    config = small(final_px=32)
    arguments = (32, 1, 8, 256, 16)
    number = estimate.counts(config, 8)
    for name, kind in (("generator", Generator), ("discriminator", Discriminator)):
        network = kind(*arguments)
        assert number[f"{name}_whole"] == sum(p.numel() for p in network.parameters())
        assert number[name] == sum(p.numel() for _, p in network.active_parameters(8))
        assert number[name] < number[f"{name}_whole"]


def test_the_parts_of_the_memory_add_up_and_grow_with_the_batch() -> None:
    base = 300 << 20
    memories = {n: memory_of(small(batch=n), base) for n in (8, 32)}
    for memory in memories.values():
        parts = ("weights", "average", "gradients", "optimiser", "activations")
        tensors = sum(getattr(memory, part) for part in parts)
        assert memory.training == base + tensors + memory.allocator + memory.batches
        assert memory.peak == max(memory.training, memory.scoring)
        assert memory.px == 16
        assert "penalty" in memory.phase
    small_batch, large_batch = memories[8].activations, memories[32].activations
    assert 3 * small_batch < large_batch < 4.1 * small_batch
    assert memories[8].gradients == memories[32].gradients


def test_the_heaviest_resolution_need_not_be_the_last() -> None:
    config = small(batch_by_px={8: 256, 16: 4}, batch=256)
    assert memory_of(config).px == 8


def test_zero_divides_the_optimiser_among_the_ranks() -> None:
    number = {"generator": 1000, "discriminator": 600}
    plain = estimate.engine_bytes(small(), number, 1)
    assert plain == {"gradients": 6400, "optimiser": 12800, "weights": 0}
    two = small(engine="deepspeed", zero_stage=2)
    # Two moments and a master copy, a quarter each.
    assert estimate.engine_bytes(two, number, 4)["optimiser"] == 3 * 6400 // 4
    three = small(engine="deepspeed", zero_stage=3)
    assert estimate.engine_bytes(three, number, 4)["weights"] == -3 * 4000 // 4


def test_a_ring_sends_twice_what_it_reduces_less_a_share() -> None:
    config = small()
    number = estimate.counts(config, 16)
    trained = number["generator"] + number["discriminator"]
    assert estimate.traffic_bytes(config, 16, 1) == 0
    assert estimate.traffic_bytes(config, 16, 2) == 4 * trained
    assert estimate.traffic_bytes(config, 16, 4) == 6 * trained
    at_three = small(engine="deepspeed", zero_stage=3)
    assert estimate.traffic_bytes(at_three, 16, 2) > 4 * trained


def test_a_checkpoint_has_the_bytes_of_the_state() -> None:
    config = small()
    algorithm = fresh(config)
    algorithm.step(noise(config, 8), 64)
    state = algorithm.state_dict()
    floats = sum(t.numel() * 4 for t in state.values() if t.ndim)
    disk = estimate.disk_bytes(config, checkpoints=3, pictures=10, rows=100)
    assert disk["checkpoint"] == floats
    assert disk["checkpoints"] == 4 * floats


def test_the_schedule_stops_where_the_run_stops() -> None:
    reached = rehearsal.reached(small(total_images=100))
    assert [(s.px, s.kind, s.first, s.end) for s in reached] == [
        (8, "stable", 0, 64),
        (16, "fade", 64, 96),
        (16, "stable", 96, 100),
    ]
    assert [px for px, _ in rehearsal.moments(small(total_images=64))] == [8]


@pytest.mark.skipif(not malloc_replay.available(), reason="no mallinfo2: the libc is not glibc's")
def test_a_replay_of_allocations_finds_the_hole() -> None:
    mib = 1 << 20
    grown = [(1, 100 * mib), (1, -1), (2, 100 * mib), (2, -1)]
    assert malloc_replay.peak_bytes(grown) == pytest.approx(100 * mib, rel=0.01)
    # Freed blocks below a live one cannot serve a larger one: 40 MiB of holes stay.
    blocks = [(n, mib // 10) for n in range(800)]
    freed = [(n, -1) for n in range(0, 800, 2)]
    holed = [*blocks, *freed, (800, 20 * mib)]
    assert malloc_replay.peak_bytes(holed) > 95 * mib


@pytest.mark.parametrize("px", [16, 64, 256])
def test_a_score_takes_what_its_arrays_take(px: int) -> None:
    import tracemalloc

    from medray import metrics

    generator = np.random.default_rng(0)
    tracemalloc.start()
    # As the snapshots hold them: twice as many real images, and the made ones.
    real = generator.integers(0, 256, (512, 1, px, px), np.uint8)[:256]
    made = generator.integers(0, 256, (256, 1, px, px), np.uint8)
    metrics.sliced_wasserstein(real, made, 0)
    metrics.top_octave_ratio(real, made)
    measured = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert estimate.score_bytes(small(final_px=px)) == pytest.approx(measured, rel=0.2)


def test_nothing_is_scored_below_16_px() -> None:
    assert estimate.score_bytes(small(final_px=8)) == 0


@pytest.mark.slow
def test_a_dry_run_reports_one_event_and_leaves_the_disk_as_it_was(tmp_path: Path) -> None:
    options = "--final-px 8 --fmap-base 64 --fmap-max 8 --latent-dims 8 --total-images 64 --batch 8"
    code = "import sys; from jobs.pggan import main; sys.exit(main())"
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "MEDRAY_CACHE_DIR": str(tmp_path / "cache"),
        "MEDRAY_RUNS_DIR": str(tmp_path / "runs"),
    }
    done = subprocess.run(
        [sys.executable, "-c", code, *options.split(), *"--precision fp32 --workers 2".split()]
        + ["--backend", "local", "--dry-run", "--json"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stderr.splitlines()]
    (plan,) = [event for event in events if event["event"] == "plan"]
    assert list(tmp_path.iterdir()) == []
    assert plan["config"]["final_px"] == 8
    assert [row["kind"] for row in plan["schedule"]] == ["stable", "fade", "stable"]
    assert all(row["step_is"] == "measured" for row in plan["schedule"])
    assert plan["duration_s"] > 0
    assert plan["memory_bytes"]["peak"] > plan["memory_bytes"]["base"] > 100 << 20
    assert plan["traffic_bytes_per_step"]["8"] > 0
    assert "configuration" in plan["text"] and "double backward" in plan["text"]
