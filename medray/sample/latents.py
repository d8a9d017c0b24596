"""Latents with addresses: plain ones, and ones drawn from a Gaussian per wanted label vector.

A latent is a function of (seed, index) and, for a fitted model, of the target alone: sums run in a
fixed order in float64 and only the result is rounded, so neither the batch nor the library that
multiplies matrices changes a bit.

Shape letters: N latents, D latent dimensions, R directions of a low-rank update, K classes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from medray import rng
from medray.errors import DataError, UsageError
from medray.store import Store

Floats = NDArray[np.float32]
Wide = NDArray[np.float64]
Integers = NDArray[np.integer[Any]]

SCHEMA = "medray.latents/1"
TENSORS, ABOUT = "latents.safetensors", "latents.json"
PRIOR_STREAM, DRAW_STREAM = "sample.prior", "sample.latents"
# Rows of one pass: the work arrays stay in the second-level cache.
_ROWS_AT_ONCE = 512
EMPTY = "normal"


@dataclass(frozen=True)
class Target:
    """A wanted label vector: 0 or 1 for each class of the classifier, in its order."""

    name: str
    wanted: dict[str, int]


@dataclass(frozen=True)
class Gaussian:
    """A low-rank Gaussian over latents: a diagonal, and R directions in which it is changed.

    z = mean + diagonal * (x + sum over r of (scale_r - 1) (u_r . x) u_r) with x ~ N(0, I) and
    orthonormal directions u_r; its covariance is diag(d) (I + U (S^2 - I) U^T) diag(d). Unlike
    with factors that are added to a diagonal, a direction can be narrower than its surroundings
    too, as the one across a class's border is.
    """

    mean_D: Floats
    diagonal_D: Floats
    directions_DR: Floats
    scales_R: Floats

    def __post_init__(self) -> None:
        dims, rank = len(self.mean_D), len(self.scales_R)
        if self.diagonal_D.shape != (dims,) or self.directions_DR.shape != (dims, rank):
            raise ValueError(
                f"mean (D,), diagonal (D,), directions (D, R) and scales (R,) must agree, got "
                f"{self.mean_D.shape}, {self.diagonal_D.shape}, {self.directions_DR.shape}, "
                f"{self.scales_R.shape}"
            )
        for name, values in vars(self).items():
            if not np.isfinite(values).all():
                raise ValueError(f"{name} must be finite")

    def transform(self, normals_ND: Floats) -> Floats:
        """Standard normal rows as draws of this Gaussian; each row for itself, bit for bit."""
        parts = [
            self._rows(normals_ND[first : first + _ROWS_AT_ONCE])
            for first in range(0, len(normals_ND), _ROWS_AT_ONCE)
        ]
        return np.concatenate(parts) if parts else np.empty((0, len(self.mean_D)), np.float32)

    def _rows(self, normals_ND: Floats) -> Floats:
        x_DN = normals_ND.T.astype(np.float64, order="C")
        directions_DR = self.directions_DR.astype(np.float64)
        # Products and sums one by one: a matrix product's order depends on the machine and on N.
        along_RN = np.zeros((directions_DR.shape[1], x_DN.shape[1]))
        for direction_R, x_N in zip(directions_DR, x_DN, strict=True):
            along_RN += direction_R[:, None] * x_N
        along_RN *= (self.scales_R.astype(np.float64) - 1)[:, None]
        for direction_D, along_N in zip(directions_DR.T, along_RN, strict=True):
            x_DN += direction_D[:, None] * along_N
        x_DN *= self.diagonal_D.astype(np.float64)[:, None]
        x_DN += self.mean_D.astype(np.float64)[:, None]
        return np.ascontiguousarray(x_DN.T, np.float32)


@dataclass(frozen=True)
class LatentModel:
    """A Gaussian over the latents of one generator for each target; what an archive draws from."""

    targets: tuple[Target, ...]
    gaussians: tuple[Gaussian, ...]
    generator_sha256: str
    classifier_sha256: str

    def __post_init__(self) -> None:
        if len(self.targets) != len(self.gaussians) or not self.targets:
            raise ValueError(
                f"one Gaussian per target, at least one, got {len(self.gaussians)} for "
                f"{len(self.targets)} targets"
            )
        if len({len(gaussian.mean_D) for gaussian in self.gaussians}) != 1:
            raise ValueError("all Gaussians must have the same dimensions")

    @property
    def dims(self) -> int:
        """Latent dimensions, those of the generator."""
        return len(self.gaussians[0].mean_D)

    def draw(self, seed: int, target_numbers_N: Integers, indices_N: Integers) -> Floats:
        """Latents (N, D) of the addresses (seed, index), each for the target of that number.

        ValueError for a target number outside 0 to the number of targets, or unequal lengths.
        """
        numbers_N, indices_N = np.asarray(target_numbers_N), np.asarray(indices_N)
        if numbers_N.shape != indices_N.shape or numbers_N.ndim != 1:
            raise ValueError(
                f"target numbers and indices must both be (N,), got {numbers_N.shape} and "
                f"{indices_N.shape}"
            )
        if numbers_N.size and not 0 <= numbers_N.min() <= numbers_N.max() < len(self.targets):
            raise ValueError(
                f"target numbers must be 0 to {len(self.targets) - 1}, got {numbers_N.min()} to "
                f"{numbers_N.max()}"
            )
        latents_ND = rng.normals(seed, DRAW_STREAM, indices_N, self.dims)
        for number in np.unique(numbers_N):
            rows = numbers_N == number
            latents_ND[rows] = self.gaussians[number].transform(latents_ND[rows])
        return latents_ND

    @cached_property
    def data(self) -> bytes:
        """The file's bytes: every tensor, and what it is about in the header."""
        tensors = {
            f"{number}.{name}": np.ascontiguousarray(values, np.float32)
            for number, gaussian in enumerate(self.gaussians)
            for name, values in vars(gaussian).items()
        }
        about = {
            "schema": SCHEMA,
            "targets": [vars(target) for target in self.targets],
            "generator_sha256": self.generator_sha256,
            "classifier_sha256": self.classifier_sha256,
        }
        # One key of metadata: the order of several is not fixed.
        return bytes(save_tensors(tensors, {"medray": json.dumps(about)}))

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the file, which stands in every address that is drawn from this model."""
        return hashlib.sha256(self.data).hexdigest()

    def save(self, store: Store) -> str:
        """Writes `latents.safetensors` and, last, `latents.json`; the SHA-256 of the first."""
        about = {
            "schema": SCHEMA,
            "latents_sha256": self.sha256,
            "generator_sha256": self.generator_sha256,
            "classifier_sha256": self.classifier_sha256,
            "dims": self.dims,
            "targets": [
                {**vars(target), "rank": len(gaussian.scales_R)}
                for target, gaussian in zip(self.targets, self.gaussians, strict=True)
            ],
        }
        store.write_bytes(TENSORS, self.data)
        store.write_bytes(ABOUT, (json.dumps(about, indent=1) + "\n").encode())
        return self.sha256

    @classmethod
    def load(cls, url: str) -> LatentModel:
        """The model in a folder or at a URL.

        UsageError where there is none; DataError where the file is not the one that latents.json
        names (MR-D040) or cannot be read (MR-D041).
        """
        store = Store(url)
        if not store.exists(ABOUT) or not store.exists(TENSORS):
            raise UsageError(
                f"{url} holds no latents", hint=f"give what `medray latents --out` made ({ABOUT})"
            )
        where, data = f"{store.url}/{TENSORS}", store.read_bytes(TENSORS)
        try:
            stated = json.loads(store.read_bytes(ABOUT))["latents_sha256"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError("cannot be read", code="MR-D041", where=f"{url}/{ABOUT}") from error
        if hashlib.sha256(data).hexdigest() != stated:
            raise DataError(
                "the file does not have the digest that latents.json names",
                code="MR-D040",
                where=where,
                hint="run `medray latents` again with --overwrite",
            )
        try:
            return cls._parsed(data)
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"these are no latents of schema {SCHEMA}: {error}", code="MR-D041", where=where
            ) from error

    @classmethod
    def _parsed(cls, data: bytes) -> LatentModel:
        length = int.from_bytes(data[:8], "little")
        about = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["medray"])
        if about["schema"] != SCHEMA:
            raise ValueError(f"the schema is {about['schema']!r}")
        tensors = load_tensors(data)
        names = Gaussian.__dataclass_fields__
        return cls(
            targets=tuple(Target(**target) for target in about["targets"]),
            gaussians=tuple(
                Gaussian(**{name: tensors[f"{number}.{name}"] for name in names})
                for number in range(len(about["targets"]))
            ),
            generator_sha256=about["generator_sha256"],
            classifier_sha256=about["classifier_sha256"],
        )


def prior(seed: int, indices_N: Integers, dims: int) -> Floats:
    """Plain latents (N, D) of the addresses (seed, index): standard normal."""
    return rng.normals(seed, PRIOR_STREAM, np.asarray(indices_N), dims)


def target_of(text: str, classes: Sequence[str], multi_label: bool) -> Target:
    """The wanted label vector of "bacteria" or, for several findings at once, "effusion+nodule".

    Classes that are not named are wanted absent. Where the classifier knows findings alone,
    "normal" wants none. UsageError for classes that it does not know, and for several of which it
    can say only one.
    """
    names = text.split("+")
    if names == [EMPTY] and multi_label and EMPTY not in classes:
        names = []
    unknown = [name for name in names if name not in classes]
    if unknown:
        raise UsageError(
            f"--classes: the classifier does not know {', '.join(map(repr, unknown))}",
            hint=f"it knows {', '.join(classes)}",
        )
    if len(names) != len(set(names)):
        raise UsageError(f"--classes: {text!r} names a class twice")
    if len(names) > 1 and not multi_label:
        raise UsageError(
            f"--classes: {text!r} wants {len(names)} classes at once, the classifier gives one",
            hint="train it with --labels many, or name the classes apart, with commas",
        )
    return Target(text, {name: int(name in names) for name in classes})
