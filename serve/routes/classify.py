"""`POST /v1/classify`: what a classifier says of uploaded images, how sure, how familiar, why."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from medray.errors import UsageError
from serve import keys, uploads
from serve.compute import pictures
from serve.compute.fit import COLOURED, Box, box_of, fitted
from serve.problems import Problem, shown
from serve.records import Array, Diagnosed, ModelInfo, Want
from serve.routes.asked import BODY, NOTICE, caps_of, files_of, model_of, paid_back, refused
from serve.services import Services
from serve.uploads import Upload

# Pictures go into the answer as text: so many images of a request may have them.
MOST_EXPLAINED = 64


class Options(BaseModel):
    """What is wanted beside the probabilities."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = Field(
        None, max_length=128, description="its name; not needed where there is one alone"
    )
    heatmap: bool = Field(False, description="where the classifier looked (Grad-CAM), PNG")
    mask: bool = Field(False, description="the heatmap at `threshold` and above, PNG")
    overlay: bool = Field(False, description="the heatmap over the image, PNG")
    class_: str | None = Field(
        None, alias="class", max_length=128, description="class to explain; none: the likeliest"
    )
    threshold: FiniteFloat = Field(0.5, gt=0, le=1, description="heat from which the mask begins")

    @property
    def explains(self) -> bool:
        """Whether any picture is wanted."""
        return self.heatmap or self.mask or self.overlay


class Unlike(BaseModel):
    """When an image counts as unlike the training data."""

    threshold: float = Field(description="an ood_score above it is flagged")
    expected: float = Field(description="share of images like the training data that is flagged")
    validation_images: int = Field(description="images that the threshold was chosen on")


class Place(BaseModel):
    """Where the image lies in the square that the classifier sees, in pixels of the square."""

    size_px: int
    top: int
    left: int
    height: int
    width: int


class Image(BaseModel):
    """One image, or one frame of one, as the classifier judges it."""

    file: int = Field(description="number of the file, from 0")
    frame: int = Field(description="number of the frame, from 0")
    kind: str = Field(description="what the file's content says that it is")
    height: int
    width: int
    probabilities: dict[str, float] = Field(description="calibrated, by class")
    decided: list[str] = Field(
        description="the class, or the findings, that the classifier says; rare classes count as "
        "much as others, so it need not be the most probable one"
    )
    ood_score: float | None = Field(description="distance from the training data")
    unlike: bool | None = Field(
        description="whether it is past the threshold, or coloured: do not trust it"
    )
    coloured: bool = Field(description="whether it is in colour, and the model is of grey images")
    heatmap_class: str | None = Field(None, description="the class that the pictures explain")
    place: Place | None = Field(None, description="of the image in the pictures")
    heatmap_png: str | None = Field(None, description="grey, white is hottest; base64")
    mask_png: str | None = Field(None, description="0 and 255; base64")
    overlay_png: str | None = Field(None, description="colour; base64")


class Diagnosis(BaseModel):
    """The model, what its numbers mean, and what it says of each image."""

    model: str
    sha256: str
    classes: list[str]
    multi_label: bool = Field(description="whether classes are findings, each present or not")
    calibrated: str
    ood: Unlike | None
    ood_reason: str | None = Field(description="why there is no score, where there is none")
    notice: str
    images: list[Image]


def router(services: Services) -> APIRouter:
    """The route; the children that decode are started with the service."""

    @asynccontextmanager
    async def warm(_: Any) -> AsyncIterator[None]:
        uploads.shared().warm()
        yield

    made = APIRouter(tags=["models"], lifespan=warm)

    @made.post(
        "/v1/classify",
        summary="Judges images",
        description="Calibrated probabilities, a flag for what is unlike the training data, and "
        f"heatmaps, masks and overlays for up to {MOST_EXPLAINED} images.",
        openapi_extra=BODY,
    )
    async def classify(
        request: Request,
        options: Annotated[Options, Query()],
        key: Annotated[str, Depends(keys.scope("read"))],
    ) -> Diagnosis:
        info = model_of(services, "classifier", options.model)
        _check_class(options, info)
        found = await images_of(request, services, key, info.size_px, channels_of(info))
        _check_count(options, len(found))
        want = Want(heatmap=options.explains, heatmap_class=options.class_)
        with paid_back(services, key, len(found)):
            said = await services.classify(info.name, [image.image for image in found], want)
        images = await asyncio.to_thread(_images, found, said, options, info)
        return _diagnosis(info, said, images)

    return made


