"""Layer and cut by validation, and the scores of the masks beside those of other ways.

Shape letters: N images, H and W pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from jobs import _gradcam_data as data
from jobs._gradcam_data import Heat, Looker, Masks, Pixels
from jobs.gradcam import GradcamJob
from medray import log
from medray.evaluate import heat_scores as scores
from medray.evaluate.heat_masks import CUTS, Choice, Cut, centre
from medray.evaluate.heat_scores import Scored
from medray.models.pixels import to_unit
from medray.records import ShardIndex
from medray.train import targets

if TYPE_CHECKING:
    from jobs._gradcam_run import Chosen

CENTRE, RANDOM, OTSU = "centre", "random weights", Cut("otsu")
# Added to the seed that the classifier began with, so that the random one is another.
OTHER = 1_000_003


def chosen_of(config: GradcamJob, index: ShardIndex, looker: Looker) -> dict[str, Any]:
    """Layer, method and cut with the highest mean Dice on the split that chooses.

    Beside it the cuts of the middle of the image and of random weights, chosen alike.
    """
    choice, others = Choice(looker.cuts), Choice()
    roster = data.roster_of(config, index, config.choose_split)
    for _, images_NCHW, true_NHW in data.with_pixels(roster):
        choice.add({way: looker.heat(images_NCHW, way)[0] for way in looker.ways}, true_NHW)
        middle_HW = centre(*true_NHW.shape[1:])
        others.add({CENTRE: np.broadcast_to(middle_HW, true_NHW.shape)}, true_NHW)
    if not choice.images:
        return chosen_without(looker)
    way, cut, dice = choice.best()
    blind = random_network(looker)
    rolls = Choice()
    for _, images_NCHW, true_NHW in data.with_pixels(roster):
        logits_NK = looker.heat(images_NCHW, way)[1]
        rolls.add({RANDOM: looker.heat(images_NCHW, way, blind, logits_NK)[0]}, true_NHW)
    table = {name: [str(c), d] for name, c, d in (choice.best(w) for w in looker.ways)}
    log.event(
        "chosen",
        f"by {choice.images:,} masks of split {config.choose_split}: {way}, {cut}, Dice {dice:.3f}",
        way=way,
        cut=str(cut),
    )
    return {
        **_named(looker, way, cut, dice, choice.images),
        "by_way": table,
        "centre_cut": str(others.best(CENTRE)[1]),
        "random_weights_cut": str(rolls.best(RANDOM)[1]),
    }


def _named(looker: Looker, way: str, cut: Cut, dice: float | None, images: int) -> dict[str, Any]:
    method, layer = looker.ways[way]
    named = {"way": way, "method": method, "layer": layer, "cut": str(cut), "dice": dice}
    return {**named, "images": images}


def chosen_without(looker: Looker) -> dict[str, Any]:
    """The last layer and the first cut given, Otsu's without one; the middle half as a centre."""
    way = list(looker.ways)[-1]
    cut = looker.cuts[0] if looker.cuts != CUTS else OTSU
    if len(looker.ways) > 1 or len(looker.cuts) > 1:
        log.warn(
            "not_chosen",
            f"there is no true mask to choose layer and cut by: {way} and {cut} are taken",
        )
    others = {"by_way": {}, "centre_cut": "threshold:0.5", "random_weights_cut": str(cut)}
    return {**_named(looker, way, cut, None, 0), **others}


def random_network(looker: Looker) -> Any:
    """The classifier's network with other, random weights: what it looks at was never learnt."""
    import copy

    from medray.models.encoder import seed_weights

    network = copy.deepcopy(looker.trained.network)
    seed_weights(network, int(looker.trained.about.get("seed", 0)) + OTHER, "gradcam")
    return network


# --- scores ---------------------------------------------------------------------------------------


