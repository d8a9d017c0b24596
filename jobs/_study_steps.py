"""Which jobs each study is made of: their flags, their folders, what each waits for.

Every trained thing that a study uses (generators, classifiers, segmenters, features, archives) is a
step with a folder of its own, so one command makes all of it again. What depends on labels is
trained on the fraction of that step alone; nothing but the final tables sees a test patient.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jobs.study import StudyJob


@dataclass(frozen=True)
class Scale:
    """How large a study is: sizes, images to train on, and how often it is repeated."""

    px: int
    seeds: int
    trials: int
    generator_images: int
    classifier_images: int
    baseline_images: int
    segmenter_images: int
    trial_images: int
    archive_images: int
    head_trials: int
    head_seeds: int
    acgan_images: int


SCALES = {
    "trial": Scale(16, 1, 1, 640, 640, 640, 320, 320, 240, 1, 1, 640),
    "cpu": Scale(32, 3, 3, 40_000, 16_000, 40_000, 6_000, 8_000, 6_000, 8, 3, 10_000),
    "gpu": Scale(64, 5, 8, 1_200_000, 40_000, 80_000, 40_000, 24_000, 40_000, 24, 5, 20_000),
}
FOLDS = 5
FOLDS_FILE = "folds.json"
Words = tuple[str, ...]


@dataclass(frozen=True)
class Step:
    """One job: its words after `medray`, the file that shows it is done, what must be before it.

    `begin` are more words for a run folder that is not begun yet; one that is gets --resume.
    `minutes` are those of one thread at --scale cpu, on the machine that RESULTS.md names.
    """

    name: str
    words: tuple[str, ...]
    done: Path
    minutes: float
    needs: tuple[str, ...] = ()
    begin: tuple[str, ...] = ()
    # A step without words is no job: this is called with the folder it needs and its own.
    write: Callable[[str, Path], None] | None = None

    def command(self) -> tuple[str, ...]:
        """The words as they are now."""
        if "--run-dir" not in self.words:
            return self.words
        begun = (self.done.parent / "config.yaml").exists()
        return (*self.words, *(("--resume",) if begun else self.begin))


class Plan:
    """The steps of a study, in an order in which they can run."""

    def __init__(self, config: StudyJob, source: Path) -> None:
        self.config, self.source = config, source
        self.scale = SCALES[config.scale]
        self.out = Path(config.out)
        self.steps: list[Step] = []

    def folder(self, name: str) -> str:
        """Where the step of that name works."""
        return str(self.out / name)

    def made(self, name: str, *words: str, minutes: float, needs: tuple[str, ...] = ()) -> str:
        """Adds a step with --out and gives its name."""
        done = "summary.json" if words[0] in ("sweep", "transfer") else "index.json"
        words = (*words, "--out", self.folder(name))
        self.steps.append(Step(name, words, self.out / name / done, minutes, needs))
        return name

    def trained(
        self,
        name: str,
        *words: str,
        minutes: float,
        needs: tuple[str, ...] = (),
        first: str | None = None,
    ) -> str:
        """Adds a step with a run folder, begun with the weights of `first`; gives its name."""
        words = (*words, "--run-dir", self.folder(name), *self._where(words[0]))
        begin = ("--init-from", self.folder(first)) if first else ()
        needs = (*needs, *([first] if first else []))
        self.steps.append(Step(name, words, self.out / name / "DONE", minutes, needs, begin))
        return name

    def _where(self, job: str) -> tuple[str, ...]:
        words: Words = ("--backend", self.config.backend)
        return (*words, "--threads-per-worker", "1") if job != "sweep" else words

    def sweep(self, name: str, *words: str, minutes: float, needs: tuple[str, ...]) -> str:
        """Adds a sweep and gives its name."""
        return self.made(name, "sweep", *words, *self._where("sweep"), minutes=minutes, needs=needs)

    def packed(self, name: str, table: str, px: int, *words: str) -> str:
        """Adds a set packed from one of the source's CSVs."""
        source = ("--source", str(self.source / f"{table}.csv"), "--size-px", str(px))
        return self.made(name, "pack", *source, "--workers", "0", *words, minutes=0.3)


def plan(config: StudyJob, source: Path, boxes: Path | None) -> Plan:
    """The steps of the study that `config` names; `source` is its set's folder."""
    made = Plan(config, source)
    if config.name == "brain-grade":
        assert boxes is not None, "the grade study has a second source"
        _brain_grade(made, boxes)
    else:
        _images(made, *SHORT[config.name])
    return made


# --- studies of images: archive, pre-training, features -----------------------------------------

# Fractions where none are given, and whether features are part of it.
SHORT: dict[str, tuple[tuple[float, ...], bool]] = {
    "lung-signs": ((0.1, 1.0), True),
    "brain-classes": ((0.1,), False),
    "chest": ((0.1,), False),
}


