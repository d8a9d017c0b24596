"""The service as Ray Serve deployments: gates, model replicas, and what they share.

A gate gathers what its callers ask into batches and sends each as one call to a replica, so that
what Ray's calls cost is paid per batch. A gate's own door needs no proxy of Serve.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayActorError, RayError, TaskCancelledError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException

from medray import log
from serve import gate, metrics
from serve.batcher import Batcher
from serve.door import Door
from serve.engine import Engine, Pool, as_problems, info_of
from serve.in_process import IDLE_TICKS, Common
from serve.limits import Exchange, Granted, Limits
from serve.problems import Problem, busy, problem_of
from serve.rayjobs import RayJobs
from serve.records import Array, Diagnosed, Made, ModelSpec, Order, Want
from serve.registry import Version
from serve.settings import Args
from serve.shared import Shared

# Batches under way per replica of the models: one computes, one waits there.
LANES = 2
TICKS_S = 1.0
CALL_S = 10.0
# Of a call whose replica was lost: the same orders give the same bytes, so it is asked again.
TRIES = 2
# Ray Serve's own limit.
MOST_PER_NODE = 100


class SharedReplica:
    """One of it for the whole service."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._shared = Shared(Args.model_validate(settings))

    async def exchange(self, *words: Any) -> Any:
        return self._shared.exchange(*words)

    async def put(self, name: str, body: Mapping[str, Any], share: float) -> None:
        await asyncio.to_thread(self._shared.put, name, body, share)

    async def counts(self, replica: str, own: Mapping[str, Any]) -> dict[str, Any]:
        return self._shared.counts(replica, own)


class ModelReplica:
    """Models that compute; loads what it is asked for, keeps the latest."""

    async def __init__(self, settings: Mapping[str, Any], shared: Any) -> None:  # type: ignore[misc]
        args = Args.model_validate(settings)
        # The gates hold the queue; what they send is taken, and joined with other gates' parts.
        self._args = args.model_copy(update={"queue_images": 2**31, "window_ms": 0.0})
        self._name, self._shared = f"model-{secrets.token_hex(6)}", shared
        self._metrics = metrics.Metrics()
        self._pool = Pool(self._args, self._metrics)
        await self._preload(args)
        self._telling = asyncio.ensure_future(self._tell())

    async def _preload(self, args: Args) -> None:
        """Loads what the service has at present, so that a new replica keeps nobody waiting."""
        _, _, table = await self._shared.exchange.remote(self._name, {}, None, -1)
        named = {name: [spec] for name, spec in args.named().items()}
        if table:
            named = {n: [Version.of(v).spec for v in found] for n, found in table.items()}
        for name, specs in named.items():
            for spec in specs:
                await self._pool.get(spec, name)

    async def _tell(self) -> None:
        while True:
            await asyncio.sleep(TICKS_S)
            with contextlib.suppress(Exception):
                counts = self._metrics.snapshot()
                await self._shared.exchange.remote(self._name, {}, counts, 2**62)

    async def load(self, spec: ModelSpec, name: str) -> dict[str, Any]:
        """Loads a model; gives the version's JSON."""
        loaded = await self._pool.get(spec, name)
        return Version(spec, replace(info_of(loaded.model, spec, name), name=name)).body()

    async def run(self, op: str, spec: ModelSpec, name: str, items: list[Any]) -> list[Any]:
        """Carries out one operation for items of any callers."""
        async with self._pool.using(spec, name) as loaded:
            return await loaded.run(op, items)


