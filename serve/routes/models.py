"""Which models there are; another version of one, or another one, without dropping a request."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path
from pydantic import BaseModel, ConfigDict, Field

from serve.keys import scope
from serve.records import Kind, ModelInfo, ModelSpec
from serve.services import Services

Name = Annotated[str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="its name")]


class Model(BaseModel):
    """A version of a model; `share` of the requests for its name get it."""

    name: str
    kind: Kind
    sha256: str
    classes: list[str]
    size_px: int
    share: float
    facts: dict[str, Any]


class Models(BaseModel):
    """All of them, by name."""

    models: list[Model]


class Put(BaseModel):
    """Where a model is. With `share` below 1 it is a canary beside the present one."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"kind": "generator", "url": "/models/chest64", "share": 0.1}]
        },
    )
    kind: Kind
    url: str = Field(min_length=1, max_length=1024, description="below one of the service's roots")
    latents: str | None = Field(None, min_length=1, max_length=1024)
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$", description="refused if another")
    share: float = Field(1.0, gt=0, le=1, description="share of the requests that get it")


def shown(info: ModelInfo) -> Model:
    """A model as JSON has it."""
    return Model(
        name=info.name, kind=info.kind, sha256=info.sha256, classes=list(info.classes),
        size_px=info.size_px, share=info.share, facts=dict(info.facts),
    )  # fmt: skip


def router(services: Services) -> APIRouter:
    """`/v1/models`."""
    made = APIRouter(prefix="/v1/models", tags=["models"])

    @made.get("", summary="The models there are", dependencies=[Depends(scope("read"))])
    async def names() -> Models:
        return Models(models=[shown(info) for info in services.models()])

    @made.put(
        "/{name}",
        summary="Load a model, and let it answer when it is loaded",
        description="Requests under way end with the version that they began with.",
        dependencies=[Depends(scope("admin"))],
    )
    async def put(name: Name, ask: Put) -> Model:
        spec = ModelSpec(ask.kind, ask.url, ask.latents, ask.sha256)
        return shown(await services.put_model(name, spec, ask.share))

    return made
