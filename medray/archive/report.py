"""What stands beside the shards for people: pictures per class, figures of the run."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from medray.archive.plan import Plan
from medray.archive.worker import Result
from medray.records import Array, ShardIndex
from medray.report import grid_png
from medray.shards import open_shard
from medray.store import Store

if TYPE_CHECKING:
    from medray.archive.archive import Options

SUMMARY = "summary.json"
CONTACT_IMAGES, CONTACT_COLUMNS = 64, 16
# So many shards are looked at for pictures of every class.
CONTACT_SHARDS = 4


def per_million(cost_per_hour: float | None, images_per_s: float) -> float | None:
    """The cost of a million images at a rate."""
    if cost_per_hour is None or images_per_s <= 0:
        return None
    return cost_per_hour * 1e6 / 3600 / images_per_s


def summary(
    plan: Plan, results: Sequence[Result], made: int, seconds: float, options: Options
) -> dict[str, Any]:
    """The figures of an archive; the last ones are of this run alone."""
    accepted: Counter[str] = Counter()
    labels: Counter[str] = Counter()
    for result in results:
        accepted.update(result.accepted)
        labels.update(result.shard.class_counts)
    tried = sum(result.tried for result in results)
    rate = made / seconds if made else 0.0
    return {
        "images": plan.count,
        "shards": plan.shards,
        "bytes": sum(result.shard.bytes for result in results),
        "accepted": {name or "as they came": n for name, n in sorted(accepted.items())},
        "labels": dict(sorted(labels.items())),
        "tried": tried,
        "acceptance": plan.count / tried,
        "wrong_label": sum(result.wrong_label for result in results),
        "copies": sum(result.copies for result in results),
        "audited": plan.audited,
        "made_now": made,
        "images_per_s": rate,
        "seconds": seconds,
        "cost_per_million": per_million(options.cost_per_hour, rate),
    }


def table(facts: dict[str, Any]) -> str:
    """The figures in a few lines."""
    cost = facts["cost_per_million"]
    lines = [
        f"{facts['images']:,} images in {facts['shards']:,} shards, "
        f"{'audited' if facts['audited'] else 'unaudited'}",
        f"  tried {facts['tried']:,}: {facts['wrong_label']:,} without the wanted label, "
        f"{facts['copies']:,} copies of training images, both dropped",
        f"  {facts['made_now']:,} made now, {facts['images_per_s']:.1f} images/s"
        + ("" if cost is None else f", {cost:,.2f} per million"),
    ]
    return "\n".join(lines)


def write(
    store: Store,
    plan: Plan,
    index: ShardIndex,
    results: Sequence[Result],
    facts: dict[str, Any],
) -> None:
    """Writes the contact sheet of every class and summary.json."""
    for label, images in sorted(_first_of_each(store, index).items()):
        stacked = np.stack(images)
        images_NCHW = stacked[:, None] if stacked.ndim == 3 else stacked.transpose(0, 3, 1, 2)
        sheet = grid_png(images_NCHW, columns=CONTACT_COLUMNS, cell_px=64)
        store.write_bytes(f"contact-{_file_name(label)}.png", sheet)
    store.write_bytes(SUMMARY, (json.dumps(facts, indent=1) + "\n").encode())


def _first_of_each(store: Store, index: ShardIndex) -> dict[str, list[Array]]:
    """The first images of each label, from the first shards."""
    found: dict[str, list[Array]] = defaultdict(list)
    for shard in index.shards[:CONTACT_SHARDS]:
        reader = open_shard(store, shard)
        for number, row in enumerate(reader.rows):
            images = found[row["label"] or "unlabelled"]
            if len(images) < CONTACT_IMAGES:
                images.append(reader.sample(number).image)
    return found


def _file_name(label: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "_", label)
