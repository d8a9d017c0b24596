"""Where a worker stands among the ranks: rank, size, device, collectives, reports, reasons to stop.

The same object whether Ray Train, torchrun or nobody started the process, so what is built on it
does not know which. Collectives run over gloo, or nccl where the rank has a GPU. A group whose
ranks all live on one machine meets in a file and talks over loopback: no port is open beyond it.
Threads per rank are set here and nowhere else, because they change the bits of a result.
"""

from __future__ import annotations

import dataclasses
import os
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

from medray.dist import _network, _stop
from medray.errors import ResourceError, UsageError

if TYPE_CHECKING:
    import torch

Worker = Callable[["Context", dict[str, Any]], Any]
Backend = Literal["ray", "torchrun", "local"]

# Longer than any checkpoint takes on rank 0 while the others wait in a barrier.
COLLECTIVE_TIMEOUT_S = 600
PREEMPTION_POLL_S = 5.0
REPORT_S = 5.0
# A group of changing size that has no room for so long was counted on machines that are gone.
ROOM_S = 20.0


@dataclasses.dataclass
class RaySide:
    """What only a worker of Ray Train has: reports and the preemption notice (both collective).

    `tell` is this rank's own way of telling a row, to Prometheus.
    """

    report: Callable[[dict[str, Any]], None]
    preemption: Callable[[], str | None]
    tell: Callable[[dict[str, Any]], None] = lambda row: None
    poll_at_s: float = 0.0
    report_at_s: float = 0.0


