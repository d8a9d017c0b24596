"""What a run of the progressive GAN takes: memory of a worker, traffic, disk, operations.

The tensors of a step come from `rehearsal`, the allocator's share from `malloc_replay`; the rest is
arithmetic on sizes. What a worker takes before it trains is measured by the caller and given in.

P is a network's number of trained parameters, W the number of ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from medray.train import malloc_replay, rehearsal
from medray.train.pggan_config import PgganConfig
from medray.train.rehearsal import Costs, Rehearsed
from medray.train.schedule import Stretch

FLOAT_BYTES = 4
# Prefetched batches, the one that is trained on and the one that is being filled.
BATCHES_HELD = 6
SCORED_IMAGES = 256
# Pixels that the scores of images take at once.
SCORE_PIXELS = 2**22
# Pictures of a grid: 8 columns by 4 rows (or a row a class), cells of at least 64 px.
GRID_COLUMNS, GRID_ROWS, CELL_PX = 8, 4, 64
ROW_BYTES = 400

Engine = Literal["torch", "deepspeed"]


@dataclass(frozen=True)
class Memory:
    """Most bytes of one worker, in parts that add up, and when that is.

    On a GPU `tensors` is the device's share and `host` what the worker takes besides.
    """

    px: int
    phase: str
    base: int
    weights: int
    average: int
    gradients: int
    optimiser: int
    activations: int
    allocator: int
    batches: int
    score: int

    @property
    def tensors(self) -> int:
        """Bytes of tensors at the peak."""
        fixed = self.weights + self.average + self.gradients + self.optimiser
        return fixed + self.activations

    @property
    def training(self) -> int:
        """Bytes of the worker at the peak of training."""
        return self.base + self.tensors + self.allocator + self.batches

    @property
    def scoring(self) -> int:
        """Bytes of rank 0 while it scores pictures, when activations are gone."""
        return self.base + self.tensors - self.activations + self.batches + self.score

    @property
    def peak(self) -> int:
        """Bytes of a worker that trains and scores on the CPU."""
        return max(self.training, self.scoring)

    @property
    def host(self) -> int:
        """Bytes outside the GPU where there is one."""
        return self.base + self.batches + self.score


def memory(
    config: PgganConfig,
    found: Rehearsed,
    *,
    base_bytes: int,
    workers: int = 1,
    size_px: int | None = None,
    bits: int = 8,
) -> Memory:
    """Peak memory of one of `workers` ranks; `base_bytes` is what it takes with a tiny network.

    `size_px` and `bits` are those of the data set; `found` is `rehearsal.rehearse` of the same.
    """
    tensors = {c.px: _tensor_bytes(config, c, workers) for c in found.costs}
    heaviest = max(found.costs, key=lambda c: sum(tensors[c.px].values()))
    most = max(c.with_penalty.peak_bytes for c in found.costs)
    return Memory(
        px=heaviest.px,
        phase=heaviest.with_penalty.phase,
        base=base_bytes,
        **tensors[heaviest.px],
        allocator=_allocator_bytes(found.events, most),
        batches=_batch_bytes(config, workers, size_px or config.final_px, bits),
        score=score_bytes(config),
    )


def _tensor_bytes(config: PgganConfig, costs: Costs, workers: int) -> dict[str, int]:
    """The tensors at the peak of a step, in parts, with the configured engine's state."""
    number = counts(config, costs.px)
    weights = FLOAT_BYTES * (number["generator_whole"] + number["discriminator_whole"])
    average = FLOAT_BYTES * number["generator_whole"]
    # The rehearsal's engines are torch's: one flat gradient and two moments a parameter.
    rehearsed = 3 * FLOAT_BYTES * (number["generator"] + number["discriminator"])
    state = engine_bytes(config, number, workers)
    return {
        "weights": weights + state["weights"],
        "average": average,
        "gradients": state["gradients"],
        "optimiser": state["optimiser"],
        "activations": costs.with_penalty.peak_bytes - weights - average - rehearsed,
    }


def _allocator_bytes(events: list[malloc_replay.Event], live_bytes: int) -> int:
    """Holes that malloc keeps beyond the live bytes (0 where it is not glibc's)."""
    if not malloc_replay.available():
        return 0
    return max(0, malloc_replay.peak_bytes(events) - live_bytes)


def counts(config: PgganConfig, px: int) -> dict[str, int]:
    """Parameters of G and D that train at `px`, and (`_whole`) those of all layers."""
    return rehearsal.parameters(config, px)


