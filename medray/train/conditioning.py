"""Classes of a conditional GAN: of real images, of made ones, and as rows that G takes.

Shape letters: N images, K classes that the networks know.

A set may declare classes of which the split has no image: they are no class here. Real images
without a label get UNKNOWN, which has no part in the class term.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from medray import rng
from medray.errors import DataError
from medray.train.pggan_config import PgganConfig

UNKNOWN = -1
LEAST_CLASSES = 2

Classes = NDArray[np.int64]


class Conditioning:
    """Labels as the networks take them; DataError for a set with fewer than two classes."""

    def __init__(self, config: PgganConfig) -> None:
        check(config)
        self.names, self._seed = config.class_names, config.seed
        counts = np.asarray(config.class_counts)
        # The last entry is found by -1, the label of an image that has none.
        self._of_label = np.append(np.where(counts > 0, np.cumsum(counts > 0) - 1, UNKNOWN), -1)
        natural_K = counts[counts > 0] / counts.sum()
        even_K = np.full(len(self.names), 1 / len(self.names))
        self._shares_K = natural_K if config.fake_labels == "natural" else even_K
        self.natural_K = natural_K

    def of_labels(self, labels_N: NDArray[np.integer[Any]]) -> Classes:
        """Classes of real images, by the set's numbers of their labels (-1: none)."""
        return np.asarray(self._of_label[labels_N], np.int64)

    def drawn(self, stream: str, numbers_N: NDArray[np.int64]) -> Classes:
        """Classes of made images, each a function of its number: as `config.fake_labels` says."""
        return self._drawn(stream, numbers_N, self._shares_K)

    def natural(self, stream: str, numbers_N: NDArray[np.int64]) -> Classes:
        """Classes as frequent as in the set."""
        return self._drawn(stream, numbers_N, self.natural_K)

    def _drawn(
        self, stream: str, numbers_N: NDArray[np.int64], shares_K: NDArray[np.float64]
    ) -> Classes:
        place_N = rng.uniforms(self._seed, stream, numbers_N, 1)[:, 0]
        # Without the last edge: rounding must not leave a place beyond it.
        edges_K = np.cumsum(shares_K)[:-1]
        return np.searchsorted(edges_K, place_N, side="right").astype(np.int64)

    def beside(self, latents_NL: NDArray[np.float32], classes_N: Classes) -> NDArray[np.float32]:
        """Latents with the class as a one-hot row behind each, (N, L + K)."""
        one_hot_NK = np.eye(len(self.names), dtype=np.float32)[classes_N]
        return np.concatenate([latents_NL, one_hot_NK], axis=1)


def check(config: PgganConfig, where: str = "") -> None:
    """DataError unless there are images of two classes at least."""
    if len(config.class_names) >= LEAST_CLASSES:
        return
    found = ", ".join(config.class_names)
    what = f"labels of one class only ({found})" if found else "no labels"
    raise DataError(
        f"--conditional needs {LEAST_CLASSES} classes, the split has {what}",
        code="MR-D075",
        where=where,
        hint="pack the set with labels, or train without --conditional",
    )
