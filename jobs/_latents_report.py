"""What a search for latents leaves: figures, pictures, curves, one page.

Shape letters: N images, C channels, T targets.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.latents import LatentsJob
from medray import log, report
from medray.errors import DataError, UsageError
from medray.records import Sample, Shard
from medray.sample import latents_check as check
from medray.sample.images import BATCH, Pixels
from medray.sample.latents import LatentModel, Target, prior
from medray.sample.latents_check import Bench, Views
from medray.sample.latents_optimise import BACKWARD, FORWARD
from medray.shards import INDEX, read_index
from medray.shards.reader import open_shard
from medray.store import Store

if TYPE_CHECKING:
    from jobs._latents_run import Found

SUMMARY, PAGE = "summary.json", "report.html"
SHOWN = 32
# Draws for the check are other ones than an archive of the same seed begins with.
CHECK_SEED = 2**62


def write(
    store: Store,
    config: LatentsJob,
    bench: Bench,
    model: LatentModel,
    found: Sequence[Found],
    missed: Sequence[Found],
) -> dict[str, Any]:
    """Judges fresh draws, writes pictures, `summary.json` and `report.html`; the figures."""
    judge = bench.judge
    seed = (config.seed + CHECK_SEED) % 2**63
    with log.Progress("judging", config.plain_images + config.check_images * len(found)) as bar:
        plain = bench.plain(seed, config.plain_images)
        bar.update(len(plain))
        drawn = []
        for number in range(len(found)):
            drawn.append(bench.drawn(model, seed, number, config.check_images))
            bar.update(len(plain) + sum(map(len, drawn)))
    figures: dict[str, Any] = {
        "latents_sha256": model.sha256,
        "judge": judge.name,
        "judge_is_independent": judge.independent,
        "passes": f"a pass is one image through generator and classifier: {FORWARD} forward, "
        f"{BACKWARD} more backward",
        "targets": {
            f.target.name: {
                **search_figures(f),
                "rank": len(model.gaussians[number].scales_R),
                **check.of_target(number, drawn[number], plain),
            }
            for number, f in enumerate(found)
        },
        "not_reached": {f.target.name: search_figures(f) for f in missed},
        "whole": whole(plain, drawn),
        "real": against_real(config, bench, plain, drawn),
    }
    pictures = draw_pictures(bench, model, found, seed, config.steps)
    for name, png in pictures.items():
        store.write_bytes(name, png)
    store.write_bytes(SUMMARY, (json.dumps(figures, indent=1) + "\n").encode())
    store.write_bytes(PAGE, page(figures, pictures).encode())
    return figures


# --- figures ----------------------------------------------------------------------------------


def search_figures(found: Found) -> dict[str, Any]:
    """Acceptance, steps and cost of one target's search."""
    chunks = found.chunks
    steps_A = np.concatenate([chunk.steps_A for chunk in chunks])
    starts, passes = sum(c.starts for c in chunks), sum(c.passes for c in chunks)
    moved_A = steps_A[steps_A > 0]
    return {
        "starts": starts,
        "accepted": len(steps_A),
        "acceptance": len(steps_A) / starts,
        "accepted_as_they_were": int((steps_A == 0).sum()),
        "median_steps": float(np.median(moved_A)) if len(moved_A) else None,
        "p90_steps": float(np.percentile(moved_A, 90)) if len(moved_A) else None,
        "passes_of_the_search": passes,
        "accepted_per_pass_of_the_search": len(steps_A) / passes,
        "best_refused": max((c.best_refused for c in chunks), default=0.0),
    }


