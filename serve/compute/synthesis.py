"""A trained generator that carries out orders: each image a function of its order alone.

Shape letters: N images, D latent dimensions, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, cast
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from medray.errors import UsageError
from medray.models.weights import load_generator
from medray.records import Provenance, Sample
from medray.sample.conditional import refuse_conditional
from medray.sample.images import BATCH, Renderer
from medray.sample.latents import LatentModel, prior
from medray.store import Store
from serve.compute.orders import FORMATS, Offer
from serve.records import Made, Order

Floats = npt.NDArray[np.float32]
LATENTS = "latents"


class Synthesis:
    """A generator with its latents, at the fixed batch shape that archives are rendered at.

    So neither what else is in a batch, nor the replica, changes a byte. Safe from several threads.
    """

    def __init__(self, renderer: Renderer, latents: LatentModel | None, name: str) -> None:
        self.renderer, self.latents, self.name = renderer, latents, name
        self.sha256 = renderer.generator_sha256
        self.size_px, self.channels = renderer.px, renderer.channels
        self._render = renderer.record()
        targets = latents.targets if latents is not None else ()
        self.classes = tuple(targets[0].wanted) if targets else ()
        self._targets = {
            target.name: tuple(float(target.wanted[name]) for name in self.classes)
            for target in targets
        }
        self._numbers = {wanted: n for n, wanted in enumerate(self._targets.values())}

    @classmethod
    def load(
        cls,
        url: str,
        latents_url: str | None = None,
        *,
        name: str = "",
        dtype: str = "float32",
        device: str = "cpu",
        batch: int = BATCH,
    ) -> Synthesis:
        """The generator of a run, with the latents at `latents_url` or, without, beside the run.

        UsageError where there is none or where they do not belong together; DataError for damage.
        """
        generator, about = load_generator(url)
        renderer = Renderer(generator, about, batch=batch, dtype=dtype, device=device)
        if latents_url is None and Store(url).exists(f"{LATENTS}/latents.json"):
            latents_url = f"{Store(url).url}/{LATENTS}"
        if latents_url is None:
            refuse_conditional(about, url, f"give its latents, {url}/{LATENTS}")
            return cls(renderer, None, name or _name(url))
        latents = LatentModel.load(latents_url)
        if (latents.generator_sha256, latents.dims) != (renderer.generator_sha256, renderer.dims):
            raise UsageError(
                f"the latents {latents_url} were made for generator "
                f"{latents.generator_sha256[:12]}, {url} is {renderer.generator_sha256[:12]}",
                hint="run `medray latents` for this generator",
            )
        made = cls(renderer, latents, name or _name(url))
        made._conditional = bool(about.get("classes") or about["arguments"].get("classes"))
        return made

    _conditional = False

    @cached_property
    def offer(self) -> Offer:
        """What can be ordered."""
        return Offer(self.classes, self._targets, plain=not self._conditional)

    @property
    def facts(self) -> dict[str, Any]:
        """What callers may know of it, as JSON has it."""
        return {**self.offer.facts, "channels": self.channels, "render": self._render}

    # --- orders to images ---------------------------------------------------------------------

    def render(self, orders: Sequence[Order]) -> Floats:
        """The images of orders, float32 in about [-1, 1]: (N, H, W) or (N, H, W, 3)."""
        return self.renderer.unrounded(self._latents(orders))

    def _latents(self, orders: Sequence[Order]) -> Floats:
        latents_ND = np.empty((len(orders), self.renderer.dims), np.float32)
        for row, order in enumerate(orders):
            latents_ND[row] = self._latent(order)
        return latents_ND

    def _latent(self, order: Order) -> Floats:
        self.check(order)
        here_D = self._drawn(order, order.index)
        if order.to is None or order.share == 0:
            return here_D
        return between(here_D, self._drawn(order, order.to), order.share)

    def _drawn(self, order: Order, number_in_seed: int) -> Floats:
        """The latent of an index under the order's seed, label and truncation."""
        index = np.array([number_in_seed], np.uint64)
        if order.wanted is None:
            return cast(Floats, prior(order.seed, index, self.renderer.dims)[0])
        assert self.latents is not None, "only a model with latents has classes"
        number = self._numbers[order.wanted]
        drawn_D: Floats = self.latents.draw(order.seed, np.array([number]), index)[0]
        if order.truncation == 1:
            return drawn_D
        mean_D = self.latents.gaussians[number].mean_D
        nearer_D: Floats = mean_D + np.float32(order.truncation) * (drawn_D - mean_D)
        return nearer_D

    def make(self, orders: Sequence[Order], formats: Sequence[str]) -> list[Made]:
        """Each order as a file of its format; one pass of the generator for all of them."""
        images = self.render(orders)
        return [
            self._made(order, image, format)
            for order, image, format in zip(orders, images, formats, strict=True)
        ]

    def check(self, order: Order) -> None:
        """UsageError for an order that cannot be carried out: what was given, what is allowed."""
        self.offer.wanted(None, order.wanted)
        self.offer.check_truncation(order.wanted, order.truncation)

    # --- what an image is called --------------------------------------------------------------

    def target(self, order: Order) -> str | None:
        """The name of the label vector that is wanted."""
        return None if order.wanted is None else list(self._targets)[self._numbers[order.wanted]]

    def address(self, order: Order) -> str:
        """The text that says which image it is, everywhere and for ever.

        An archive's address, with what its plan would say of the image behind it.
        """
        target = self.target(order)
        latents = self.latents.sha256[:12] if self.latents is not None and target else "prior"
        text = f"mr1:{self.sha256[:12]}:{latents}:{order.seed}:{order.index}"
        if target is not None:
            text += f";class={quote(target, safe='')}"
        if order.truncation != 1:
            text += f";truncation={order.truncation!r}"
        return text if order.to is None else f"{text};to={order.to};share={order.share!r}"

    def _sample(self, order: Order, image: npt.NDArray[Any]) -> Sample:
        target = self.target(order)
        wanted = dict(zip(self.classes, map(int, order.wanted or ()), strict=False))
        return Sample(
            key=f"train-{order.index:08d}",
            image=image,
            label=target if target in self.classes else None,
            labels=dict(wanted),
            burned_in=False,
            provenance=Provenance(
                address=self.address(order),
                generator_sha256=self.sha256,
                latents_sha256=self.latents.sha256 if self.latents and target else None,
                seed=order.seed,
                index=order.index,
                wanted=wanted,
                probabilities={},
                nearest=None,
                render=self._render,
            ),
        )

    def _made(self, order: Order, image: Floats, format: str) -> Made:
        sample = self._sample(order, levels(image, 8 if format in ("png", "dicom") else 16))
        data = _encoded(sample, format, self.target(order) or "", self.name)
        return Made(data, self.address(order), FORMATS[format], sample.record())


