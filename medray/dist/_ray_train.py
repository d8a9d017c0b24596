"""The ranks as workers of Ray Train: start, restart, errors, stop.

medray keeps its own checkpoints: Ray Train gets metrics only, and a storage folder that is thrown
away. A MedrayError of a worker is a fact about the run, not an accident: it is kept on a board (an
actor), the group ends without a retry, and the driver raises it as itself. Anything else, a kill
included, restarts the group.
"""

from __future__ import annotations

import dataclasses
import logging
import tempfile
import threading
import time
import traceback
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.torch.config import _TorchBackend
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from medray.dist import _cluster, _elastic, _failures, _metrics, _stop, context
from medray.errors import MedrayError, ResourceError, Stopped

PREEMPTED = "preemption notice"
BOARD_POLL_S = 1.0
# A rank that hangs does not leave: its replacement waits this long for it, and 5 s more for Ray.
GROUP_SHUTDOWN_S = 2.0
FATAL_WAIT_S = 3.0


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a launch on Ray asks for."""

    workers: int
    cpus_per_worker: float
    gpus_per_worker: float
    threads: int
    name: str
    max_failures: int
    timeout_s: float
    # Numbers of workers that the group may have, `workers` last; fewer than two: that one alone.
    worlds: tuple[int, ...] = ()
    resize_every_s: float = 60.0

    @property
    def elastic(self) -> bool:
        """Whether the group may grow and shrink."""
        return len(self.worlds) > 1

    @property
    def fewest(self) -> int:
        """The workers without which nothing begins."""
        return self.worlds[0] if self.elastic else self.workers

    def bundle(self) -> dict[str, float]:
        """The resources of one worker."""
        gpu = {"GPU": self.gpus_per_worker} if self.gpus_per_worker else {}
        return {"CPU": self.cpus_per_worker, **gpu}


class Board:
    """What the driver and the workers tell each other: the fatal error, the traces, the stop."""

    def __init__(self) -> None:
        self._fatal: _failures.Record | None = None
        self._traces: list[tuple[int, str]] = []
        self._stop: str | None = None
        self._saved = False

    def fail(self, record: _failures.Record) -> None:
        """Keeps the first fatal error."""
        self._fatal = self._fatal or record

    def trace(self, rank: int, text: str) -> None:
        """Keeps the trace of an unexpected failure."""
        self._traces.append((rank, text))

    def stop(self, reason: str) -> None:
        """Asks every worker to stop."""
        self._stop = reason

    def ask_to_save(self, reason: str) -> None:
        """Asks every worker to save and to wait for what comes; a stop goes before."""
        self._stop, self._saved = self._stop or reason, False

    def say_saved(self) -> None:
        """Keeps that the workers have saved, as asked."""
        self._saved = True

    def has_saved(self) -> bool:
        """Whether the workers have saved since they were asked."""
        return self._saved

    def go_on(self, reason: str) -> str | None:
        """Takes a request for that reason back; another reason to stop that there is."""
        self._stop = None if self._stop == reason else self._stop
        return self._stop

    def read(self) -> tuple[_failures.Record | None, list[tuple[int, str]], str | None]:
        """The fatal error, the traces so far, and the reason to stop."""
        return self._fatal, self._traces, self._stop


def run(worker: context.Worker, config: dict[str, Any], plan: Plan) -> Any:
    """Runs `worker` under Ray Train and returns rank 0's result."""
    with _cluster.connected() as ours, tempfile.TemporaryDirectory(prefix="medray-") as storage:
        bundles = [plan.bundle()] * plan.fewest
        _cluster.wait_for(bundles, can_grow=not ours, timeout_s=plan.timeout_s)
        # Beside the driver: other machines may go.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        board = ray.remote(num_cpus=0, scheduling_strategy=here)(Board).remote()
        restore = _stop.install(lambda number, frame: _tell(board, "SIGTERM of the driver"))
        try:
            trainer = _trainer(worker, config, plan, board, storage)
            trainer.ours = ours
            if plan.elastic:
                trainer.policies = {
                    "scaling_policy": _elastic.Sizes(trainer.scaling_config, plan.worlds, board),
                    "failure_policy": _elastic.Failures(trainer.run_config.failure_config),
                }
            return _fit(trainer, board)
        finally:
            restore()


