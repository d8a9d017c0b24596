"""Train on synthetic, test on real: the same classifier, once on each, on the same real images.

Both arms see as many images at the same steps, seed and augmentation; neither is chosen by
validation, so no real image helps the synthetic arm.

Shape letters: N test images, K classes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays
from scipy import special

from jobs._evaluate_plan import Plan
from jobs.evaluate import EvaluateJob
from medray import log
from medray.evaluate.diversity import label_matrix
from medray.evaluate.material import SYNTHETIC, TEST, Material
from medray.evaluate.resample import Figure
from medray.evaluate.sections import CACHE, Section
from medray.evaluate.similarity import channels_first
from medray.metrics import UndefinedMetricError, intervals
from medray.metrics.classification import auroc, balanced_accuracy
from medray.store import Store

Scores = npt.NDArray[np.float32]
Measure = Callable[[Scores, npt.NDArray[np.int64]], float]

BATCH = 32
VERSION = 1


@dataclass(frozen=True)
class Arm:
    """What one classifier is trained on."""

    name: str
    url: str
    split: str


def chapter(config: EvaluateJob, plan: Plan, store: Store) -> Callable[[Material], Section]:
    """The section, made with what training needs."""

    def make(m: Material) -> Section:
        arms = (
            Arm("real", config.real, config.train_split),
            Arm("synthetic", m.sets[SYNTHETIC].store.url, m.sets[SYNTHETIC].shards[0].split),
        )
        task = _task(arms[0])
        scores = {arm.name: _kept(config, plan, arm, task, m, store) for arm in arms}
        return _section(config, task, scores, m)

    return make


def _task(real: Arm) -> Any:
    """The classes, and whether one or many an image: those of the real training images."""
    from medray.stream import Roster, Source
    from medray.train import targets

    roster = Roster([Source(real.url)], real.split)
    return targets.choose(roster.facts, roster.classes, where=roster.name)


def _kept(
    config: EvaluateJob, plan: Plan, arm: Arm, task: Any, m: Material, store: Store
) -> Scores:
    """The arm's scores on the test images, as an earlier start left them or trained now."""
    facts = {
        "version": VERSION,
        "arm": [arm.name, arm.split],
        "sets": plan.facts["sets"],
        "images": config.tstr_images,
        "seed": config.seed,
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    name = f"{CACHE}/tstr-{arm.name}-{digest[:24]}.safetensors"
    if not store.exists(name):
        store.write_bytes(name, save_arrays({"scores": _trained(config, arm, task, m)}))
    return np.asarray(load_arrays(store.read_bytes(name))["scores"], np.float32)


def _trained(config: EvaluateJob, arm: Arm, task: Any, m: Material) -> Scores:
    """Trains one classifier and asks it about every test image, (N, K)."""
    import torch

    from medray.dist.context import local
    from medray.stream import Roster, Source, Stream
    from medray.train import targets
    from medray.train.classifier import ClassifierTraining
    from medray.train.classifier_config import ClassifierConfig

    roster = Roster([Source(arm.url)], arm.split)
    known = roster.where(task.known)
    if not known:
        raise UndefinedMetricError(f"no {arm.name} image has a class among {task.classes}")
    settings = ClassifierConfig.model_validate(
        {
            "seed": config.seed,
            "total_images": config.tstr_images,
            "batch": BATCH,
            "size_px": min(64, max(16, roster.size_px)),
            "classes": task.classes,
        }
    )
    weights_2K = targets.weights(task.of(known), task.multi_label, settings.max_weight)
    # As many threads as features were computed with: their number changes the last bits.
    context = local(threads_per_rank=torch.get_num_threads())
    try:
        training = ClassifierTraining(settings, task, roster.channels, weights_2K, context)
        kept = roster.kept(known)
        with (
            Stream([Source(arm.url)], split=arm.split, seed=config.seed, kept=kept) as stream,
            log.Progress(f"classifier on {arm.name}", config.tstr_images) as progress,
        ):
            for images in range(0, config.tstr_images, BATCH):
                training.step(stream.next(BATCH), images)
                progress.update(images + BATCH)
        logits = [training.logits(channels_first(images)) for images in m.sets[TEST].images()]
    finally:
        context.close()
    return _scores(np.concatenate(logits), task.multi_label)


def _scores(logits_NK: Scores, multi_label: bool) -> Scores:
    """Softmax, or sigmoid of each finding: not calibrated, but in order."""
    if multi_label:
        return np.asarray(special.expit(logits_NK))
    return np.asarray(special.softmax(logits_NK, axis=1))


# --- scores -----------------------------------------------------------------------------------


def macro_auroc(scores_NK: Scores, truth_NK: npt.NDArray[np.int64]) -> float:
    """Mean AUROC of the classes, each against the rest, over what is known of each."""
    known_NK = truth_NK >= 0
    return float(
        np.mean(
            [
                auroc(scores_NK[known_N, number], truth_NK[known_N, number])
                for number, known_N in enumerate(known_NK.T)
            ]
        )
    )


def _balanced(scores_NK: Scores, truth_NK: npt.NDArray[np.int64]) -> float:
    return balanced_accuracy(scores_NK.argmax(1), truth_NK.argmax(1), truth_NK.shape[1])


def _section(config: EvaluateJob, task: Any, said: dict[str, Scores], m: Material) -> Section:
    section = Section("Train on synthetic, test on real")
    rows = m.rows[TEST]
    truth_NK = label_matrix(task.classes, rows.labels, rows.findings, task.multi_label)
    known_N = (truth_NK >= 0).any(axis=1)
    truth_NK, groups_N = truth_NK[known_N], m.side(TEST).groups_N[known_N]
    said = {name: scores_NK[known_N] for name, scores_NK in said.items()}
    section.text(
        f"The same classifier, trained for {config.tstr_images:,} images on each set (weights by "
        f"class, no choice by validation), tested on {len(truth_NK):,} real images of other "
        "patients. 95% intervals over patients; the difference is paired."
    )
    measures: dict[str, Measure] = {"auroc": macro_auroc}
    if not task.multi_label:
        measures["balanced_accuracy"] = _balanced
    table = []
    for name, measure in measures.items():
        found = _figures(measure, said, truth_NK, groups_N, m)
        if isinstance(found, str):
            section.text(f"{name} is not defined: {found}")
            section.figures[f"tstr_{name}"] = section.figures[f"trtr_{name}"] = None
            continue
        table.append([name, *(found[column] for column in ("synthetic", "real", "difference"))])
        section.figures |= {
            **found["synthetic"].named(f"tstr_{name}"),
            **found["real"].named(f"trtr_{name}"),
            **found["difference"].named(f"tstr_minus_trtr_{name}"),
        }
    columns = ["tested on real", "trained on synthetic", "trained on real", "difference"]
    section.table(columns, table)
    section.figures["tstr_images"] = config.tstr_images
    return section


def _figures(
    measure: Measure,
    said: dict[str, Scores],
    truth_NK: npt.NDArray[np.int64],
    groups_N: npt.NDArray[np.int64],
    m: Material,
) -> dict[str, Figure] | str:
    """Both arms and their paired difference, or why there is none."""

    def of(name: str) -> Callable[[npt.NDArray[np.int64]], float]:
        return lambda rows_N: measure(said[name][rows_N], truth_NK[rows_N])

    seeded: dict[str, Any] = {"seed": m.seed, "draws": m.draws}
    try:
        found = {n: Figure(*intervals.bootstrap(of(n), groups_N, **seeded)) for n in said}
        pair = intervals.paired_bootstrap(of("synthetic"), of("real"), groups_N, **seeded)
    except UndefinedMetricError as error:
        return error.message
    return {**found, "difference": Figure(*pair)}
