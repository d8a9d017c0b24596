"""Scores: arrays in, numbers out. Nothing here reads a file, knows a model or draws without a seed.

Of two sets of images: `sliced_wasserstein` per level of a pyramid, `spectral_power` and
`top_octave_ratio` (the other names below are the parts of the first); of pairs of images,
`structural`. Of two sets of features: `frechet`, `kid`, `manifold` (precision, recall, density,
coverage). Of a classifier: `classification`; of a segmenter: `overlap`. How sure any of them is:
`intervals`. What makes a set worse by known steps, to see whether a score notices: `distortions`.

A score that the numbers given do not have is an `UndefinedMetricError`, never 0.
"""

from medray.metrics import (
    classification,
    distortions,
    frechet,
    intervals,
    kid,
    manifold,
    overlap,
    structural,
)
from medray.metrics._checks import UndefinedMetricError
from medray.metrics._spectrum import spectral_power, top_octave_ratio
from medray.metrics._wasserstein import (
    descriptors,
    doubled,
    halved,
    laplacian_pyramid,
    normalised,
    sliced_distance,
    sliced_wasserstein,
)

__all__ = [
    "UndefinedMetricError",
    "classification",
    "descriptors",
    "distortions",
    "doubled",
    "frechet",
    "halved",
    "intervals",
    "kid",
    "laplacian_pyramid",
    "manifold",
    "normalised",
    "overlap",
    "sliced_distance",
    "sliced_wasserstein",
    "spectral_power",
    "structural",
    "top_octave_ratio",
]