class Remote:
    """A model in replicas, as a gate asks it: one batcher for each operation."""

    def __init__(self, handle: Any, version: Version, args: Args) -> None:
        self._handle, self._spec, self._name = handle, version.spec, version.info.name
        self._args = args
        self._batchers: dict[str, Batcher[Any, Any]] = {}

    def _batcher(self, op: str) -> Batcher[Any, Any]:
        if op not in self._batchers:
            args = self._args

            async def run(items: list[Any]) -> list[Any]:
                call = self._handle.run
                words = op, self._spec, self._name, items
                answers: list[Any] = await called(lambda: call.remote(*words))
                return answers

            self._batchers[op] = Batcher(
                run, args.joined(op), args.window_ms / 1000, args.queue_images,
                lanes=LANES * args.max_replicas, workers=args.max_replicas,
                separate=_is_callers_own,
            )  # fmt: skip
        return self._batchers[op]

    async def generate(self, orders: Sequence[Order], format: str) -> list[Made]:
        """The images of orders, encoded."""
        return await self._batcher("generate").submit([(order, format) for order in orders])

    async def classify(self, images: Sequence[Array], want: Want) -> list[Diagnosed]:
        """What the classifier says of images."""
        return await self._batcher("classify").submit([(image, want) for image in images])

    async def features(self, images: Sequence[Array]) -> Array:
        """Features (N, D) of images."""
        import numpy as np

        return np.stack(await self._batcher("features").submit(list(images)))

    @property
    def waiting(self) -> dict[str, int]:
        return {op: batcher.waiting for op, batcher in self._batchers.items()}


def _is_callers_own(error: BaseException) -> bool:
    """Whether an error may be of one caller's part of a batch, not of the model or its replica."""
    return isinstance(error, Problem) and error.status == 422


async def called(call: Callable[[], Awaitable[Any]]) -> Any:
    """The answer of a replica; Problem for every way in which there is none."""
    for left in reversed(range(TRIES)):
        try:
            return await call()
        except (BackPressureError, DeploymentUnavailableError) as error:
            raise busy("replicas_busy", "no replica takes more", 1) from error
        except (RayActorError, RayServeException, TaskCancelledError) as error:
            if not left:
                raise busy("replica_lost", "the replica that computed was lost", 1) from error
        except Exception as error:
            if problem := problem_of(error):
                raise problem from None
            if isinstance(error, RayError):
                log.error("replica", f"a replica failed: {type(error).__name__}")
                text = "the model failed; it is in its replica's log"
                raise Problem(500, "model_failed", text) from error
            raise
    raise AssertionError("the last try answers or raises")


class RayServices(Common):
    """The services of a gate: models in replicas, the rest shared."""

    limits: Limits

    def __init__(self, args: Args, models: Any, shared: Any) -> None:
        super().__init__(args, RayJobs())
        self._models, self._shared = models, shared
        self._name = f"gate-{secrets.token_hex(6)}"
        self._known = -1
        self._remotes: dict[ModelSpec, Remote] = {}
        self.limits = Limits(args, self.keys, self._trade)

    @contextlib.asynccontextmanager
    async def _engine(self, version: Version) -> AsyncIterator[Engine]:
        remote = self._remotes.get(version.spec)
        if remote is None:
            remote = self._remotes[version.spec] = Remote(self._models, version, self.args)
        with as_problems():
            yield remote

    async def _loaded(self, name: str, spec: ModelSpec) -> Version:
        return Version.of(await called(lambda: self._models.load.remote(spec, name)))

    async def _publish(self, name: str, version: Version, share: float) -> None:
        await self._shared.put.remote(name, version.body(), share)
        await self._exchange({})

    async def _trade(self, asks: Exchange) -> Granted:
        return await self._exchange(asks)

    async def _exchange(self, asks: Exchange) -> Granted:
        counts = self._counts()
        async with asyncio.timeout(CALL_S):
            words = self._name, asks, counts, self._known
            granted, self._known, table = await self._shared.exchange.remote(*words)
        if table is not None:
            self.registry.take(table)
            specs = {version.spec for version in map(Version.of, _flat(table))}
            # Those under way hold their own.
            self._remotes = {s: r for s, r in self._remotes.items() if s in specs}
        found: Granted = granted
        return found

    def _counts(self) -> dict[str, Any]:
        for remote in self._remotes.values():
            for op, waiting in remote.waiting.items():
                self.metrics.gauge("medray_queue_images", waiting, remote._name, op)
        return self.metrics.snapshot()

    async def start(self) -> None:
        await self.limits.stock()
        await self._exchange({})
        for name, spec in self.args.named().items():
            if self.registry.kind(name) is None:
                await self._publish(name, await self._loaded(name, spec), 1.0)
        self._ready = True
        await super().start()

    async def close(self) -> None:
        self._ready = False
        await super().close()

    async def _tick(self, count: int) -> None:
        full = count % IDLE_TICKS == 0
        if full:
            self._read_keys()
        asks = self.limits.asks()
        if self.limits.hungry and asks:
            await self.limits.trade()
        elif full:
            await (self.limits.trade() if asks else self._exchange({}))

    async def all_metrics(self) -> metrics.Metrics:
        try:
            async with asyncio.timeout(CALL_S):
                summed = await self._shared.counts.remote(self._name, self._counts())
        except Exception as error:
            raise busy("metrics_away", "what replicas share did not answer", 5) from error
        return metrics.total([summed])