class Trainer(TorchTrainer):  # type: ignore[misc]
    """TorchTrainer that can be ended from another thread, and that is quiet on our own cluster.

    Where Ray dies with the driver, the actor that would clean up after a dead driver is left out:
    it asks the dashboard, which our own cluster lacks, and complains each second.
    """

    ours = False
    controller: Any = None
    # In place of Ray's, by the names under which it hands them on.
    policies: dict[str, Any] = {}

    def _initialize_and_run_controller(self, **given: Any) -> Any:
        return super()._initialize_and_run_controller(**{**given, **self.policies})

    def _register_sigint_handler(self, controller: Any) -> None:
        # In place of Ray's handler, so that Ctrl-C stays a KeyboardInterrupt.
        self.controller = controller

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        if not self.ours:
            return list(callbacks)
        return [one for one in callbacks if not isinstance(one, PlacementGroupCleanerCallback)]


def _tell(board: Any, reason: str) -> None:
    # A thread, because the handler may have interrupted Ray in the middle of a call.
    threading.Thread(target=lambda: board.stop.remote(reason), daemon=True).start()


def _trainer(
    worker: context.Worker, config: dict[str, Any], plan: Plan, board: Any, storage: str
) -> Trainer:
    return Trainer(
        rank_main,
        train_loop_config={"worker": worker, "config": config, "plan": plan, "board": board},
        torch_config=GroupConfig(nccl=plan.gpus_per_worker > 0),
        scaling_config=ray.train.ScalingConfig(
            num_workers=(plan.fewest, plan.workers) if plan.elastic else plan.workers,
            elastic_resize_monitor_interval_s=plan.resize_every_s,
            use_gpu=plan.gpus_per_worker > 0,
            resources_per_worker=plan.bundle(),
        ),
        run_config=ray.train.RunConfig(
            name=f"{plan.name}-{time.time_ns()}",
            storage_path=storage,
            failure_config=ray.train.FailureConfig(
                max_failures=plan.max_failures,
                controller_failure_limit=_elastic.FAILURES_TO_START if plan.elastic else 1,
            ),
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
        ),
    )


def _fit(trainer: Trainer, board: Any) -> Any:
    done = threading.Event()
    threading.Thread(target=_end_when_fatal, args=(trainer, board, done), daemon=True).start()
    try:
        result = trainer.fit()
    except (ray.train.TrainingFailedError, ray.exceptions.RayError) as error:
        raise _typed(error, board) from error
    finally:
        done.set()
    fatal, _, _ = ray.get(board.read.remote())
    if fatal is not None:
        raise _failures.rebuild(fatal)
    return result.return_value


def _end_when_fatal(trainer: Trainer, board: Any, done: threading.Event) -> None:
    """Ends the run once a rank has posted its error: the others may wait for it in a collective."""
    while not done.wait(BOARD_POLL_S):
        if ray.get(board.read.remote())[0] is not None and trainer.controller is not None:
            if not done.wait(FATAL_WAIT_S):
                trainer.controller.abort.remote()
            return


def _typed(error: Exception, board: Any) -> MedrayError:
    try:
        fatal, traces, _ = ray.get(board.read.remote())
    except ray.exceptions.RayError:
        return ResourceError(f"lost Ray: {str(error).strip().splitlines()[0]}")
    if fatal is not None:
        return _failures.rebuild(fatal)
    if isinstance(error, ray.train.ControllerError):
        first = str(error.controller_failure).strip().splitlines()[0]
        return ResourceError(f"Ray Train could not start the workers: {first}")
    if traces:
        traces = [one for one in traces if _failures.ECHO not in one[1]] or traces
        rank, text = traces[-1]
        return _failures.unexpected(rank, text, attempts=len(traces))
    return MedrayError(f"Ray Train failed: {str(error).strip().splitlines()[-1]}")


