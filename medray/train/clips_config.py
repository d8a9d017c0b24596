"""Configuration of classifiers on an encoder, of clips or of images. No torch here."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from medray.config import Location
from medray.train.classifier_config import ClassifierConfig

RANDOM = "random"


class ClipsConfig(ClassifierConfig):
    """What decides the weights of a classifier that may be one of clips, but for the data."""

    encoder: Location | None = Field(
        None,
        description="trunk to begin with: a run of jigsaw or of classify --encoder, or random; "
        "fine-tuned",
        json_schema_extra={"metavar": "RUN|random", "words": [RANDOM]},
    )
    freeze: bool = Field(False, description="leave the encoder as it is, with --clips")
    clips: bool = Field(False, description="the set holds clips; every figure is of clips then")
    pool: Literal["attention", "convlstm", "mean"] = Field(
        "attention", description="how the frames of a clip become one, with --clips"
    )
    frames: int = Field(16, ge=1, description="frames looked at, evenly over the clip")
    units: int = Field(16, ge=1, description="features of each cell of a frame, with --clips")

    @model_validator(mode="after")
    def _agrees(self) -> ClipsConfig:
        if self.clips and self.encoder is None:
            raise ValueError("--clips needs --encoder, a run or the word random")
        if self.freeze and not self.clips:
            raise ValueError("--freeze goes with --clips")
        return self
