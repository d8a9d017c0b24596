"""One step of the real progressive GAN at 8 px on each rank, and the same on one joined batch."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch

from medray.dist.context import Context
from medray.records import Batch
from medray.train.pggan import Pggan, StepInputs
from medray.train.pggan_config import PgganConfig
from medray.train.schedule import Growth

PX, BATCH_IMAGES, RANKS = 8, 8, 2
# The last: with classes (some images have none) and with augmentation.
LOSSES = ("r1", "wgan-gp", "r1 with classes")
CLASSES = {
    "conditional": True,
    "classes": ("a", "b", "c"),
    "class_counts": (4, 3, 1),
    "diffaugment": ("tone", "translation", "cutout"),
}


def config(loss: str, engine: str, zero_stage: int) -> PgganConfig:
    """A narrow network, R1 in every step; the learning rate is too small to move a weight."""
    return PgganConfig.model_validate(
        {
            "final_px": PX,
            "start_px": PX,
            "latent_dims": 12,
            "fmap_base": 64,
            "fmap_max": 12,
            "batch": BATCH_IMAGES,
            "loss": loss.split()[0],
            "r1_every": 1,
            "lr": 1e-12,
            "precision": "fp32",
            "engine": engine,
            "zero_stage": zero_stage,
            **(CLASSES if loss.endswith("classes") else {}),
        }
    )


def batch_of(first: int, images: int) -> Batch:
    """Images `first` to `first + images` of one fixed set."""
    pixels = np.random.default_rng(5).integers(0, 256, (BATCH_IMAGES, 1, PX, PX), np.uint8)
    return Batch(
        keys=tuple(f"train-{number:08d}" for number in range(first, first + images)),
        images_NCHW=np.ascontiguousarray(pixels[first : first + images]),
        labels_N=np.arange(first, first + images) % 4 - 1,
        records=[{} for _ in range(images)],
        masks_NHW=None,
        first_index=first,
    )


class Joined(Pggan):
    """The batch of all ranks in one process, ordered so that a group of four is one rank's.

    Groups of the minibatch deviation are strided: with the ranks' images in turn, image i belongs
    to group i mod RANKS, which is its rank.
    """

    def _inputs(self, batch: Batch, images: int, growth: Growth) -> StepInputs:
        part = BATCH_IMAGES // RANKS
        ranks = [
            super(Joined, self)._inputs(batch_of(rank * part, part), images, growth)
            for rank in range(RANKS)
        ]
        joined = {}
        for field in fields(StepInputs):
            values = [getattr(rank, field.name) for rank in ranks]
            if isinstance(values[0], torch.Tensor):
                joined[field.name] = torch.stack(values, 1).flatten(0, 1)
        return replace(ranks[0], **joined)


def gradients(algorithm: Pggan) -> dict[str, Any]:
    """The mean gradients of a first step, which Adam with beta1 = 0 keeps as exp_avg."""
    state = algorithm.state_dict()
    return {name: value.tolist() for name, value in state.items() if ".exp_avg." in name}


def in_pieces(context: Context, asked: dict[str, Any]) -> dict[str, Any]:
    """The same, each rank's part in pieces of two images, the groups of the deviation."""
    part = BATCH_IMAGES // context.world
    found = {}
    for loss in LOSSES:
        for engine, stage in asked["engines"]:
            plain = config(loss, engine, stage)
            algorithm = Pggan(plain.model_copy(update={"images_at_once": 2}), context)
            # Twice: what a first step leaves must not be in the second one's sums.
            for number in range(2):
                images = number * BATCH_IMAGES
                algorithm.step(batch_of(context.rank * part, part), images)
            assert algorithm.nonfinite() is None
            found[f"{loss} {engine} {stage}"] = gradients(algorithm)
            algorithm._leave()
    return found


def both(context: Context, asked: dict[str, Any]) -> dict[str, Any]:
    """`one_step` and, at the stages that know pieces, `in_pieces`."""
    known = {"engines": [pair for pair in asked["engines"] if pair[1] < 3]}
    return {"whole": one_step(context, asked), "pieces": in_pieces(context, known)}


def one_step(context: Context, asked: dict[str, Any]) -> dict[str, Any]:
    """This rank's part of one step with each loss and engine asked for; gradients by name."""
    part = BATCH_IMAGES // context.world
    found = {}
    for loss in LOSSES:
        for engine, stage in asked["engines"]:
            kind = Pggan if context.world > 1 else Joined
            algorithm = kind(config(loss, engine, stage), context)
            algorithm.step(batch_of(context.rank * part, part), 0)
            assert algorithm.nonfinite() is None
            found[f"{loss} {engine} {stage}"] = gradients(algorithm)
            algorithm._leave()
    return found
