"""Which models there are, by name; which version of one a request gets."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from dataclasses import asdict, dataclass, replace
from typing import Any

from serve.problems import Problem, shown
from serve.records import Kind, ModelInfo, ModelSpec

# Multiples of it spread evenly over [0, 1): a canary gets its share, not by chance.
GOLDEN = 0.6180339887498949


@dataclass(frozen=True)
class Version:
    """A model that was loaded once: where it is, and what callers may know."""

    spec: ModelSpec
    info: ModelInfo

    def body(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"spec": asdict(self.spec), "info": asdict(self.info)}

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> Version:
        info = {**body["info"], "classes": tuple(body["info"]["classes"])}
        return cls(ModelSpec(**body["spec"]), ModelInfo(**info))


# What a request began with: all that it asks of a name goes to one version, whatever is put.
PINS: ContextVar[dict[tuple[str, Kind], Version] | None] = ContextVar("pins", default=None)


class Registry:
    """Versions by name: the present one, and beside it a canary if there is one."""

    def __init__(self) -> None:
        self._versions: dict[str, tuple[Version, ...]] = {}
        self._numbers = itertools.count()

    def put(self, name: str, version: Version, share: float) -> None:
        """Makes a version the one that answers, or with a share below 1 a canary beside it."""
        present = self._versions.get(name, ())[:1]
        if share >= 1 or not present or present[0].spec == version.spec:
            self._versions[name] = (_shared(version, 1.0),)
        else:
            self._versions[name] = (_shared(present[0], 1 - share), _shared(version, share))

    def choose(self, name: str, kind: Kind) -> Version:
        """The version that a request of a model gets; Problem 404 where there is none."""
        pins = PINS.get()
        if pins is not None and (name, kind) in pins:
            return pins[name, kind]
        version = self._choose(name, kind)
        if pins is not None:
            pins[name, kind] = version
        return version

    def _choose(self, name: str, kind: Kind) -> Version:
        found = self._versions.get(name)
        if not found or found[0].spec.kind != kind:
            names = ", ".join(sorted(n for n in self._versions if self.kind(n) == kind))
            detail = f"given: model {shown(name)}; allowed: {names or f'none, no {kind} is loaded'}"
            raise Problem(404, "model_unknown", detail, "GET /v1/models lists them")
        if len(found) == 1:
            return found[0]
        return found[next(self._numbers) * GOLDEN % 1 < found[1].info.share]

    def kind(self, name: str) -> Kind | None:
        """What a name stands for; None: nothing yet."""
        found = self._versions.get(name)
        return found[0].spec.kind if found else None

    def infos(self) -> list[ModelInfo]:
        """All versions, by name."""
        return [v.info for name in sorted(self._versions) for v in self._versions[name]]

    def body(self) -> dict[str, list[dict[str, Any]]]:
        """As JSON has it."""
        return {name: [v.body() for v in versions] for name, versions in self._versions.items()}

    def take(self, body: Mapping[str, Iterable[Mapping[str, Any]]]) -> None:
        """Becomes what `body` says."""
        self._versions = {name: tuple(map(Version.of, found)) for name, found in body.items()}


def _shared(version: Version, share: float) -> Version:
    return replace(version, info=replace(version.info, share=round(share, 6)))
