"""How long a run of the progressive GAN takes on N GPUs: a model with few, named constants.

A step is the GPU's work on its images, or the launches of that work where they take longer; what
of the two all-reduces is not hidden behind it; and a wait where the store gives too few bytes. A
run is its steps and its checkpoints. Operations, bytes and the schedule come from `estimate`; what
a machine does per second is in `Machine`, measured or cited. G's all-reduce is waited for; D's is
hidden behind the pass that makes G's images.

P is a network's number of trained parameters, W the number of GPUs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from medray.errors import UsageError
from medray.train import estimate, rehearsal
from medray.train.pggan_config import PgganConfig
from medray.train.rehearsal import Costs

# Share of a step that makes G's images, which D's all-reduce is hidden behind: one forward pass of
# the 12.4 that a step with R1 every 16 comes to.
AHEAD = 1 / 12.4
DAY_S = 86_400.0


@dataclass(frozen=True)
class Machine:
    """What one node does per second.

    `flops_s`: operations a GPU reaches in a step, `launch_s`: seconds that its launches take, both
    by resolution (the nearest below stands in for one that is not there). `link_bytes_s` and
    `network_bytes_s`: what an all-reduce moves per GPU inside a node, and per node between nodes,
    as nccl-tests counts (bus bandwidth). `latency_s`: of an all-reduce, per doubling of GPUs.
    """

    name: str
    gpus: int
    flops_s: Mapping[int, float]
    launch_s: Mapping[int, float] = field(default_factory=dict)
    link_bytes_s: float = 1e11
    network_bytes_s: float = 1e10
    latency_s: float = 20e-6
    store_bytes_s: float = 1e9

    def compute_s(self, px: int, flops: float) -> float:
        """Seconds of so many operations of a step at a resolution."""
        return max(flops / _at(self.flops_s, px), _at(self.launch_s, px))


def _at(by_px: Mapping[int, float], px: int) -> float:
    known = sorted(by_px)
    below = [r for r in known if r <= px] or known[:1]
    return by_px[below[-1]] if below else 0.0


@dataclass(frozen=True)
class Step:
    """Seconds of a step at a resolution, in parts."""

    px: int
    images_per_gpu: float
    compute_s: float
    launched_s: float
    reduce_s: float
    exposed_s: float
    wait_s: float

    @property
    def seconds(self) -> float:
        """All of it; `launched_s` is what of the first part the GPU waits for its launches."""
        return self.compute_s + self.exposed_s + self.wait_s


@dataclass(frozen=True)
class Prediction:
    """A run on `gpus` GPUs: its seconds in parts, and the step at its last resolution."""

    gpus: int
    compute_s: float
    exposed_s: float
    wait_s: float
    checkpoint_s: float
    last: Step

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.compute_s + self.exposed_s + self.wait_s + self.checkpoint_s

    @property
    def days(self) -> float:
        """All of it, in days."""
        return self.seconds / DAY_S

    @property
    def gpu_hours(self) -> float:
        """GPUs times hours."""
        return self.gpus * self.seconds / 3600


def costs_of(config: PgganConfig) -> list[Costs]:
    """The operations of a step at every resolution, of the whole batch."""
    return rehearsal.rehearse(config, 1).costs


def predict(
    config: PgganConfig,
    costs: list[Costs],
    machine: Machine,
    gpus: int,
    *,
    checkpoint_images: int | None = None,
    bytes_per_pixel: float = 1.0,
) -> Prediction:
    """The run of a configuration on so many GPUs.

    The global batch is the configuration's: UsageError where it has fewer images than GPUs.
    """
    by_px = {c.px: step(config, c, machine, gpus, bytes_per_pixel) for c in costs}
    parts = {"compute_s": 0.0, "exposed_s": 0.0, "wait_s": 0.0}
    for stretch in rehearsal.reached(config):
        count = estimate.steps(config, stretch)
        for name in parts:
            parts[name] += count * float(getattr(by_px[stretch.px], name))
    every = checkpoint_images or config.total_images
    size = estimate.disk_bytes(config, 1, 0, 0)["checkpoint"]
    saved_s = config.total_images / every * size / machine.store_bytes_s
    return Prediction(gpus, **parts, checkpoint_s=saved_s, last=by_px[max(by_px)])


def step(
    config: PgganConfig, costs: Costs, machine: Machine, gpus: int, bytes_per_pixel: float = 1.0
) -> Step:
    """A mean step at the resolution of `costs`."""
    px, batch = costs.px, config.batch_at(costs.px)
    images = batch / gpus
    if images < 1:
        raise UsageError(
            f"{gpus} GPUs, and a batch of {batch} images at {px} px: some would have none",
            hint=f"at most {batch} GPUs, or a greater --batch, which is another training",
        )
    flops = costs.mean_flops(estimate.penalty_every(config)) / costs.images
    compute_s = machine.compute_s(px, images * flops)
    launched_s = compute_s - images * flops / _at(machine.flops_s, px)
    number = estimate.counts(config, px)
    of_g, of_d = (
        reduce_s(machine, gpus, estimate.FLOAT_BYTES * number[name])
        for name in ("generator", "discriminator")
    )
    exposed_s = of_g + max(0.0, of_d - AHEAD * compute_s)
    # Batches are fetched ahead: only what the store is slower than the step is waited for.
    on_node = min(gpus, machine.gpus) * images * config.channels * config.final_px**2
    read_s = on_node * bytes_per_pixel / machine.store_bytes_s
    wait_s = max(0.0, read_s - compute_s - exposed_s)
    return Step(px, images, compute_s, launched_s, of_g + of_d, exposed_s, wait_s)


def reduce_s(machine: Machine, gpus: int, size_bytes: int) -> float:
    """Seconds of an all-reduce: a ring moves 2 (W - 1) / W of the bytes over its slowest link."""
    if gpus == 1:
        return 0.0
    inside = gpus <= machine.gpus
    bytes_s = machine.link_bytes_s if inside else machine.network_bytes_s
    return 2 * (gpus - 1) / gpus * size_bytes / bytes_s + machine.latency_s * gpus.bit_length()


def fitted(config: PgganConfig, costs: list[Costs], machine: Machine, seconds: float) -> Machine:
    """The machine with the one rate at which a single GPU takes so many seconds for the run."""
    least = min(c.px for c in costs)
    at_one = replace(machine, flops_s={least: 1.0}, launch_s={})
    operations = predict(config, costs, at_one, 1).compute_s
    return replace(machine, flops_s={least: operations / seconds}, launch_s={})


def limit(prediction: Prediction) -> str:
    """What a last-resolution step waits for most beside the GPU's own work, by name."""
    last = prediction.last
    parts = {"launches": last.launched_s, "all-reduce": last.exposed_s, "store": last.wait_s}
    name = max(parts, key=lambda part: parts[part])
    return name if parts[name] > 0.05 * last.seconds else "the GPU"
