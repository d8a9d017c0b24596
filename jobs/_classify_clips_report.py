"""What a finished clip classifier's run leaves: model, figures, attention as a strip, a page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from jobs import _classify_report as images_report
from jobs import _data
from jobs import _encoders as encoders
from jobs._classify_clips import KNEES, ClipSamples, roster_of, seen
from jobs._classify_data import labelled
from jobs.classify import ClassifyJob
from medray import config as configuration
from medray import log, report
from medray.rundir import RunDir

if TYPE_CHECKING:
    from medray.models.clips import ClipClassifier
    from medray.stream import Fact
    from medray.train.clips import ClipTraining
    from medray.train.clips_data import ClipRoster
    from medray.train.scorecard import Judged

CLIPS_SHOWN = 6


def leave(
    config: ClassifyJob,
    run: RunDir,
    algorithm: ClipTraining,
    found: ClipSamples,
    summary: dict[str, Any],
) -> dict[str, Any]:
    """Calibrates the best weights, judges them, writes everything; figures for the summary."""
    from medray.train import validation

    model, device = algorithm.take_best(), algorithm.context.device
    logits_NK = validation.logits_of(model, found.validation, found.validation_facts, device)
    truth_NK = found.targets.of(found.validation_facts)
    validation.settled(model, logits_NK, truth_NK, found.bias_K)
    judged = validation.judge(model, logits_NK, found.validation_facts, found.targets)
    figures: dict[str, Any] = {
        "best_images": algorithm.best_images,
        "best_score": algorithm.best_score,
        **_about(config, found, model),
        "validation": scores(judged, config),
    }
    last, roster, facts = judged, found.validation, found.validation_facts
    if config.evaluate_split == "test":
        last, roster, facts = _on_test(config, found, algorithm)
        figures["test"] = scores(last, config)
    figures["clips_sha256"] = _save(config, run, algorithm.whole(), figures, summary, found)
    _pictures(run, last, algorithm, roster, facts)
    _page(config, run, {**summary, **figures})
    return figures


class Drawn(Protocol):
    """A job whose figures have intervals."""

    @property
    def seed(self) -> int: ...
    @property
    def interval_draws(self) -> int: ...


def scores(judged: Judged, config: Drawn) -> dict[str, Any]:
    """The figures of a split; the rarest finding's and the mean AUC in places of their own."""
    from medray.train import scorecard

    found = scorecard.figures(judged, config.seed, config.interval_draws)
    found["macro_auroc"] = scorecard.macro_auroc(judged, config.seed, config.interval_draws)
    if judged.multi_label:
        rarest = scorecard.rarest_finding(judged)
        of_rarest = None if rarest is None else found["classes"][rarest]
        found["rarest"] = None if of_rarest is None else {"name": rarest, **of_rarest}
    return found


def _about(config: ClassifyJob, found: ClipSamples, model: ClipClassifier) -> dict[str, Any]:
    from medray.train import targets

    return {
        "pool": config.pool,
        "encoder": config.encoder,
        "freeze": config.freeze,
        "frames": config.frames,
        "parameters": sum(p.numel() for p in model.parameters()),
        "classes": list(model.classes),
        "labels": "many" if model.multi_label else "one",
        "fraction": config.fraction,
        "train": {
            "samples": len(found.train_facts),
            "patients": len({targets.patient_of(fact) for fact in found.train_facts}),
            "counts": targets.counts(found.targets.of(found.train_facts), model.classes),
        },
        "calibration": {
            "temperature": model.temperature.tolist(),
            "bias": [float(value) for value in model.bias],
            "thresholds": model.thresholds.tolist() if model.multi_label else None,
        },
    }


def _on_test(
    config: ClassifyJob, found: ClipSamples, algorithm: ClipTraining
) -> tuple[Judged, ClipRoster, list[Fact]]:
    """The test split, all patients of it, read this once."""
    from medray.train import validation

    roster = roster_of(config, "test")
    roster.encode_with(found.validation.encode)
    facts = labelled(list(roster.facts), found.targets, roster)
    log.event("test", f"judging {len(facts):,} clips of the test split", samples=len(facts))
    model = algorithm.average
    logits_NK = validation.logits_of(model, roster, facts, algorithm.context.device)
    return validation.judge(model, logits_NK, facts, found.targets), roster, facts


