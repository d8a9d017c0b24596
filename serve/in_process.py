"""The services with everything in this process: for one machine without Ray, and for tests."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

from medray import log
from medray.errors import MedrayError, UsageError
from medray.store import Store
from serve import limits as limited
from serve.engine import Engine, Load, Pool, load_model
from serve.jobbook import Book, Processes, Runner
from serve.keys import KeyBook
from serve.metrics import Metrics
from serve.problems import Problem, shown
from serve.records import Array, Diagnosed, Kind, Made, ModelInfo, ModelSpec, Order, Want
from serve.registry import Registry, Version
from serve.services import JobBook
from serve.settings import Args

MODELS = "models.json"
TICK_S, IDLE_TICKS = 0.1, 10


class Common:
    """What both kinds of services do alike; where a model runs is left to `_engine`."""

    def __init__(self, args: Args, runner: Runner, keys: KeyBook | None = None) -> None:
        self.args = args
        self.keys = KeyBook.of(args.keys) if keys is None else keys
        check_door(args, self.keys)
        self.metrics = Metrics()
        self.registry = Registry()
        self.jobs: JobBook = Book(args, self.registry, runner)
        self._ready = False
        self._ticking: asyncio.Task[None] | None = None

    # --- models -------------------------------------------------------------------------------

    def _engine(self, version: Version) -> contextlib.AbstractAsyncContextManager[Engine]:
        raise NotImplementedError

    @contextlib.asynccontextmanager
    async def _of(self, model: str, kind: Kind) -> AsyncIterator[Engine]:
        """A model's version for one request, its errors counted."""
        try:
            async with self._engine(self.registry.choose(model, kind)) as engine:
                yield engine
        except Problem as problem:
            self.metrics.count("medray_inference_errors_total", problem.code)
            raise

    async def generate(self, model: str, orders: Sequence[Order], format: str) -> list[Made]:
        async with self._of(model, "generator") as engine:
            return await engine.generate(orders, format)

    async def classify(self, model: str, images: Sequence[Array], want: Want) -> list[Diagnosed]:
        async with self._of(model, "classifier") as engine:
            return await engine.classify(images, want)

    async def features(self, model: str, images: Sequence[Array]) -> Array:
        async with self._of(model, "classifier") as engine:
            return await engine.features(images)

    def models(self) -> list[ModelInfo]:
        return self.registry.infos()

    async def put_model(self, name: str, spec: ModelSpec, share: float = 1.0) -> ModelInfo:
        self._check_put(name, spec)
        version = await self._loaded(name, spec)
        await self._publish(name, version, share)
        log.event("model", f"model {name} is now {version.info.sha256[:12]}, share {share:g}")
        found = [i for i in self.models() if (i.name, i.sha256) == (name, version.info.sha256)]
        return found[0]

    def _check_put(self, name: str, spec: ModelSpec) -> None:
        present = self.registry.kind(name)
        if present is not None and present != spec.kind:
            detail = f"given: kind {spec.kind!r}; allowed: {present!r}, which {name} is"
            raise Problem(422, "kind_other", detail)
        roots = [Store(root).url.rstrip("/") + "/" for root in self.args.model_roots]
        for url in (spec.url, spec.latents):
            if url is None:
                continue
            parts = url.replace("\\", "/").split("/")
            whole = Store(url).url if ".." not in parts and "\0" not in url else ""
            if not any(whole.startswith(root) for root in roots):
                detail = f"given: url {shown(url)}; allowed: what lies below the service's roots"
                raise Problem(403, "place_not_allowed", detail, "start it with model_roots=FOLDER")

    async def _loaded(self, name: str, spec: ModelSpec) -> Version:
        raise NotImplementedError

    async def _publish(self, name: str, version: Version, share: float) -> None:
        self.registry.put(name, version, share)

    # --- background ---------------------------------------------------------------------------

    async def start(self) -> None:
        self._ticking = asyncio.create_task(self._ticks())

    async def close(self) -> None:
        if self._ticking is not None:
            self._ticking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._ticking

    def ready(self) -> bool:
        return self._ready

    async def _ticks(self) -> None:
        count = 0
        while True:
            try:
                await self._tick(count)
            except asyncio.CancelledError:
                raise
            except Exception as error:
                # What is shared is away for a while: what is held here goes on.
                log.warn("shared", f"what replicas share did not answer: {type(error).__name__}")
            count += 1
            await asyncio.sleep(TICK_S)

    async def _tick(self, count: int) -> None:
        raise NotImplementedError

    def _read_keys(self) -> None:
        try:
            if self.keys.refresh():
                log.event("keys", f"{len(self.keys.by_name)} keys are known")
        except (MedrayError, OSError) as error:
            log.warn("keys", f"the keys stay as they were: {error}")

    async def all_metrics(self) -> Metrics:
        return self.metrics


class InProcess(Common):
    """Models, ledger and jobs in this process."""

    def __init__(
        self,
        args: Args,
        *,
        load: Load = load_model,
        runner: Runner | None = None,
        keys: KeyBook | None = None,
    ) -> None:
        super().__init__(args, runner or Processes(), keys)
        self.limits = limited.alone(args, self.keys)
        self.pool = Pool(args, self.metrics, load)

    @contextlib.asynccontextmanager
    async def _engine(self, version: Version) -> AsyncIterator[Engine]:
        async with self.pool.using(version.spec, version.info.name) as loaded:
            yield loaded

    async def _loaded(self, name: str, spec: ModelSpec) -> Version:
        loaded = await self.pool.get(spec, name)
        return Version(spec, replace(loaded.info, name=name))

    async def start(self) -> None:
        await self.limits.trade()
        for name, spec in self.args.named().items():
            self.registry.put(name, await self._loaded(name, spec), 1.0)
        self._ready = True
        await super().start()

    async def close(self) -> None:
        self._ready = False
        await super().close()
        await self.pool.close()
        await self.jobs.close()

    async def _tick(self, count: int) -> None:
        if self.limits.hungry or count % IDLE_TICKS == 0:
            await self.limits.trade()
        if count % IDLE_TICKS == 0:
            self._read_keys()


def check_door(args: Args, keys: KeyBook) -> None:
    """UsageError where a door would open to other machines without a key."""
    if args.door and keys.open and not args.loopback:
        raise UsageError(
            f"host {args.host} can be reached from other machines: a key is needed",
            hint="python -m serve.keys new --file keys.json --name NAME; then keys=keys.json",
        )
