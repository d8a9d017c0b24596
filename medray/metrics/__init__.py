"""Scores: arrays in, numbers out. Nothing here reads a file, knows a model or draws without a seed.

Of two sets of images: `sliced_wasserstein` per level of a pyramid, `spectral_power` and
`top_octave_ratio`. The other names are the parts of the first, for tests and for the curious.
"""

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
    "descriptors",
    "doubled",
    "halved",
    "laplacian_pyramid",
    "normalised",
    "sliced_distance",
    "sliced_wasserstein",
    "spectral_power",
    "top_octave_ratio",
]
