"""The wiring of jobs/ensemble.py: members, exams matched by patient, weights, figures.

Shape letters: M members, N exams, K findings.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from jobs import _classify_report as shown_report
from jobs import _out
from jobs._classify_clips_report import auc_table, scores
from jobs.ensemble import EnsembleJob
from medray import config as configuration
from medray import log, report
from medray.errors import DataError, UsageError
from medray.store import Store

if TYPE_CHECKING:
    from medray.models.clips import ClipClassifier
    from medray.train.scorecard import Judged

SCHEMA = "medray.ensemble/1"
SUMMARY = "summary.json"
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Exams:
    """The patients of a split: what each member says of them, (M, N, K), and the truth."""

    patients: tuple[str, ...]
    said_MNK: Floats
    truth_NK: npt.NDArray[np.int8]


def ensemble(config: EnsembleJob) -> None:
    """Everything, from the runs to the page."""
    store = Store(config.out)
    members = members_of(config)
    if config.dry_run:
        names = ", ".join(members[0].classes)
        log.event("plan", f"{len(members)} members, findings {names}", members=len(members))
        return
    with _out.alone(store, "ensemble"):
        facts = {"schema": SCHEMA, **configuration.identity(config)}
        if _out.start(store, facts, what="an ensemble", done=SUMMARY, overwrite=config.overwrite):
            log.event("complete", f"{config.out} is complete: nothing to do")
            return
        _leave(config, store, members)


def members_of(config: EnsembleJob) -> list[ClipClassifier]:
    """The classifiers; UsageError where they do not say the same findings."""
    from medray.models.clips import load_clips

    members = [load_clips(url)[0] for url in config.runs]
    first = members[0]
    for url, member in zip(config.runs, members, strict=True):
        if member.classes != first.classes or not member.multi_label:
            raise UsageError(
                f"{url} says {', '.join(member.classes)}; the first run {', '.join(first.classes)}",
                hint="train the members on the same findings (--classes, --labels many)",
            )
    return members


def exams_of(config: EnsembleJob, members: list[ClipClassifier], split: str) -> Exams:
    """The exams of a split; DataError where two sets disagree about a patient."""
    said: list[dict[str, Floats]] = []
    truth: dict[str, npt.NDArray[np.int8]] = {}
    for url, member in zip(config.data, members, strict=True):
        patients, said_NK, truth_NK = _of_member(config, url, member, split)
        own: dict[str, Floats] = {}
        for patient in dict.fromkeys(patients):
            rows = [n for n, name in enumerate(patients) if name == patient]
            own[patient] = said_NK[rows].mean(0)
            for row in rows:
                truth[patient] = _agreed(truth.get(patient), truth_NK[row], patient, url)
        said.append(own)
    names = tuple(sorted(truth))
    nothing = np.full(len(members[0].classes), np.nan)
    said_MNK = np.stack([[own.get(name, nothing) for name in names] for own in said])
    return Exams(names, said_MNK, np.stack([truth[name] for name in names]))


def _of_member(
    config: EnsembleJob, url: str, member: ClipClassifier, split: str
) -> tuple[list[str], Floats, npt.NDArray[np.int8]]:
    import torch

    from medray.stream.clips import ClipSet
    from medray.train import targets, validation
    from medray.train.clips_data import ClipRoster
    from medray.train.targets import Targets

    roster = ClipRoster(ClipSet.open(url, config.cache_dir), split, member.frames)
    facts = list(roster.facts)
    logits_NK = validation.logits_of(member, roster, facts, torch.device("cpu"))
    truth_NK = Targets(member.classes, True).of(facts)
    patients = [targets.patient_of(fact) for fact in facts]
    return patients, validation.calibrated(member, logits_NK), truth_NK


def _agreed(before: Any, now_K: Any, patient: str, url: str) -> Any:
    if before is None:
        return now_K
    both = (before >= 0) & (now_K >= 0)
    if (before != now_K)[both].any():
        raise DataError(
            f"patient {patient} has other findings than in another set",
            code="MR-D095",
            where=url,
            hint="an exam's clips have the same findings in every plane",
        )
    return np.maximum(before, now_K)


def _refuse_seen(config: EnsembleJob, patients: tuple[str, ...]) -> None:
    from medray import lineage

    if config.evaluate_split == "test":
        for url in config.runs:
            lineage.refuse(url, patients=patients, labels=None)


def _leave(config: EnsembleJob, store: Store, members: list[ClipClassifier]) -> None:
    from medray.train import calibrate, ensembles

    exams = exams_of(config, members, "val")
    thresholds_MK = np.stack([m.thresholds.double().numpy() for m in members])
    way, weights_MK, losses = ensembles.chosen(
        exams.said_MNK, exams.truth_NK, thresholds_MK, config.seed
    )
    val_NK = ensembles.combined(exams.said_MNK, weights_MK)
    half_K = np.full(len(members[0].classes), 0.5)
    thresholds_K = calibrate.thresholds(val_NK, exams.truth_NK, half_K)
    if config.evaluate_split == "test":
        exams = exams_of(config, members, "test")
        _refuse_seen(config, exams.patients)
    parts = {"ensemble": ensembles.combined(exams.said_MNK, weights_MK)}
    cuts = {"ensemble": thresholds_K}
    for number in range(len(members)):
        name = f"member {number + 1}"
        parts[name], cuts[name] = exams.said_MNK[number], thresholds_MK[number]
    figures = {
        name: scores(_judged(exams, members[0].classes, said_NK, cuts[name]), config)
        for name, said_NK in parts.items()
    }
    summary = {
        "split": config.evaluate_split,
        "way": way,
        "validation_log_loss": losses,
        "weights": {name: weights_MK[:, k].tolist() for k, name in enumerate(members[0].classes)},
        "thresholds": thresholds_K.tolist(),
        "figures": figures,
    }
    store.write_bytes("report.html", _page(config, summary).encode())
    store.write_bytes(SUMMARY, (json.dumps(summary, indent=1) + "\n").encode())
    found = figures["ensemble"]["macro_auroc"]
    log.event(
        "done",
        f"weights by {way}; macro AUC on {config.evaluate_split} {shown_report.shown(found)}\n"
        f"  report    {store.url}/report.html",
    )


def _judged(
    exams: Exams, classes: tuple[str, ...], said_NK: Floats, thresholds_K: Floats
) -> Judged:
    """What was said, beside the truth; an exam that nobody saw is not known."""
    from medray.train.scorecard import Judged

    seen_NK = np.isfinite(said_NK)
    filled_NK = np.where(seen_NK, said_NK, 0.5)
    return Judged(
        classes=classes,
        multi_label=True,
        probabilities_NK=filled_NK,
        decisions=(filled_NK >= thresholds_K).astype(np.int64),
        truth_NK=np.where(seen_NK, exams.truth_NK, -1).astype(np.int8),
        groups_N=np.asarray(exams.patients),
    )


def _page(config: EnsembleJob, summary: dict[str, Any]) -> str:
    parts = [
        (f"AUC on {summary['split']}: {name}", auc_table(figures))
        for name, figures in summary["figures"].items()
    ]
    parts.append(("Findings", shown_report.classes_table(summary["figures"]["ensemble"])))
    heads = ["finding", *(f"member {n + 1}" for n in range(len(config.runs)))]
    rows = [[name, *weights] for name, weights in summary["weights"].items()]
    parts.append((f"Weights, by {summary['way']}", report.columns(heads, rows)))
    losses = summary["validation_log_loss"]
    parts.append(("Log loss on the other half of validation", report.table(losses)))
    parts.append(("Configuration", report.preformatted(configuration.to_yaml(config))))
    return report.page("Ensemble of planes", parts)
