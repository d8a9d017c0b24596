"""FID itself, validated: real images made worse by known steps must score worse, step by step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from medray.evaluate import plots
from medray.evaluate.distribution import FEWEST
from medray.evaluate.material import TRAIN, Material
from medray.evaluate.resample import Numbers, halves, some
from medray.evaluate.sections import Section
from medray.evaluate.sets import AT_ONCE, Pixels
from medray.evaluate.similarity import channels_first
from medray.metrics import UndefinedMetricError, distortions
from medray.metrics.frechet import frechet_of

STRENGTHS = (0.2, 0.4, 0.6, 0.8, 1.0)
Features = npt.NDArray[np.float32]


def chapter(most: int) -> Callable[[Material], Section]:
    """The section, with `most` images a side."""

    def make(m: Material) -> Section:
        return validation(m, most)

    return make


def validation(m: Material, most: int) -> Section:
    """FID of one half of the real patients, distorted, from the other half, left as it is."""
    section = Section("Is FID itself fit for these images?")
    first_N, second_N = halves(m.side(TRAIN).groups_N, m.seed)
    count = min(len(first_N), len(second_N), most)
    if count < FEWEST:
        raise UndefinedMetricError(f"validation: {count} images in a half, it takes {FEWEST}")
    still_N, worse_N = (
        some(rows_N, count, m.seed, f"validation.{side}")
        for side, rows_N in (("still", first_N), ("worse", second_N))
    )
    curves = _curves(m, still_N, worse_N)
    section.text(
        f"{count:,} real images were made worse by five strengths each of blur, noise, mode "
        f"dropping and a shift of the label mix, and scored against {count:,} others of other "
        "patients. A FID that does not rise with the strength does not see that fault with this "
        "extractor, and says nothing about it in the synthetic images; what is weaker than the "
        "strength from which it lies above the undistorted images, it does not see either."
    )
    rises = {name: bool((np.diff(values[1:]) > 0).all()) for name, values in curves.items()}
    noticed = {name: _noticed(values) for name, values in curves.items()}
    rows = [
        [name, *values, "yes" if rises[name] else "NO", noticed[name]]
        for name, values in curves.items()
    ]
    columns = ["FID at strength", "0", *map(str, STRENGTHS), "rises with strength", "noticed from"]
    section.table(columns, rows)
    title = "FID of distorted real images"
    section.picture(
        "fid-validation.png",
        plots.curves_png(curves, "strength, in fifths", title),
        "FID over strengths: each line must rise",
    )
    section.figures["fid_validation"] = {
        name: {"fid": values, "rises": rises[name], "noticed_from": noticed[name]}
        for name, values in curves.items()
    }
    section.figures["fid_validated"] = all(rises.values())
    section.figures["fid_validation_images"] = count
    return section


def _noticed(values: list[float]) -> float | None:
    """The strength from which on every figure lies above that of the undistorted images."""
    above = [value > values[0] for value in values[1:]]
    if not above[-1]:
        return None
    return STRENGTHS[max((n + 1 for n, seen in enumerate(above) if not seen), default=0)]


def _curves(m: Material, still_N: Numbers, worse_N: Numbers) -> dict[str, list[float]]:
    """FID at strengths 0 and the five, by kind; label kinds only where there are two labels."""
    features_ND: Features = m.arrays[TRAIN]["features"]
    still_ND, base_ND = features_ND[still_N], features_ND[worse_N]
    labels_N = np.array([str(m.rows[TRAIN].labels[row]) for row in worse_N])

    def blurred(images: Pixels, first: int, strength: float) -> Pixels:
        return distortions.blur(images, strength)

    def noisy(images: Pixels, first: int, strength: float) -> Pixels:
        return distortions.noise(images, strength, seed=m.seed, first=first)

    curves = {"blur": _of_images(m, worse_N, blurred), "noise": _of_images(m, worse_N, noisy)}
    if len(set(labels_N)) > 1:
        curves |= {
            "mode dropping": _of_rows(base_ND, labels_N, distortions.drop_modes, m.seed),
            "label mix": _of_rows(base_ND, labels_N, distortions.mix_labels, m.seed),
        }
    return {
        name: [frechet_of(still_ND, found_ND) for found_ND in (base_ND, *changed)]
        for name, changed in curves.items()
    }


def _of_images(
    m: Material, rows_N: Numbers, distort: Callable[[Pixels, int, float], Pixels]
) -> list[Features]:
    """Features of the distorted images at each strength, a batch of images in memory at a time."""
    parts: dict[float, list[Features]] = {strength: [] for strength in STRENGTHS}
    for first in range(0, len(rows_N), AT_ONCE):
        images = m.sets[TRAIN].take([int(row) for row in rows_N[first : first + AT_ONCE]])
        for strength, found in parts.items():
            changed = distort(images, first, strength)
            found.append(m.extractor.features(channels_first(changed)))
    return [np.concatenate(found) for found in parts.values()]


def _of_rows(base_ND: Features, labels_N: Any, choose: Any, seed: int) -> list[Features]:
    return [base_ND[choose(labels_N, strength, seed=seed)] for strength in STRENGTHS]
