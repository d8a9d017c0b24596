"""`medray pggan --dry-run`: configuration, placement, schedule, and what the run would take.

Nothing is written and no Ray is started. Memory, traffic, disk and operations are reckoned
(`medray.train.estimate`); what a worker takes before it trains and the time of a step are measured
in a process of their own, on this machine's CPU.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from jobs import _pggan_probe
from jobs.pggan import PgganJob
from medray import config as configuration
from medray import log
from medray.store import Store
from medray.train import estimate, rehearsal
from medray.train.estimate import Memory
from medray.train.rehearsal import Costs

RATES_BUDGET_S = 20.0
PARTS = {
    "base": "interpreter and libraries (measured here)",
    "weights": "weights of G and D",
    "average": "averaged G",
    "gradients": "gradients",
    "optimiser": "Adam",
    "activations": "activations, double backward included",
    "allocator": "holes that malloc keeps",
    "batches": "data batches",
}


def describe(config: PgganJob) -> None:
    """Reports the plan of a resolved configuration: text for people, one event with --json."""
    plan = make(config)
    log.event("plan", text(config, plan), **fields(config, plan))


@dataclass(frozen=True)
class Plan:
    """What is known of a run before it: costs by resolution, memory, measured seconds."""

    precision: str
    costs: list[Costs]
    memory: Memory
    seconds: dict[int, tuple[float, float]]

    @property
    def rate(self) -> float | None:
        """Seconds an operation took at the highest resolution that was measured."""
        if not self.seconds:
            return None
        px = max(self.seconds)
        costs = next(c for c in self.costs if c.px == px)
        return sum(self.seconds[px]) / (costs.with_penalty.flops + costs.plain.flops)

    def step_s(self, px: int, every: int) -> float | None:
        """Seconds of a mean step at `px`: measured, else from operations at the measured rate."""
        if px in self.seconds:
            with_penalty, plain = self.seconds[px]
            return plain + (with_penalty - plain) / every
        costs = next(c for c in self.costs if c.px == px)
        return None if self.rate is None else costs.mean_flops(every) * self.rate


def make(config: PgganJob, budget_s: float = RATES_BUDGET_S) -> Plan:
    """Rehearses the steps, measures what is to be measured (at most about `budget_s` of steps)."""
    config, note = _settled(config)
    size_px, bits = _data_form(config)
    found = rehearsal.rehearse(config, config.workers, size_px)
    on_cpu = config.gpus_per_worker == 0
    images = dict(rehearsal.moments(config))
    moments = [
        {
            "px": c.px,
            "images": images[c.px],
            "count": c.images,
            "flops": 2 * (c.with_penalty.flops + c.plain.flops),
        }
        for c in found.costs
    ]
    # A worker holds most where they are fewest.
    fewest = config.worlds[0]
    fullest = rehearsal.rehearse(config, fewest, size_px) if fewest < config.workers else found
    probed = _pggan_probe.measure(config, moments if on_cpu and budget_s > 0 else [], budget_s)
    memory = estimate.memory(
        config,
        fullest,
        base_bytes=probed["base_bytes"],
        workers=fewest,
        size_px=size_px,
        bits=bits,
    )
    return Plan(note, found.costs, memory, probed["seconds"])


def _settled(config: PgganJob) -> tuple[PgganJob, str]:
    """The configuration with a precision to reckon with, and how that came about."""
    if config.precision != "auto":
        return config, config.precision
    if config.gpus_per_worker > 0:
        update = {"precision": "fp32"}
        return config.model_copy(update=update), "auto: measured on the GPU; reckoned as fp32"
    import torch

    from medray.train import precision

    chosen = precision.measure(config, torch.device("cpu"))
    name = "bf16" if chosen["fp32"] > precision.WORTH * chosen["bf16"] else "fp32"
    return config.model_copy(update={"precision": name}), f"auto: {name}, measured here"


def _data_form(config: PgganJob) -> tuple[int, int]:
    """Pixels a side and bits of the images to train on; phantoms are made as they are needed."""
    if not config.data:
        return config.final_px, 8
    from medray.shards import read_index

    indices = [read_index(Store(url)) for url in config.data]
    return max(i.size_px for i in indices), max(i.bits for i in indices)


# --- the report -------------------------------------------------------------------------------


def schedule(config: PgganJob, plan: Plan) -> list[dict[str, Any]]:
    """One row a stretch: resolution, kind, images, batch, steps, learning rate, seconds."""
    every = estimate.penalty_every(config)
    rows = []
    for stretch in rehearsal.reached(config):
        steps, step_s = estimate.steps(config, stretch), plan.step_s(stretch.px, every)
        rows.append(
            {
                "px": stretch.px,
                "kind": stretch.kind,
                "first_image": stretch.first,
                "images": (stretch.end or config.total_images) - stretch.first,
                "batch": config.batch_at(stretch.px),
                "lr": config.lr_at(stretch.px),
                "steps": steps,
                "step_s": step_s,
                "step_is": "measured" if stretch.px in plan.seconds else "reckoned",
                "duration_s": None if step_s is None else steps * step_s,
            }
        )
    return rows


def fields(config: PgganJob, plan: Plan) -> dict[str, Any]:
    """The plan as plain values, for the JSON event."""
    rows = schedule(config, plan)
    px = rows[-1]["px"]
    durations = [row["duration_s"] for row in rows]
    return {
        "config": config.model_dump(mode="json"),
        "precision": plan.precision,
        "placement": _placement(config),
        "schedule": rows,
        "parameters": estimate.counts(config, px),
        "memory_bytes": asdict(plan.memory) | {"peak": plan.memory.peak},
        "traffic_bytes_per_step": {
            str(c.px): estimate.traffic_bytes(config, c.px, config.workers) for c in plan.costs
        },
        "disk_bytes": _disk(config),
        "flops_per_rank": estimate.flops(config, plan.costs),
        "duration_s": None if None in durations else sum(durations),
    }


def _placement(config: PgganJob) -> dict[str, Any]:
    names = (
        "backend",
        "workers",
        "cpus_per_worker",
        "gpus_per_worker",
        "threads_per_worker",
        "loader_threads",
        "engine",
        "zero_stage",
    )
    return {name: getattr(config, name) for name in names}


def _disk(config: PgganJob) -> dict[str, int]:
    pictures = config.total_images // (config.snapshot_images or config.batch) + 1
    rows = config.total_images // (config.log_images or config.batch) + 1
    kept = config.keep_last + config.keep_best
    return estimate.disk_bytes(config, kept, pictures, rows + pictures)


def text(config: PgganJob, plan: Plan) -> str:
    """The plan for people."""
    where = _placement(config)
    parts = [
        _block("configuration", configuration.to_yaml(config).splitlines()),
        _block("placement", [", ".join(f"{name} {value}" for name, value in where.items())]),
        _block("precision", [plan.precision]),
        _block("schedule", _schedule_lines(schedule(config, plan))),
        _block("parameters", _parameter_lines(config, plan)),
        _block(_memory_title(config), _memory_lines(config, plan.memory)),
        _block("sent by a rank in a step", _traffic_lines(config, plan)),
        _block("disk", _disk_lines(config)),
        _block("time", _time_lines(config, plan)),
    ]
    return "\n".join(parts)


def _block(title: str, lines: list[str]) -> str:
    return "\n".join([title, *(f"  {line}" for line in lines)])


def _schedule_lines(rows: list[dict[str, Any]]) -> list[str]:
    head = f"{'px':>5} {'kind':6} {'images':>12} {'batch':>6} {'lr':>8} {'steps':>9} {'s/step':>8}"
    return [head] + [
        f"{row['px']:5} {row['kind']:6} {row['images']:12,} {row['batch']:6} {row['lr']:8.4f} "
        f"{row['steps']:9,} {_step(row)}"
        for row in rows
    ]


def _step(row: dict[str, Any]) -> str:
    if row["step_s"] is None:
        return f"{'?':>8}"
    return f"{row['step_s']:8.3f}" + ("" if row["step_is"] == "measured" else " reckoned")


def _parameter_lines(config: PgganJob, plan: Plan) -> list[str]:
    px = plan.costs[-1].px
    number = estimate.counts(config, px)
    return [
        f"{name} {number[name]:,} at {px} px, {number[name + '_whole']:,} in all"
        for name in ("generator", "discriminator")
    ]


def _memory_title(config: PgganJob) -> str:
    fewest = config.worlds[0]
    when = f", where there are {fewest}" if fewest < config.workers else ""
    return f"memory of a worker at its peak{when}"


def _memory_lines(config: PgganJob, memory: Memory) -> list[str]:
    values = asdict(memory)
    # malloc does not hold the tensors of a GPU.
    shown = {n: what for n, what in PARTS.items() if n != "allocator" or not config.gpus_per_worker}
    lines = [f"{_size(values[name]):>9}  {what}" for name, what in shown.items()]
    when = f"at {memory.px} px, phase {memory.phase}"
    if config.gpus_per_worker > 0:
        on_gpu = f"{_size(memory.tensors):>9}  on the GPU, {when}; its context comes on top"
        on_host = f"{_size(memory.host):>9}  on the host, rank 0 while it scores pictures"
        return [*lines, on_gpu, on_host]
    if memory.scoring > memory.training:
        when = "rank 0 while it scores pictures"
        lines.append(f"{_size(memory.score):>9}  score (in place of the activations)")
    return [*lines, f"{_size(memory.peak):>9}  in all, {when}"]


def _traffic_lines(config: PgganJob, plan: Plan) -> list[str]:
    if config.workers == 1:
        return ["nothing: one worker"]
    sent = {c.px: estimate.traffic_bytes(config, c.px, config.workers) for c in plan.costs}
    return [f"{px:5} px {_size(count):>9}" for px, count in sent.items()]


def _disk_lines(config: PgganJob) -> list[str]:
    disk = _disk(config)
    kept = config.keep_last + config.keep_best + 1
    total = sum(size for name, size in disk.items() if name != "checkpoint")
    return [
        f"{_size(disk['checkpoints']):>9}  {kept} checkpoints of {_size(disk['checkpoint'])}, "
        "one of them while the next is written",
        f"{_size(disk['pictures']):>9}  pictures, at most",
        f"{_size(disk['model'] + disk['rows']):>9}  model and rows",
        f"{_size(total):>9}  in all",
    ]


def _time_lines(config: PgganJob, plan: Plan) -> list[str]:
    work = f"{estimate.flops(config, plan.costs):.3g} operations a rank"
    if plan.rate is None:
        why = "a GPU is asked for" if config.gpus_per_worker else "a step takes too long"
        return [f"{work}; not measured: {why}"]
    rows = schedule(config, plan)
    total = sum(row["duration_s"] for row in rows)
    measured = ", ".join(str(px) for px in sorted(plan.seconds))
    return [
        f"{work}; about {log.duration(total)} in steps alone, one rank on its own here",
        f"measured at {measured} px; {1e-9 / plan.rate:.0f} GFLOP/s at the highest of them",
    ]


def _size(count: int) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if abs(count) >= size:
            return f"{count / size:.2f} {unit}" if unit == "GiB" else f"{count / size:.1f} {unit}"
    return f"{count / 1024:.1f} KiB"