def whole(plain: Views, drawn: Sequence[Views]) -> dict[str, Any]:
    """Coverage of plain images by draws of all targets, equal and as the judge finds them plain."""
    half = len(plain) // 2
    first, second = plain[:half], plain[half:]
    seen_T = [float(first.hit_NT[:, t].mean()) for t in range(len(drawn))]
    weights = {"balanced": [1.0] * len(drawn), "natural": seen_T}
    result: dict[str, Any] = {"plain_proportions": seen_T}
    for name, weights_T in weights.items():
        mix = check.mixed(drawn, weights_T, half)
        if mix is not None:
            result[name] = check.coverage(first.features_ND, mix.features_ND, second.features_ND)
    return result


def against_real(
    config: LatentsJob, bench: Bench, plain: Views, drawn: Sequence[Views]
) -> dict[str, Any] | None:
    """The judge on real images, and coverage of the real images; None without --real."""
    if config.real is None:
        return None
    samples = list(real_samples(config.real, config.real_split))
    batches = (_batch(samples[k : k + BATCH]) for k in range(0, len(samples), BATCH))
    views = bench.look(batches)
    truth_NT = np.stack([_is_of(samples, target) for target in bench.targets], 1)
    recalls = [check.share(views.hit_NT[truth_NT[:, t], t]) for t in range(len(drawn))]
    hits = [float(views_t.hit_NT[:, t].mean()) for t, views_t in enumerate(drawn)]
    result: dict[str, Any] = {"images": len(samples), "targets": {}}
    for t, target in enumerate(bench.targets):
        of_class = views[truth_NT[:, t]].features_ND
        recall = recalls[t]["share"]
        result["targets"][target.name] = {
            "judge_recall": recalls[t],
            "hits_over_recall": hits[t] / recall if recall else None,
            "coverage": check.coverage(
                of_class, drawn[t].features_ND, plain[plain.hit_NT[:, t]].features_ND
            ),
            "nearest_features": check.nearest(of_class),
        }
    known = [(h, r["share"]) for h, r in zip(hits, recalls, strict=True) if r["share"]]
    result["judge_accuracy"] = float(np.mean([r for _, r in known])) if known else None
    result["hit_rate"] = float(np.mean([h for h, _ in known])) if known else None
    for name, weights_T in {
        "balanced": [1.0] * len(drawn),
        "natural": truth_NT.mean(0).tolist(),
    }.items():
        mix = check.mixed(drawn, weights_T, len(plain))
        if mix is not None:
            result[name] = check.coverage(views.features_ND, mix.features_ND, plain.features_ND)
    return result


def real_shards(url: str, split: str) -> list[Shard]:
    """The shards of one split; UsageError where there are none."""
    store = Store(url)
    if not store.exists(INDEX):
        raise UsageError(f"--real {url} holds no shards ({INDEX})")
    shards = [shard for shard in read_index(store).shards if shard.split == split]
    if not shards:
        raise UsageError(f"--real {url} has no split {split!r}")
    return shards


def real_samples(url: str, split: str) -> Iterator[Sample]:
    """The samples of one split."""
    for shard in real_shards(url, split):
        reader = open_shard(Store(url), shard)
        yield from (reader.sample(number) for number in range(len(reader)))


def _batch(samples: Sequence[Sample]) -> Pixels:
    images = [sample.image for sample in samples]
    if images[0].dtype != np.uint8:
        raise DataError("--real must hold images of 8 bits", code="MR-D044", where=samples[0].key)
    return check.planes(np.stack(images))


def _is_of(samples: Sequence[Sample], target: Target) -> check.Truth:
    """Whether each sample shows every finding that the target names (for "normal": none)."""
    wanted = [name for name, value in target.wanted.items() if value]
    return np.array([_shows(sample, wanted, list(target.wanted)) for sample in samples], bool)


def _shows(sample: Sample, wanted: list[str], classes: list[str]) -> bool:
    has = {name for name in classes if sample.label == name or sample.labels.get(name)}
    return has >= set(wanted) if wanted else not has


# --- pictures ---------------------------------------------------------------------------------


