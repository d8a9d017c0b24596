"""`POST /v1/images/generations`: synthetic images by class, seed and index."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from medray import log
from medray.errors import UsageError
from serve import keys
from serve.compute.orders import EXTENSIONS, FORMATS, LARGEST, MOST_IMAGES, Offer
from serve.problems import Problem
from serve.records import Made, ModelInfo, Order
from serve.routes import packing
from serve.routes.asked import model_of, paid_back, refused
from serve.services import Services

# Images of one call to the models; more are made while these are on their way.
AT_ONCE = 64
TRIES, WAIT_S = 20, 0.5
TAR, MIXED = "application/x-tar", "multipart/mixed"

Format = Literal["png", "png16", "npy", "dicom", "tar"]
EXAMPLE: dict[str, Any] = {"model": "generator", "n": 1, "seed": 7, "start": 0, "format": "png"}


class Generation(BaseModel):
    """Which images: `n` of them from index `start` on, of one class or label vector, one seed."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"example": EXAMPLE})

    model: str | None = Field(
        None, max_length=128, description="its name; not needed where there is one alone"
    )
    n: int = Field(1, ge=1, le=MOST_IMAGES, description="images")
    class_: str | None = Field(
        None, alias="class", max_length=128, description="one of the model's targets"
    )
    labels: list[FiniteFloat] | dict[str, FiniteFloat] | None = Field(
        None, max_length=256, description="or the wanted labels: a number per class, or by name"
    )
    seed: int = Field(0, ge=0, le=LARGEST, description="images of a seed are a sequence")
    start: int = Field(0, ge=0, le=LARGEST, description="index of the first")
    to: int | None = Field(
        None,
        ge=0,
        le=LARGEST,
        description="walk: `n` images from the latent of `start` to this one",
    )
    truncation: FiniteFloat = Field(
        1.0, ge=0, le=1, description="1: as drawn, 0: the mean of the class; below 1 needs a class"
    )
    format: Format = Field("png", description="png16 and npy have 16 bits, tar is a shard of PNG")


ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "One image, with its address in X-Medray-Address; several as parts, each "
        "with its own; or a tar, each with its record.",
        "content": {
            **{
                media_type: {"schema": {"type": "string", "format": "binary"}}
                for media_type in (*FORMATS.values(), TAR, MIXED)
            }
        },
        "headers": {
            "X-Medray-Address": {
                "description": "Of one image: which it is, for ever",
                "schema": {"type": "string"},
            },
            "X-Medray-Model": {"description": "SHA-256", "schema": {"type": "string"}},
        },
    }
}


def router(services: Services) -> APIRouter:
    """The route."""
    made = APIRouter(tags=["models"])

    @made.post(
        "/v1/images/generations",
        summary="Makes synthetic images",
        description="The same model, class, seed, index and truncation give the same bytes.",
        response_class=Response,
        responses=ANSWERS,
    )
    async def generations(
        asked: Generation, key: Annotated[str, Depends(keys.scope("generate"))]
    ) -> Response:
        info = model_of(services, "generator", asked.model)
        orders = _orders(asked, Offer.of(info.facts), services.args.images)
        return await _answer(services, info, asked, orders, key)

    return made


def _orders(asked: Generation, offer: Offer, most: int) -> list[Order]:
    """What is asked as one order an image; Problem 422 for what the model does not take."""
    if asked.n > most:
        raise Problem(422, "invalid", f"n: given: {asked.n}; allowed: 1 to {most}")
    if asked.start + asked.n - 1 > LARGEST:
        detail = f"start: given: {asked.start} and n {asked.n}; allowed: a last index of 2**64 - 1"
        raise Problem(422, "invalid", detail)
    try:
        wanted = offer.wanted(asked.class_, asked.labels)
    except UsageError as error:
        raise refused("class" if asked.labels is None else "labels", error) from None
    try:
        offer.check_truncation(wanted, asked.truncation)
    except UsageError as error:
        raise refused("truncation", error) from None
    if asked.to is not None:
        return _walk(asked, asked.to, wanted)
    indices = range(asked.start, asked.start + asked.n)
    return [Order(asked.seed, index, wanted, float(asked.truncation)) for index in indices]


