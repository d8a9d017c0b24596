"""Whether an image is like those a classifier was trained on: a distance, and where it is far.

An image is described by the classifier's features, by itself at 8 x 8 px, and by its power in bands
of spatial frequency: features alone overlook what a network learnt to ignore, and the other two
alone overlook what has the right layout and texture. The distance is Mahalanobis' with a shrunk
covariance (Lee et al., NeurIPS 2018, without classes): of the training images, since they are many;
the threshold is a quantile of the validation images, since those are as new to the network as what
will come. So about one in a hundred of images like them is flagged, by construction.

Shape letters: N images, C channels, H and W pixels, F features, D numbers that describe an image.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from medray.errors import DataError
from medray.store import Store

FILE = "ood.safetensors"
SCHEMA = "medray.ood/1"
QUANTILE = 0.99
SHRINKAGE = 0.05
THUMBNAIL_PX, BANDS = 8, 8
# Of fewer images no threshold is made: it would flag more than one familiar image in twenty.
LEAST_VALIDATION, LEAST_TRAINING = 19, 2
# So little power is none: 16-bit rounding has more.
_LEAST_POWER = 1e-6

Rows = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Facts:
    """What a threshold stands on; `expected` is the share of familiar images that it flags."""

    classifier_sha256: str
    threshold: float
    quantile: float
    expected: float
    training_images: int
    validation_images: int


@dataclass(frozen=True)
class Familiarity:
    """What the images of a training were like, and from which distance on others are not."""

    facts: Facts
    mean_D: Rows
    scale_D: Rows
    whitening_DD: Rows

    def scores(self, rows_ND: Rows) -> Rows:
        """Distances (N,) of rows of `describe`: about 1 for training images, larger is farther."""
        if rows_ND.ndim != 2 or rows_ND.shape[1] != len(self.mean_D):
            raise ValueError(f"rows must have shape (N, {len(self.mean_D)}), got {rows_ND.shape}")
        white_ND = ((rows_ND - self.mean_D) / self.scale_D) @ self.whitening_DD
        distances_N: Rows = np.sqrt((white_ND**2).mean(axis=1))
        return distances_N

    def unlike(self, scores_N: Rows) -> npt.NDArray[np.bool_]:
        """Which scores are past the threshold; one that is not a number is."""
        return ~(scores_N <= self.facts.threshold)

    def save(self, store: Store) -> None:
        """Writes `ood.safetensors`: the same bytes for the same fit."""
        tensors = {
            name: np.ascontiguousarray(getattr(self, name))
            for name in ("mean_D", "scale_D", "whitening_DD")
        }
        about = {"schema": SCHEMA, **asdict(self.facts), "sha256": _digest(self.facts, tensors)}
        store.write_bytes(FILE, bytes(save_tensors(tensors, {"medray": json.dumps(about)})))

    @classmethod
    def load(cls, store: Store, classifier_sha256: str) -> Familiarity | None:
        """What `save` left; None where nothing was, DataError (MR-D046) where it does not fit."""
        if not store.exists(FILE):
            return None
        data = store.read_bytes(FILE)
        try:
            length = int.from_bytes(data[:8], "little")
            about = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["medray"])
            if about.pop("schema") != SCHEMA:
                raise ValueError("another schema")
            stated, tensors = about.pop("sha256"), load_tensors(data)
            found = cls(Facts(**about), **tensors)
            if _digest(found.facts, tensors) != stated:
                raise ValueError("another digest")
        except Exception as error:  # the library raises a kind of its own
            what = f"cannot be read ({type(error).__name__})"
            raise DataError(what, code="MR-D046", where=f"{store.url}/{FILE}") from error
        if found.facts.classifier_sha256 != classifier_sha256:
            raise DataError(
                f"it was fitted for classifier {found.facts.classifier_sha256[:12]}, here is "
                f"{classifier_sha256[:12]}",
                code="MR-D046",
                where=f"{store.url}/{FILE}",
                hint="run the classifier's training to its end again",
            )
        return found


def _digest(facts: Facts, tensors: Mapping[str, Rows]) -> str:
    """SHA-256 of facts and tensors: a flipped bit must not move the threshold in silence."""
    digest = hashlib.sha256(json.dumps(asdict(facts)).encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].shape} {tensors[name].dtype}".encode())
        digest.update(np.ascontiguousarray(tensors[name]).tobytes())
    return digest.hexdigest()


def fit(training_ND: Rows, validation_ND: Rows, classifier_sha256: str) -> Familiarity:
    """The familiarity of rows of `describe`; ValueError where there are too few, or not finite."""
    for name, rows_ND, least in (
        ("training", training_ND, LEAST_TRAINING),
        ("validation", validation_ND, LEAST_VALIDATION),
    ):
        if len(rows_ND) < least:
            raise ValueError(f"{least} or more {name} images are needed, got {len(rows_ND)}")
        if not np.isfinite(rows_ND).all():
            raise ValueError(f"the rows of {name} images are not finite")
    mean_D, spread_D = training_ND.mean(axis=0), training_ND.std(axis=0)
    # A number that is the same on all training images must not count without limit.
    scale_D = spread_D + 1e-3 * max(float(training_ND.std()), 1e-9)
    unit_ND = (training_ND - mean_D) / scale_D
    covariance_DD = unit_ND.T @ unit_ND / len(unit_ND)
    level = max(float(np.trace(covariance_DD)) / len(mean_D), 1e-9)
    covariance_DD = (1 - SHRINKAGE) * covariance_DD + SHRINKAGE * level * np.eye(len(mean_D))
    whitening_DD = np.linalg.cholesky(np.linalg.inv(covariance_DD))
    far = Facts(classifier_sha256, math.inf, QUANTILE, 0.0, len(training_ND), len(validation_ND))
    fitted = Familiarity(far, mean_D, scale_D, whitening_DD)
    threshold, expected = cut(fitted.scores(validation_ND))
    about = {**asdict(far), "threshold": threshold, "expected": expected}
    return Familiarity(Facts(**about), mean_D, scale_D, whitening_DD)


def cut(scores_N: Rows) -> tuple[float, float]:
    """The threshold, and the share of new images of the same kind that is expected past it.

    The order statistic that makes this share 1% at most (Vovk et al., 2005); with fewer than 99
    images the highest, which is passed by one in N + 1.
    """
    count = len(scores_N)
    rank = min(math.ceil((count + 1) * QUANTILE), count)
    return float(np.sort(scores_N)[rank - 1]), 1 - rank / (count + 1)


def describe(images_NCHW: npt.NDArray[np.floating], features_NF: npt.NDArray[np.floating]) -> Rows:
    """Rows (N, D): features, thumbnail and spectrum of images in [-1, 1] as the network sees them.

    Images are square, at the network's size; each row is a function of its image alone.
    """
    grey_NHW = np.ascontiguousarray(images_NCHW.mean(axis=1), np.float32)
    thumbnails = [_thumbnail(image) for image in grey_NHW]
    thumbnails_ND = np.array(thumbnails).reshape(len(grey_NHW), THUMBNAIL_PX**2)
    parts = [np.asarray(features_NF, np.float64), thumbnails_ND, _spectrum(grey_NHW)]
    return np.concatenate(parts, axis=1)


def _thumbnail(image_HW: npt.NDArray[np.float32]) -> Rows:
    size = (THUMBNAIL_PX, THUMBNAIL_PX)
    small: npt.NDArray[Any] = cv2.resize(image_HW, size, interpolation=cv2.INTER_AREA)
    return small.ravel().astype(np.float64)


def _spectrum(grey_NHW: npt.NDArray[np.float32]) -> Rows:
    """log10 of the mean power in bands of spatial frequency, (N, BANDS)."""
    size_px = grey_NHW.shape[1]
    centred_NHW = grey_NHW - grey_NHW.mean(axis=(1, 2), keepdims=True)
    power_NHW = np.abs(np.fft.fft2(centred_NHW)) ** 2 / size_px**2
    cycles_H = np.fft.fftfreq(size_px)
    radius_HW = np.hypot(cycles_H[:, None], cycles_H[None])
    band_HW = np.minimum((radius_HW / 0.5 * BANDS).astype(int), BANDS - 1)
    means = [power_NHW[:, band_HW == band].mean(axis=1) for band in range(BANDS)]
    return np.stack([np.log10(mean_N + _LEAST_POWER) for mean_N in means], axis=1)
