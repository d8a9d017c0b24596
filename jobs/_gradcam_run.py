"""The wiring of jobs/gradcam.py: choice, masks a shard at a time, scores, arms, the index last."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from jobs import _gradcam_data as data
from jobs import _out
from jobs._gradcam_data import Looker, Pixels
from jobs._gradcam_report import WAYS, leave, shown
from jobs._gradcam_score import chosen_of, scores_of
from jobs.gradcam import ARMS, GradcamJob
from medray import lineage, log
from medray.errors import DataError
from medray.evaluate import gradcam
from medray.evaluate.heat_masks import Cut
from medray.models.extract import BATCH
from medray.models.named_layers import listing
from medray.records import SPLITS, Sample, Shard, ShardIndex
from medray.sample.images import cpu_isa
from medray.shards import INDEX, ShardWriter, read_index, write_index
from medray.store import Store
from medray.stream.cache import ShardCache
from medray.stream.loader import CACHE_BYTES
from medray.stream.sets import OpenSet, Source

SCHEMA = "medray.gradcam-plan/1"
PARTS, CHOICE, SCORES, SUMMARY = "parts", "choice.json", "scores.json", "summary.json"
# What a record says of its mask: "<classifier sha256>:<method> <layer>:<cut>".
EXTRA = "gradcam"


@dataclass(frozen=True)
class Chosen:
    """How heat becomes masks, and the Dice that chose it (None: nothing to choose by)."""

    way: str
    cut: Cut
    dice: float | None
    # Cuts of the middle of the image and of random weights.
    others: tuple[str, str]


def list_layers(config: GradcamJob) -> None:
    """Says which layers heat can be taken of, for images of the set's size."""
    trained = data.classifier_of(config)
    px = int(trained.about["arguments"].get("size_px", 64))
    if Store(config.data).exists(INDEX):
        px = read_index(Store(config.data)).size_px
    found = gradcam.layers_with_maps(trained.network, trained.channels, px)
    log.event(
        "layers",
        f"layers with maps of {trained.name} for images of {px} px\n{listing(found)}",
        layers={name: list(shape) for name, shape in found.items()},
    )


def explain(config: GradcamJob) -> None:
    """Everything, from the classifier to `index.json`, which is written last."""
    from jobs import _gradcam_dicom as of_dicom

    if of_dicom.is_dicom(config.data):
        of_dicom.explain(config)
        return
    index = read_index(Store(config.data))
    looker = data.looker_of(config, index.classes or None, index.channels, index.size_px)
    if config.dry_run:
        _describe(config, index, looker)
        return
    store = Store(config.out)
    with _out.alone(store, "command"):
        facts = plan_of(config, index, looker)
        if _out.start(store, facts, what="masks", done=INDEX, overwrite=config.overwrite):
            log.event("complete", f"{config.out} is complete: nothing to do")
            return
        held = _out.plan_hash(facts)
        chosen = _kept(store, CHOICE, held, lambda: chosen_of(config, index, looker))
        others = (chosen["centre_cut"], chosen["random_weights_cut"])
        how = Chosen(chosen["way"], Cut.parse(chosen["cut"]), chosen["dice"], others)
        scores = _kept(store, SCORES, held, lambda: scores_of(config, index, looker, how))
        shards = _masks(config, store, held, index, looker, how)
        arms = _arms(config, store, held, index, looker, how)
        _leave(config, store, index, looker, chosen, scores, shards, arms)


def plan_of(config: GradcamJob, index: ShardIndex, looker: Looker) -> dict[str, Any]:
    """What decides the masks' bytes, and the figures."""
    names = "background choose_split split score interval_draws seed arms arm_seeds arm_images"
    names += " arm_px arm_width mirror precision"
    flags = config.model_dump(mode="json")
    return {
        "schema": SCHEMA,
        "classifier_sha256": looker.trained.sha256,
        "segmenter": _sha256_of(config.segmenter),
        "data_sha256": hashlib.sha256(index.to_json().encode()).hexdigest(),
        "ways": list(looker.ways),
        "cuts": [str(cut) for cut in looker.cuts],
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu {cpu_isa()}",
        "torch": torch.__version__,
        "batch": BATCH,
        **{name: flags[name] for name in names.split()},
    }


