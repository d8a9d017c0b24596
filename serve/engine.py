"""Loaded models with their batchers, as many as a process keeps; the least used one goes first."""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Protocol

import numpy as np

from medray.errors import DataError, MedrayError, UsageError
from serve.batcher import Batcher, Full
from serve.metrics import Metrics
from serve.problems import Problem, busy
from serve.records import Array, Diagnosed, Made, ModelInfo, ModelSpec, Order, Want
from serve.settings import Args

# A model of `serve.compute`, or what a test puts in its place.
Load = Callable[[ModelSpec, str, Args], Any]


class Engine(Protocol):
    """A model as the services ask it, here or in a replica."""

    async def generate(self, orders: Sequence[Order], format: str) -> list[Made]: ...

    async def classify(self, images: Sequence[Array], want: Want) -> list[Diagnosed]: ...

    async def features(self, images: Sequence[Array]) -> Array: ...


def load_model(spec: ModelSpec, name: str, args: Args) -> Any:
    """The model of a specification, on this process's device."""
    import torch

    torch.set_num_threads(1)
    if spec.kind == "generator":
        from serve.compute.synthesis import Synthesis

        return Synthesis.load(
            spec.url, spec.latents, name=name, dtype=args.dtype, device=args.device,
            batch=args.batch,
        )  # fmt: skip
    from serve.compute.diagnosis import Diagnosis

    return Diagnosis.load(spec.url, name=name, device=args.device)


def info_of(model: Any, spec: ModelSpec, name: str) -> ModelInfo:
    """What callers may know of a loaded model."""
    facts = dict(getattr(model, "facts", {}))
    return ModelInfo(name, spec.kind, model.sha256, tuple(model.classes), model.size_px, 1.0, facts)


class Loaded:
    """A model in this process; one thread computes for each of its operations."""

    def __init__(
        self, model: Any, spec: ModelSpec, name: str, args: Args, metrics: Metrics
    ) -> None:
        self.model, self.spec, self.info = model, spec, info_of(model, spec, name)
        self._args, self._metrics = args, metrics
        self._batchers: dict[str, Batcher[Any, Any]] = {}
        self.users = 0
        self.closed = False

    def _batcher(self, op: str, run: Callable[[list[Any]], list[Any]]) -> Any:
        if op not in self._batchers:
            name = self.info.name

            def observe(images: int, seconds: float) -> None:
                self._metrics.observe("medray_batch_images", images, name, op)
                self._metrics.observe("medray_inference_seconds", seconds, name, op)
                self._metrics.count("medray_images_total", name, op, by=images)
                self._metrics.gauge("medray_queue_images", batcher.waiting, name, op)

            batcher: Batcher[Any, Any] = Batcher(
                run,
                self._args.joined(op),
                self._args.window_ms / 1000,
                self._args.queue_images,
                observe=observe,
            )
            self._batchers[op] = batcher
        return self._batchers[op]

    async def generate(self, orders: Sequence[Order], format: str) -> list[Made]:
        """The images of orders, encoded."""
        return await self.run("generate", [(order, format) for order in orders])

    async def run(self, op: str, items: list[Any]) -> list[Any]:
        """One operation for items of any callers: what a gate sends to a replica."""
        runs: dict[str, Callable[[list[Any]], list[Any]]] = {
            "generate": self._generate,
            "classify": self._classify,
            "features": self._features,
        }
        answers: list[Any] = await self._batcher(op, runs[op]).submit(items)
        return answers

    def _generate(self, items: list[tuple[Order, str]]) -> list[Made]:
        made: list[Made] = self.model.make([i[0] for i in items], [i[1] for i in items])
        return made

    async def classify(self, images: Sequence[Array], want: Want) -> list[Diagnosed]:
        """What the classifier says of images."""
        return await self.run("classify", [(image, want) for image in images])

    def _classify(self, items: list[tuple[Array, Want]]) -> list[Diagnosed]:
        found: list[Diagnosed] = self.model.diagnose([i[0] for i in items], [i[1] for i in items])
        return found

    async def features(self, images: Sequence[Array]) -> Array:
        """Features (N, D) of images."""
        return np.stack(await self.run("features", list(images)))

    def _features(self, items: list[Array]) -> list[Array]:
        return list(self.model.features(items))

    async def close(self) -> None:
        """Ends its threads when what was asked of it is answered."""
        self.closed = True
        for batcher in self._batchers.values():
            await batcher.close()


class Pool:
    """The models that this process has loaded: each once, the least recently used ones dropped."""

    def __init__(self, args: Args, metrics: Metrics, load: Load = load_model) -> None:
        self._args, self._metrics, self._load = args, metrics, load
        self._loaded: OrderedDict[ModelSpec, Loaded] = OrderedDict()
        self._loading: dict[ModelSpec, asyncio.Future[Loaded]] = {}

    @contextlib.asynccontextmanager
    async def using(self, spec: ModelSpec, name: str) -> AsyncIterator[Loaded]:
        """A loaded model, which is kept as long as this lasts; Problem where it cannot be."""
        loaded = await self.get(spec, name)
        while loaded.closed:
            # Dropped between being loaded and being used.
            loaded = await self.get(spec, name)
        loaded.users += 1
        try:
            with as_problems():
                yield loaded
        finally:
            loaded.users -= 1
            await self._shrink()

    async def get(self, spec: ModelSpec, name: str) -> Loaded:
        """Loads a model unless it is loaded; callers at the same time load it once."""
        if spec in self._loaded:
            self._loaded.move_to_end(spec)
            return self._loaded[spec]
        if spec not in self._loading:
            self._loading[spec] = asyncio.ensure_future(self._get(spec, name))
        # One caller that gives up does not end the loading for the others.
        return await asyncio.shield(self._loading[spec])

    async def _get(self, spec: ModelSpec, name: str) -> Loaded:
        try:
            with as_problems():
                model = await asyncio.to_thread(self._load, spec, name, self._args)
            if spec.sha256 and spec.sha256 != model.sha256:
                raise _other_digest(spec.sha256, model.sha256)
            loaded = Loaded(model, spec, name, self._args, self._metrics)
            self._loaded[spec] = loaded
            self._metrics.count("medray_models_loaded_total", spec.kind)
            await self._shrink(spec)
            return loaded
        finally:
            del self._loading[spec]

    async def _shrink(self, keep: ModelSpec | None = None) -> None:
        idle = [s for s, loaded in self._loaded.items() if not loaded.users and s != keep]
        dropped = idle[: max(0, len(self._loaded) - self._args.loaded_models)]
        for loaded in [self._loaded.pop(spec) for spec in dropped]:
            await loaded.close()

    async def close(self) -> None:
        """Waits for what is under way."""
        for loaded in list(self._loaded.values()):
            await loaded.close()


def _other_digest(wanted: str, found: str) -> Problem:
    detail = f"given: sha256 {wanted[:12]}...; the model there has {found[:12]}..."
    return Problem(422, "digest_mismatch", detail, "nothing was changed")


@contextlib.contextmanager
def as_problems() -> Any:
    """Turns the errors of queues and models into problems that say no path and no value."""
    try:
        yield
    except Full as full:
        text = f"{full}"
        raise busy("queue_full", text, 1, "ask again, for fewer, or as a job") from None
    except (UsageError, DataError) as error:
        raise Problem(422, getattr(error, "code", "refused"), error.message, error.hint) from error
    except MedrayError as error:
        raise busy("unavailable", error.message, 5) from error
    except FileNotFoundError as error:
        raise Problem(422, "model_absent", "there is no model at that place") from error