def channels_of(info: ModelInfo) -> int:
    """Of the images that a model takes."""
    return int(info.facts.get("channels", 1))


async def images_of(
    request: Request, services: Services, key: str, size_px: int, channels: int
) -> list[Upload]:
    """The images of a request, squares of that size; counted against the key's quota."""
    caps = caps_of(services)

    def finish(image: Array) -> Array:
        return fitted(image, size_px, channels)

    files = await files_of(request, caps)
    found = await uploads.shared().decode(files, caps, finish)
    if len(found) > services.args.images:
        given, allowed = f"{len(found):,} images", f"{services.args.images:,} a request"
        raise uploads.refusal(413, "too_many_images", "too many images", given, allowed)
    services.limits.images(key, len(found))
    return found


def _check_class(options: Options, info: ModelInfo) -> None:
    if options.class_ is None:
        return
    if not options.explains:
        text = "given: a class without heatmap, mask or overlay; allowed: with one of them"
        raise refused("class", UsageError(text))
    if options.class_ not in info.classes:
        text = f"given: {shown(options.class_)}; allowed: {', '.join(info.classes)}"
        raise refused("class", UsageError(text))


def _check_count(options: Options, count: int) -> None:
    if options.explains and count > MOST_EXPLAINED:
        text = f"given: heatmaps of {count} images; allowed: of {MOST_EXPLAINED} a request"
        raise Problem(413, "too_many_images", text, "send fewer files or frames at once")


def _images(
    found: list[Upload], said: list[Diagnosed], options: Options, info: ModelInfo
) -> list[Image]:
    # The model sees a coloured image as grey: nothing that it measures tells them apart.
    coloured = [channels_of(info) == 1 and upload.colour > COLOURED for upload in found]
    return [
        Image(
            file=upload.file,
            frame=upload.frame,
            kind=upload.kind,
            height=upload.height,
            width=upload.width,
            probabilities=dict(answer.probabilities),
            decided=list(answer.decided),
            ood_score=answer.ood_score,
            unlike=True if odd else answer.unlike,
            coloured=odd,
            **_explained(upload, answer, options, info),
        )
        for upload, answer, odd in zip(found, said, coloured, strict=True)
    ]


def _explained(
    upload: Upload, answer: Diagnosed, options: Options, info: ModelInfo
) -> dict[str, Any]:
    heat_HW = answer.heat_HW
    if heat_HW is None:
        return {}
    box: Box = box_of(upload.height, upload.width, info.size_px)
    found: dict[str, Any] = {"heatmap_class": answer.heatmap_class}
    found["place"] = Place(size_px=info.size_px, **box._asdict())
    if options.heatmap:
        found["heatmap_png"] = _text(pictures.heatmap_png(heat_HW))
    if options.mask:
        found["mask_png"] = _text(pictures.mask_png(heat_HW, options.threshold))
    if options.overlay:
        found["overlay_png"] = _text(pictures.overlay_png(upload.image, heat_HW))
    return found


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _diagnosis(info: ModelInfo, said: list[Diagnosed], images: list[Image]) -> Diagnosis:
    facts = info.facts
    known = facts.get("ood")
    return Diagnosis(
        model=info.name,
        sha256=said[0].model_sha256,
        classes=list(info.classes),
        multi_label=bool(facts.get("multi_label")),
        calibrated=str(facts.get("calibrated", "")),
        ood=Unlike(**known) if known else None,
        ood_reason=facts.get("ood_reason"),
        notice=NOTICE,
        images=images,
    )
