"""The wiring of jobs/reader_study.py: choose, bring to one form, write; or report on answers.

Shape letters: H and W pixels, C channels.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from jobs import _out
from jobs.reader_study import ReaderStudyJob
from medray import log, rng
from medray.errors import DataError, UsageError
from medray.evaluate import reader_report
from medray.evaluate.reader_set import (
    IMAGES,
    STUDY,
    TRUTH,
    Item,
    Known,
    ReaderSet,
    encode_image,
    study_bytes,
    truth_bytes,
)
from medray.images import to_bits
from medray.shards import read_index
from medray.store import Store
from medray.stream import Source
from medray.stream.roster import Fact, Roster

Array = npt.NDArray[Any]
REAL, SYNTHETIC = 0, 1
# ITU-R BT.601, as colour becomes grey everywhere here.
LUMINANCE_3 = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True)
class Shown:
    """One image as readers see it."""

    kind: int
    label: str | None
    source: str
    image_HW: Array


def make(config: ReaderStudyJob) -> None:
    """Writes the study; study.json last."""
    assert config.real is not None and config.synthetic is not None
    rosters = [
        _roster(config.real, config.real_split, REAL),
        _roster(config.synthetic, config.synthetic_split, SYNTHETIC),
    ]
    chosen = choose(rosters, config.images // 2, config.seed, config.classes)
    facts = {
        "mode": config.mode,
        "images": config.images,
        "repeats": config.repeats,
        "classes": config.classes,
        "name": config.name,
        "seed": config.seed,
        "sets": [_fingerprint(config.real, config.real_split)]
        + [_fingerprint(config.synthetic, config.synthetic_split)],
    }
    if config.dry_run:
        size, bits = _common(rosters)
        log.event("dry_run", f"{config.images} images, {size} px, {bits} bit, {config.mode}")
        return
    store = Store(config.out)
    with _out.alone(store, "reader study"):
        if _out.start(store, facts, what="a study", done=STUDY, overwrite=config.overwrite):
            log.event("complete", f"{config.out} is complete: nothing to do")
            return
        _write(store, config, rosters, chosen, _out.plan_hash(facts))
    folder, _, name = store.url.rpartition("/")
    log.event(
        "made",
        f"a study of {config.images} images is in {config.out}; a service with studies={folder} "
        f"shows it: begin {name!r} on its page /studies",
        out=config.out,
    )


def _roster(url: str, split: str, kind: int) -> Roster:
    roster = Roster([Source(url)], split)
    other = [fact for fact in roster.facts if fact.synthetic != bool(kind)]
    if other:
        flag, what = (("--real", "synthetic"), ("--synthetic", "real"))[kind]
        raise DataError(
            f"{flag} holds {len(other)} images that are {what}",
            code="MR-D171",
            where=other[0].key,
            hint="readers would be marked wrong where they are right: give a set of one kind",
        )
    return roster


def _fingerprint(url: str, split: str) -> str:
    shards = read_index(Store(url)).of_split(split)
    return hashlib.sha256("".join(shard.sha256 for shard in shards).encode()).hexdigest()


def _common(rosters: Sequence[Roster]) -> tuple[int, int]:
    """(size, bits) that both kinds can have: the smaller of each."""
    sizes = {roster.size_px for roster in rosters}
    if len(sizes) > 1:
        log.warn(
            "resized",
            f"the sets have {sorted(sizes)} px: the larger images are averaged down, which makes "
            "them smoother and may give them away; pack the real set at the smaller size",
        )
    return min(sizes), min(roster.bits for roster in rosters)


# --- which images -----------------------------------------------------------------------------


def choose(
    rosters: Sequence[Roster], each: int, seed: int, classes: bool
) -> tuple[list[Fact], list[Fact]]:
    """`each` real and `each` synthetic facts; with `classes`, as many of each class in both.

    Different patients before a patient's second image. DataError where there are too few.
    """
    piles = [_shuffled(roster, seed, kind) for kind, roster in enumerate(rosters)]
    if not classes:
        for flag, pile in zip(("--real", "--synthetic"), piles, strict=True):
            if len(pile) < each:
                raise DataError(
                    f"{flag} has {len(pile)} images of that split, {each} are needed",
                    code="MR-D172",
                    hint="fewer --images, or another split",
                )
        return piles[REAL][:each], piles[SYNTHETIC][:each]
    quotas = quotas_of([_counts(pile) for pile in piles], each)
    return _by_quota(piles[REAL], quotas), _by_quota(piles[SYNTHETIC], quotas)


def _shuffled(roster: Roster, seed: int, kind: int) -> list[Fact]:
    facts = roster.facts
    order = rng.permutation(seed, "readers.choose", kind, len(facts))
    seen: set[str] = set()
    first: list[Fact] = []
    later: list[Fact] = []
    for number in order:
        fact = facts[number]
        patient = fact.patient or f"sample {fact.key}"
        (later if patient in seen else first).append(fact)
        seen.add(patient)
    return first + later


def _counts(pile: Sequence[Fact]) -> dict[str, int]:
    counts: dict[str, int] = defaultdict(int)
    for fact in pile:
        if fact.label is not None:
            counts[fact.label] += 1
    return counts


def quotas_of(counts: Sequence[dict[str, int]], each: int) -> dict[str, int]:
    """How many of each class: as equal as what both kinds have allows; `each` in all."""
    most = {name: min(of.get(name, 0) for of in counts) for name in sorted(set().union(*counts))}
    if sum(most.values()) < each:
        raise DataError(
            f"both sets together have {sum(most.values())} images of like class, {each} of each "
            "kind are needed",
            code="MR-D172",
            hint="fewer --images, another split, or without --classes",
        )
    quotas = dict.fromkeys(most, 0)
    while sum(quotas.values()) < each:
        left = [name for name in quotas if quotas[name] < most[name]]
        quotas[min(left, key=lambda name: (quotas[name], name))] += 1
    return quotas


def _by_quota(pile: Sequence[Fact], quotas: dict[str, int]) -> list[Fact]:
    left, found = dict(quotas), []
    for fact in pile:
        if fact.label is not None and left.get(fact.label, 0):
            left[fact.label] -= 1
            found.append(fact)
    return found


# --- one form ---------------------------------------------------------------------------------


def one_form(image_CHW: Array, size_px: int, bits: int) -> Array:
    """An image as all of the study's: grey, (size, size), `bits`; the same way for both kinds."""
    grey = image_CHW[0]
    if len(image_CHW) == 3:
        mixed = np.tensordot(LUMINANCE_3, image_CHW.astype(np.float64), 1)
        grey = np.rint(mixed).astype(image_CHW.dtype)
    if grey.shape[-1] != size_px:
        grey = cv2.resize(grey, (size_px, size_px), interpolation=cv2.INTER_AREA)
    return to_bits(np.ascontiguousarray(grey), bits)


