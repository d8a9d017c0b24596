"""Everything that can be set about a service; `serve run serve.app:app KEY=VALUE` sets it.

No Ray, no torch and no HTTP here.
"""

from __future__ import annotations

import hashlib
import ipaddress
from dataclasses import replace
from typing import Literal

from pydantic import Field, ValidationError, model_validator

from medray.config import Frozen, Location, absolute
from medray.errors import UsageError
from serve.records import ModelSpec

PLACES = ("generator", "latents", "classifier", "real", "keys", "state_dir")
OPEN_HOSTS = ("localhost", "127.0.0.1", "::1")


class Args(Frozen):
    """A service: its models, its door, its limits, its replicas."""

    generator: Location | None = Field(None, description="run or model folder of a generator")
    latents: Location | None = Field(None, description="what `medray latents` made for it")
    classifier: Location | None = Field(None, description="run or model folder of a classifier")
    models: dict[str, ModelSpec] = Field({}, description="more of them, by name")
    model_roots: tuple[Location, ...] = Field(
        (), description="folders or URLs below which PUT /v1/models may name a model (none: no PUT)"
    )
    real: Location | None = Field(
        None, description="packed set whose training images /v1/nearest compares with (none: off)"
    )
    real_images: int = Field(50_000, ge=1, description="most of them: 2.3 kB of memory each")

    device: str = Field("cpu", description="where networks run: cpu or cuda")
    dtype: Literal["float32", "bf16"] = Field("float32", description="the generators' arithmetic")

    door: bool = Field(True, description="open host:port beside Serve's own proxy")
    host: str = Field("127.0.0.1", description="address of the own door")
    port: int = Field(8700, ge=0, le=65535, description="its port")
    root_path: str = Field(
        "", pattern=r"^(/[\w.~-]+)*$", description="prefix under which a proxy shows the service"
    )

    keys: Location | None = Field(
        None, description="file of hashed keys ($MEDRAY_SERVE_KEYS: its text); none: open, loopback"
    )
    rate_per_s: float | None = Field(None, gt=0, description="requests per second of a key")
    burst: int | None = Field(None, ge=2, description="requests at once (none: two seconds' worth)")
    images_per_day: int | None = Field(None, ge=1, description="images of a key per UTC day")

    body_mib: float = Field(64, gt=0, description="largest body")
    pixels: int = Field(64_000_000, ge=1, description="most pixels of an upload, all frames")
    images: int = Field(4096, ge=1, le=4096, description="most images of a request")
    uploads: int = Field(64, ge=1, description="most files of a request")
    timeout_s: float = Field(60, gt=0, description="longest wait for an answer's beginning")
    body_timeout_s: float = Field(30, gt=0, description="longest wait for a request's body")
    header_timeout_s: float = Field(10, gt=0, description="longest wait for a request's head")
    keep_alive_s: float = Field(75, gt=0, description="how long an idle connection stays open")
    connections: int = Field(4096, ge=1, description="most connections of a gate")
    requests: int = Field(1024, ge=1, description="most requests at once of a gate")

    window_ms: float = Field(
        5, ge=0, description="longest wait for a batch to fill, a replica being free"
    )
    batch: int = Field(16, ge=1, le=1024, description="fixed, padded batch of the generators")
    classify_batch: int = Field(16, ge=1, le=1024, description="most images of a classifier's call")
    join: int | None = Field(
        None, ge=1, description="most images of several callers in one batch (none: all of it)"
    )
    queue_images: int = Field(512, ge=1, description="most images that wait for a model")
    loaded_models: int = Field(4, ge=1, description="most models that a replica keeps loaded")

    gates: int = Field(1, ge=1, description="replicas of the gate")
    min_replicas: int = Field(1, ge=1, description="fewest replicas of the models")
    max_replicas: int = Field(1, ge=1, description="most replicas of the models")
    replica_cpus: float = Field(1, ge=0, description="CPUs of a replica")
    replica_gpus: float = Field(0, ge=0, description="GPUs of a replica")
    upscale_delay_s: float = Field(10, ge=0, description="how long more is wanted before it is")
    downscale_delay_s: float = Field(120, ge=0, description="how long less is wanted before it is")
    look_back_s: float = Field(10, gt=0, description="over what the load is averaged")
    drain_s: float = Field(20, gt=0, description="how long an ending replica may finish its work")

    state_dir: Location = Field("runs/serve", description="models that were put, quotas, jobs")
    jobs_per_key: int = Field(4, ge=1, description="jobs of a key that run at once")
    job_images: int = Field(1_000_000, ge=1, description="most images of a job")
    job_workers: int = Field(0, ge=0, description="Ray actors of a job (0: in its own process)")

    studies: Location | None = Field(
        None, description="folder of reader studies (none: no studies)"
    )
    database: str | None = Field(
        None, description="where answers are kept ($MEDRAY_DATABASE_URL; none: SQLite in state_dir)"
    )

    @model_validator(mode="after")
    def _makes_sense(self) -> Args:
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas {self.max_replicas} is below {self.min_replicas}")
        if self.latents and not self.generator:
            raise ValueError("latents belong to a generator, none is given")
        return self

    @property
    def loopback(self) -> bool:
        """Whether the door opens on this machine only."""
        return is_loopback(self.host)

    @property
    def body_bytes(self) -> int:
        return int(self.body_mib * 2**20)

    def placed(self) -> Args:
        """The same with absolute places: replicas work in other folders."""
        told = {name: getattr(self, name) for name in PLACES if getattr(self, name)}
        models = {name: spec_placed(spec) for name, spec in self.models.items()}
        roots = tuple(absolute(root) for root in self.model_roots)
        update = {name: absolute(url) for name, url in told.items()}
        return self.model_copy(update={**update, "models": models, "model_roots": roots})

    @property
    def service(self) -> str:
        """What tells this service's gates from those of another one on this machine."""
        return hashlib.sha256(absolute(self.state_dir).encode()).hexdigest()[:16]

    def joined(self, op: str) -> int:
        """Most images that are computed at once for an operation."""
        size = self.batch if op == "generate" else self.classify_batch
        return min(size, self.join or size)

    def named(self) -> dict[str, ModelSpec]:
        """The models by name: those of `models`, and `generator`, `classifier` where given."""
        found = dict(self.models)
        if self.generator:
            found["generator"] = ModelSpec("generator", self.generator, self.latents)
        if self.classifier:
            found["classifier"] = ModelSpec("classifier", self.classifier)
        return found


def spec_placed(spec: ModelSpec) -> ModelSpec:
    """A specification with absolute places."""
    latents = absolute(spec.latents) if spec.latents else None
    return replace(spec, url=absolute(spec.url), latents=latents)


def parsed(given: object) -> Args:
    """Checked settings with absolute places; UsageError says what is wrong."""
    try:
        return Args.model_validate(given).placed()
    except ValidationError as error:
        texts = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        hint = f"allowed: {', '.join(Args.model_fields)}"
        raise UsageError("; ".join(texts), hint=hint) from None


def is_loopback(host: str) -> bool:
    """Whether an address or name means this machine itself."""
    if host in OPEN_HOSTS:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