def draw_pictures(
    bench: Bench, model: LatentModel, found: Sequence[Found], seed: int, steps: int
) -> dict[str, bytes]:
    """PNG by file name: plain images, each target's accepted ones and fresh draws, the curves."""
    pictures = {"plain.png": _grid(bench, prior(seed, np.arange(SHOWN), model.dims))}
    for number, f in enumerate(found):
        accepted = np.concatenate([chunk.latents_AD for chunk in f.chunks])[:SHOWN]
        numbers = np.full(SHOWN, number)
        fresh = model.draw(seed, numbers, np.arange(SHOWN))
        pictures[f"accepted-{f.target.name}.png"] = _grid(bench, accepted)
        pictures[f"drawn-{f.target.name}.png"] = _grid(bench, fresh)
    pictures["curves.png"] = curves_png(found, steps)
    return pictures


def _grid(bench: Bench, latents_ND: Any) -> bytes:
    return report.grid_png(np.concatenate(list(bench.images(latents_ND))), columns=8)


def curves_png(found: Sequence[Found], steps: int) -> bytes:
    """Share accepted after each step, and the mean loss of what still moves."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    for f in found:
        at_T = np.bincount(np.concatenate([c.steps_A for c in f.chunks]), minlength=steps + 1)
        left.plot(np.cumsum(at_T) / sum(c.starts for c in f.chunks), label=f.target.name)
        moved_T = np.sum([c.moved_T for c in f.chunks], 0)
        loss_T = np.sum([c.loss_T for c in f.chunks], 0)
        right.plot(np.where(moved_T > 0, loss_T / np.maximum(moved_T, 1), np.nan))
    for axes, title in ((left, "share accepted"), (right, "mean loss of those that move")):
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("steps", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
    left.legend(fontsize=7)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


# --- page -------------------------------------------------------------------------------------


def page(figures: dict[str, Any], pictures: dict[str, bytes]) -> str:
    """The report as one page."""
    parts = [("Targets", report.preformatted(table_text(figures)))]
    if figures["not_reached"]:
        names = ", ".join(figures["not_reached"])
        parts.append(("Not reached", report.preformatted(f"no latents to draw from: {names}")))
    parts.append(("Search", report.picture(pictures["curves.png"], "acceptance and loss")))
    parts.append(("Plain images", report.picture(pictures["plain.png"], "plain images")))
    for name in figures["targets"]:
        shown = [
            f"<p>{kind}</p>{report.picture(pictures[f'{kind}-{name}.png'], f'{name}, {kind}')}"
            for kind in ("accepted", "drawn")
        ]
        parts.append((name, "\n".join(shown)))
    parts.append(("All figures", report.preformatted(json.dumps(figures, indent=1))))
    return report.page("Latents", parts)


HEADER = "target accepted steps hits(judge) [95%] per_pass rejection spread coverage".split()


def table_text(figures: dict[str, Any]) -> str:
    """The figures that matter, a row a target."""
    rows = [HEADER]
    for name, found in figures["targets"].items():
        hits = found["judge_hits"]
        rows.append(
            [
                name,
                f"{found['accepted']}/{found['starts']}",
                _shown(found["median_steps"]),
                _shown(hits["share"]),
                f"{_shown(hits['ci_low'])}-{_shown(hits['ci_high'])}",
                _shown(found["accepted_of_drawn"]["share"]),
                _shown(found["accepted_of_plain"]["share"]),
                _shown(found["pairwise_features"]["ratio"]),
                _shown(found["coverage"]["ratio"]),
            ]
        )
    widths = [max(len(row[k]) for row in rows) for k in range(len(HEADER))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def say(store: Store, figures: dict[str, Any]) -> None:
    """The last words: the table and where to look."""
    judge = figures["judge"] + ("" if figures["judge_is_independent"] else " (not independent)")
    log.event(
        "done",
        f"{table_text(figures)}\njudge    {judge}\nreport   {store.url}/{PAGE}\n"
        f"latents  {store.url}",
        latents_sha256=figures["latents_sha256"],
    )
