"""Small sets with a bright square to find, and classifiers of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from medray.dist.context import local
from medray.models import weights
from medray.models.classifier import Classifier
from medray.records import Batch, Sample
from medray.shards import write_set
from medray.store import Store
from medray.train.classifier import ClassifierTraining
from medray.train.classifier_config import ClassifierConfig
from medray.train.targets import Targets

PX = 16
CLASSES = ("plain", "square")


def samples(count: int, split: str, *, masks: bool = True, only: str = "") -> list[Sample]:
    """Noise in a disc on black; every other sample, of two a patient, has a square in it."""
    y, x = np.mgrid[:PX, :PX] - PX / 2 + 0.5
    disc = x**2 + y**2 < (0.48 * PX) ** 2
    found = []
    for number in range(count):
        draw = np.random.default_rng((number, len(split)))
        image = np.where(disc, draw.integers(60, 110, (PX, PX)), 0).astype(np.uint8)
        label = only or CLASSES[number // 2 % 2]
        mask = np.zeros((PX, PX), np.uint8)
        if label == "square":
            top, left = draw.integers(3, PX - 7, 2)
            mask[top : top + 4, left : left + 4] = 255
            image[mask != 0] = 240
        found.append(
            Sample(
                key=f"s{number}",
                image=image,
                label=label,
                split=split,
                patient=f"{split}{number // 2}",
                mask=mask if masks else None,
            )
        )
    return found


def write(folder: Path, counts: tuple[int, int, int] = (32, 24, 24), **how: object) -> str:
    """A set of three splits."""
    every = [
        sample
        for split, count in zip(("train", "val", "test"), counts, strict=True)
        for sample in samples(count, split, **how)  # type: ignore[arg-type]
    ]
    write_set(folder, every, name="squares", classes=CLASSES, size_px=PX, samples_per_shard=16)
    return str(folder)


def save(folder: Path, network: Classifier) -> str:
    """As a finished run leaves its model."""
    about = {"arguments": network.arguments(), "seed": 0}
    weights.save_network(
        Store(folder).child("model"), "classifier", network.state_dict(), about, ""
    )
    return str(folder)


def untrained(classes: tuple[str, ...] = CLASSES, **more: object) -> Classifier:
    """A classifier with random weights."""
    arguments = {"size_px": PX, "width": 8, **more}
    return Classifier(classes, **arguments).seed_weights(0)  # type: ignore[arg-type]


def trained(steps: int = 60) -> Classifier:
    """A classifier that finds the squares."""
    every = samples(64, "train")
    images = np.stack([sample.image[None] for sample in every])
    config = ClassifierConfig.model_validate(
        {"size_px": PX, "width": 8, "total_images": 32 * steps, "lr": 3e-3}
        | {"ema_half_life_images": 100}
    )
    task = Targets(CLASSES, False)
    training = ClassifierTraining(config, task, 1, np.ones((2, 2)), local(threads_per_rank=1))
    for step in range(steps):
        rows = [(32 * step + n) % len(every) for n in range(32)]
        records = [{"label": every[row].label} for row in rows]
        numbers = np.zeros(32, np.int64)
        batch = Batch(tuple(map(str, rows)), images[rows], numbers, records, 32 * step)
        training.step(batch, 32 * step)
    training.context.close()
    torch.set_grad_enabled(True)
    return training.average.eval()
