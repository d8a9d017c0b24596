"""`/v1/nearest`: the real images that an image is most like, for whoever may see real ones."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from medray import log
from medray.images.png import encode_png
from medray.records import Sample
from serve import keys
from serve.compute import likeness
from serve.compute.likeness import Likeness, Match
from serve.problems import Problem, busy
from serve.routes.asked import BODY, NOTICE, paid_back
from serve.routes.classify import images_of
from serve.services import Services
from serve.uploads import Upload

MEANING = (
    "correlation of fine structure at small size, -1 to 1: from "
    f"{likeness.COPY:g} on two pictures are nearly the same"
)
RETRY_S = 5
# Real images of an answer: each goes into it as text.
MOST_SHOWN = 64


class Options(BaseModel):
    """How much is wanted."""

    model_config = ConfigDict(extra="forbid")

    count: int = Field(1, ge=1, le=16, description="real images for each image")


class Real(BaseModel):
    """What images are compared with."""

    images: int = Field(description="real images of the training split; 0: the service has none")
    ready: bool = Field(description="whether all of them were looked at")
    similarity: str = Field(description="what a similarity means")
    copy_from: float = Field(description="from here on, nearly the same picture")


class Nearest(BaseModel):
    """A real image that an image is like."""

    similarity: float
    key: str = Field(description="its key in the set")
    labels: list[str] = Field(description="its class, or the findings that are present")
    picture_png: str = Field(description="the real image, as packed; base64")


class Image(BaseModel):
    """One image, or one frame of one, with the real images that it is most like."""

    file: int = Field(description="number of the file, from 0")
    frame: int = Field(description="number of the frame, from 0")
    nearest: list[Nearest] = Field(description="likest first")


class Answer(BaseModel):
    """What was compared with what."""

    real: Real
    notice: str
    images: list[Image]


def router(services: Services) -> APIRouter:
    """The routes; the set is opened with the service and looked at behind it."""
    args = services.args
    real: Likeness | None = None
    work: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def looking(_: Any) -> AsyncIterator[None]:
        nonlocal real, work
        if args.real is None:
            yield
            return
        real = await asyncio.to_thread(Likeness, args.real, args.real_images)
        work = asyncio.create_task(asyncio.to_thread(_look, real))
        try:
            yield
        finally:
            real.stop()
            with contextlib.suppress(Exception):
                await work

    made = APIRouter(tags=["models"], lifespan=looking)

    @made.get("/v1/nearest", summary="Says what /v1/nearest compares with")
    async def about(key: Annotated[str, Depends(keys.scope("read"))]) -> Real:
        return _about(real)

    @made.post(
        "/v1/nearest",
        summary="Finds the real images that images are most like",
        description="For a look at memorisation: the images of the training split that the service "
        f"was given, by {MEANING}. Up to {MOST_SHOWN} for all images together. It answers "
        "with real images: its keys need the scope `real`.",
        openapi_extra=BODY,
    )
    async def nearest(
        request: Request,
        options: Annotated[Options, Query()],
        key: Annotated[str, Depends(keys.scope("real"))],
    ) -> Answer:
        known = _ready(real, work)
        found = await images_of(request, services, key, known.size_px, known.channels)
        with paid_back(services, key, len(found)):
            _check_count(len(found), options.count)
            images = await asyncio.to_thread(_compared, known, found, options.count)
        return Answer(real=_about(known), notice=NOTICE, images=images)

    return made


def _look(real: Likeness) -> None:
    try:
        real.look()
    except Exception as error:
        # What is damaged is named; the rest of the service goes on without this.
        log.error("real", f"the real images cannot be compared with: {error}")
        raise


def _about(real: Likeness | None) -> Real:
    return Real(
        images=real.images if real else 0,
        ready=real is not None and real.ready,
        similarity=MEANING,
        copy_from=likeness.COPY,
    )


def _ready(real: Likeness | None, work: asyncio.Task[None] | None) -> Likeness:
    if real is None or work is None:
        text = "given: a question about real images; allowed: where the service has a set of them"
        raise Problem(404, "real_absent", text, "start it with real=SET, a packed set")
    if work.done() and work.exception():
        raise Problem(503, "real_damaged", "the real images cannot be read; the log says why")
    if not real.ready:
        raise busy("real_loading", f"{real.images:,} real images are being looked at", RETRY_S)
    return real


def _check_count(images: int, count: int) -> None:
    if images * count > MOST_SHOWN:
        text = f"given: {count} for each of {images} images; allowed: {MOST_SHOWN} real images"
        raise Problem(413, "too_many_images", text, "send fewer files or frames at once")


def _compared(real: Likeness, uploads: list[Upload], count: int) -> list[Image]:
    """In a thread: pictures are read, decoded and encoded."""
    matches = real.nearest([upload.image for upload in uploads], count)
    return [
        Image(file=upload.file, frame=upload.frame, nearest=[_told(one) for one in some])
        for upload, some in zip(uploads, matches, strict=True)
    ]


def _told(match: Match) -> Nearest:
    sample = match.sample
    return Nearest(
        similarity=round(match.similarity, 4),
        key=sample.key,
        labels=_labels(sample),
        picture_png=base64.b64encode(encode_png(np.ascontiguousarray(sample.image))).decode(),
    )


def _labels(sample: Sample) -> list[str]:
    if sample.label is not None:
        return [sample.label]
    return [name for name, present in sample.labels.items() if present]
