"""What can be ordered of a synthesis model, and in which forms; no torch here.

Refusals say what was given and what is allowed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medray.errors import UsageError
from serve.problems import shown

FORMATS = {
    "png": "image/png",
    "png16": "image/png",
    "npy": "application/x-npy",
    "dicom": "application/dicom",
}
EXTENSIONS = {"png": "png", "png16": "png", "npy": "npy", "dicom": "dcm"}
MOST_IMAGES = 4096
LARGEST = 2**64 - 1


@dataclass(frozen=True, slots=True)
class Offer:
    """What a synthesis model can be ordered: its classes, and the label vectors it has latents for.

    `targets`: name -> wanted labels in the order of the classes. `plain`: without any, too.
    """

    classes: tuple[str, ...]
    targets: Mapping[str, tuple[float, ...]]
    plain: bool

    def wanted(
        self, name: str | None, labels: Sequence[float] | Mapping[str, float] | None
    ) -> tuple[float, ...] | None:
        """The wanted labels of a class by name, or of labels; UsageError says what is allowed."""
        if name is not None and labels is not None:
            raise UsageError("given: class and labels; allowed: one of them")
        if name is not None:
            if name not in self.targets:
                raise UsageError(f"given: class {shown(name)}; allowed: {self.names}")
            return self.targets[name]
        if labels is None:
            if not self.plain:
                raise UsageError(f"given: no class; allowed: {self.names}")
            return None
        return self._vector(labels)

    def _vector(self, labels: Sequence[float] | Mapping[str, float]) -> tuple[float, ...]:
        if isinstance(labels, Mapping):
            if unknown := [name for name in labels if name not in self.classes]:
                allowed = ", ".join(self.classes) or "none, this model has no classes"
                raise UsageError(f"given: label {shown(unknown[0])}; allowed: {allowed}")
            labels = [labels.get(name, 0.0) for name in self.classes]
        vector = tuple(float(value) for value in labels)
        if vector not in self.targets.values():
            listed = "; ".join(f"{n} = {_numbers(v)}" for n, v in self.targets.items())
            raise UsageError(
                f"given: labels {_numbers(vector)[:80]}; allowed: "
                f"{listed or 'none, this model has no classes'}"
            )
        return vector

    @property
    def facts(self) -> dict[str, Any]:
        """The offer as JSON has it."""
        targets = {name: list(vector) for name, vector in self.targets.items()}
        return {"classes": list(self.classes), "targets": targets, "plain": self.plain}

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Offer:
        """The offer that `facts` describes."""
        targets = {name: tuple(vector) for name, vector in facts["targets"].items()}
        return cls(tuple(facts["classes"]), targets, bool(facts["plain"]))

    @property
    def names(self) -> str:
        """The names that can be asked for, as text."""
        return ", ".join(self.targets) or "none, this model has no classes"

    def check_truncation(self, wanted: tuple[float, ...] | None, truncation: float) -> None:
        """UsageError where there is no mean that latents could be drawn towards."""
        if wanted is None and truncation != 1:
            raise UsageError(
                f"given: truncation {truncation:g} without a class; allowed: 1, because plain "
                "latents are normalised and have no mean to be drawn towards"
            )


def _numbers(values: Sequence[float]) -> str:
    return "[" + ", ".join(f"{value:g}" for value in values) + "]"