def _save(
    config: ClassifyJob,
    run: RunDir,
    whole: ClipClassifier,
    figures: dict[str, Any],
    summary: dict[str, Any],
    found: ClipSamples,
) -> str:
    from medray import lineage
    from medray.models import clips, weights

    store = run.store.child("model")
    lineage.write_known(store, seen(config, found), run.store.url)
    assert whole.encoder is not None, "what is saved is whole"
    encoders.save(run.store, whole.encoder, config.seed)
    about = {
        "kind": clips.ROLE,
        "arguments": whole.arguments(),
        "seed": config.seed,
        "patients": config.patients,
        "split": config.split,
        "images": summary["images"],
        "best_images": figures["best_images"],
    }
    card = _card(config, figures)
    return weights.save_network(store, clips.ROLE, whole.state_dict(), about, card)


# --- pictures and the page ----------------------------------------------------------------------


def _pictures(
    run: RunDir, judged: Judged, algorithm: ClipTraining, roster: ClipRoster, facts: list[Fact]
) -> None:
    from medray.train.clips import attention_of
    from medray.train.validation import draw_progress

    draw_progress(run)
    reliability = images_report.reliability(judged)
    run.write_picture("reliability.png", report.reliability_png(reliability))
    shown = facts[:CLIPS_SHOWN]
    weights_NT = attention_of(algorithm.average, roster, shown, algorithm.context.device)
    clips = [roster.picked(fact) for fact in shown]
    eight = [c if c.dtype.itemsize == 1 else (c >> 8).astype("uint8") for c in clips]
    run.write_picture("attention.png", report.attention_png(eight, weights_NT))


def _page(config: ClassifyJob, run: RunDir, summary: dict[str, Any]) -> None:
    on = "test" if "test" in summary else "validation"
    found = summary[on]
    parts = [
        (f"AUC on {on}, with 95% intervals over patients", auc_table(found)),
        ("Findings", images_report.classes_table(found)),
    ]
    titles = {
        "attention.png": "What share of a clip each frame is",
        "reliability.png": "Reliability",
        "progress.png": "Curves",
    }
    for name, title in titles.items():
        if run.store.exists(name):
            parts.append((title, report.picture(run.store.read_bytes(name), name)))
    plain = {n: v for n, v in summary.items() if not isinstance(v, dict)}
    parts += [
        ("Run", report.table({**plain, "calibration": summary["calibration"]})),
        ("Configuration", report.preformatted(configuration.to_yaml(config))),
    ]
    run.write_text("report.html", report.page(f"Classifier of clips, {config.pool}", parts))


def auc_table(found: dict[str, Any]) -> str:
    """Mean, the rarest finding, and each: a column of its own for the rarest."""
    rarest = found.get("rarest")
    heads = ["macro", f"rarest: {rarest['name']}" if rarest else "rarest", *found["classes"]]
    figures = [found["macro_auroc"], rarest["auroc"] if rarest else None]
    figures += [of_class["auroc"] for of_class in found["classes"].values()]
    return report.columns(heads, [[images_report.shown(value) for value in figures]])


def _card(config: ClassifyJob, figures: dict[str, Any]) -> str:
    lines = [
        f"- {split}: macro AUC {images_report.shown(figures[split]['macro_auroc'])}, "
        f"{figures[split]['samples']:,} clips of {figures[split]['patients']:,} patients"
        for split in ("validation", "test")
        if split in figures
    ]
    how = "frozen" if config.freeze else "fine-tuned"
    origin = Path(config.encoder or "").name
    return f"""# Classifier of clips, {config.pool}, {config.size_px} px

Trained by medray on: {_data.source_name(config.data, KNEES)} (split {config.split},
{figures["train"]["samples"]:,} clips); encoder {origin}, {how}; seed {config.seed}.

- Findings: {", ".join(figures["classes"])}.
- Input: {config.frames} frames evenly over a clip, in [-1, 1], resized inside to
  {config.size_px} px. Output: logits; `probabilities` are calibrated on validation, where weights
  and thresholds were chosen too: its figures flatter.
{chr(10).join(lines)}
- Weights: `clips.safetensors`; arguments in `config.yaml`; the encoder alone in `encoder/`.
- Intended use: research. Not for diagnosis.
"""