def between(from_D: Floats, to_D: Floats, share: float) -> Floats:
    """The latent at a share of the way: the direction on the great circle, the length in between.

    Latents of many dimensions lie near a sphere; a straight line would leave it (White 2016,
    arXiv 1609.04468). The ends are the latents themselves.
    """
    if share in (0, 1):
        return to_D if share else from_D
    a_D, b_D = from_D.astype(np.float64), to_D.astype(np.float64)
    lengths = [float(np.linalg.norm(a_D)), float(np.linalg.norm(b_D))]
    angle = float(np.arccos(np.clip(a_D @ b_D / max(lengths[0] * lengths[1], 1e-12), -1, 1)))
    if np.sin(angle) < 1e-6:
        return ((1 - share) * a_D + share * b_D).astype(np.float32)
    turned_D = np.sin((1 - share) * angle) * a_D / lengths[0]
    turned_D = (turned_D + np.sin(share * angle) * b_D / lengths[1]) / np.sin(angle)
    length = (1 - share) * lengths[0] + share * lengths[1]
    return np.asarray(length * turned_D, np.float32)


def levels(image: Floats, bits: int) -> npt.NDArray[Any]:
    """Values from -1 to 1 as grey levels of 8 or 16 bits, rounded as the renderer rounds."""
    half = np.float32(127.5 if bits == 8 else 32767.5)
    rounded = np.rint((image + np.float32(1)) * half)
    clipped = np.clip(rounded, 0, (1 << bits) - 1)
    return np.asarray(clipped, np.uint8 if bits == 8 else np.uint16)


def _encoded(sample: Sample, format: str, label: str, series: str) -> bytes:
    from medray.archive import members
    from medray.images.secondary_capture import encode_secondary_capture
    from medray.shards import encode_members

    if format in ("png", "png16"):
        return members.png(sample)
    if format == "npy":
        return dict(encode_members(sample, "raw"))["npy"]
    about = sample.provenance
    assert about is not None and format == "dicom", format
    return encode_secondary_capture(
        sample.image,
        address=about.address,
        model=f"pggan {about.generator_sha256[:12]}",
        seed=about.seed,
        label=label,
        series=series,
        audited=False,
    )


def _name(url: str) -> str:
    return url.rstrip("/").rpartition("/")[2]