def scores_of(config: GradcamJob, index: ShardIndex, looker: Looker, how: Chosen) -> dict[str, Any]:
    """Dice, IoU and pointing game of every way on the split that is scored, with intervals."""
    roster = data.roster_of(config, index, config.split)
    found: dict[str, list[Scored]] = {}
    patients: list[str] = []
    labels: list[str] = []
    ways = _Ways(config, looker, how, index)
    for facts, images_NCHW, true_NHW in data.with_pixels(roster):
        for name, part in ways(images_NCHW, true_NHW, len(patients)).items():
            found.setdefault(name, []).append(part)
        patients += [targets.patient_of(fact) for fact in facts]
        labels += [fact.label or "" for fact in facts]
    figures: dict[str, Any] = {"classifier": _accuracy(config, looker, roster)}
    if not patients:
        return {**figures, **_unscored(config)}
    named: dict[str, Any] = {"seed": config.seed, "draws": config.interval_draws}
    joined, groups_N = {n: scores.joined(parts) for n, parts in found.items()}, np.asarray(patients)
    classes = sorted(set(labels) - {""})
    by_label = {
        label: scores.table(
            {"gradcam": joined["gradcam"].of(np.asarray(labels) == label)},
            groups_N[np.asarray(labels) == label],
            **named,
        )["gradcam"]
        for label in (classes if len(classes) > 1 else ())
    }
    return {
        **figures,
        "split": config.split,
        "images": len(patients),
        "patients": len(set(patients)),
        "ways": scores.table(joined, groups_N, **named),
        "minus": scores.differences(joined, "gradcam", groups_N, **named),
        "by_label": by_label,
    }


def _unscored(config: GradcamJob) -> dict[str, Any]:
    error = data.nothing_to_score(config, config.split)
    if config.score:
        raise error
    log.warn("not_scored", f"{error.message}; masks are made, scores are left out")
    return {"split": config.split, "images": 0, "ways": {}}


class _Ways:
    """Every way to make masks of images, scored against the true ones."""

    def __init__(self, config: GradcamJob, looker: Looker, how: Chosen, index: ShardIndex) -> None:
        from medray.models.segmenter import load_segmenter

        self.looker, self.how, self.seed = looker, how, config.seed
        self.blind = random_network(looker)
        chosen = how.others
        self.middle, self.blind_cut = Cut.parse(chosen[0]), Cut.parse(chosen[1])
        self.segmenter = None
        if config.segmenter is not None:
            self.segmenter = load_segmenter(config.segmenter)[0].to(data.device_of())

    def __call__(self, images_NCHW: Pixels, true_NHW: Masks, first: int) -> dict[str, Scored]:
        heat_NHW, logits_NK = self.looker.heat(images_NCHW, self.how.way)
        said_NHW = self.how.cut.masks(heat_NHW)
        blind_NHW, _ = self.looker.heat(images_NCHW, self.how.way, self.blind, logits_NK)
        middle_NHW = np.broadcast_to(centre(*true_NHW.shape[1:]), true_NHW.shape)
        grey_NHW = data.grey(images_NCHW)
        found = {
            "gradcam": scores.scored(said_NHW, true_NHW, heat_NHW),
            "random": scores.at_random(said_NHW, true_NHW, self.seed, first),
            "centre": _cut(self.middle, middle_NHW, true_NHW),
            "otsu": _cut(OTSU, grey_NHW, true_NHW),
            "random_weights": _cut(self.blind_cut, blind_NHW, true_NHW),
        }
        if self.segmenter is not None:
            found["segmenter"] = _cut(Cut("threshold", 0.5), self._unet(images_NCHW), true_NHW)
        return found

    @torch.no_grad()
    def _unet(self, images_NCHW: Pixels) -> Heat:
        assert self.segmenter is not None
        unit_NCHW = to_unit(torch.from_numpy(images_NCHW).to(data.device_of()))
        said_NHW: Heat = self.segmenter(unit_NCHW)[:, 0].sigmoid().cpu().numpy()
        return said_NHW


def _cut(cut: Cut, heat_NHW: Heat, true_NHW: Masks) -> Scored:
    return scores.scored(cut.masks(heat_NHW), true_NHW, heat_NHW)


def _accuracy(config: GradcamJob, looker: Looker, roster: Any) -> dict[str, Any]:
    """The classifier's own figures on the split that is scored; {} where nothing is labelled."""
    from medray.train import scorecard, validation
    from medray.train.targets import Targets

    network: Any = looker.trained.network
    wanted = Targets(looker.classes, bool(getattr(network, "multi_label", False)))
    facts = [] if roster is None else [fact for fact in roster.facts if wanted.known(fact)]
    if not facts:
        return {}
    logits_NK = validation.logits_of(network, roster, facts, data.device_of())
    judged = validation.judge(network, logits_NK, facts, wanted)
    figures = scorecard.figures(judged, config.seed, config.interval_draws)
    return {"split": config.split, "balanced_accuracy": figures["balanced_accuracy"]}
