"""What a finished jigsaw's run leaves: the encoder, its figures, solved puzzles and a page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs._classify_report import shown
from jobs._jigsaw_data import Samples, frames_of, held_of, seen, views_of
from jobs.jigsaw import JigsawJob
from medray import config as configuration
from medray import log, report
from medray.rundir import RunDir

if TYPE_CHECKING:
    from medray.lineage import Lineage
    from medray.models.jigsaw import Jigsaw
    from medray.train.jigsaw import JigsawTraining
    from medray.train.jigsaw_validation import Validation

PROBE = (
    "Balanced accuracy of the majority label of the five nearest frames of other patients, by the "
    "features of the encoder; at the start of training they are those of random weights. Labels "
    "are read for this table alone: they move and choose no weight."
)


def leave(
    config: JigsawJob,
    run: RunDir,
    algorithm: JigsawTraining,
    found: Samples,
    validation: Validation,
    summary: dict[str, Any],
) -> dict[str, Any]:
    """Judges the best weights, writes everything; figures for the summary."""
    from medray.train import jigsaw_validation as judging
    from medray.train.permutations import least_distance

    model, device = algorithm.take_best(), algorithm.context.device
    puzzles = validation.puzzles
    judged = judging.judge(model, puzzles.views_NSCpp, puzzles.order_N, device)
    rows = run.metrics()
    waits = [row["perf/data_wait_share"] for row in rows if "perf/data_wait_share" in row]
    figures: dict[str, Any] = {
        "best_images": algorithm.best_images,
        "best_score": algorithm.best_score,
        "parameters": sum(p.numel() for p in model.parameters()),
        "precision": config.precision,
        "engine": config.engine,
        "workers": config.workers,
        "chance": 1 / config.permutations,
        "least_distance": least_distance(model.permutations),
        "data_wait_share": sum(waits) / len(waits) if waits else None,
        "train": _counts(found.train),
        "validation": judging.figures(judged, puzzles, config.seed, config.interval_draws),
        "probe": {
            "trained": validation.probe(model, device),
            "at_start": _probe_at_start(rows),
        },
    }
    run.write_picture("puzzles.png", judging.puzzles_png(puzzles, judged))
    if config.evaluate_split == "test":
        figures["test"] = _on_test(config, model, device)
    figures["sha256"] = _save(config, run, model, figures, summary, seen(config, found))
    judging.draw_progress(run)
    _page(config, run, {**summary, **figures})
    return figures


def _counts(frames: Any) -> dict[str, int]:
    from medray.train.targets import patient_of

    return {
        "frames": len(frames.frames_FCHW),
        "clips": len(frames.facts),
        "patients": len({patient_of(fact) for fact in frames.facts}),
        "blank": frames.blank,
    }


def _probe_at_start(rows: list[dict[str, Any]]) -> dict[str, float]:
    """What random weights gave."""
    prefix = "snapshot/probe_"
    first = next((row for row in rows if row["images"] == 0), {})
    return {name.removeprefix(prefix): v for name, v in first.items() if name.startswith(prefix)}


def _on_test(config: JigsawJob, model: Jigsaw, device: Any) -> dict[str, Any]:
    """The puzzles of the test split, read this once."""
    from medray.stream.views import cut_of
    from medray.train import jigsaw_validation as judging

    frames = frames_of(config, held_of(config, "test"))
    cut = cut_of(frames.frames_FCHW.shape[-1], gap=config.gap)
    plain, changed = (views_of(config, cut, augment=augment) for augment in (False, True))
    count = config.validation_views
    puzzles = judging.puzzles_of(frames, model.permutations, plain, changed, count)
    log.event("test", f"judging {count:,} puzzles of the test split", puzzles=count)
    judged = judging.judge(model, puzzles.views_NSCpp, puzzles.order_N, device)
    return judging.figures(judged, puzzles, config.seed, config.interval_draws)


def _save(
    config: JigsawJob,
    run: RunDir,
    model: Jigsaw,
    figures: dict[str, Any],
    summary: dict[str, Any],
    saw: Lineage | None,
) -> str:
    """Writes what the run made: the encoder, or the published network whole."""
    from medray import lineage
    from medray.models import weights
    from medray.models.encoder import save_encoder

    store = run.store.child("model")
    lineage.write_known(store, saw, run.store.url)
    about = {
        "kind": "jigsaw",
        "form": config.form,
        "permutations": list(model.permutations),
        "gap": config.gap,
        "seed": config.seed,
        "split": config.split,
        "images": summary["images"],
        "best_images": figures["best_images"],
    }
    text = card(config, figures, summary)
    if model.encoder is not None:
        return save_encoder(store, model.encoder, about, text)
    about["arguments"] = model.arguments()
    return weights.save_network(store, "jigsaw", model.state_dict(), about, text)


# --- the page and the card ----------------------------------------------------------------------


def _page(config: JigsawJob, run: RunDir, summary: dict[str, Any]) -> None:
    parts = []
    for on in ("validation", "test"):
        if on in summary:
            found = {name: shown(value) for name, value in summary[on].items()}
            found["chance"] = f"{summary['chance']:.4f}"
            title = f"Pretext on {on}, patches as cut, with 95% intervals over patients"
            parts.append((title, report.table(found)))
    legend = "Shuffled; as the network lays it, what is misplaced framed; as it is."
    parts += [
        ("Puzzles", f"<p>{legend}</p>" + _embedded(run, "puzzles.png")),
        ("Nearest neighbours", f"<p>{PROBE}</p>" + _probe(summary["probe"])),
        ("Curves", _embedded(run, "progress.png")),
        ("Frames", report.table(summary["train"])),
        ("Run", report.table({n: v for n, v in summary.items() if not isinstance(v, dict)})),
        ("Configuration", report.preformatted(configuration.to_yaml(config))),
    ]
    run.write_text("report.html", report.page(f"Jigsaw, {config.form}", parts))


def _embedded(run: RunDir, name: str) -> str:
    return report.picture(run.store.read_bytes(name), name) if run.store.exists(name) else ""


def _probe(found: dict[str, dict[str, float]]) -> str:
    rows = [
        (name, shown(value), shown(found["at_start"].get(name)))
        for name, value in found["trained"].items()
    ]
    if not rows:
        return "<p>No label has two values.</p>"
    return report.columns(("label", "trained", "random weights"), rows)


def card(config: JigsawJob, figures: dict[str, Any], summary: dict[str, Any]) -> str:
    """The model card."""
    data = ", ".join(Path(url).name for url in config.data) or f"{config.phantoms} phantoms"
    train = figures["train"]
    name = "encoder" if config.form == "compact" else "jigsaw"
    return f"""# Jigsaw, {config.form}: {name} of images, pre-trained without labels

Trained by medray on: {data} (split {config.split}, patients {config.patients}, {train["frames"]:,}
frames of {train["patients"]:,} patients), {summary["images"]:,} frames seen, the weights as they
were after {figures["best_images"]:,}; seed {config.seed}.

- Task: which of {config.permutations:,} permutations shuffled nine patches of a frame. Solved on
  held-out patients: {shown(figures["validation"]["accuracy"])}, chance {figures["chance"]:.4f}.
  The weights were chosen there: the figure flatters.
- Input: images in [-1, 1], 32 px or more. Output: features; no label was used.
- Weights: `{name}.safetensors`; arguments and permutations in `config.yaml`. `seen.json` names the
  samples that they saw.
- Intended use: to begin other networks with. Not for diagnosis.
"""