def _images(plan: Plan, fractions: tuple[float, ...], with_features: bool) -> None:
    data = plan.packed("data", "images", plan.scale.px)
    for fraction in plan.config.fractions or fractions:
        tag = f"{round(100 * fraction):03d}"
        archive = _archive(plan, data, fraction, tag)
        _sweep_of_images(plan, data, archive, fraction, tag)
        if with_features:
            _sweep_of_features(plan, data, archive, fraction, tag)
    _baseline(plan)


def _baseline(plan: Plan) -> None:
    """Real images alone, class weights, standard augmentation, 64 px; the test split once."""
    data = plan.packed("data-64", "images", 64)
    words: Words = ("--data", plan.folder(data), "--size-px", "64", "--precision", "bf16")
    words += ("--total-images", str(plan.scale.baseline_images), "--evaluate-split", "test")
    if plan.config.scale != "trial":
        words += BASELINE.get(plan.config.name, ())
    plan.trained("baseline", "classify", *words, minutes=6, needs=(data,))


# What validation chose: left and right are alike in brain slices, chests need fewer images.
BASELINE: dict[str, Words] = {
    "brain-classes": ("--mirror", "--total-images", "32000"),
    "chest": ("--total-images", "24000"),
}


def _archive(plan: Plan, data: str, fraction: float, tag: str) -> str:
    """A conditional generator, the classifier that accepts, and what both make, of a fraction."""
    scale, url = plan.scale, plan.folder(data)
    labels = ("--data", url, "--fraction", str(fraction))
    # Augmentation under the GAN: with so few images D would learn them by heart.
    words: Words = ("--conditional", "--diffaugment", "translation,cutout,tone")
    # The class term on real images alone: with generates, G makes up a code for the classes.
    words += (
        "--no-class-on-fakes",
        "--fake-labels",
        "balanced",
        "--final-px",
        str(scale.px),
        "--start-px",
        "8",
    )
    words += ("--fmap-base", "1024", "--fmap-max", "96", "--latent-dims", "96", "--batch", "16")
    words += ("--lr", "0.002", "--ema-half-life-images", "3000")
    words += ("--total-images", str(scale.generator_images))
    generator = plan.trained(f"generator-{tag}", "pggan", *labels, *words, minutes=5, needs=(data,))
    # An inner validation of training patients: the split val is for the sweep alone.
    words = ("--validation-patients", "0.2", "--size-px", str(scale.px), "--precision", "bf16")
    words += ("--total-images", str(scale.classifier_images))
    classifier = plan.trained(
        f"classifier-{tag}", "classify", *labels, *words, minutes=0.7, needs=(data,)
    )
    words = (
        "--generator",
        plan.folder(generator),
        "--latents",
        f"{plan.folder(generator)}/latents",
    )
    # Calibrated, the classifier of all labels hardly ever gives the rarest signs (3%, 6%) more.
    least = "0.25" if fraction < 1 else "0.1"
    words += ("--classifier", plan.folder(classifier), "--min-probability", least)
    words += ("--count", str(scale.archive_images), "--labels", "balanced", "--workers", "0")
    needs = (generator, classifier)
    return plan.made(f"archive-{tag}", "archive", *words, minutes=0.8, needs=needs)


def _sweep_of_images(plan: Plan, data: str, archive: str, fraction: float, tag: str) -> None:
    scale = plan.scale
    words: Words = ("--data", plan.folder(data), "--synthetic", plan.folder(archive))
    words += ("--arms", "none,class-weights,archive,pretrain", "--ratios", "1", "4")
    words += ("--fractions", str(fraction), "--seeds", str(scale.seeds))
    words += ("--trials", str(scale.trials), "--width", str(min(2, scale.trials)))
    words += ("--size-px", str(scale.px), "--total-images", str(scale.trial_images))
    plan.sweep(f"images-{tag}", *words, minutes=5, needs=(data, archive))


def _sweep_of_features(plan: Plan, data: str, archive: str, fraction: float, tag: str) -> None:
    """On features of the classifier that was trained on the fraction alone."""
    layer = ("--model", plan.folder(f"classifier-{tag}"), "--layer", "body", "--pool", "mean")
    features = []
    for name, url in ((f"features-{tag}", data), (f"features-archive-{tag}", archive)):
        words: Words = ("features", *layer, "--data", plan.folder(url), "--workers", "0")
        needs = (f"classifier-{tag}", url)
        features.append(plan.made(name, *words, minutes=0.5, needs=needs))
    words = ("--features", plan.folder(features[0]), "--synthetic", plan.folder(features[1]))
    words += ("--arms", "none,class-weights,smote,gaussian,acgan,archive")
    words += ("--fractions", str(fraction), *_heads(plan))
    plan.sweep(f"vectors-{tag}", *words, minutes=1.5, needs=tuple(features))


def _heads(plan: Plan) -> tuple[str, ...]:
    scale = plan.scale
    words: Words = ("--seeds", str(scale.head_seeds), "--trials", str(scale.head_trials))
    return (*words, "--acgan-images", str(scale.acgan_images))


# --- the grade of brain tumours, on features of segmenters ---------------------------------------

