"""Classifiers trained again on images of which the heat, the tumour or anything else is kept.

Six arms: original; heat kept; heat removed; true tumour kept (tumour); tumour removed (no-tumour);
the heat's mask at a random place kept (random). What is removed is the training images' mean grey
value. Softly the heat itself weighs the pixels, in the binary form its mask does. The heat is that
of the class said, never of the true one. Where a class has no place (--background), its images take
heat and masks of a random patient's image that has one, shifted into their own head, so that area
and shape tell nothing; classifiers of the masks alone say what masks do tell.

Shape letters: N images, C channels, H and W pixels, K classes, S seeds.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from jobs import _gradcam_data as data
from jobs import _out
from jobs._gradcam_data import Heat, Looker, Masks, Pixels
from jobs._gradcam_shift import shifted_inside
from jobs.gradcam import GradcamJob
from medray import log, rng
from medray.errors import DataError
from medray.evaluate.heat_masks import Cut, rolled
from medray.records import SPLITS, ShardIndex
from medray.store import Store
from medray.train import targets
from medray.train.targets import Targets

Numbers = npt.NDArray[np.int64]
FOLDER = "arms"
STREAM = "gradcam.arms"


@dataclass(frozen=True)
class Training:
    """What one training looks at: an arm, soft or binary, or the masks alone."""

    arm: str
    form: str
    alone: bool = False

    @property
    def name(self) -> str:
        """For files and tables."""
        return f"{self.arm}-{self.form}" + ("-alone" if self.alone else "")


@dataclass(frozen=True)
class Images:
    """One split in memory; `heat` and masks of images without a place are borrowed."""

    images_NCHW: Pixels
    numbers_N: Numbers
    patients: tuple[str, ...]
    heat_NHW: Heat
    mask_NHW: Masks
    true_NHW: Masks
    # Heat and masks before what is borrowed was moved, for random places.
    still_NHW: tuple[Heat, Masks]


def trainings(arms: tuple[str, ...]) -> list[Training]:
    """Every training of these arms once; the heat kept and removed share their masks alone."""
    found = []
    for arm in arms:
        forms = ("binary",) if arm in ("original", "tumour", "no-tumour") else ("soft", "binary")
        found += [Training(arm, form) for form in forms]
        if arm in ALONE:
            found += [Training(ALONE[arm], form, alone=True) for form in forms]
    return list(dict.fromkeys(found))


# Whose masks alone an arm's are: what is removed has the outline of what is kept.
ALONE = {
    "kept": "kept",
    "removed": "kept",
    "tumour": "tumour",
    "no-tumour": "tumour",
    "random": "random",
}


def retrained(
    config: GradcamJob,
    store: Store,
    plan: str,
    index: ShardIndex,
    looker: Looker,
    way: str,
    cut: Cut,
    arms: tuple[str, ...],
) -> dict[str, Any]:
    """Trains every arm and seed that is not there yet; table and words of all."""
    from jobs._gradcam_verdict import verdict

    wanted = Targets(looker.classes, False)
    sets = {
        split: read(config, index, looker, way, cut, split, wanted)
        for split in (*(s for s in SPLITS if s not in (config.choose_split, config.split)),)
        + (config.choose_split, config.split)
    }
    found: dict[str, list[Any]] = {}
    todo = [(t, seed) for t in trainings(arms) for seed in range(config.arm_seeds)]
    with log.Progress("arms", len(todo)) as progress:
        for done, (training, seed) in enumerate(todo):
            place = store.child(FOLDER)
            said_NK = _kept(place, f"{training.name}-{seed}.json", plan)
            if said_NK is None:
                said_NK = _trained(config, sets, wanted, training, seed)
                _keep(place, f"{training.name}-{seed}.json", plan, said_NK)
            found.setdefault(training.name, []).append(said_NK)
            progress.update(done + 1, running=training.name)
    predictions = {name: np.asarray(rows, np.float64) for name, rows in found.items()}
    return verdict(config, predictions, sets[config.split], wanted.classes, arms)


def _kept(store: Store, name: str, plan: str) -> list[Any] | None:
    try:
        body = dict(json.loads(store.read_bytes(name)))
        stated = body.pop("sha256")
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    whole = (stated, body.get("plan")) == (_out.plan_hash(body), plan)
    return list(body["said"]) if whole else None


def _keep(store: Store, name: str, plan: str, said_NK: list[Any]) -> None:
    body = {"plan": plan, "said": said_NK}
    text = json.dumps({**body, "sha256": _out.plan_hash(body)}) + "\n"
    store.write_bytes(name, text.encode())


# --- images ---------------------------------------------------------------------------------------


def read(
    config: GradcamJob,
    index: ShardIndex,
    looker: Looker,
    way: str,
    cut: Cut,
    split: str,
    wanted: Targets,
) -> Images:
    """A split with heat and masks, those of classes without a place borrowed."""
    roster = data.roster_of(config, index, split)
    facts = [] if roster is None else [fact for fact in roster.facts if wanted.known(fact)]
    if roster is None or len({fact.label for fact in facts}) < len(wanted.classes):
        raise DataError(
            f"split {split!r} lacks images of {', '.join(wanted.classes)}: nothing to train again",
            code="MR-D070",
            where=config.data,
            hint="leave --arms out, or give a set with all classes in every split",
        )
    images_NCHW = np.concatenate(list(roster.images(facts)))
    method, layer = looker.ways[way]
    # Of every class said, those without a place too: what they leave out is the arms' question.
    from medray.evaluate import gradcam

    heat_NHW, _ = gradcam.of_stored(
        looker.trained.network, images_NCHW, layer, None, method == "gradcam++"
    )
    true_NHW = np.zeros(heat_NHW.shape, np.bool_)
    places, at = {fact.place: n for n, fact in enumerate(facts)}, 0
    masked = [fact for fact in roster.masked() if fact.place in places]
    for _, some_NHW in roster.pairs(masked):
        numbers = [places[fact.place] for fact in masked[at : at + len(some_NHW)]]
        true_NHW[numbers] = some_NHW
        at += len(some_NHW)
    found = Images(
        images_NCHW,
        wanted.of(facts).argmax(1).astype(np.int64),
        tuple(targets.patient_of(fact) for fact in facts),
        heat_NHW,
        mask_NHW := cut.masks(heat_NHW),
        true_NHW,
        (heat_NHW, mask_NHW),
    )
    return borrowed(found, looker.background, config.seed, f"{STREAM}.{split}")


def borrowed(own: Images, background: tuple[int, ...], seed: int, stream: str) -> Images:
    """Images of classes without a place with heat and masks of others; DataError without any."""
    without_N = np.isin(own.numbers_N, background)
    if not without_N.any():
        return own
    lenders = np.flatnonzero(~without_N & own.true_NHW.any((1, 2)))
    if not len(lenders):
        raise DataError(
            "no image of a class with a place has a mask to lend", code="MR-D075", where=stream
        )
    heat, mask, true = own.heat_NHW.copy(), own.mask_NHW.copy(), own.true_NHW.copy()
    lent = np.arange(len(without_N))
    for turn, n in enumerate(np.flatnonzero(without_N).tolist()):
        # Every mask is lent as often as any other, so that what they are like tells nothing.
        epoch, at = divmod(turn, len(lenders))
        lent[n] = lender = int(lenders[rng.permutation(seed, stream, epoch, len(lenders))[at]])
        heads = [data.grey(own.images_NCHW[[k]])[0] for k in (lender, n)]
        heat[n], mask[n] = shifted_inside(
            own.mask_NHW[lender], (own.heat_NHW[lender], own.mask_NHW[lender]), *heads
        )
        (true[n],) = shifted_inside(own.true_NHW[lender], (own.true_NHW[lender],), *heads)
    return replace(
        own,
        heat_NHW=heat,
        mask_NHW=mask,
        true_NHW=true,
        still_NHW=(own.heat_NHW[lent], own.mask_NHW[lent]),
    )


def keep_of(own: Images, training: Training, seed: int) -> Heat:
    """How much of every pixel is kept, in [0, 1], (N, H, W)."""
    soft = own.heat_NHW if training.form == "soft" else own.mask_NHW.astype(np.float32)
    if training.arm == "random":
        still_NHW = own.still_NHW[training.form == "binary"].astype(np.float32)
        soft = rolled(still_NHW, seed, 0)
    elif training.arm in ("tumour", "no-tumour"):
        soft = own.true_NHW.astype(np.float32)
    elif training.arm == "original":
        soft = np.ones_like(own.heat_NHW)
    keep: Heat = 1 - soft if training.arm in ("removed", "no-tumour") else soft
    return keep


def filtered(own: Images, training: Training, seed: int, mean: float) -> Pixels:
    """Images as the training sees them; what is removed is `mean`. Or the masks alone."""
    keep_N1HW = keep_of(own, training, seed)[:, None]
    most = np.iinfo(own.images_NCHW.dtype).max
    if training.alone:
        alone = np.broadcast_to(keep_N1HW * np.float32(most), own.images_NCHW.shape)
        return np.ascontiguousarray(alone).astype(own.images_NCHW.dtype)
    mixed = own.images_NCHW * keep_N1HW + np.float32(mean) * (1 - keep_N1HW)
    return np.rint(mixed).astype(own.images_NCHW.dtype)


# --- a training -----------------------------------------------------------------------------------


def _trained(
    config: GradcamJob,
    sets: dict[str, Images],
    wanted: Targets,
    training: Training,
    seed: int,
) -> list[Any]:
    """Probabilities on the split that is scored, (N, K)."""
    from jobs._gradcam_train import Part, trained

    first = next(split for split in sets if split not in (config.choose_split, config.split))
    mean = float(sets[first].images_NCHW.mean())
    parts = [
        Part(
            filtered(sets[split], training, rng.stream_id(f"{config.seed}.{split}"), mean),
            sets[split].numbers_N,
        )
        for split in (first, config.choose_split, config.split)
    ]
    address = int(rng.integers(config.seed, STREAM, seed, 1, 0, 2**31)[0])
    said_NK = trained(config, wanted, *parts, seed=address)
    return [[round(float(p), 7) for p in row] for row in said_NK]
