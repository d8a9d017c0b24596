"""Whether the service lives and is ready, what it counted, and whether a key works."""

from __future__ import annotations

import json

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel
from starlette.routing import Route

from serve.keys import scope
from serve.metrics import text
from serve.problems import busy
from serve.services import Services

SERVICE = "x-medray-service"
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class State(BaseModel):
    """One word."""

    state: str


class Pong(BaseModel):
    """Whose key it was, and how many bytes came."""

    key: str
    bytes: int


def router(services: Services) -> APIRouter:
    """`/livez`, `/readyz`, `/metrics`, `/v1/ping`."""
    made = APIRouter(tags=["health"])
    may_read = scope("read")

    @made.post(
        "/v1/ping",
        summary="Whether a key works",
        description="Takes any body up to the limit and throws it away.",
        response_model=Pong,
        dependencies=[Depends(may_read)],
    )
    async def ping(request: Request) -> Response:
        told = {"key": request.state.key, "bytes": len(await request.body())}
        return Response(json.dumps(told), media_type="application/json")

    async def quick_ping(request: Request) -> Response:
        await may_read(request)
        return await ping(request)

    # Before the one that is described: it needs no solving of dependencies.
    made.routes.insert(0, Route("/v1/ping", quick_ping, methods=["POST"]))

    @made.get("/livez", summary="Whether the process answers")
    async def livez(response: Response) -> State:
        response.headers[SERVICE] = services.args.service
        return State(state="live")

    @made.get("/readyz", summary="Whether the models are loaded")
    async def readyz() -> State:
        if not services.ready():
            raise busy("loading", "models are being loaded", 2)
        return State(state="ready")

    @made.get(
        "/metrics",
        summary="Counts and latencies, Prometheus' text form",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def metrics() -> Response:
        return Response(text(await services.all_metrics()), media_type=METRICS_TYPE)

    return made
