"""What a GAN run shows while it trains: grids at fixed latents, reals, a score, the growth.

Shape letters: N images, C channels, H and W pixels, L numbers that the generator takes.

A conditional model is shown with one row a class, the same latents in every row.
"""

from __future__ import annotations

import json
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from medray import metrics, report, rng
from medray.images.png import decode_png
from medray.records import Array
from medray.rundir import RunDir
from medray.train.conditioning import Conditioning

GRID_COLUMNS = 8
GRID_IMAGES = 32
SCORED_IMAGES = 256
CELL_PX = 64
SMALLEST_SCORED_PX = 16


class Pictured(Protocol):
    """A model that can be asked for pictures."""

    def sample(self, z_NL: Tensor, images: int) -> Tensor:
        """uint8 images after so many images seen."""


class GanSnapshots:
    """Draws `fakes-<images>.png` at fixed latents and scores the model against real images."""

    def __init__(
        self,
        model: Pictured,
        run: RunDir,
        *,
        latent_dims: int,
        seed: int,
        conditioning: Conditioning | None = None,
    ) -> None:
        self.model, self.run, self.seed = model, run, seed
        self.conditioning = conditioning
        numbers_N = np.arange(SCORED_IMAGES)
        z_NL = rng.normals(seed, "snapshots", numbers_N, latent_dims)
        shown_NL = z_NL[:GRID_IMAGES]
        if conditioning is not None:
            count = len(conditioning.names)
            rows_N = np.repeat(np.arange(count), GRID_COLUMNS)
            shown_NL = conditioning.beside(np.tile(z_NL[:GRID_COLUMNS], (count, 1)), rows_N)
            # What is scored has the classes in the shares of what it is scored against.
            z_NL = conditioning.beside(z_NL, conditioning.natural("snapshots.classes", numbers_N))
        self.shown_NL, self.z_NL = torch.from_numpy(shown_NL), torch.from_numpy(z_NL)

    def show_reals(self, reals_NCHW: Array, labels_N: Array) -> None:
        """Takes the real images (uint8 at the final resolution) to score against; `reals.png`.

        Half of them is what the model is scored against; the other half against that is the floor,
        what no generator can be expected to go below.
        """
        half = min(SCORED_IMAGES, len(reals_NCHW) // 2)
        self.reals_NCHW, others_NCHW = reals_NCHW[:half], reals_NCHW[half : 2 * half]
        self.floor = {}
        if reals_NCHW.shape[-1] >= SMALLEST_SCORED_PX and half:
            self.floor = self._distances("floor", others_NCHW)
        self.run.write_picture("reals.png", self._grid(self._chosen(reals_NCHW, labels_N)))

    def _chosen(self, reals_NCHW: Array, labels_N: Array) -> Array:
        """The first images; with classes a row of each, empty cells where there are fewer."""
        if self.conditioning is None:
            return reals_NCHW[:GRID_IMAGES]
        classes_N, shape = self.conditioning.of_labels(labels_N), reals_NCHW.shape[1:]
        rows = []
        for number in range(len(self.conditioning.names)):
            found = reals_NCHW[classes_N == number][:GRID_COLUMNS]
            empty = np.full((GRID_COLUMNS - len(found), *shape), report.GREY, np.uint8)
            rows += [found, empty]
        return np.concatenate(rows)

    def _grid(self, images_NCHW: Array) -> bytes:
        cell_px = max(CELL_PX, self.reals_NCHW.shape[-1])
        return report.grid_png(images_NCHW, columns=GRID_COLUMNS, cell_px=cell_px)

    def __call__(self, images: int) -> dict[str, float]:
        """Draws the picture after `images` images; a score once the final resolution is reached."""
        fakes_NCHW = self.model.sample(self.shown_NL, images).numpy()
        self.run.write_picture(f"fakes-{images:08d}.png", self._grid(fakes_NCHW))
        self._progress()
        if fakes_NCHW.shape[-1] != self.reals_NCHW.shape[-1] or not self.floor:
            return {}
        # The distance is biased by the number of images: as many of each.
        z_NL = self.z_NL[: len(self.reals_NCHW)]
        return self._score(self.model.sample(z_NL, images).numpy())

    def _score(self, fakes_NCHW: Array) -> dict[str, float]:
        figures = self._distances("swd", fakes_NCHW)
        octave = metrics.top_octave_ratio(self.reals_NCHW, fakes_NCHW)
        score = float(np.mean(list(figures.values())))
        return {**figures, **self.floor, "top_octave_ratio": octave, "score": score}

    def _distances(self, name: str, images_NCHW: Array) -> dict[str, float]:
        """Sliced Wasserstein distance x 1000 to the real images, per level of the pyramid."""
        by_level = metrics.sliced_wasserstein(self.reals_NCHW, images_NCHW, self.seed)
        return {f"{name}_{px}px": float(value) for px, value in by_level.items()}

    def _progress(self) -> None:
        if rows := self.rows():
            panels = {
                "loss": ("train/loss_d", "train/loss_g"),
                "D's scores": ("train/score_real", "train/score_fake"),
                "sliced Wasserstein distance x 1000": tuple(
                    sorted(
                        {name for row in rows for name in row if name.startswith("snapshot/swd")}
                    )
                ),
                "images/s": ("perf/images_per_s",),
            }
            if self.conditioning is not None:
                panels["class term"] = tuple(f"train/class_{on}" for on in ("real", "fake", "g"))
            self.run.write_picture("progress.png", report.curves_png(rows, panels))

    def rows(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl so far."""
        if not self.run.store.exists("metrics.jsonl"):
            return []
        lines = self.run.store.read_bytes("metrics.jsonl").decode().splitlines()
        return [json.loads(line) for line in lines]

    def growth(self) -> bytes:
        """The film strip: the first row of every snapshot, in the order of images seen."""
        names = [n for n in self.run.store.names("fakes-") if n.endswith(".png")]
        sheets = [decode_png(self.run.store.read_bytes(name)) for name in names]
        strip = report.strip_png(sheets, rows_px=max(CELL_PX, self.reals_NCHW.shape[-1]))
        self.run.write_picture("growth.png", strip)
        return strip

    def finish(self, summary: dict[str, Any], config_yaml: str) -> None:
        """Draws the growth and writes report.html."""
        self._progress()
        pictures = {name: self.run.store.read_bytes(name) for name in ("reals.png", "progress.png")}
        last = self.run.store.names("fakes-")[-1]
        parts = [
            (
                "Synthetic images",
                report.picture(self.run.store.read_bytes(last), "synthetic images"),
            ),
            ("Real images", report.picture(pictures["reals.png"], "images trained on")),
            ("Growth", report.picture(self.growth(), "the same latents while training")),
            ("Curves", report.picture(pictures["progress.png"], "losses, distance and rate")),
            *self._legend(),
            ("Figures", report.table(summary)),
            ("Configuration", report.preformatted(config_yaml)),
        ]
        self.run.write_text("report.html", report.page("Progressive GAN", parts))

    def _legend(self) -> list[tuple[str, str]]:
        """Which row of the pictures is which class."""
        if self.conditioning is None:
            return []
        names = self.conditioning.names
        rows = {f"row {number}": name for number, name in enumerate(names, 1)}
        return [("Classes", report.table(rows))]
