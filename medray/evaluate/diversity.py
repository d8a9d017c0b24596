"""Diseases among synthetic images, as an independent judge sees them: proportions and hit rate.

Shape letters: N images, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from medray.errors import DataError
from medray.metrics.intervals import binomial_interval

Said = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Share:
    """How many of how many, with the exact 95% interval of the share."""

    hits: int
    count: int
    value: float
    ci_low: float
    ci_high: float

    @classmethod
    def of(cls, hits: int, count: int) -> Share:
        """ValueError for a share of nothing."""
        return cls(hits, count, hits / count, *binomial_interval(hits, count))


@dataclass(frozen=True)
class Proportion:
    """One class, or two findings together: real by label, real and synthetic by the judge."""

    name: str
    labelled: Share | None
    real: Share
    synthetic: Share


def proportions(
    classes: Sequence[str], labels_NK: npt.NDArray[np.int64], real_NK: Said, synthetic_MK: Said
) -> list[Proportion]:
    """Every class, then every pair of findings that the labels or the judge know of.

    `labels_NK` holds 1, 0 or -1 (not known); where no label of a class is known, `labelled` is
    None. The judge errs, so its own answers on real images stand beside: those two compare.
    """
    sets: list[tuple[int, ...]] = [(number,) for number in range(len(classes))]
    for pair in combinations(range(len(classes)), 2):
        if _together(real_NK, pair) or _together(synthetic_MK, pair):
            sets.append(pair)
    return [_proportion(classes, members, labels_NK, real_NK, synthetic_MK) for members in sets]


def _together(said_NK: npt.NDArray[np.generic], members: Sequence[int]) -> int:
    return int((said_NK[:, list(members)] == 1).all(axis=1).sum())


def _proportion(
    classes: Sequence[str],
    members: Sequence[int],
    labels_NK: npt.NDArray[np.int64],
    real_NK: Said,
    synthetic_MK: Said,
) -> Proportion:
    known_N = (labels_NK[:, list(members)] >= 0).all(axis=1)
    labelled = None
    if known_N.any():
        labelled = Share.of(_together(labels_NK[known_N], members), int(known_N.sum()))
    return Proportion(
        " + ".join(classes[number] for number in members),
        labelled,
        Share.of(_together(real_NK, members), len(real_NK)),
        Share.of(_together(synthetic_MK, members), len(synthetic_MK)),
    )


def never_produced(found: Sequence[Proportion]) -> list[str]:
    """Classes that the judge sees among real images and in no synthetic one."""
    return [one.name for one in found if one.real.hits and not one.synthetic.hits]


# --- labels -----------------------------------------------------------------------------------


def label_matrix(
    classes: Sequence[str],
    labels: Sequence[str | None],
    findings: Sequence[dict[str, int]],
    multi_label: bool,
) -> npt.NDArray[np.int64]:
    """Labels as (N, K) of 1, 0 and -1 (not known), in the judge's classes.

    One class an image: its label, and no other class. Findings: what each record says.
    """
    matrix_NK = np.full((len(labels), len(classes)), -1, np.int64)
    for row, (label, known) in enumerate(zip(labels, findings, strict=True)):
        if not multi_label and label is not None:
            matrix_NK[row] = [int(name == label) for name in classes]
        elif multi_label:
            matrix_NK[row] = [known.get(name, -1) for name in classes]
    return matrix_NK


def hit_rates(
    classes: Sequence[str], labels_NK: npt.NDArray[np.int64], said_NK: Said
) -> dict[str, Share]:
    """How often the judge says what the label says: "all", and of each class those that have it.

    An image is a hit where the judge agrees on every class that is known of it. DataError where no
    image has a label that the judge knows.
    """
    known_NK = labels_NK >= 0
    usable_N = known_NK.any(axis=1)
    if not usable_N.any():
        raise DataError(
            f"no image has a label among the judge's classes: {', '.join(classes)}",
            code="MR-D313",
            hint="give a judge that was trained on this set's classes",
        )
    agree_N = ((labels_NK == said_NK) | ~known_NK).all(axis=1)
    rates = {"all": Share.of(int(agree_N[usable_N].sum()), int(usable_N.sum()))}
    for number, name in enumerate(classes):
        has_N = labels_NK[:, number] == 1
        if has_N.any():
            rates[name] = Share.of(int((said_NK[has_N, number] == 1).sum()), int(has_N.sum()))
    return rates