# As measured on validation (jobs/configs/segmenter-64.yaml).
SEGMENTER: Words = ("--lr", "0.003", "--mirror", "--precision", "bf16")
# Kinds of features: layer, pooling. The published study took the bottleneck.
KINDS = {
    "bottleneck-masked": ("bottleneck", "masked"),
    "bottleneck-mean": ("bottleneck", "mean"),
    "decoder-masked": ("decoder", "masked"),
}


def _brain_grade(plan: Plan, boxes: Path) -> None:
    slices = plan.packed("slices", "slices", 64)
    grades = plan.packed("grades", "grades", 64)
    excluded = _folds(plan, grades)
    pretrained = _pretrained(plan, boxes)
    for fold in range(FOLDS):
        for name, first in (("pretrained", pretrained), ("scratch", None)):
            segmenter = _segmenter(plan, slices, excluded, name, fold, first)
            for kind in KINDS if first else ("bottleneck-masked",):
                _features_of_fold(plan, grades, segmenter, name, kind, fold)
    for name in ("pretrained", "scratch"):
        for kind in KINDS if name == "pretrained" else ("bottleneck-masked",):
            _sweep_of_grades(plan, name, kind)


def _folds(plan: Plan, grades: str) -> str:
    """The patients of each outer fold, as files that segmenters are told to leave out.

    No job: the runner writes them (`write_folds`).
    """
    name = "folds"
    plan.steps.append(Step(name, (), plan.out / name / FOLDS_FILE, 0.0, (grades,), (), write_folds))
    return name


def write_folds(grades: str, folder: Path) -> None:
    """Writes `test-K.txt`, the patients of outer fold K as a sweep with --folds has them."""
    from medray.stream import Roster, Source
    from medray.train.targets import patient_of
    from medray.tune import folds

    facts = [
        fact
        for split in ("train", "val", "test")
        for fact in Roster([Source(grades)], split).facts
        if fact.label is not None
    ]
    labels = folds.label_by_patient([patient_of(f) for f in facts], [str(f.label) for f in facts])
    fold_of = folds.folds_of(labels, FOLDS, seed=0)
    folder.mkdir(parents=True, exist_ok=True)
    for fold in range(FOLDS):
        names = sorted(patient for patient, number in fold_of.items() if number == fold)
        (folder / f"test-{fold}.txt").write_text("".join(f"{name}\n" for name in names))
    counts = {f"test-{k}": sum(n == k for n in fold_of.values()) for k in range(FOLDS)}
    (folder / FOLDS_FILE).write_text(json.dumps(counts) + "\n")


def _pretrained(plan: Plan, boxes: Path) -> str:
    """Phantoms with true masks first, then boxes of another set's tumours, filled in."""
    images = str(plan.scale.segmenter_images)
    phantoms = plan.trained(
        "segmenter-phantoms",
        *("segment", "--phantoms", "brain", "--total-images", images, *SEGMENTER),
        minutes=2,
    )
    words: Words = ("--source", str(boxes / "boxes.csv"), "--box-columns", "x0", "y0", "x1", "y1")
    packed = plan.made("boxes", "pack", *words, "--size-px", "64", "--workers", "0", minutes=0.3)
    words = ("--data", plan.folder(packed), "--total-images", images, *SEGMENTER)
    return plan.trained(
        "segmenter-boxes", "segment", *words, minutes=2, needs=(packed,), first=phantoms
    )


def _segmenter(
    plan: Plan, slices: str, excluded: str, name: str, fold: int, first: str | None
) -> str:
    words: Words = (
        "--data",
        plan.folder(slices),
        "--total-images",
        str(plan.scale.segmenter_images),
    )
    words += ("--exclude-patients", f"{plan.folder(excluded)}/test-{fold}.txt")
    step, needs = f"segmenter-{name}-{fold}", (slices, excluded)
    return plan.trained(step, "segment", *words, minutes=2.5, needs=needs, first=first)


def _features_of_fold(
    plan: Plan, grades: str, segmenter: str, name: str, kind: str, fold: int
) -> None:
    layer, pool = KINDS[kind]
    words: Words = (
        "--model",
        plan.folder(segmenter),
        "--data",
        plan.folder(grades),
        "--layer",
        layer,
    )
    words += ("--pool", pool, "--workers", "0")
    step = f"features-{name}-{kind}-{fold}"
    plan.made(step, "features", *words, minutes=0.5, needs=(segmenter, grades))


def _sweep_of_grades(plan: Plan, name: str, kind: str) -> None:
    features = f"features-{name}-{kind}-"
    words: Words = ("--features", plan.folder(features + "{fold}"), "--folds", str(FOLDS))
    words += ("--unit", "patient", "--arms", "none,class-weights,smote,gaussian,acgan")
    needs = tuple(f"{features}{fold}" for fold in range(FOLDS))
    plan.sweep(f"grade-{name}-{kind}", *words, *_heads(plan), minutes=7, needs=needs)