def _walk(asked: Generation, to: int, wanted: tuple[float, ...] | None) -> list[Order]:
    """Orders in equal steps from one latent to another; 422 for one image, and for a shard."""
    if asked.n < 2 or asked.format == "tar":
        given = f"n {asked.n}, format {asked.format}"
        raise Problem(422, "invalid", f"to: given: {given}; allowed: 2 images or more, and no tar")
    shares = [step / (asked.n - 1) for step in range(asked.n)]
    truncation = float(asked.truncation)
    return [Order(asked.seed, asked.start, wanted, truncation, to, share) for share in shares]


async def _answer(
    services: Services, info: ModelInfo, asked: Generation, orders: list[Order], key: str
) -> Response:
    services.limits.images(key, len(orders))
    run = _Run(services, info.name, orders, "png" if asked.format == "tar" else asked.format, key)
    with paid_back(services, key, len(orders)):
        first = await run.next()
    headers = {"x-medray-model": run.sha256(first), "cache-control": "no-store"}
    if asked.format == "tar":
        return StreamingResponse(packing.tar(run.all(first)), 200, headers, TAR)
    if len(orders) == 1:
        headers["x-medray-address"] = first[0].address
        return Response(first[0].data, 200, headers, first[0].media_type)
    extension = EXTENSIONS[asked.format]
    boundary = _boundary(first)
    headers["content-type"] = f'{MIXED}; boundary="{boundary}"'
    parts = packing.parts(run.all(first), boundary, extension)
    if len(orders) <= AT_ONCE:
        return Response(b"".join([part async for part in parts]), 200, headers)
    return StreamingResponse(parts, 200, headers)


def _boundary(first: Sequence[Made]) -> str:
    """A boundary that no part holds, and that the same request gives again."""
    text = first[0].address + first[0].data.hex()
    return f"medray-{hashlib.sha256(text.encode()).hexdigest()[:32]}"


class _Run:
    """The images of a request, some at a time, the next ones made while these are sent."""

    def __init__(
        self, services: Services, model: str, orders: Sequence[Order], format: str, key: str
    ) -> None:
        self._services, self._model, self._format = services, model, format
        self._orders, self._key, self._at = orders, key, 0

    @staticmethod
    def sha256(made: Sequence[Made]) -> str:
        """The generator's digest."""
        return str(made[0].facts["provenance"]["generator_sha256"])

    async def next(self) -> list[Made]:
        """The next images; nothing where all are made."""
        some = self._orders[self._at : self._at + AT_ONCE]
        if not some:
            return []
        made = await self._services.generate(self._model, some, self._format)
        self._at += len(some)
        return made

    async def all(self, first: list[Made]) -> AsyncIterator[list[Made]]:
        """`first` and all that follow; an answer that cannot go on is broken off, never short."""
        sha256, made, sent = self.sha256(first), first, 0
        following: asyncio.Task[list[Made]] | None = None
        try:
            while made:
                if self.sha256(made) != sha256:
                    raise RuntimeError("the model was replaced while its images were sent")
                following = asyncio.create_task(self._patient())
                sent += len(made)
                yield made
                made, following = await following, None
        finally:
            if following is not None:
                following.cancel()
            self._services.limits.returned(self._key, len(self._orders) - sent)

    async def _patient(self) -> list[Made]:
        """`next`, asked again while the models are busy: half an answer is there already."""
        for _ in range(TRIES):
            try:
                return await self.next()
            except Problem as problem:
                if problem.status != 503:
                    raise
                log.debug("generate_waits", f"images of a long answer wait: {problem.code}")
                await asyncio.sleep(WAIT_S)
        return await self.next()
