"""Feature-space kernels: sampling, neighbours, moments. Arrays in, arrays out.

Each is a public function, its definition `_ref` in NumPy, and on GPUs a `.cu` file. The home of the
array picks the implementation; a GPU asked for without one is an error. Importing this package
imports no torch, no Numba and no CuPy.

- `labels`: by weight (alias table), exactly balanced
- `gaussian`: rows of a class's Gaussian; diagonal, low rank, full
- `truncated`: truncated normals, with pixel norm if wanted
- `interpolate`: SMOTE, mixup; `allocation`: from which rows (borderline, ADASYN)
- `neighbours`: exact nearest rows
- `moments`: means and covariances of classes, Ledoit-Wolf shrinkage
"""

from medray.kernels.moments import (
    check_features,
    class_moments,
    class_moments_ref,
    class_variances,
    class_variances_ref,
    ledoit_wolf,
    ledoit_wolf_ref,
)
from medray.kernels.neighbours import nearest, nearest_ref

__all__ = [
    "check_features",
    "class_moments",
    "class_moments_ref",
    "class_variances",
    "class_variances_ref",
    "ledoit_wolf",
    "ledoit_wolf_ref",
    "nearest",
    "nearest_ref",
]