def _sha256_of(url: str | None) -> str | None:
    from medray.models.segmenter import load_segmenter

    return None if url is None else str(load_segmenter(url)[1]["segmenter_sha256"])


def _kept(store: Store, name: str, plan: str, make: Any) -> dict[str, Any]:
    """What a step found, read back where it was found under this plan."""
    try:
        body = json.loads(store.read_bytes(name))
        stated = body.pop("sha256")
        if (stated, body["plan"]) == (_out.plan_hash(body), plan):
            return dict(body["found"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        pass
    body = {"plan": plan, "found": make()}
    text = json.dumps({**body, "sha256": _out.plan_hash(body)}, indent=1, sort_keys=True)
    store.write_bytes(name, (text + "\n").encode())
    return dict(json.loads(text)["found"])


# --- masks ----------------------------------------------------------------------------------------


def _masks(
    config: GradcamJob, store: Store, plan: str, index: ShardIndex, looker: Looker, how: Chosen
) -> list[dict[str, Any]]:
    """What is known of every shard; those on disk are not made again."""
    cache, found = ShardCache(config.cache_dir, CACHE_BYTES), []
    with log.Progress("masks", sum(shard.samples for shard in index.shards)) as progress:
        done = 0
        for split in (split for split in SPLITS if index.of_split(split)):
            opened = OpenSet(Source(config.data), split, cache)
            for number, shard in enumerate(opened.shards):
                part = _finished(store, plan, shard.name)
                found.append(part or _shard(store, plan, opened, number, looker, how))
                done += shard.samples
                progress.update(done)
    return found


def _shard(
    store: Store, plan: str, opened: OpenSet, number: int, looker: Looker, how: Chosen
) -> dict[str, Any]:
    shard, empty = opened.shards[number], 0
    says = f"{looker.trained.sha256}:{how.way}:{how.cut}"
    with ShardWriter(store, shard.name, shard.split, opened.index.encoding) as writer:
        for samples in _batches(opened, number):
            heat_NHW, _ = looker.heat(stacked(samples), how.way)
            for sample, said in zip(samples, how.cut.masks(heat_NHW), strict=True):
                mask = said.astype(np.uint8) * np.uint8(255)
                extra = {**sample.extra, EXTRA: says}
                writer.add(replace(sample, mask=mask, extra=extra))
                empty += not said.any()
        made = writer.close()
    body = {"plan": plan, "shard": asdict(made), "empty": empty}
    text = json.dumps({**body, "sha256": _out.plan_hash(body)}, indent=1, sort_keys=True)
    store.write_bytes(f"{PARTS}/{shard.name}.json", (text + "\n").encode())
    return body


def _batches(opened: OpenSet, number: int) -> Iterator[list[Sample]]:
    reader = opened.reader(number)
    for first in range(0, len(reader), BATCH):
        yield [reader.sample(n) for n in range(len(reader))[first : first + BATCH]]


def stacked(samples: list[Sample]) -> Pixels:
    """Images (N, C, H, W); DataError where they differ in size or type."""
    images = [s.image[None] if s.image.ndim == 2 else s.image.transpose(2, 0, 1) for s in samples]
    if len({(image.shape, image.dtype) for image in images}) > 1:
        raise DataError(
            "the images of the set differ in size or type", code="MR-D030", where=samples[0].key
        )
    return np.ascontiguousarray(np.stack(images))


def _finished(store: Store, plan: str, name: str) -> dict[str, Any] | None:
    """What is known of a shard that is there and whole."""
    try:
        body = dict(json.loads(store.read_bytes(f"{PARTS}/{name}.json")))
        stated, shard = body.pop("sha256"), Shard(**body["shard"])
        whole = (
            (stated, body["plan"]) == (_out.plan_hash(body), plan)
            and _digest(store, f"{name}.tar") == shard.sha256
            and _digest(store, f"{name}.idx") == shard.idx_sha256
        )
        return body if whole else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _digest(store: Store, name: str) -> str:
    return hashlib.sha256(store.read_bytes(name)).hexdigest()


# --- arms -----------------------------------------------------------------------------------------


def _arms(
    config: GradcamJob, store: Store, plan: str, index: ShardIndex, looker: Looker, how: Chosen
) -> dict[str, Any]:
    if not config.arms:
        return {}
    from jobs import _gradcam_arms as arms

    wanted = ARMS if "all" in config.arms else tuple(a for a in ARMS if a in config.arms)
    return arms.retrained(config, store, plan, index, looker, how.way, how.cut, wanted)


# --- the end --------------------------------------------------------------------------------------


def _leave(
    config: GradcamJob,
    store: Store,
    index: ShardIndex,
    looker: Looker,
    chosen: dict[str, Any],
    scores: dict[str, Any],
    shards: list[dict[str, Any]],
    arms: dict[str, Any],
) -> None:
    """Everything beside the shards; the index last."""
    samples = {split: sum(s.samples for s in index.of_split(split)) for split in SPLITS}
    summary = {
        "classifier_sha256": looker.trained.sha256,
        "classes": list(looker.classes),
        "samples": {split: count for split, count in samples.items() if count},
        "empty_masks": sum(part["empty"] for part in shards),
        "chosen": chosen,
        "scores": scores,
        "arms": arms,
    }
    leave(config, store, index, looker, summary)
    _write_seen(config, store, index, chosen)
    store.write_bytes(SUMMARY, (json.dumps(summary, indent=1, sort_keys=True) + "\n").encode())
    write_index(store, replace(index, shards=tuple(Shard(**part["shard"]) for part in shards)))
    _say(config, summary)


def _write_seen(
    config: GradcamJob, store: Store, index: ShardIndex, chosen: dict[str, Any]
) -> None:
    """The masks saw what the classifier saw, and the masks that chose layer and cut."""
    archive = config.data if Store(config.data).exists(lineage.SEEN) else None
    seen = lineage.united([config.classifier, config.choice, archive])
    if seen is not None and chosen["images"]:
        roster = data.roster_of(config, index, config.choose_split)
        assert roster is not None, "a split that was chosen on is there"
        facts = roster.masked()
        seen |= lineage.of_facts(index.name, facts, labels=True, split=config.choose_split)
    lineage.write_known(store, seen, config.out)


def _say(config: GradcamJob, summary: dict[str, Any]) -> None:
    chosen, ways = summary["chosen"], summary["scores"].get("ways", {})
    lines = [
        f"  {said:32s} Dice {shown(ways[name]['dice'])}, IoU {shown(ways[name]['iou'])}, "
        f"pointing {shown(ways[name]['pointing'])}"
        for name, said in WAYS.items()
        if name in ways
    ]
    lines += [f"  {line}" for line in summary["arms"].get("words", [])]
    log.event(
        "done",
        "\n".join(
            [
                f"done: masks of {sum(summary['samples'].values()):,} images by {chosen['way']}, "
                f"{chosen['cut']}",
                *lines,
                f"  report    {Store(config.out).url}/report.html",
            ]
        ),
        chosen=chosen,
    )


def _describe(config: GradcamJob, index: ShardIndex, looker: Looker) -> None:
    total = sum(shard.samples for shard in index.shards)
    log.event(
        "dry_run",
        f"{total:,} masks by {looker.trained.name}; to choose from: {', '.join(looker.ways)}; "
        f"{len(looker.cuts)} cuts; arms: {', '.join(config.arms) or 'none'}; nothing was written",
        samples=total,
        ways=list(looker.ways),
    )