def _flat(table: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Mapping[str, Any]]:
    return [version for versions in table.values() for version in versions]


@serve.ingress()
class Gate:
    """A gate: its own door, and the same application behind Serve's proxy."""

    async def __init__(  # type: ignore[misc]
        self, settings: Mapping[str, Any], models: Any, shared: Any
    ) -> None:
        args = Args.model_validate(settings)
        make = lambda: gate.front(RayServices(args, models, shared))  # noqa: E731
        self._drain_s = args.drain_s
        self._door = Door(make, args)
        await asyncio.to_thread(self._door.start)
        log.event("listening", f"{args.host}:{self._door.port}", port=self._door.port)

    def __serve_build_asgi_app__(self) -> Any:
        return self._door

    def check_health(self) -> None:
        if not self._door.alive:
            raise RuntimeError("the door is closed")

    async def __del__(self) -> None:
        self._door.stop()
        await asyncio.to_thread(self._door.join, self._drain_s + 5)


def bound(args: Args) -> Any:
    """The application of these settings."""
    settings = args.model_dump(mode="json")
    drain: dict[str, Any] = {
        "graceful_shutdown_timeout_s": args.drain_s + 10,
        "graceful_shutdown_wait_loop_s": 0.2,
    }
    quick: dict[str, Any] = {
        "health_check_period_s": 2,
        # Three in a row: one that hangs is replaced after a quarter of a minute.
        "health_check_timeout_s": 5,
        # Not a line for every call, and none of what callers send.
        "logging_config": {"enable_access_log": False, "log_level": "WARNING"},
    }
    shared = serve.deployment(
        SharedReplica, name="Shared", num_replicas=1, max_ongoing_requests=1000,
        ray_actor_options={"num_cpus": 0}, **quick,
    ).bind(settings)  # fmt: skip
    models = serve.deployment(
        ModelReplica, name="Models", max_ongoing_requests=64, **_replicas(args),
        ray_actor_options={"num_cpus": args.replica_cpus, "num_gpus": args.replica_gpus},
        **drain, **quick,
    ).bind(settings, shared)  # fmt: skip
    return serve.deployment(
        Gate, name="Gate", num_replicas=args.gates, max_ongoing_requests=args.requests,
        max_queued_requests=args.requests, ray_actor_options={"num_cpus": 0},
        max_replicas_per_node=_gates_per_node(args.gates), **drain, **quick,
    ).bind(settings, models, shared)  # fmt: skip


def _gates_per_node(gates: int) -> int | None:
    """As few as go round the nodes that are there now: one that is lost must not take all doors."""
    nodes = sum(bool(node["Alive"]) for node in ray.nodes()) if ray.is_initialized() else 1
    return min(MOST_PER_NODE, math.ceil(gates / nodes)) if nodes > 1 else None


def _replicas(args: Args) -> dict[str, Any]:
    if args.min_replicas == args.max_replicas:
        return {"num_replicas": args.min_replicas}
    return {
        "autoscaling_config": {
            "min_replicas": args.min_replicas,
            "max_replicas": args.max_replicas,
            "target_ongoing_requests": 1.5,
            "upscale_delay_s": args.upscale_delay_s,
            "downscale_delay_s": args.downscale_delay_s,
            "look_back_period_s": args.look_back_s,
        }
    }
