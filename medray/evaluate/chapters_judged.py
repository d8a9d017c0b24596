"""The chapters that a judge or the gate decides: memorisation, labels, diseases."""

from __future__ import annotations

from typing import Any

import numpy as np

from medray import report
from medray.evaluate import plots
from medray.evaluate.audit import Audit, audit, closest
from medray.evaluate.chapters import CELL_PX, SHOWN
from medray.evaluate.diversity import (
    Proportion,
    Share,
    hit_rates,
    label_matrix,
    never_produced,
    proportions,
)
from medray.evaluate.extraction import Judge
from medray.evaluate.material import HOLDOUT, PLAIN, SYNTHETIC, TEST, TRAIN, Material
from medray.evaluate.resample import Figure
from medray.evaluate.sections import Section
from medray.evaluate.similarity import channels_first


def memorisation(m: Material) -> Section:
    """Near-copies of training images, the closest pairs, and what the gate itself can see."""
    section, facts = Section("Memorisation"), m.pair.gate.facts
    found = audit(m.arrays[SYNTHETIC], facts, seed=m.seed, draws=m.draws)
    section.figures |= _audit_figures(found, m)
    section.text(
        f"An image is a near-copy where its correlation with a training image exceeds "
        f"{facts.pixel_threshold:.4f} or its embedding's cosine {facts.cosine_threshold:.4f}, over "
        f"mirroring and small shifts. The thresholds are {facts.rule}; {facts.holdout_images:,} "
        f"hold-out images resolve a share of {facts.resolution:.2g}. By chance up to "
        f"{found.by_chance:.2g} of images that copy nobody exceed one of the two."
    )
    section.table(["near-copies", ""], _audit_rows(found))
    caught = ", ".join(f"{kind} {share:.0%}" for kind, share in facts.caught.items())
    verdict = "" if m.pair.gate.audits else " Below 90%: this gate audits nothing."
    section.text(
        f"Positive control: of {facts.planted} planted copies of training images it caught: "
        f"{caught}.{verdict}"
    )
    similar = {
        "synthetic": m.arrays[SYNTHETIC]["similarity"],
        "hold-out": m.arrays[HOLDOUT]["similarity"],
    }
    title = "best correlation with a training image; dashed: threshold"
    section.picture(
        "memorisation.png", plots.histograms_png(similar, [facts.pixel_threshold], title), title
    )
    for name, word in ((SYNTHETIC, "SYNTHETIC"), (HOLDOUT, "hold-out")):
        words = f"closest pairs: above {word}, below the training image that it is most like"
        section.picture(f"closest-{name}.png", _pairs_png(m, name), words)
    return section


def _audit_figures(found: Audit, m: Material) -> dict[str, Any]:
    low, high = found.near_copies_ci
    figure = Figure(found.near_copies / found.images, low, high)
    return {
        "near_copies": found.near_copies,
        **figure.named("near_copy_rate"),
        **Figure(found.excess, *found.excess_ci).named("near_copy_excess"),
        "near_copy_rate_train": found.train_rate,
        "near_copy_rate_holdout": found.holdout_rate,
        "near_copy_rate_by_chance": found.by_chance,
        "memorisation_passes": found.passes,
        "gate": {
            "sha256": m.pair.gate.sha256,
            "audits": m.pair.gate.audits,
            "caught": m.pair.gate.facts.caught,
            "rule": m.pair.gate.facts.rule,
            "resolution": m.pair.gate.facts.resolution,
            "pixel_threshold": m.pair.gate.facts.pixel_threshold,
            "cosine_threshold": m.pair.gate.facts.cosine_threshold,
        },
    }


def _audit_rows(found: Audit) -> list[list[Any]]:
    low, high = found.near_copies_ci
    share = f"{found.near_copies:,} of {found.images:,}"
    share += f" (share {low:.4f} to {high:.4f})"
    excess = Figure(found.excess, *found.excess_ci)
    return [
        ["against all training images", share],
        ["share against training subsets of the hold-out's size", found.train_rate],
        ["share against the hold-out", found.holdout_rate],
        ["difference", excess],
        ["by chance, at most", found.by_chance],
        [
            "passes: the difference's interval includes 0 or ends at 0.001 at most, and the share "
            "against all is not above chance",
            "yes" if found.passes else "NO",
        ],
    ]


