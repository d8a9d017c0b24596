"""What a step of the progressive GAN takes, without doing it: bytes of tensors, and operations.

Both are read off the algorithm's own step, run on tensors without contents: every storage is
counted from its making to its end, so the double backward pass of a penalty, the fade and whatever
else the step does are in it. Nothing here is fitted to a measurement.

Shape letters: N images of one rank, L latent dimensions.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from medray.dist.context import Context
from medray.dist.engine import Engine, make_engine
from medray.models.pggan import Discriminator, Generator, Network
from medray.records import Batch
from medray.train import malloc_replay
from medray.train.conditioning import Conditioning
from medray.train.pggan import BETAS, EPSILON, Pggan, StepInputs
from medray.train.pggan_config import PgganConfig
from medray.train.schedule import Stretch

if TYPE_CHECKING:
    from numpy.typing import NDArray

N = TypeVar("N", Generator, Discriminator)


class Trace(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of every live storage made inside the block, and keeps their order.

    And operations: torch's own counter cannot be used with `torch.autograd.grad`.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.phase = ""
        self.live_bytes = self.peak_bytes = self.flops = 0
        self.peak_phase = ""
        self.events: list[malloc_replay.Event] = []
        self._live: dict[int, tuple[int, int]] = {}
        self._made = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            self._note(tensor.untyped_storage())
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.flops += count(*args, **(kwargs or {}), out_val=result)
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._live:
            return
        size = storage.nbytes()
        self._made += 1
        self._live[key] = (self._made, size)
        self.events.append((self._made, size))
        self.live_bytes += size
        if self.live_bytes > self.peak_bytes:
            self.peak_bytes, self.peak_phase = self.live_bytes, self.phase
        weakref.finalize(storage, self._end, key).atexit = False

    def _end(self, key: int) -> None:
        number, size = self._live.pop(key)
        self.events.append((number, -1))
        self.live_bytes -= size

    def restart(self) -> None:
        """Forgets the peak and the operations so far."""
        self.peak_bytes, self.flops = self.live_bytes, 0


def _tensors(result: Any) -> Iterator[Tensor]:
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, tuple | list):
        for part in result:
            yield from _tensors(part)


class Rehearsal(Pggan):
    """The algorithm on tensors without contents: as `Pggan`, but nothing is drawn or sent.

    It stands for one rank. Engines are torch's, whatever is configured: see `engine_bytes`.
    """

    def __init__(self, config: PgganConfig, trace: Trace) -> None:
        alone = Context(
            0, 1, 0, torch.device("cpu"), threads_per_rank=max(1, torch.get_num_threads())
        )
        self.config, self.context, self.trace = config, alone, trace
        self.penalty_due = False
        self.conditioning = Conditioning(config) if config.conditional else None
        self.discriminator = self._network(Discriminator)
        self.generator = self._network(Generator)
        self.average = self._network(Generator).requires_grad_(False)
        self._enter(config.start_px)

    def _network(self, kind: type[N]) -> N:
        c = self.config
        network = kind(**c.network_arguments())
        network.compute_dtype = torch.bfloat16 if c.precision == "bf16" else torch.float32
        return network

    def _engine(self, network: Network, zero_stage: int) -> Engine:
        parameters = network.active_parameters(self.px)
        return make_engine(
            "torch", network, parameters, self.context, lr=1.0, betas=BETAS, eps=EPSILON
        )

    def _latents(self, phase: str, numbers_N: NDArray[np.int64]) -> tuple[Tensor, Tensor | None]:
        images, c = len(numbers_N), self.config
        classes_N = torch.empty(images, dtype=torch.int64) if c.conditional else None
        return torch.empty(images, c.latent_dims + len(c.class_names)), classes_N

    def _classes(self, batch: Batch) -> Tensor | None:
        return torch.empty(len(batch.keys), dtype=torch.int64) if self.config.conditional else None

    def _draw(self, stream: str, numbers_N: NDArray[np.int64], count: int) -> Tensor:
        return torch.empty(len(numbers_N), count)

    def _device(self, array: NDArray[np.generic]) -> Tensor:
        return torch.empty(array.shape, dtype=torch.uint8)

    def _r1_weight(self, images: int, batch_images: int, px: int) -> float:
        return float(self.config.loss == "r1" and self.penalty_due)

    def _loss_d(self, inputs: StepInputs) -> tuple[Tensor, dict[str, Tensor]]:
        penalised = self.penalty_due or self.config.loss == "wgan-gp"
        self.trace.phase = "D with its penalty" if penalised else "D"
        return super()._loss_d(inputs)

    def _ahead_g(self, inputs: StepInputs) -> StepInputs:
        self.trace.phase = "G"
        return super()._ahead_g(inputs)

    def _loss_g(self, inputs: StepInputs) -> tuple[Tensor, dict[str, Tensor]]:
        self.trace.phase = "G"
        return super()._loss_g(inputs)


@dataclass(frozen=True)
class Step:
    """What one step takes on one rank: most bytes of tensors, and multiply-adds times two."""

    peak_bytes: int
    phase: str
    flops: int


@dataclass(frozen=True)
class Costs:
    """One step at a resolution, with the penalty and without, `images` on this rank."""

    px: int
    images: int
    with_penalty: Step
    plain: Step

    def mean_flops(self, penalty_every: int) -> float:
        """Operations of a step, the mean over the rhythm of the penalty."""
        extra = self.with_penalty.flops - self.plain.flops
        return self.plain.flops + extra / penalty_every


class Stage:
    """A rehearsal that can be taken to any image number; use it inside `on_stage`."""

    def __init__(self, config: PgganConfig, workers: int, size_px: int) -> None:
        self.config, self.workers, self.size_px = config, workers, size_px
        self.trace = Trace()

    def enter(self) -> None:
        """Makes the networks; the modes of `on_stage` are on."""
        self.actor = Rehearsal(self.config, self.trace)

    def step(self, images: int, *, penalty: bool) -> Step:
        """One step `images` images into the run."""
        px = self.config.growth_at(images).px
        count = self.config.batch_at(px) // self.workers
        self.actor.penalty_due = penalty
        self.trace.restart()
        self.actor.step(_blank(count, self.config.channels, self.size_px), images)
        return Step(self.trace.peak_bytes, self.trace.peak_phase, self.trace.flops)


def _blank(count: int, channels: int, size_px: int) -> Batch:
    # Memory that is never touched, so never taken.
    images_NCHW = np.empty((count, channels, size_px, size_px), np.uint8)
    return Batch(
        keys=("",) * count,
        images_NCHW=images_NCHW,
        labels_N=np.empty(count, np.int64),
        records=(),
        first_index=0,
        masks_NHW=None,
    )


@contextlib.contextmanager
def on_stage(config: PgganConfig, workers: int = 1, size_px: int | None = None) -> Iterator[Stage]:
    """A rehearsal of `config` (precision resolved) on one of `workers` ranks."""
    stage = Stage(config, workers, size_px or config.final_px)
    threads = torch.get_num_threads()
    with FakeTensorMode(), stage.trace:
        stage.enter()
        yield stage
    torch.set_num_threads(threads)


def moments(config: PgganConfig) -> list[tuple[int, int]]:
    """(px, images) of the first step at each resolution that the run reaches: the fade, if any."""
    first: dict[int, int] = {}
    for stretch in reached(config):
        first.setdefault(stretch.px, stretch.first)
    return list(first.items())


def reached(config: PgganConfig) -> list[Stretch]:
    """The stretches of the schedule that lie within `total_images`, the last one cut there."""
    total = config.total_images
    return [
        Stretch(s.px, s.kind, s.first, min(s.end or total, total))
        for s in config.plan()
        if s.first < total
    ]


@dataclass(frozen=True)
class Rehearsed:
    """What a step takes at each resolution that the run reaches, and all allocations in order."""

    costs: list[Costs]
    events: list[malloc_replay.Event]


def rehearse(config: PgganConfig, workers: int = 1, size_px: int | None = None) -> Rehearsed:
    """Grows through the resolutions on one of `workers` ranks; Adam's state is there at the peaks.

    `config` has its precision resolved; `size_px` is the data set's, else the final resolution.
    """
    found = []
    with on_stage(config, workers, size_px) as stage:
        for px, images in moments(config):
            stage.step(images, penalty=True)
            plain = stage.step(images, penalty=False)
            with_penalty = stage.step(images, penalty=True)
            found.append(Costs(px, config.batch_at(px) // workers, with_penalty, plain))
        events = list(stage.trace.events)
    return Rehearsed(found, events)


def parameters(config: PgganConfig, px: int) -> dict[str, int]:
    """Number of parameters of G and D that train at `px`, and (`_whole`) those of all layers."""
    arguments = config.network_arguments()
    with torch.device("meta"):
        networks: dict[str, Network] = {
            "generator": Generator(**arguments),
            "discriminator": Discriminator(**arguments),
        }
    found = {}
    for name, network in networks.items():
        found[name] = sum(p.numel() for _, p in network.active_parameters(px))
        found[f"{name}_whole"] = sum(p.numel() for p in network.parameters())
    return found
