"""The study of clips: encoders made without labels, with other labels, of nothing; five folds.

Every encoder that learnt from the set is made anew for each outer fold, without its patients.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from jobs._study_clips import lgg_clips
from jobs._study_data import BOXES, Published, Row, Table, read_rows, unpacked
from jobs._study_steps import FOLDS, FOLDS_FILE, Plan, Step, Words
from jobs.study import StudyJob


@dataclass(frozen=True)
class ClipScale:
    """How large the study is; minutes are those of one thread at --scale cpu."""

    px: int
    jigsaw_images: int
    supervised_images: int
    seeds: int
    frozen_clips: int
    tuned_clips: int
    tuned_fractions: tuple[float, ...]


CLIP_SCALES = {
    "trial": ClipScale(96, 64, 96, 1, 64, 16, (0.25,)),
    "cpu": ClipScale(128, 10_000, 16_000, 3, 1500, 200, (0.25, 1.0)),
    "gpu": ClipScale(128, 60_000, 60_000, 5, 4000, 1600, (0.25, 0.5, 1.0)),
}
FRACTIONS = (0.25, 0.5, 1.0)
# Of jigsaw's clips, to choose its weights by.
HELD = "0.1"
ARMS = ("jigsaw", "random", "supervised")
MINUTES = {"jigsaw": 6.0, "supervised": 3.5, "frozen": 2.3, "tuned": 2.2}


def facts(config: StudyJob) -> dict[str, object]:
    """What decides the study, besides its name and seed."""
    return {"scale": asdict(CLIP_SCALES[config.scale]), "fractions": list(config.fractions)}


def begin(config: StudyJob, where: Path) -> None:
    """Unpacks the clips, and the images of tumours that supervised encoders are taught."""
    sets = Path(config.sets)
    unpacked(LGG, sets, where / "clips")
    unpacked(BOXES, sets, where / "boxes")


def plan(config: StudyJob, where: Path) -> Plan:
    """The steps, in an order in which they can run."""
    made = Plan(config, where / "clips" / LGG.tar)
    _steps(made, where / "boxes" / BOXES.tar)
    return made


def leave(made: Plan) -> None:
    """Tables, page and summary."""
    from jobs._study_clips_page import leave as leave_page

    leave_page(made)


def clips_of_patients(folder: Path) -> Iterator[Row]:
    """A clip a patient with its findings; all train, for the study has outer folds of its own."""
    lgg_clips(str(folder), str(folder / "all-clips.csv"))
    for row in read_rows(folder / "all-clips.csv"):
        yield {**row, "split": "train"}


LGG = Published("brain_lgg_flair", (Table("clips", clips_of_patients),))


def _steps(plan: Plan, boxes: Path) -> None:
    scale = CLIP_SCALES[plan.config.scale]
    px = ("--size-px", str(scale.px), "--workers", "0")
    words: Words = ("pack", "--clips", "--source", str(plan.source / "clips.csv"), *px)
    clips = plan.made("clips", *words, minutes=0.4)
    words = ("pack", "--source", str(boxes / "boxes.csv"), *px)
    tumours = plan.made("tumours", *words, minutes=0.6)
    step = Step("folds", (), plan.out / "folds" / FOLDS_FILE, 0.0, (clips,), write=write_folds)
    plan.steps.append(step)
    supervised = _supervised(plan, tumours, scale)
    for fold in range(FOLDS):
        tested = f"{plan.folder('folds')}/test-{fold}.txt"
        jigsaw = _jigsaw(plan, clips, fold, tested, scale)
        _transfer(plan, clips, fold, tested, (jigsaw, supervised), scale)


def _supervised(plan: Plan, tumours: str, scale: ClipScale) -> str:
    """The same trunk taught the kinds of tumour of another set, whose patients are others."""
    words: Words = ("classify", "--data", plan.folder(tumours), "--encoder", "random", "--mirror")
    words += ("--size-px", str(scale.px), "--precision", "bf16")
    words += ("--total-images", str(scale.supervised_images))
    minutes = MINUTES["supervised"]
    return plan.trained("supervised", *words, minutes=minutes, needs=(tumours,))


def _jigsaw(plan: Plan, clips: str, fold: int, tested: str, scale: ClipScale) -> str:
    words: Words = ("jigsaw", "--data", plan.folder(clips), "--exclude-patients", tested)
    words += ("--validation-patients", HELD, "--total-images", str(scale.jigsaw_images))
    words += ("--loader-threads", "1")
    needs = (clips, "folds")
    return plan.trained(f"jigsaw-{fold}", *words, minutes=MINUTES["jigsaw"], needs=needs)


def _transfer(
    plan: Plan, clips: str, fold: int, tested: str, encoders: tuple[str, str], scale: ClipScale
) -> None:
    jigsaw, supervised = encoders
    fractions = tuple(plan.config.fractions or FRACTIONS)
    shared: Words = ("transfer", "--data", plan.folder(clips), "--test-patients", tested)
    shared += ("--encoders", f"jigsaw={plan.folder(jigsaw)}", "random=random")
    shared += (f"supervised={plan.folder(supervised)}", "--seeds", str(scale.seeds))
    for mode in ("frozen", "tuned"):
        shares = [f for f in fractions if mode == "frozen" or f in scale.tuned_fractions]
        if not shares:
            continue
        words = (*shared, "--modes", mode, "--fractions", *map(str, shares))
        words += ("--size-px", str(scale.px), "--clips-seen", str(scale.frozen_clips))
        words += ("--tuned-clips-seen", str(scale.tuned_clips))
        needs = (clips, "folds", jigsaw, supervised)
        plan.made(f"{mode}-{fold}", *words, minutes=MINUTES[mode], needs=needs)


def write_folds(clips: str, folder: Path) -> None:
    """Writes `test-K.txt`, the patients of outer fold K; findings are spread, the rarest first."""
    from medray.stream.clips import ClipSet
    from medray.tune import folds
    from medray.tune.transfer import strata_of

    opened = ClipSet.open(clips)
    facts = [fact for split in opened.splits for fact in opened.facts(split)]
    fold_of = folds.folds_of(strata_of(facts), FOLDS, seed=0)
    folder.mkdir(parents=True, exist_ok=True)
    for fold in range(FOLDS):
        names = sorted(patient for patient, number in fold_of.items() if number == fold)
        (folder / f"test-{fold}.txt").write_text("".join(f"{name}\n" for name in names))
    counts = {f"test-{k}": sum(n == k for n in fold_of.values()) for k in range(FOLDS)}
    (folder / FOLDS_FILE).write_text(json.dumps(counts) + "\n")
