"""`POST /v1/features`: a classifier's features of uploaded images, for people's own models."""

from __future__ import annotations

import io
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from serve import keys
from serve.records import Array
from serve.routes.asked import BODY, NOTICE, model_of, paid_back
from serve.routes.classify import channels_of, images_of
from serve.services import Services
from serve.uploads import Upload

NPY = "application/x-npy"


class Options(BaseModel):
    """Of which model, and in which form."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = Field(
        None, max_length=128, description="its name; not needed where there is one alone"
    )
    format: Literal["json", "npy"] = Field("json", description="npy: float32 (images, features)")


class Row(BaseModel):
    """One image's features."""

    file: int
    frame: int
    features: list[float]


class Features(BaseModel):
    """The model, how many features it gives, and those of each image."""

    model: str
    sha256: str
    dims: int
    notice: str
    images: list[Row]


ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "model": Features,
        "content": {NPY: {"schema": {"type": "string", "format": "binary"}}},
        "description": "The features: JSON, or an NPY file",
    }
}


def router(services: Services) -> APIRouter:
    """The route."""
    made = APIRouter(tags=["models"])

    @made.post(
        "/v1/features",
        summary="Describes images by a classifier's features",
        openapi_extra=BODY,
        responses=ANSWERS,
        response_class=JSONResponse,
        response_model=None,
    )
    async def features(
        request: Request,
        options: Annotated[Options, Query()],
        key: Annotated[str, Depends(keys.scope("read"))],
    ) -> Response:
        info = model_of(services, "classifier", options.model)
        found = await images_of(request, services, key, info.size_px, channels_of(info))
        with paid_back(services, key, len(found)):
            rows_ND = await services.features(info.name, [image.image for image in found])
        headers = {"x-medray-model": info.sha256}
        if options.format == "npy":
            return Response(_npy(rows_ND), 200, headers, NPY)
        images = [_row(image, row) for image, row in zip(found, rows_ND, strict=True)]
        body = Features(
            model=info.name,
            sha256=info.sha256,
            dims=int(rows_ND.shape[1]),
            notice=NOTICE,
            images=images,
        )
        return JSONResponse(body.model_dump(), 200, headers)

    return made


def _npy(rows_ND: Array) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, np.ascontiguousarray(rows_ND, np.float32), allow_pickle=False)
    return file.getvalue()


def _row(image: Upload, row_D: Any) -> Row:
    return Row(file=image.file, frame=image.frame, features=[float(value) for value in row_D])
