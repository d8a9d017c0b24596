"""What a finished classifier's run leaves: the model, its figures, pictures and a page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs import _encoders as encoders
from jobs._classify_data import Samples, labelled, seen, sources_of
from jobs._classify_familiar import leave_familiarity
from jobs.classify import ClassifyJob
from medray import config as configuration
from medray import log, report
from medray.rundir import RunDir

if TYPE_CHECKING:
    from medray.lineage import Lineage
    from medray.models.classifier import Classifier
    from medray.stream import Fact, Roster
    from medray.train.classifier import ClassifierTraining
    from medray.train.scorecard import Judged

WORST_SHOWN = 32
BINS = 10


def leave(
    config: ClassifyJob,
    run: RunDir,
    algorithm: ClassifierTraining,
    found: Samples,
    summary: dict[str, Any],
) -> dict[str, Any]:
    """Calibrates the best weights, judges them, writes everything; figures for the summary."""
    from medray.train import scorecard, targets, validation

    model, device = algorithm.take_best(), algorithm.context.device
    facts = found.validation_facts
    logits_NK = validation.logits_of(model, found.validation, facts, device)
    validation.settled(model, logits_NK, found.targets.of(facts), found.bias_K)
    judged = validation.judge(model, logits_NK, facts, found.targets)
    figures: dict[str, Any] = {
        "best_images": algorithm.best_images,
        "best_score": algorithm.best_score,
        **_about(config, found, model),
        "train": {
            "samples": len(found.train_facts),
            "patients": len({targets.patient_of(fact) for fact in found.train_facts}),
            "counts": targets.counts(found.targets.of(found.train_facts), model.classes),
        },
        "validation": scorecard.figures(judged, config.seed, config.interval_draws),
    }
    last, roster = judged, found.validation
    if config.evaluate_split == "test":
        last, roster, facts, figures["test"] = _on_test(config, found, model, device)
    sha256 = _save(config, run, model, figures, summary, seen(config, found))
    figures["classifier_sha256"] = sha256
    figures["unlike"] = leave_familiarity(run, model, found, sha256, device)
    _pictures(run, last, roster, facts)
    _page(config, run, {**summary, **figures}, last, facts)
    return figures


def _about(config: ClassifyJob, found: Samples, model: Classifier) -> dict[str, Any]:
    return {
        "architecture": config.architecture,
        "parameters": sum(p.numel() for p in model.parameters()),
        "classes": list(model.classes),
        "labels": "many" if model.multi_label else "one",
        "patients": config.patients,
        "fraction": config.fraction,
        "pretrain_images": config.pretrain_images,
        "synthetic": found.mixture.synthetic,
        "workers": config.workers,
        "calibration": {
            "temperature": model.temperature.tolist(),
            "bias": [float(value) for value in model.bias],
            "thresholds": [float(value) for value in model.thresholds]
            if model.multi_label
            else None,
        },
    }


def _on_test(
    config: ClassifyJob, found: Samples, model: Classifier, device: Any
) -> tuple[Judged, Roster, list[Fact], dict[str, Any]]:
    """The test split, all patients of it, read this once."""
    from medray.stream import Roster
    from medray.train import scorecard, validation

    roster = Roster(sources_of(config), "test", config.cache_dir)
    facts = labelled(list(roster.facts), found.targets, roster)
    log.event("test", f"judging {len(facts):,} images of the test split", samples=len(facts))
    logits_NK = validation.logits_of(model, roster, facts, device)
    judged = validation.judge(model, logits_NK, facts, found.targets)
    return judged, roster, facts, scorecard.figures(judged, config.seed, config.interval_draws)


def _save(
    config: ClassifyJob,
    run: RunDir,
    model: Classifier,
    figures: dict[str, Any],
    summary: dict[str, Any],
    saw: Lineage | None,
) -> str:
    from medray import lineage
    from medray.models import weights

    lineage.write_known(run.store.child("model"), saw, run.store.url)

    about = {
        "kind": "classifier",
        "arguments": model.arguments(),
        "seed": config.seed,
        "patients": config.patients,
        "split": config.split,
        "images": summary["images"],
        "best_images": figures["best_images"],
    }
    if model.encoder is not None:
        encoders.save(run.store, model.encoder, config.seed)
    return weights.save_network(
        run.store.child("model"),
        weights.CLASSIFIER,
        model.state_dict(),
        about,
        card(config, figures, summary),
    )


# --- pictures and the page ----------------------------------------------------------------------


def _pictures(run: RunDir, judged: Judged, roster: Roster, facts: list[Fact]) -> None:
    from medray.train.validation import draw_progress

    draw_progress(run)
    for name, counts in _confusions(judged).items():
        labels = judged.classes if not judged.multi_label else ("absent", "present")
        run.write_picture(name, report.matrix_png(counts, labels))
    run.write_picture("reliability.png", report.reliability_png(reliability(judged)))
    if worst := worst_mistakes(judged):
        images = next(iter(roster.images([facts[number] for number in worst], len(worst))))
        eight = images if images.dtype.itemsize == 1 else (images >> 8).astype("uint8")
        run.write_picture("mistakes.png", report.grid_png(eight))


def _confusions(judged: Judged) -> dict[str, list[list[int]]]:
    from medray.metrics import classification

    if not judged.multi_label:
        count = len(judged.classes)
        matrix_KK = classification.confusion(judged.decisions, judged.truth_N, count)
        return {"confusion.png": matrix_KK.tolist()}
    found = {}
    for k, name in enumerate(judged.classes):
        one = judged.finding(k)
        matrix_22 = classification.confusion(one.decisions[:, 0], one.truth_NK[:, 0], 2)
        found[f"confusion-{k:02d}-{_plain(name)}.png"] = matrix_22.tolist()
    return found


def _plain(name: str) -> str:
    """A name that is fit for a file."""
    return "".join(c if c.isalnum() else "-" for c in name)[:40]


def reliability(judged: Judged) -> dict[str, tuple[list[float], list[float]]]:
    """Probabilities said and shares that were so, a curve a finding, or one of all classes."""
    from medray.metrics import classification

    if not judged.multi_label:
        found = classification.reliability(judged.probabilities_NK, judged.truth_N, BINS)
        return {"likeliest class": (found.said_B.tolist(), found.seen_B.tolist())}
    curves = {}
    for k, name in enumerate(judged.classes):
        one = judged.finding(k)
        if len(one.truth_NK):
            found = classification.reliability(
                one.probabilities_NK[:, 0], one.truth_NK[:, 0] == 1, BINS
            )
            curves[name] = (found.said_B.tolist(), found.seen_B.tolist())
    return curves


def worst_mistakes(judged: Judged) -> list[int]:
    """Numbers of the samples decided wrongly, those first whose truth was the least expected."""
    truth_NK, p_NK = judged.truth_NK, judged.probabilities_NK
    if judged.multi_label:
        wrong_NK = (judged.decisions != truth_NK) & (truth_NK >= 0)
        of_truth_N = abs(p_NK - (truth_NK == 0)) * wrong_NK + 2.0 * ~wrong_NK
        wrong_N, of_truth_N = wrong_NK.any(1), of_truth_N.min(1)
    else:
        wrong_N = judged.decisions != judged.truth_N
        of_truth_N = (p_NK * (truth_NK == 1)).sum(1)
    order = sorted(wrong_N.nonzero()[0].tolist(), key=lambda number: (of_truth_N[number], number))
    return order[:WORST_SHOWN]


def _page(
    config: ClassifyJob, run: RunDir, summary: dict[str, Any], judged: Judged, facts: list[Fact]
) -> None:
    on = "test" if "test" in summary else "validation"
    parts = [
        (f"Figures on {on}, with 95% intervals over patients", _figures(summary[on])),
        ("Classes", classes_table(summary[on])),
    ]
    names = [n for n in run.store.names("confusion") if n.endswith(".png")]
    for name in [*names, "reliability.png", "progress.png", "mistakes.png"]:
        if run.store.exists(name):
            png = run.store.read_bytes(name)
            parts.append((TITLES.get(name, name[:-4]), report.picture(png, name)))
    if worst := worst_mistakes(judged):
        rows = [_said(judged, number, facts) for number in worst]
        parts.append(("Worst mistakes, in the order of the picture", report.columns(SAID, rows)))
    plain = {n: v for n, v in summary.items() if not isinstance(v, dict)}
    parts += [
        ("Run", report.table({**plain, "calibration": summary["calibration"]})),
        ("Configuration", report.preformatted(configuration.to_yaml(config))),
    ]
    run.write_text("report.html", report.page(f"Classifier, {config.architecture}", parts))


TITLES = {
    "confusion.png": "Confusion",
    "reliability.png": "Reliability",
    "progress.png": "Curves",
    "mistakes.png": "Worst mistakes",
}
SAID = ("key", "is", "said", "probabilities")


def _said(judged: Judged, number: int, facts: list[Fact]) -> tuple[str, str, str, str]:
    names = judged.classes
    if judged.multi_label:
        is_so = [n for n, v in zip(names, judged.truth_NK[number], strict=True) if v == 1]
        said = [n for n, v in zip(names, judged.decisions[number], strict=True) if v]
    else:
        is_so, said = [names[judged.truth_N[number]]], [names[judged.decisions[number]]]
    p_K = judged.probabilities_NK[number]
    shown = ", ".join(f"{n} {p:.2f}" for n, p in zip(names, p_K, strict=True))
    return facts[number].key, ", ".join(is_so) or "none", ", ".join(said) or "none", shown


def _figures(found: dict[str, Any]) -> str:
    kept = {n: v for n, v in found.items() if n not in ("classes", "confusion")}
    return report.table({n: shown(v) for n, v in kept.items()})


def classes_table(found: dict[str, Any]) -> str:
    """Every figure of every class."""
    heads = list(next(iter(found["classes"].values())))
    rows = [
        [name, *(shown(figures[head]) for head in heads)]
        for name, figures in found["classes"].items()
    ]
    return report.columns(["class", *heads], rows)


def shown(value: Any) -> str:
    """A figure with its interval as text."""
    if isinstance(value, dict):
        low, high = value["low"], value["high"]
        interval = "" if low is None else f" ({low:.3f} to {high:.3f})"
        return "undefined" if value["estimate"] is None else f"{value['estimate']:.3f}{interval}"
    if value is None:
        return "undefined"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _more(config: ClassifyJob) -> str:
    """What else decided the training samples, for the model card."""
    archives = (("pre-trained", config.pretrain), ("mixed", config.synthetic))
    said = [f"{config.fraction:g} of the labels"] if config.fraction < 1 else []
    said += [f"{how} with {Path(url).name}" for how, url in archives if url is not None]
    return "".join(f", {text}" for text in said)


def card(config: ClassifyJob, figures: dict[str, Any], summary: dict[str, Any]) -> str:
    """The model card."""
    data = ", ".join(Path(url).name for url in config.data) or f"{config.phantoms} phantoms"
    kind = "each present or not" if figures["labels"] == "many" else "one of them an image"
    lines = [
        f"- {split}: balanced accuracy {shown(figures[split]['balanced_accuracy'])}, "
        f"{figures[split]['samples']:,} images of {figures[split]['patients']:,} patients"
        for split in ("validation", "test")
        if split in figures
    ]
    return f"""# Image classifier, {config.architecture}, {config.size_px} px

Trained by medray on: {data} (split {config.split}, patients {config.patients},
{figures["train"]["samples"]:,} images{_more(config)}), {summary["images"]:,} images seen, the
weights as they were after {figures["best_images"]:,}; seed {config.seed}.

- Classes: {", ".join(figures["classes"])}; {kind}.
- Input: images in [-1, 1], resized inside to {config.size_px} px. Output: logits; `probabilities`
  are calibrated on validation, where the weights were chosen too: its figures flatter.
{chr(10).join(lines)}
- Weights: `classifier.safetensors`; arguments in `config.yaml`.
- Intended use: research on synthetic images. Not for diagnosis.
"""