def _shown(
    rosters: Sequence[Roster], chosen: Sequence[Sequence[Fact]], size_px: int, bits: int
) -> list[list[Shown]]:
    found: list[list[Shown]] = []
    for kind, (roster, facts) in enumerate(zip(rosters, chosen, strict=True)):
        images = (image for batch in roster.images(facts) for image in batch)
        found.append(
            [
                Shown(kind, fact.label, f"{roster.set_names[0]}/{fact.key}", form)
                for fact, form in zip(
                    facts, (one_form(image, size_px, bits) for image in images), strict=True
                )
            ]
        )
    return found


# --- what is written --------------------------------------------------------------------------


def _write(
    store: Store,
    config: ReaderStudyJob,
    rosters: Sequence[Roster],
    chosen: Sequence[Sequence[Fact]],
    secret: str,
) -> None:
    size_px, bits = _common(rosters)
    real, synthetic = _shown(rosters, chosen, size_px, bits)
    questions = (
        pairs(real, synthetic, config.seed)
        if config.mode == "2afc"
        else [(shown,) for shown in (*real, *synthetic)]
    )
    digests: dict[str, str] = {}
    items: list[Item] = []
    known: dict[str, Known] = {}

    def put(question: tuple[Shown, ...], number: int, repeats: str | None) -> str:
        kinds = tuple(shown.kind for shown in question)
        name = opaque(secret, "item", number)
        images = tuple(opaque(secret, "image", 2 * number + n) for n in range(len(question)))
        for image, shown in zip(images, question, strict=True):
            data = encode_image(shown.image_HW)
            digests[image] = hashlib.sha256(data).hexdigest()
            store.write_bytes(f"{IMAGES}/{image}.npy", data)
        items.append(Item(name, images))
        labels, sources = (tuple(getattr(s, a) for s in question) for a in ("label", "source"))
        known[name] = Known(kinds, labels, sources, repeats)
        return name

    names = [put(question, number, None) for number, question in enumerate(questions)]
    share = 0.0 if config.mode == "feedback" else config.repeats
    again = rng.permutation(config.seed, "readers.repeat", 0, len(questions))
    for extra, number in enumerate(again[: int(share * len(questions))]):
        put(questions[number], len(questions) + extra, names[number])
    truth = truth_bytes(known)
    store.write_bytes(TRUTH, truth)
    classes = sorted({s.label for s in (*real, *synthetic) if s.label}) if config.classes else []
    study = study_bytes(
        name=config.name,
        mode=config.mode,
        classes=classes,
        size_px=size_px,
        bits=bits,
        seed=config.seed,
        items=items,
        image_sha256=digests,
        truth=truth,
    )
    store.write_bytes(STUDY, study)


def pairs(real: Sequence[Shown], synthetic: Sequence[Shown], seed: int) -> list[tuple[Shown, ...]]:
    """Pairs of a real and a synthetic image, of one label where there are two; sides are drawn."""
    left = list(synthetic)
    found: list[tuple[Shown, ...]] = []
    for number, one in enumerate(real):
        alike = [n for n, other in enumerate(left) if other.label == one.label]
        other = left.pop(alike[0] if alike else 0)
        swap = int(rng.integers(seed, "readers.side", number, 1, 0, 2)[0])
        found.append((other, one) if swap else (one, other))
    return found


def opaque(secret: str, kind: str, number: int) -> str:
    """An id that tells nothing to who does not have both sets."""
    return hashlib.sha256(f"{secret}/{kind}/{number}".encode()).hexdigest()[:16]


# --- the report -------------------------------------------------------------------------------


def report_on(config: ReaderStudyJob) -> None:
    """Writes the report on exported answers into the study's folder `report/`."""
    assert config.report is not None
    study = ReaderSet.open(config.out)
    folder, _, name = config.report.rpartition("/")
    try:
        text = Store(folder or "/").read_bytes(name).decode()
    except FileNotFoundError:
        raise UsageError(f"--report {config.report}: there is no such file") from None
    answers = _answers(text, config.report)
    files = reader_report.files(study, study.truth(), answers, seed=config.seed)
    if config.dry_run:
        log.event("dry_run", f"a report on {len(answers)} answers: {', '.join(files)}")
        return
    for file, data in files.items():
        study.store.write_bytes(f"report/{file}", data)
    log.event("report", f"the report is {config.out}/report/report.html")


def _answers(text: str, where: str) -> list[dict[str, Any]]:
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
            if not isinstance(fields, dict):
                raise ValueError
        except ValueError:
            raise DataError(
                "the line is no JSON object", code="MR-D173", where=f"{where}:{number}"
            ) from None
        found.append(fields)
    return found
