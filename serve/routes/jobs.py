"""Large work: an archive of N images, made outside of the service; `POST` answers at once."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Path, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from serve.keys import scope
from serve.problems import Problem
from serve.routes.asked import paid_back
from serve.services import Services

JobId = Annotated[str, Path(description="what POST /v1/jobs answered", max_length=64)]


class Ask(BaseModel):
    """An archive: of which model, how many, which labels, in which form."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"model": "generator", "count": 10_000, "seed": 7}]},
    )
    kind: Literal["archive"] = "archive"
    model: str = Field("generator", max_length=128, description="name of a generator")
    count: int = Field(ge=1, le=2**31 - 1, strict=True, description="images")
    labels: Literal["balanced", "natural"] | None = Field(
        None, description="shares of the classes (none: balanced, where the model has classes)"
    )
    seed: int = Field(0, ge=0, lt=2**63, strict=True)
    format: Literal["png", "npy", "dicom"] = "png"
    samples_per_shard: int = Field(1000, ge=1, le=100_000, strict=True)


class Job(BaseModel):
    """How far a job is; `images` of `of` are made."""

    id: str
    state: Literal["queued", "running", "done", "failed", "canceled"]
    owner: str
    created: float
    ask: dict[str, Any]
    model_sha256: str
    images: int
    of: int
    shards: int


class Jobs(BaseModel):
    """The caller's jobs, the newest first."""

    jobs: list[Job]


def owner_of(request: Request) -> str | None:
    """Whose jobs a caller may see: their own; an administrator (None) everybody's."""
    return None if "admin" in request.state.scopes else str(request.state.key)


def router(services: Services) -> APIRouter:
    """`/v1/jobs`."""
    made = APIRouter(prefix="/v1/jobs", tags=["jobs"])
    need = Depends(scope("generate"))

    @made.post("", status_code=202, summary="Start a job", dependencies=[need])
    async def create(ask: Ask, request: Request, response: Response) -> Job:
        if ask.count > services.args.job_images:
            detail = f"given: count {ask.count}; allowed: 1 to {services.args.job_images}"
            raise Problem(422, "count_too_large", detail)
        services.limits.images(request.state.key, ask.count)
        with paid_back(services, request.state.key, ask.count):
            job = await services.jobs.create(str(request.state.key), ask.model_dump())
        response.headers["location"] = f"{request.scope.get('root_path', '')}/v1/jobs/{job['id']}"
        return Job(**job)

    @made.get("", summary="The caller's jobs", dependencies=[need])
    async def names(request: Request) -> Jobs:
        found = await services.jobs.names(owner_of(request))
        return Jobs(jobs=[Job(**job) for job in found])

    @made.get("/{job_id}", summary="How far a job is", dependencies=[need])
    async def get(job_id: JobId, request: Request) -> Job:
        return Job(**await services.jobs.get(owner_of(request), job_id))

    @made.delete("/{job_id}", summary="Cancel a job", dependencies=[need])
    async def cancel(job_id: JobId, request: Request) -> Job:
        return Job(**await services.jobs.cancel(owner_of(request), job_id))

    return made
