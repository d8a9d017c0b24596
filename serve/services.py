"""What the routes need of the rest, whether the models run in this process or in replicas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from serve.records import Array, Diagnosed, Made, ModelInfo, ModelSpec, Order, Want

if TYPE_CHECKING:
    from serve.keys import KeyBook
    from serve.limits import Limits
    from serve.metrics import Metrics
    from serve.settings import Args


class JobBook(Protocol):
    """Large work that outlives its request. All of it is the owner's alone; `None` owns nothing.

    `owner` None means an administrator: every job is theirs to see and to cancel.
    """

    async def create(self, owner: str, ask: dict[str, Any]) -> dict[str, Any]: ...

    async def get(self, owner: str | None, job_id: str) -> dict[str, Any]: ...

    async def names(self, owner: str | None) -> list[dict[str, Any]]: ...

    async def cancel(self, owner: str | None, job_id: str) -> dict[str, Any]: ...

    async def close(self) -> None: ...


class Services(Protocol):
    """Models by name, jobs, limits, metrics. Every failure is a `problems.Problem`.

    An unknown model is 404 `model_unknown`, a full queue 503 `queue_full` with Retry-After.
    """

    args: Args
    keys: KeyBook
    jobs: JobBook
    limits: Limits
    metrics: Metrics

    async def generate(self, model: str, orders: Sequence[Order], format: str) -> list[Made]:
        """The images of the orders, in their order, encoded; all by one version of the model."""
        ...

    async def classify(self, model: str, images: Sequence[Array], want: Want) -> list[Diagnosed]:
        """What the classifier says of images (H, W), in their order; by one version."""
        ...

    async def features(self, model: str, images: Sequence[Array]) -> Array:
        """Features (N, D) of images (H, W)."""
        ...

    def models(self) -> list[ModelInfo]:
        """The models there are, by name."""
        ...

    async def put_model(self, name: str, spec: ModelSpec, share: float = 1.0) -> ModelInfo:
        """Loads a model beside the present one, checks its digest, then swaps.

        With `share` below 1 it gets that share of the requests, the present one the rest.
        """
        ...

    async def start(self) -> None:
        """Loads what the settings name and starts the background work."""
        ...

    async def close(self) -> None:
        """Ends the background work; requests in flight are answered first."""
        ...

    async def all_metrics(self) -> Metrics:
        """What all replicas counted together."""
        ...

    def ready(self) -> bool:
        """Whether the models are loaded."""
        ...
