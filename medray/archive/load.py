"""The networks and models that a plan names, loaded and checked against its digests."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from medray.archive.plan import Places, Plan
from medray.errors import UsageError
from medray.evaluate.memorisation import Gate
from medray.models.classifier import Classifier
from medray.models.weights import load_classifier, load_generator
from medray.sample.conditional import refuse_conditional
from medray.sample.images import Renderer
from medray.sample.latents import LatentModel


@dataclass(frozen=True)
class Parts:
    """What makes an image and judges it."""

    renderer: Renderer
    latents: LatentModel | None
    classifier: Classifier | None
    gate: Gate | None
    classifier_sha256: str | None = None
    classes: tuple[str, ...] = ()
    target_numbers: dict[str, int] = field(default_factory=dict)

    @property
    def multi_label(self) -> bool:
        """Whether several labels can be present at once."""
        return self.classifier is not None and self.classifier.multi_label


def load_parts(places: Places, *, batch: int, dtype: str, device: str) -> Parts:
    """Loads what is at `places`; UsageError where the parts do not belong together.

    Generator and classifier go to the device, "cpu" or "cuda".
    """
    generator, about = load_generator(places.generator)
    renderer = Renderer(generator, about, batch=batch, dtype=dtype, device=device)
    if places.latents is None:
        hint = f"give --latents {places.generator}/latents, which its training left"
        refuse_conditional(about, f"--generator {places.generator}", hint)
    latents = None if places.latents is None else LatentModel.load(places.latents)
    classifier, sha256 = None, None
    if places.classifier is not None:
        classifier, known = load_classifier(places.classifier)
        classifier = classifier.to(renderer.device)
        sha256 = str(known["classifier_sha256"])
    gate = None if places.gate is None else Gate.load(places.gate)
    _check_latents(places, renderer, latents)
    classes = _classes(places, latents, classifier)
    _check_classifier(places, renderer, classifier)
    _check_gate(places, renderer, gate)
    numbers = {} if latents is None else {t.name: n for n, t in enumerate(latents.targets)}
    return Parts(renderer, latents, classifier, gate, sha256, classes, numbers)


def _check_latents(places: Places, renderer: Renderer, latents: LatentModel | None) -> None:
    if latents is None:
        return
    if latents.generator_sha256 != renderer.generator_sha256:
        raise UsageError(
            f"--latents {places.latents} were made for generator {latents.generator_sha256[:12]}, "
            f"--generator {places.generator} is {renderer.generator_sha256[:12]}",
            hint="give the generator they were made with, or run `medray latents` for this one",
        )
    if latents.dims != renderer.dims:
        raise UsageError(
            f"--latents have {latents.dims} dimensions, the generator takes {renderer.dims}"
        )


def _classes(
    places: Places, latents: LatentModel | None, classifier: Classifier | None
) -> tuple[str, ...]:
    """The classes of the archive: the classifier's, which must know those of the latents."""
    wanted = {} if latents is None else latents.targets[0].wanted
    if classifier is None:
        return tuple(wanted)
    unknown = [name for name in wanted if name not in classifier.classes]
    if unknown:
        raise UsageError(
            f"--classifier {places.classifier} does not know {', '.join(map(repr, unknown))}, "
            f"which the latents are for; it knows {', '.join(classifier.classes)}",
            hint="give the classifier that the latents were made with, or one of the same classes",
        )
    return tuple(classifier.classes)


def _check_classifier(places: Places, renderer: Renderer, classifier: Classifier | None) -> None:
    if classifier is None:
        return
    taken, made = (classifier.channels, classifier.size_px), (renderer.channels, renderer.px)
    if taken[0] != made[0] or taken[1] > made[1]:
        raise UsageError(
            f"--classifier {places.classifier} looks at {taken[1]} px of {taken[0]} channel(s), "
            f"the generator makes {made[1]} px of {made[0]}",
            hint="train both on the same set, the classifier at the generator's size at most",
        )


def _check_gate(places: Places, renderer: Renderer, gate: Gate | None) -> None:
    if gate is None:
        return
    size = (gate.facts.size_px, gate.facts.channels)
    if size != (renderer.px, renderer.channels):
        raise UsageError(
            f"--gate {places.gate} was made for images of {size[0]} px and {size[1]} channel(s), "
            f"the generator makes {renderer.px} px and {renderer.channels}",
            hint="make the gate from the set that the generator was trained on",
        )


def check_digests(plan: Plan, parts: Parts) -> None:
    """UsageError where what was loaded is not what the plan was made with."""
    found: dict[str, Any] = {
        "generator": parts.renderer.generator_sha256,
        "latents": None if parts.latents is None else parts.latents.sha256,
        "classifier": parts.classifier_sha256,
        "gate": None if parts.gate is None else parts.gate.sha256,
    }
    for name, digest in found.items():
        planned = getattr(plan, f"{name}_sha256")
        if digest != planned:
            raise UsageError(
                f"the {name} is not the one this archive was made with: its digest is "
                f"{(digest or 'none')[:12]}, the plan says {(planned or 'none')[:12]}",
                hint=f"say where it is with --{name}",
            )