class Context:
    """One rank among `world`: collectives, reports and reasons to stop.

    `ray` is set in a worker of Ray Train. Methods called collective must be reached by every rank.
    """

    def __init__(
        self,
        rank: int,
        world: int,
        local_rank: int,
        device: torch.device,
        *,
        threads_per_rank: int,
        ray: RaySide | None = None,
        on_close: Sequence[Callable[[], None]] = (),
    ) -> None:
        import torch

        self.rank, self.world, self.local_rank, self.device = rank, world, local_rank, device
        self.threads_per_rank = threads_per_rank
        self._ray = ray
        self._on_close = list(on_close)
        torch.set_num_threads(threads_per_rank)
        if device.type == "cuda":
            torch.cuda.set_device(device)

    def all_reduce_mean_(self, flat: torch.Tensor) -> torch.Tensor:
        """Replaces `flat` on every rank by its mean over the ranks (collective)."""
        self.start_mean_(flat)()
        return flat

    def start_mean_(self, flat: torch.Tensor) -> Callable[[], None]:
        """Sends `flat` off; the function returned ends its replacement by the mean (collective).

        Until then `flat` must be left alone, and other work may go on.
        """
        if self.world == 1:
            return _nothing
        import torch.distributed as dist

        work = dist.all_reduce(flat, async_op=True)

        def end() -> None:
            work.wait()
            flat.div_(self.world)

        return end

    def broadcast_(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replaces `tensors` on every rank by rank 0's, one message per dtype (collective)."""
        if self.world == 1:
            return
        import torch
        import torch.distributed as dist

        for dtype in sorted({tensor.dtype for tensor in tensors}, key=str):
            group = [tensor.detach() for tensor in tensors if tensor.dtype == dtype]
            flat = torch.cat([tensor.reshape(-1) for tensor in group])
            dist.broadcast(flat, src=0)
            parts = torch.split(flat, [tensor.numel() for tensor in group])
            for tensor, part in zip(group, parts, strict=True):
                tensor.copy_(part.view(tensor.shape))

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true on any rank (collective)."""
        return bool(self._maximum([int(flag)])[0])

    def _maximum(self, values: list[int]) -> list[int]:
        if self.world == 1:
            return values
        import torch
        import torch.distributed as dist

        tensor = torch.tensor(values, device=self.device)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return [int(value) for value in tensor.tolist()]

    def gather(self, value: Any) -> list[Any]:
        """Every rank's `value`, in rank order, on every rank (collective)."""
        if self.world == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def ensure_group(self) -> None:
        """Makes a process group of one where a single process has none, for libraries that ask."""
        import torch.distributed as dist

        if not dist.is_initialized():
            meeting = f"file://{tempfile.mkdtemp(prefix='medray-')}/rendezvous"
            nccl = self.device.type == "cuda"
            join_group(self.rank, self.world, meeting, nccl=nccl, one_machine=True)
            self._on_close.append(leave_group)

    def barrier(self) -> None:
        """Returns once every rank is here (collective)."""
        self._maximum([0])

    def report(self, metrics: dict[str, Any]) -> None:
        """Gives metrics to Ray Train, where there is one (collective there).

        Its controller takes one report of each rank every two seconds, and the next one waits for
        that: they are sent as rarely as rank 0's clock says. Prometheus is told all of them.
        """
        if self._ray is None:
            return
        self._ray.tell(metrics)
        now_s = time.monotonic()
        if self.any(self.rank == 0 and now_s >= self._ray.report_at_s):
            self._ray.report_at_s = now_s + REPORT_S
            self._ray.report(metrics)

    def stop_reason(self) -> str | None:
        """Why this rank was asked to stop, or None; local and free."""
        return _stop.reason()

    def agree_to_stop(self) -> str | None:
        """The reason to stop that any rank has, the same on every rank, or None (collective).

        One all-reduce of two integers; Ray's preemption notice, itself a meeting of all ranks, is
        asked for only when rank 0's clock says so.
        """
        stop, poll = self._maximum([int(_stop.reason() is not None), int(self._should_poll())])
        if poll and self._ray is not None and (notice := self._ray.preemption()):
            _stop.request(notice)
            stop = 1
        if not stop:
            return None
        reasons: list[str | None] = self.gather(_stop.reason())
        agreed = next(reason for reason in reasons if reason)
        # What the rank does after its stop goes by the reason: it must know it.
        _stop.request(agreed)
        return agreed

    def _should_poll(self) -> bool:
        if self._ray is None or self.rank != 0 or time.monotonic() < self._ray.poll_at_s:
            return False
        self._ray.poll_at_s = time.monotonic() + PREEMPTION_POLL_S
        return True

    def close(self) -> None:
        """Leaves the process group and gives the signal handler back."""
        while self._on_close:
            self._on_close.pop()()


def _nothing() -> None:
    """The end of what was done at once."""


def threads_for(workers: int) -> int:
    """Threads per rank unless given: this machine's cores shared by its ranks, at least 1."""
    return max(1, len(os.sched_getaffinity(0)) // max(1, workers))


def choose_device(local_rank: int, gpus_per_worker: float) -> torch.device:
    """This rank's device; ResourceError where GPUs are asked for and too few are visible."""
    import torch

    if gpus_per_worker <= 0:
        return torch.device("cpu")
    visible = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if visible <= local_rank:
        raise ResourceError(
            f"rank {local_rank} of this machine needs a GPU, torch sees {visible}",
            hint="ask for --gpus-per-worker 0 or install a driver and a CUDA build of torch",
        )
    return torch.device("cuda", local_rank)


def join_group(rank: int, world: int, init_method: str, *, nccl: bool, one_machine: bool) -> None:
    """Joins torch's process group; on one machine over loopback alone.

    Between machines gloo takes the interface that reaches the meeting point, unless
    GLOO_SOCKET_IFNAME names another.
    """
    import torch.distributed as dist

    if one_machine:
        loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
        os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = loopback
    elif reaching := _network.interface_to(init_method):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", reaching)
    dist.init_process_group(
        "nccl" if nccl else "gloo",
        init_method=init_method,
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=COLLECTIVE_TIMEOUT_S),
    )


def leave_group() -> None:
    """Leaves torch's process group, if there is one."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def local(*, gpus_per_worker: float = 0, threads_per_rank: int | None = None) -> Context:
    """The context of one process on its own."""
    _stop.clear()
    return Context(
        0,
        1,
        0,
        choose_device(0, gpus_per_worker),
        threads_per_rank=threads_per_rank or threads_for(1),
        on_close=[_stop.install()],
    )


def torchrun(*, gpus_per_worker: float = 0, threads_per_rank: int | None = None) -> Context:
    """The context of a process that torchrun started (RANK, WORLD_SIZE, LOCAL_RANK are set).

    MEDRAY_RENDEZVOUS names the file in which the ranks of one machine meet; without it they meet
    where torchrun says (MASTER_ADDR and MASTER_PORT).
    """
    try:
        rank, world, local_rank = (
            int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        )
    except KeyError as error:
        raise UsageError(
            f"not started by torchrun: the environment has no {error.args[0]}",
            hint="use --backend ray or local, or start with torchrun",
        ) from error
    _stop.clear()
    on_this_machine = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    device = choose_device(local_rank, gpus_per_worker)
    join_group(
        rank,
        world,
        os.environ.get("MEDRAY_RENDEZVOUS", "env://"),
        nccl=device.type == "cuda",
        one_machine=on_this_machine == world,
    )
    return Context(
        rank,
        world,
        local_rank,
        device,
        threads_per_rank=threads_per_rank or threads_for(on_this_machine),
        on_close=[_stop.install(), leave_group],
    )


def ray_environment(timeout_s: float) -> dict[str, str]:
    """What Ray Train reads from the environment: a hung worker is found in 10 s, starts end."""
    return {
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
        "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "10",
        "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": str(COLLECTIVE_TIMEOUT_S),
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(int(timeout_s)),
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        # What is waited for is told by `wait_for`, in plain text.
        "RAY_SCHEDULER_EVENTS": "0",
        # A cluster started here is this machine alone, which nobody takes away by notice.
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "1" if "RAY_ADDRESS" in os.environ else "0",
    }


def _check_launch(backend: Backend, workers: int, worlds: Sequence[int]) -> None:
    if workers < 1 or (backend == "local" and workers != 1):
        allowed = "1" if backend == "local" else "1 or more"
        raise UsageError(f"workers = {workers} with backend {backend}, allowed: {allowed}")
    if len(worlds) > 1 and backend != "ray":
        raise UsageError(
            f"workers = {min(worlds)} to {workers} with backend {backend}, allowed: ray"
        )
    assert not worlds or (sorted(worlds) == list(worlds) and worlds[-1] == workers), worlds


def launch(
    worker: Worker,
    config: dict[str, Any],
    *,
    backend: Backend,
    workers: int = 1,
    gpus_per_worker: float = 0,
    cpus_per_worker: float = 1,
    threads_per_rank: int | None = None,
    name: str = "medray",
    max_failures: int = 3,
    timeout_s: float = 60.0,
    worlds: Sequence[int] = (),
    resize_every_s: float = 60.0,
) -> Any:
    """Runs `worker(context, config)` on every rank; returns what rank 0 returns.

    config and the result are JSON-able. `ray` joins the cluster of RAY_ADDRESS or starts one here
    for the time being; `torchrun` starts `workers` processes here, or is one of them where torchrun
    has started this program; `local` is this process alone. A worker that dies or raises is started
    again with all the others, at most `max_failures` times (ray), and finds its own checkpoint. A
    MedrayError is raised here as itself, at once. `timeout_s` bounds the wait for the resources.
    `worlds` (ray alone, `workers` last) are numbers of ranks of which the run has the largest that
    the cluster holds: looked for every `resize_every_s`, begun anew from a checkpoint.
    """
    _check_launch(backend, workers, worlds)
    threads = threads_per_rank or threads_for(workers)
    if backend == "ray":
        from medray.dist import _cluster

        elastic = len(worlds) > 1
        room_s = min(timeout_s, ROOM_S) if elastic else _cluster.allowed_s(timeout_s)
        _cluster.set_environment(ray_environment(room_s))
        from medray.dist import _ray_train

        plan = _ray_train.Plan(
            workers, cpus_per_worker, gpus_per_worker, threads, name, max_failures, timeout_s
        )
        plan = dataclasses.replace(plan, worlds=tuple(worlds), resize_every_s=resize_every_s)
        return _ray_train.run(worker, config, plan)
    if backend == "torchrun" and "RANK" not in os.environ:
        from medray.dist import _processes

        return _processes.run(worker, config, workers, gpus_per_worker, threads)
    if backend not in ("local", "torchrun"):
        raise UsageError(f"backend = {backend!r}, allowed: ray, torchrun, local")
    start = local if backend == "local" else torchrun
    context = start(gpus_per_worker=gpus_per_worker, threads_per_rank=threads)
    try:
        return worker(context, config)
    finally:
        context.close()
