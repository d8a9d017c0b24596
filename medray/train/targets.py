"""What a classifier is to say of a sample: which classes there are, truth as rows, class weights.

Shape letters: N samples, K classes. Truth is 1, 0, or -1 where it is not known.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from medray.errors import DataError, UsageError

Truth = npt.NDArray[np.int8]
UNKNOWN = -1


class Labelled(Protocol):
    """A sample's `label` (one class) and `labels` (findings: 1, 0 or None)."""

    @property
    def label(self) -> str | None: ...
    @property
    def labels(self) -> dict[str, int | None]: ...
    @property
    def patient(self) -> str | None: ...
    @property
    def key(self) -> str: ...


@dataclass(frozen=True)
class Targets:
    """The classes of a task; `multi_label` where each is a finding of its own."""

    classes: tuple[str, ...]
    multi_label: bool

    def row(self, label: str | None, labels: Mapping[str, int | None]) -> list[int]:
        """Truth of one sample, K long."""
        if self.multi_label:
            values = (labels.get(name) for name in self.classes)
            return [UNKNOWN if value is None else int(value) for value in values]
        if label not in self.classes:
            return [UNKNOWN] * len(self.classes)
        return [int(label == name) for name in self.classes]

    def of_records(self, records: Sequence[Mapping[str, Any]]) -> Truth:
        """Truth of a batch's records, (N, K)."""
        rows = [self.row(r.get("label"), r.get("labels") or {}) for r in records]
        return np.asarray(rows, np.int8).reshape(len(rows), len(self.classes))

    def of(self, samples: Sequence[Labelled]) -> Truth:
        """Truth of samples, (N, K)."""
        rows = [self.row(s.label, s.labels) for s in samples]
        return np.asarray(rows, np.int8).reshape(len(rows), len(self.classes))

    def known(self, sample: Labelled) -> bool:
        """Whether anything is known of the sample."""
        return max(self.row(sample.label, sample.labels)) > UNKNOWN


def choose(
    samples: Sequence[Labelled],
    declared: Sequence[str],
    *,
    labels: str = "auto",
    only: Sequence[str] = (),
    where: str = "",
) -> Targets:
    """The task that training samples make; `declared` are the set's classes in their order.

    `labels` is one, many, or auto: many where some sample has two findings at once. A class without
    a sample is left out. DataError where too few are left, UsageError for a name in `only` that
    there is not.
    """
    findings = sorted({name for s in samples for name, v in s.labels.items() if v is not None})
    meet = any(sum(v == 1 for v in s.labels.values()) > 1 for s in samples)
    multi_label = labels == "many" or (labels == "auto" and meet)
    seen = {s.label for s in samples} - {None}
    present = findings if multi_label else [name for name in declared if name in seen]
    if absent := [name for name in only if name not in present]:
        raise UsageError(
            f"--classes: no training sample has {', '.join(absent)}",
            hint=f"there are {', '.join(present) or 'none'} (--labels one and many differ)",
        )
    chosen = tuple(only) or tuple(present)
    if len(chosen) < (1 if multi_label else 2):
        raise _too_few(chosen, multi_label, bool(findings), where)
    return Targets(chosen, multi_label)


def _too_few(found: tuple[str, ...], multi_label: bool, others: bool, where: str) -> DataError:
    what = "findings" if multi_label else "classes"
    if found:
        return DataError(
            f"one class only ({found[0]}): there is nothing to tell apart",
            code="MR-D071",
            where=where,
            hint="give a set with two classes or more, or another --patients",
        )
    hint = "pack the set with labels (a label column in the CSV, or a folder a class)"
    if others and not multi_label:
        hint = "the set has findings: --labels many"
    return DataError(f"no sample has {what}", code="MR-D070", where=where, hint=hint)


Rows = npt.NDArray[np.float64]


def weights(truth_NK: Truth, multi_label: bool, most: float) -> Rows:
    """Inverse frequency, (2, K): the weight of a 0 and of a 1; a mean sample weighs about 1.

    One class an image: the weight of a sample is that of its class, n / (K n_k), and row 0 is not
    used. Findings: n / (2 n_0) and n / (2 n_1) of those known. None above `most`.
    """
    positive_K = (truth_NK == 1).sum(0).astype(np.float64)
    if not multi_label:
        ones_K = positive_K.sum() / (len(positive_K) * np.maximum(positive_K, 1))
        rows_2K: Rows = np.minimum(np.stack([np.zeros_like(ones_K), ones_K]), most)
        return rows_2K
    known_K = (truth_NK >= 0).sum(0)
    counts_2K = np.stack([known_K - positive_K, positive_K])
    both_2K: Rows = np.minimum(known_K / (2 * np.maximum(counts_2K, 1)), most)
    return both_2K


def bias_of(weights_2K: Rows, multi_label: bool) -> Rows:
    """What takes weights out of logits again, (K,): a weight of w raises a logit by log w."""
    logs_2K: Rows = np.log(np.maximum(weights_2K, 1e-9))
    zeros_K, ones_K = logs_2K
    bias_K: Rows = zeros_K - ones_K if multi_label else -ones_K
    return bias_K


def patient_of(sample: Labelled) -> str:
    """The sample's patient; a sample without one is a patient of its own."""
    return sample.patient or f"sample {sample.key}"


def in_half(sample: Labelled, half: str) -> bool:
    """Whether the sample's patient is in `half` (half-a, half-b, or all).

    A function of the patient alone, so that two runs of any seeds can share none of them.
    """
    digest = hashlib.sha256(b"medray.half:" + patient_of(sample).encode()).digest()
    return half == "all" or half == ("half-a", "half-b")[digest[0] & 1]


def counts(truth_NK: Truth, classes: Sequence[str]) -> dict[str, int]:
    """Samples that have each class."""
    return dict(zip(classes, (int(n) for n in (truth_NK == 1).sum(0)), strict=True))


def shown(found: Mapping[str, int]) -> str:
    """Counts as text."""
    return ", ".join(f"{name} {count:,}" for name, count in found.items())
