"""What is computed of every image, shard by shard: features, the judge's answer, the gate's.

A task is one shard, its result one safetensors file named by the digest of all that decides it; so
any worker may do it, a rerun takes what is there, and a killed one loses a shard at most.

Shape letters: N images, K classes, D features.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from medray.errors import DataError
from medray.evaluate.audit import Pair
from medray.evaluate.sets import ImageSet, Part, Pixels, Rows, part_batches
from medray.evaluate.similarity import channels_first
from medray.models.classifier import Classifier
from medray.models.extract import BATCH, Extractor, Form, prepared
from medray.models.weights import load_classifier
from medray.store import Store

Arrays = dict[str, npt.NDArray[Any]]
VERSION = 1
ROWS = "rows"


@dataclass
class State:
    """What a worker holds to do it."""

    extractor: Extractor
    judge: Judge | None
    gates: Pair | None

    def sha256(self, gated: bool) -> str:
        """A digest of what decides the results."""
        parts = {
            "version": VERSION,
            "extractor": self.extractor.record(),
            "judge": None if self.judge is None else self.judge.sha256,
            "gates": self.gates.sha256 if gated and self.gates else None,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class Judge:
    """A classifier that answers for images: its decision and probability for each class."""

    def __init__(self, url: str) -> None:
        self.network, about = load_classifier(url)
        self.sha256 = str(about["classifier_sha256"])
        self.about = about

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes that it knows."""
        return self.network.classes

    def answers(self, images_NCHW: Pixels) -> Arrays:
        """`said` (N, K) uint8, 1 for the decided class or findings; `probabilities` (N, K)."""
        form = Form(None, self.network.channels, "signed")
        said, probabilities = [], []
        for first in range(0, len(images_NCHW), BATCH):
            some = images_NCHW[first : first + BATCH]
            padded = np.zeros((BATCH, *some.shape[1:]), np.uint8)
            padded[: len(some)] = some
            with torch.inference_mode():
                logits_NK = self.network(prepared(padded, form))
            said.append(_said(self.network, logits_NK)[: len(some)])
            probabilities.append(self.network.calibrated(logits_NK).numpy()[: len(some)])
        return {"said": np.concatenate(said), "probabilities": np.concatenate(probabilities)}


def _said(network: Classifier, logits_NK: torch.Tensor) -> npt.NDArray[np.uint8]:
    decided = network.decisions(logits_NK)
    if not network.multi_label:
        decided = torch.nn.functional.one_hot(decided, len(network.classes))
    return decided.to(torch.uint8).numpy()


def make_state(extractor: str, judge: str | None, gates: str | None) -> State:
    """Loads what `Asked` names, on a worker."""
    return State(
        Extractor.load(extractor),
        None if judge is None else Judge(judge),
        None if gates is None else Pair.load(gates),
    )


def work(state: State, url: str, part: Part, gated: bool, cache_url: str) -> str:
    """Computes one part's arrays and publishes them in the cache; the file's name.

    `gated`: by the gates too. Beside the arrays stand the images' labels and patients.
    """
    cache, name = Store(cache_url), file_name(state, part, gated)
    if _read(cache, name) is None:
        found, rows = [], []
        for images, about in part_batches(Store(url), part):
            found.append(_arrays(state, images, gated))
            rows.append(about)
        arrays = {key: np.concatenate([some[key] for some in found]) for key in found[0]}
        arrays[ROWS] = np.frombuffer(Rows.joined(rows).to_json().encode(), np.uint8)
        cache.write_bytes(name, save_arrays(arrays))
    return name


def file_name(state: State, part: Part, gated: bool) -> str:
    """Where a part's arrays are."""
    text = f"{part.shard.sha256} {part.numbers} {state.sha256(gated)}"
    return f"arrays-{hashlib.sha256(text.encode()).hexdigest()[:24]}.safetensors"


def _arrays(state: State, images: Pixels, gated: bool) -> Arrays:
    images_NCHW = channels_first(images)
    arrays: Arrays = {"features": state.extractor.features(images_NCHW)}
    if state.judge is not None:
        arrays |= state.judge.answers(images_NCHW)
    if gated and state.gates is not None:
        arrays |= state.gates.judge(images)
    return arrays


def _read(cache: Store, name: str) -> Arrays | None:
    """The arrays of a file, or None where it is absent or damaged."""
    if not cache.exists(name):
        return None
    try:
        return dict(load_arrays(cache.read_bytes(name)))
    except SafetensorError:
        return None


def collected(cache: Store, names: Sequence[str], images: ImageSet) -> tuple[Rows, Arrays]:
    """What is known and what was computed of all images of a set, in order.

    DataError where a file is not whole.
    """
    parts = list(_each(cache, names, images))
    rows = Rows.joined([Rows.from_json(part.pop(ROWS).tobytes().decode()) for part in parts])
    return rows, {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def _each(cache: Store, names: Sequence[str], images: ImageSet) -> Iterator[Arrays]:
    for name, part in zip(names, images.parts, strict=True):
        arrays = _read(cache, name)
        if arrays is None or len(arrays["features"]) != len(part.numbers):
            raise DataError(
                "a file of computed features is damaged",
                code="MR-D312",
                where=f"{cache.url}/{name}",
                hint="remove it and run the same command again",
            )
        yield arrays