def engine_bytes(config: PgganConfig, number: dict[str, int], workers: int) -> dict[str, int]:
    """Bytes of gradients and optimiser state on one rank, and of weights above the networks' own.

    torch: a flat gradient P and two moments 2P. DeepSpeed keeps P of gradients and a bucket of P to
    send them; from ZeRO stage 1 on the moments and a float32 master copy are P / W each, and at
    stage 3 (the generator's alone) so are its weights.
    """
    total = {"gradients": 0, "optimiser": 0, "weights": 0}
    for network, stage in (
        ("generator", config.zero_stage),
        ("discriminator", min(2, config.zero_stage)),
    ):
        size = FLOAT_BYTES * number[network]
        part = -(-size // workers)
        sends = config.engine == "deepspeed" and (stage > 0 or workers > 1)
        total["gradients"] += size * (2 if sends else 1)
        total["optimiser"] += 3 * part if stage else 2 * size
        total["weights"] += part - size if stage == 3 else 0
    return total


def _batch_bytes(config: PgganConfig, workers: int, size_px: int, bits: int) -> int:
    images = max(config.batch_at(px) for px, _ in rehearsal.moments(config)) // workers
    return BATCHES_HELD * images * config.channels * size_px**2 * (bits // 8)


def score_bytes(config: PgganConfig) -> int:
    """Arrays of the scores of 256 made images: held pictures, patches, and work (no tensors).

    Held: twice as many real ones (the other half is the floor) and the made ones, as uint8. Patches
    of both sets, 12.25 MiB a level of the pyramid; the work is either their normalisation or the
    pyramid of 4 million pixels, 5.8 times these (read off `tracemalloc`).
    """
    if config.final_px < 16:
        return 0
    pixels = SCORED_IMAGES * config.final_px**2
    levels = config.final_px.bit_length() - 4
    work = max(18.4 * 2**20, 5.8 * FLOAT_BYTES * min(pixels, SCORE_PIXELS))
    return int(3 * config.channels * pixels + 12.25 * 2**20 * levels + work)


# --- traffic, disk, operations ----------------------------------------------------------------


def traffic_bytes(config: PgganConfig, px: int, workers: int) -> int:
    """Bytes that one rank sends in a step at `px`: a ring sends 2 (W - 1) / W of what it reduces.

    A reduce-scatter with an all-gather (ZeRO 1 and 2) sends as much. At stage 3 the generator's
    weights are gathered for D's fakes, for its own pass there and back, and for the average.
    """
    number = counts(config, px)
    share = (workers - 1) / workers
    reduced = 2 * (number["generator"] + number["discriminator"])
    if config.zero_stage == 3:
        # Scattered once instead of reduced, gathered four times.
        reduced += (1 + 4 - 2) * number["generator"]
    return int(FLOAT_BYTES * share * reduced)


def disk_bytes(config: PgganConfig, checkpoints: int, pictures: int, rows: int) -> dict[str, int]:
    """Bytes at the end; one checkpoint more than are kept, and pictures at their largest."""
    number = counts(config, config.growth_at(config.total_images).px)
    networks = 2 * number["generator_whole"] + number["discriminator_whole"]
    moments = 2 * (number["generator"] + number["discriminator"])
    cell_px = max(CELL_PX, config.final_px)
    cells = GRID_COLUMNS * (len(config.class_names) if config.conditional else GRID_ROWS)
    return {
        "checkpoint": FLOAT_BYTES * (networks + moments),
        "checkpoints": (checkpoints + 1) * FLOAT_BYTES * (networks + moments),
        "pictures": (pictures + 2) * cells * config.channels * cell_px**2,
        "model": FLOAT_BYTES * number["generator_whole"],
        "rows": rows * ROW_BYTES,
    }


def penalty_every(config: PgganConfig) -> int:
    """Steps of which one carries the penalty."""
    return config.r1_every if config.loss == "r1" else 1


def flops(config: PgganConfig, found: list[Costs]) -> float:
    """Operations of the whole run on one rank (a multiply-add counts as two)."""
    by_px = {c.px: c.mean_flops(penalty_every(config)) for c in found}
    return sum(by_px[s.px] * steps(config, s) for s in rehearsal.reached(config))


def steps(config: PgganConfig, stretch: Stretch) -> int:
    """Steps of a stretch of `rehearsal.reached`."""
    assert stretch.end is not None, "an open stretch has no number of steps"
    return -(-(stretch.end - stretch.first) // config.batch_at(stretch.px))
