"""An ACGAN compared with held-out features while it trains, and what its finished run leaves.

Shape letters: N rows, D features, K classes.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from jobs._acgan_run import Samples
from jobs.acgan import ACGANJob
from medray import config as configuration
from medray import lineage, report
from medray.metrics.frechet import frechet_of
from medray.models.acgan import save_acgan
from medray.rundir import RunDir
from medray.sample.acgan import ACGAN
from medray.train.acgan import as_maps

if TYPE_CHECKING:
    from medray.train.acgan import ACGANTraining

# Rows of each class in the picture, and rows that are compared, at most.
SHOWN = 150
MOST_ROWS = 2000

Rows = npt.NDArray[np.float64]


class Comparison:
    """The snapshot of an ACGAN's run: Frechet distances, acceptance, curves.

    Features are standardised as the networks see them. What is drawn has as many rows as are held
    out (2,000 at most), in the classes of these; the floor is as many real rows of the training
    split, or all there are.
    """

    def __init__(self, config: ACGANJob, model: ACGANTraining, run: RunDir, found: Samples) -> None:
        self.config, self.model, self.run, self.found = config, model, run, found
        self.seed = config.seed
        number_of = {name: number for number, name in enumerate(found.classes)}
        self.numbers_N = np.asarray([number_of[str(n)] for n in found.held_out.labels])[:MOST_ROWS]
        self.real_ND = self._seen(found.held_out.features[:MOST_ROWS])
        own_ND = self._seen(found.train.features)
        some = np.linspace(0, len(own_ND) - 1, min(len(own_ND), len(self.real_ND))).round()
        self.floor = frechet_of(own_ND[some.astype(np.int64)], self.real_ND)

    def _seen(self, features: npt.NDArray[np.float32]) -> Rows:
        import torch

        rows = self.model.average.standardised(torch.from_numpy(as_maps(features)))
        return rows.flatten(1).double().numpy()

    def sampler(self) -> ACGAN:
        """A sampler of the averaged generator as it is now."""
        generator = copy.deepcopy(self.model.average)
        discriminator = copy.deepcopy(self.model.discriminator)
        return ACGAN.of(generator, discriminator, self.found.counts, self.found.train.tag)

    def __call__(self, images: int) -> dict[str, float]:
        """Figures after `images` features: of all that is drawn, accepted or not."""
        rows, named_N = self.sampler().candidates(self.seed, self.numbers_N)
        found = {
            "frechet": frechet_of(self._seen(rows), self.real_ND),
            "frechet_real": self.floor,
            "acceptance": float(named_N.mean()),
        }
        draw_progress(self.run)
        return {**found, "score": found["frechet"]}


def draw_progress(run: RunDir) -> None:
    """Draws the curves of the rows so far."""
    if rows := run.metrics():
        panels = {
            "loss": ("train/loss_d", "train/loss_g"),
            "class loss": ("train/class_real", "train/class_fake"),
            "Frechet distance": ("snapshot/frechet", "snapshot/frechet_real"),
            "accepted": ("snapshot/acceptance", "train/accepted"),
        }
        run.write_picture("progress.png", report.curves_png(rows, panels))


# --- the end ------------------------------------------------------------------------------------


def leave(
    config: ACGANJob, run: RunDir, comparison: Comparison, summary: dict[str, Any]
) -> dict[str, Any]:
    """Writes the model, its figures, pictures and a page; figures for the summary."""
    found, sampler = comparison.found, comparison.sampler()
    names = np.asarray(found.classes)[comparison.numbers_N]
    rows, _ = sampler.sample(len(names), comparison.seed, labels=names)
    made_ND = comparison._seen(rows)
    figures: dict[str, Any] = {
        "features": found.train.tag,
        "layer": found.train.layer,
        "classes": list(found.classes),
        "counts": found.counts,
        "held_out": len(names),
        "fraction": config.fraction,
        "acceptance": sampler.acceptance,
        # Of accepted rows, in the standardised features.
        "frechet": frechet_of(made_ND, comparison.real_ND),
        "frechet_real": comparison.floor,
        "frechet_of_class": _of_classes(made_ND, comparison, names),
    }
    figures["acgan_sha256"] = _save(config, run, sampler, figures, summary)
    draw_progress(run)
    groups = _groups(made_ND, names, comparison)
    run.write_picture("pca.png", report.scatter_png(groups))
    _page(config, run, {**summary, **figures})
    return figures


def _of_classes(made_ND: Rows, comparison: Comparison, names: Any) -> dict[str, float]:
    """Frechet distance of each class that has two held-out rows or more."""
    found = {}
    for name in comparison.found.classes:
        own_N = names == name
        if own_N.sum() >= 2:
            found[name] = frechet_of(made_ND[own_N], comparison.real_ND[own_N])
    return found


def _groups(made_ND: Rows, names: Any, comparison: Comparison) -> dict[str, tuple[Rows, Rows]]:
    """Of each class held-out and generated rows on the two main axes of the held-out ones."""
    mean_D = comparison.real_ND.mean(0)
    _, _, axes_DD = np.linalg.svd(comparison.real_ND - mean_D, full_matrices=False)
    plane_D2 = axes_DD[:2].T
    return {
        name: (
            ((comparison.real_ND - mean_D)[names == name] @ plane_D2)[:SHOWN],
            ((made_ND - mean_D)[names == name] @ plane_D2)[:SHOWN],
        )
        for name in comparison.found.classes
    }


def _save(
    config: ACGANJob,
    run: RunDir,
    sampler: ACGAN,
    figures: dict[str, Any],
    summary: dict[str, Any],
) -> str:
    found = {n: figures[n] for n in ("features", "counts", "acceptance", "fraction")}
    about = {**found, "seed": config.seed, "split": config.split, "images": summary["images"]}
    store = run.store.child("model")
    card = _card(config, figures, summary)
    sha256 = save_acgan(store, sampler.generator, sampler.discriminator, about, card)
    lineage.write_known(store, seen(config), run.store.url)
    return sha256


def seen(config: ACGANJob) -> lineage.Lineage | None:
    """What the weights saw: the rows with their labels, and what their network and start saw.

    The held-out split is compared with and moves nothing: it is not among them.
    """
    from jobs._acgan_run import samples_of

    before = lineage.united([config.features, config.init_from])
    if before is None:
        return None
    table = samples_of(config).train
    return before | lineage.of_facts("", table.facts(), labels=True, split="train")


def _page(config: ACGANJob, run: RunDir, summary: dict[str, Any]) -> None:
    heads = ("class", "rows", "accepted", "Frechet distance")
    rows = [
        (name, count, summary["acceptance"][name], summary["frechet_of_class"].get(name, "-"))
        for name, count in zip(summary["classes"], summary["counts"], strict=True)
    ]
    parts = [
        (
            "Frechet distance to held-out features",
            report.table(
                {"generated": summary["frechet"], "real to real": summary["frechet_real"]}
            ),
        ),
        ("Classes", report.columns(heads, rows)),
    ]
    for name, title in (("pca.png", "Real and generated"), ("progress.png", "Curves")):
        if run.store.exists(name):
            parts.append((title, report.picture(run.store.read_bytes(name), title)))
    plain = {n: v for n, v in summary.items() if not isinstance(v, dict | list)}
    parts += [
        ("Run", report.table(plain)),
        ("Configuration", report.preformatted(configuration.to_yaml(config))),
    ]
    run.write_text("report.html", report.page("ACGAN on features", parts))


def _card(config: ACGANJob, figures: dict[str, Any], summary: dict[str, Any]) -> str:
    """The model card."""
    accepted = ", ".join(f"{n} {share:.0%}" for n, share in figures["acceptance"].items())
    rows = ", ".join(
        f"{n} {c:,}" for n, c in zip(figures["classes"], figures["counts"], strict=True)
    )
    return f"""# ACGAN on features

Trained by medray on features (network:layer:pooling) {figures["features"]}, split {config.split}:
{rows}; {summary["images"]:,} features seen; seed {config.seed}.

- Output: features as they were, labelled. Only those whose class the discriminator predicts are
  kept: {accepted} are.
- Frechet distance to {figures["held_out"]:,} held-out features {figures["frechet"]:.4g}, of real
  ones {figures["frechet_real"]:.4g} (standardised features).
- Weights: `acgan.safetensors`; arguments in `config.yaml`.
- Intended use: research on synthetic features. Not for diagnosis.
"""