def _pairs_png(m: Material, name: str) -> bytes:
    rows = closest(m.arrays[name], SHOWN)
    above = m.sets[name].take([int(row) for row in rows])
    below = m.sets[TRAIN].take([int(n) for n in m.arrays[name]["nearest"][rows]])
    images_NCHW = channels_first(np.concatenate([above, below]))
    cell_px = max(CELL_PX, images_NCHW.shape[-1])
    return report.grid_png(images_NCHW, columns=len(rows), cell_px=cell_px)


# --- by the judge -----------------------------------------------------------------------------


def _labels(m: Material, judge: Judge, name: str) -> Any:
    rows = m.rows[name]
    return label_matrix(judge.classes, rows.labels, rows.findings, judge.network.multi_label)


def labels(m: Material) -> Section:
    """How often an independent judge agrees with the synthetic images' labels."""
    judge = _judge(m)
    section = Section("Labels, by an independent judge")
    if not any(m.rows[SYNTHETIC].labels) and not any(m.rows[SYNTHETIC].findings):
        section.text("The synthetic images have no labels, so there is no hit rate.")
        section.figures["hit_rate"] = None
        return section
    of_real = TEST if m.has(TEST) else HOLDOUT
    found = {
        name: hit_rates(judge.classes, _labels(m, judge, name), m.arrays[name]["said"])
        for name in (SYNTHETIC, of_real)
    }
    hit, right = found[SYNTHETIC]["all"].value, found[of_real]["all"].value
    ratio = hit / right if right else None
    section.text(
        f"Judge: classifier {judge.sha256[:16]}. It must have had no part in making the images: "
        "another architecture, seed and split than the classifier that the latents were optimised "
        f"with. Its accuracy on real images is measured on the {of_real} split."
    )
    names = [n for n in ("all", *judge.classes) if any(n in rates for rates in found.values())]
    section.table(
        ["label", "hit rate, synthetic", "recall, real"],
        [[n, _share(found[SYNTHETIC].get(n)), _share(found[of_real].get(n))] for n in names],
    )
    section.figures |= {
        "judge_sha256": judge.sha256,
        **_named("hit_rate", found[SYNTHETIC]["all"]),
        **_named("judge_accuracy_real", found[of_real]["all"]),
        "hit_rate_over_real": ratio,
        "hit_rate_per_class": {
            n: _named("hit_rate", s) for n, s in found[SYNTHETIC].items() if n != "all"
        },
    }
    return section


def diseases(m: Material) -> Section:
    """Classes and co-findings of plain generates, beside those of the real set."""
    judge = _judge(m)
    section = Section("Disease diversity of plain generates")
    # The judge may have been trained on some of the training images: there it errs less.
    unseen = TEST if m.has(TEST) else HOLDOUT
    found = proportions(
        judge.classes,
        _labels(m, judge, TRAIN),
        m.arrays[unseen]["said"],
        m.arrays[PLAIN]["said"],
    )
    section.text(
        "Shares of images with a class, or with two findings together: in the training images by "
        f"label, in the {unseen} split and in plain generates as the judge sees them. It errs "
        "alike on both, so the last two columns compare. Exact 95% intervals."
    )
    rows = [
        [one.name, _share(one.labelled), _share(one.real), _share(one.synthetic)] for one in found
    ]
    section.table(["class", "real, by label", "real, by judge", "plain generates"], rows)
    absent = never_produced(found)
    section.text(f"Never produced: {', '.join(absent) if absent else 'none'}.")
    section.figures["never_produced"] = absent
    section.figures["diversity"] = {one.name: _proportion(one) for one in found}
    shown = {
        one.name: {"real": _figure(one.real), "plain": _figure(one.synthetic)} for one in found
    }
    section.picture("diversity.png", plots.bars_png(shown, "share of images"), "shares by judge")
    return section


def _judge(m: Material) -> Judge:
    assert m.judge is not None, "this chapter needs a judge"
    return m.judge


def _figure(share: Share) -> Figure:
    return Figure(share.value, share.ci_low, share.ci_high)


def _share(share: Share | None) -> Figure | str:
    return "no label" if share is None else _figure(share)


def _named(name: str, share: Share) -> dict[str, float]:
    return {**_figure(share).named(name), f"{name}_n": share.count}


def _proportion(one: Proportion) -> dict[str, Any]:
    return {
        "labelled": None if one.labelled is None else _named("share", one.labelled),
        "real": _named("share", one.real),
        "synthetic": _named("share", one.synthetic),
    }
