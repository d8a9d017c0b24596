"""What a GAN run shows while it trains: grids at fixed latents, reals, a score, the growth.

Shape letters: N images, C channels, H and W pixels, L latent dimensions.
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

    def __init__(self, model: Pictured, run: RunDir, *, latent_dims: int, seed: int) -> None:
        self.model, self.run, self.seed = model, run, seed
        drawn = rng.normals(seed, "snapshots", np.arange(SCORED_IMAGES), latent_dims)
        self.z_NL = torch.from_numpy(drawn)

    def show_reals(self, reals_NCHW: Array) -> None:
        """Takes the real images (uint8 at the final resolution) to score against; `reals.png`.

        Half of them is what the model is scored against; the other half against that is the floor,
        what no generator can be expected to go below.
        """
        half = min(SCORED_IMAGES, len(reals_NCHW) // 2)
        self.reals_NCHW, others_NCHW = reals_NCHW[:half], reals_NCHW[half : 2 * half]
        self.floor = {}
        if reals_NCHW.shape[-1] >= SMALLEST_SCORED_PX and half:
            self.floor = self._distances("floor", others_NCHW)
        self.run.write_picture("reals.png", self._grid(reals_NCHW[:GRID_IMAGES]))

    def _grid(self, images_NCHW: Array) -> bytes:
        cell_px = max(CELL_PX, self.reals_NCHW.shape[-1])
        return report.grid_png(images_NCHW, columns=GRID_COLUMNS, cell_px=cell_px)

    def __call__(self, images: int) -> dict[str, float]:
        """Draws the picture after `images` images; a score once the final resolution is reached."""
        fakes_NCHW = self.model.sample(self.z_NL[:GRID_IMAGES], images).numpy()
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
            ("Figures", report.table(summary)),
            ("Configuration", report.preformatted(config_yaml)),
        ]
        self.run.write_text("report.html", report.page("Progressive GAN", parts))