def rank_main(task: dict[str, Any]) -> Any:
    """The function that Ray Train runs on every rank."""
    plan, board = task["plan"], task["board"]
    rank = ray.train.get_context().get_world_rank()
    if ray.get(board.read.remote())[0] is not None:
        return None
    done = threading.Event()
    threading.Thread(target=_watch, args=(board, done), daemon=True).start()
    here = ray_worker(plan.threads, plan.gpus_per_worker, plan.name)
    try:
        return task["worker"](here, task["config"])
    except Exception as error:
        if (known := _failures.known(error)) is not None:
            _wait_for_ray(known, board)
            ray.get(board.fail.remote(_failures.describe(known, rank)))
            return None
        if _fatal_elsewhere(board):
            return None
        ray.get(board.trace.remote(rank, traceback.format_exc()))
        raise
    finally:
        done.set()


def _watch(board: Any, done: threading.Event) -> None:
    """Passes the driver's request to stop on to this process."""
    while not done.wait(BOARD_POLL_S):
        if reason := ray.get(board.read.remote())[2]:
            _stop.request(reason)
            return


def _wait_for_ray(error: MedrayError, board: Any) -> None:
    """After the checkpoint before a preemption or another size: waits for Ray to end the group.

    Waiting charges Ray's budget of preemptions, not the one of failures.
    """
    reason = _stop.reason() or ""
    if not isinstance(error, Stopped) or not reason.startswith((PREEMPTED, _elastic.RESIZE)):
        return
    if reason.startswith(_elastic.RESIZE):
        ray.get(board.say_saved.remote())
    time.sleep(END_WAIT_S)
    raise RuntimeError(f"the workers were to be ended ({reason}) and were not") from error


END_WAIT_S = 180.0


def _fatal_elsewhere(board: Any) -> bool:
    """Whether another rank has posted a typed error of which this failure is only the echo."""
    deadline = time.monotonic() + FATAL_WAIT_S
    while time.monotonic() < deadline:
        if ray.get(board.read.remote())[0] is not None:
            return True
        time.sleep(0.2)
    return False


def ray_worker(threads_per_rank: int, gpus_per_worker: float = 0, job: str = "") -> context.Context:
    """The context of a worker of Ray Train."""
    about = ray.train.get_context()
    device = ray.train.torch.get_device() if gpus_per_worker else context.choose_device(0, 0)
    side = context.RaySide(report=ray.train.report, preemption=_preemption)
    if about.get_world_rank() == 0:
        side.tell = _metrics.teller(job)
    return context.Context(
        about.get_world_rank(),
        about.get_world_size(),
        about.get_local_rank(),
        device,
        threads_per_rank=threads_per_rank,
        ray=side,
    )


def _preemption() -> str | None:
    info = ray.train.get_preemption_info()
    return None if info is None else f"{PREEMPTED} for ranks {sorted(info.preempted_ranks)}"


@dataclasses.dataclass
class GroupConfig(TorchConfig):  # type: ignore[misc]
    """A process group that stays on loopback where all ranks are on one machine."""

    nccl: bool = False

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        return GroupBackend


class GroupBackend(_TorchBackend):  # type: ignore[misc]
    """Prepares the workers' processes in their main threads and joins them to one group."""

    def on_start(self, worker_group: Any, backend_config: GroupConfig) -> None:
        """Signal handler, then the group: over a file on one machine, over TCP on several."""
        nodes = worker_group.execute(_prepare)
        one_machine = len(set(nodes)) == 1
        method = worker_group.execute_single(0, _meeting_point, one_machine)
        ray.get(
            [
                worker_group.execute_single_async(
                    rank,
                    context.join_group,
                    rank,
                    len(nodes),
                    method,
                    nccl=backend_config.nccl,
                    one_machine=one_machine,
                )
                for rank in range(len(nodes))
            ]
        )

    def on_shutdown(self, worker_group: Any, backend_config: GroupConfig) -> None:
        """Leaves the group; a rank that hangs is not waited for."""
        left = worker_group.execute_async(context.leave_group)
        ray.wait(left, num_returns=len(left), timeout=GROUP_SHUTDOWN_S)


def _prepare() -> str:
    # Ray Train logs every report, through the root logger.
    logging.getLogger().setLevel(logging.WARNING)
    _stop.clear()
    _stop.install()
    return str(ray.get_runtime_context().get_node_id())


def _meeting_point(one_machine: bool) -> str:
    if one_machine:
        return f"file://{tempfile.mkdtemp(prefix='medray-')}/rendezvous"
    from ray.train._internal.utils import get_address_and_port

    address, port = get_address_and_port()
    return f"tcp://{address}:{port}"
