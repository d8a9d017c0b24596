"""How many images of which label: balanced, in natural shares, or as a file says."""

from __future__ import annotations

import csv
import io

from medray.archive.load import Parts
from medray.archive.plan import UNLABELLED, Goal, apportion
from medray.errors import DataError, UsageError
from medray.sample.latents import target_of
from medray.shards import read_index
from medray.store import Store

Wanted = dict[str, dict[str, int]]


def goals_of(parts: Parts, labels: str, count: int | None, data: str | None) -> tuple[Goal, ...]:
    """The goals of an archive; UsageError or DataError for labels that cannot be had.

    The labels are those of the latents or, with plain latents, the classifier's classes.
    """
    known = _known(parts)
    if labels not in ("balanced", "natural"):
        return _from_file(labels, known, parts, count)
    if count is None:
        raise UsageError("--count is needed", hint="only a labels file says it by itself")
    if labels == "natural" and parts.latents is None:
        return (Goal(UNLABELLED, {}, count),)
    if not known:
        raise UsageError(
            "--labels balanced needs to know labels: plain latents have none",
            hint="give --latents or --classifier, or take --labels natural",
        )
    shares = [1.0] * len(known) if labels == "balanced" else _natural(known, data)
    counts = apportion(shares, count)
    return tuple(
        Goal(name, wanted, n) for (name, wanted), n in zip(known.items(), counts, strict=True) if n
    )


def _known(parts: Parts) -> Wanted:
    """What can be wanted, by name."""
    if parts.latents is not None:
        return {target.name: target.wanted for target in parts.latents.targets}
    names = parts.classes
    return {name: target_of(name, names, parts.multi_label).wanted for name in names}


def _natural(known: Wanted, data: str | None) -> list[float]:
    """The share of each label in the train split of a set."""
    if data is None:
        raise UsageError(
            "--labels natural needs the set whose shares are natural", hint="give --data URL"
        )
    index = read_index(Store(data))
    counts = {
        name: sum(shard.class_counts.get(name, 0) for shard in index.of_split("train"))
        for name in known
    }
    absent = [name for name, n in counts.items() if not n]
    if absent:
        raise UsageError(
            f"--data {data} has no train images of {', '.join(map(repr, absent))}, so their "
            "natural share is not known",
            hint="give a CSV of label,count for --labels",
        )
    return [float(n) for n in counts.values()]


def _from_file(path: str, known: Wanted, parts: Parts, count: int | None) -> tuple[Goal, ...]:
    wanted: dict[str, int] = {}
    for line, row in enumerate(_rows(path), 2):
        label, text = (row.get("label") or "").strip(), (row.get("count") or "").strip()
        where = f"{path}:{line}"
        if label not in known:
            raise DataError(
                f"label {label!r} is not one of {', '.join(known) or 'none (no labels are known)'}",
                code="MR-D014",
                where=where,
                hint="name the labels that the latents were made for, or the classifier's classes",
            )
        if not text.isdigit() or label in wanted:
            what = f"label {label!r} is there twice" if label in wanted else f"count {text!r}"
            raise DataError(
                f"{what}: a labels file has each label once, with a whole number",
                code="MR-D015",
                where=where,
            )
        wanted[label] = int(text)
    total = sum(wanted.values())
    if total == 0:
        raise UsageError(f"--labels {path} asks for no image", hint="give counts above 0")
    if count not in (None, total):
        raise UsageError(
            f"--labels {path} asks for {total:,} images, --count says {count:,}",
            hint="leave --count out",
        )
    return tuple(Goal(label, known[label], n) for label, n in wanted.items() if n)


def _rows(path: str) -> list[dict[str, str]]:
    folder, _, name = path.rpartition("/")
    try:
        text = Store(folder or ".").read_bytes(name).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"--labels {path} cannot be read: {error}",
            hint="balanced, natural, or a CSV with the columns label,count",
        ) from None
    table = csv.DictReader(io.StringIO(text))
    if not {"label", "count"} <= set(table.fieldnames or ()):
        raise DataError(
            f"the labels file has the columns {table.fieldnames}, wanted are label and count",
            code="MR-D015",
            where=path,
        )
    return list(table)
