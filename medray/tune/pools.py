"""Draws of a sampler that takes long to fit: made once for the same rows and seed, then kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from medray.store import Store
from medray.tune import arms
from medray.tune.data import Numbers

VERSION = 1


class Pools:
    """Pools below a URL; without one each is made anew."""

    def __init__(self, url: str | None, acgan: Mapping[str, Any] | None = None) -> None:
        self._store, self._acgan = None if url is None else Store(url), dict(acgan or {})

    def get(self, arm: str, real: arms.Real, most_K: Numbers) -> arms.Pair:
        """`most_K` rows of each class as the arm's sampler draws them, in order."""
        if self._store is None:
            return self._made(arm, real, most_K)
        name = f"{arm}-{self._digest(real, most_K)[:24]}.safetensors"
        try:
            found = load_arrays(self._store.read_bytes(name))
        except FileNotFoundError:
            rows_MD, labels_M = self._made(arm, real, most_K)
            # Two workers may make the same pool at once: it is the same bytes.
            self._store.write_bytes(name, bytes(save_arrays({"rows": rows_MD, "labels": labels_M})))
            return rows_MD, labels_M
        return found["rows"], found["labels"]

    def _made(self, arm: str, real: arms.Real, most_K: Numbers) -> arms.Pair:
        can_K = np.where(real.counts_K >= arms.least_of(arm), most_K, 0)
        labels_M = np.repeat(np.arange(len(can_K)), can_K).astype(np.int64)
        return arms.fitted(arm, real, self._acgan)(labels_M)

    def _digest(self, real: arms.Real, most_K: Numbers) -> str:
        facts = [VERSION, real.seed, real.classes, most_K.tolist(), self._acgan]
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
        digest.update(np.ascontiguousarray(real.features_ND).tobytes())
        digest.update(real.labels_N.tobytes())
        return digest.hexdigest()
