"""The wiring of jobs/features.py: a plan, a shard a task by the pool, the index last."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from jobs import _out
from jobs.features import FeaturesJob
from medray import lineage, log
from medray.dist.pool import run_on_actors
from medray.errors import DataError, UsageError
from medray.models.extract import BATCH
from medray.models.named_layers import Taker, Trained, listing, load_network, shapes
from medray.records import SPLITS, Sample, Shard, ShardIndex
from medray.sample.images import cpu_isa
from medray.shards import INDEX, ShardWriter, read_index, write_index
from medray.store import Store
from medray.stream.cache import ShardCache
from medray.stream.loader import CACHE_BYTES
from medray.stream.sets import OpenSet, Source
from medray.stream.table import FEATURES, tag

SCHEMA = "medray.features-plan/1"
PARTS, SUMMARY = "parts", "summary.json"
# What a record says where a predicted or true region was empty, and the whole image was taken.
REGION, EMPTY = "region", "empty"

Task = tuple[str, str, str, int]


@dataclass(frozen=True)
class Models:
    """The network whose layer is taken, and the segmenter that says where, if one does."""

    network: Trained
    regions: Trained | None


def list_layers(config: FeaturesJob) -> None:
    """Says which layers there are, for images of the set's size."""
    index, trained = read_index(Store(config.data)), load_network(config.model)
    found = shapes(trained.network, trained.channels, index.size_px)
    log.event(
        "layers",
        f"layers of {trained.name} for images of {index.size_px} px\n{listing(found)}",
        layers={name: list(shape) for name, shape in found.items()},
    )


def take(config: FeaturesJob) -> None:
    """Everything, from the networks to `index.json`, which is written last."""
    index, models = read_index(Store(config.data)), load_models(config)
    taker = taker_of(config, index, models)
    facts, workers = plan_of(config, index, models), _workers(config)
    if config.dry_run:
        _describe(config, index, taker, workers)
        return
    store = Store(config.out)
    with _out.alone(store, "command"):
        if _out.start(store, facts, what="features", done=INDEX, overwrite=config.overwrite):
            log.event("complete", f"{config.out} is complete: nothing to do")
            return
        parts = _collect(config, store, facts, index, workers)
        summary = _summary(config, models, taker, parts)
        _leave(config, store, index, taker, parts, summary)
    _say(config, summary)


# --- networks and plan --------------------------------------------------------------------------


def load_models(config: FeaturesJob) -> Models:
    """The networks that the flags name; UsageError where they cannot do what is asked."""
    trained = load_network(config.model)
    if config.pool != "masked" or config.mask == "true":
        return Models(trained, None)
    if config.mask_model is not None:
        regions = load_network(config.mask_model)
        if regions.role != "segmenter":
            raise UsageError(f"--mask-model must be a segmenter, got {regions.name}")
        return Models(trained, regions)
    if trained.role != "segmenter":
        raise UsageError(
            f"--pool masked: {trained.name} predicts no region",
            hint="give a segmenter as --mask-model, or --mask true for the set's own masks",
        )
    return Models(trained, trained)


def taker_of(config: FeaturesJob, index: ShardIndex, models: Models) -> Taker:
    """What takes features of the set's images; UsageError where set and networks do not fit."""
    for trained in (models.network, models.regions):
        if trained is not None and trained.channels != index.channels:
            raise UsageError(
                f"{trained.name} takes images of {trained.channels} channel(s), {config.data} has "
                f"{index.channels}"
            )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for trained in (models.network, models.regions):
        if trained is not None:
            trained.network.to(device)
    return Taker(models.network, config.layer, config.pool, index.size_px, models.regions)


def pooling(config: FeaturesJob, models: Models) -> str:
    """What the records say of it: masked-true, or with the segmenter where it is another."""
    if config.pool != "masked" or (models.regions and models.regions is models.network):
        return config.pool
    by = "true" if models.regions is None else models.regions.sha256[:12]
    return f"masked-{by}"


def plan_of(config: FeaturesJob, index: ShardIndex, models: Models) -> dict[str, Any]:
    """What decides the features' bytes."""
    on_gpu = torch.cuda.is_available()
    return {
        "schema": SCHEMA,
        "network_sha256": models.network.sha256,
        "layer": config.layer,
        "pooling": pooling(config, models),
        "regions_sha256": None if models.regions is None else models.regions.sha256,
        "data_sha256": hashlib.sha256(index.to_json().encode()).hexdigest(),
        "batch": BATCH,
        "device": torch.cuda.get_device_name() if on_gpu else f"cpu {cpu_isa()}",
        "torch": torch.__version__,
    }


def _workers(config: FeaturesJob) -> int:
    workers = config.workers
    if workers is None:
        workers = (os.cpu_count() or 1) if os.environ.get("RAY_ADDRESS") else 0
    if workers and config.out.startswith("memory://"):
        raise UsageError("memory:// is in one process's memory: it goes with --workers 0 alone")
    if config.gpus_per_worker and not workers:
        raise UsageError("--gpus-per-worker is for Ray actors", hint="give --workers N")
    return workers


# --- shards -------------------------------------------------------------------------------------


def _collect(
    config: FeaturesJob, store: Store, facts: dict[str, Any], index: ShardIndex, workers: int
) -> list[dict[str, Any]]:
    """What is known of every shard, in the set's order; those on disk are not made again."""
    held = _out.plan_hash(facts)
    tasks: list[Task] = [
        (config.out, held, split, number)
        for split in SPLITS
        for number in range(len(index.of_split(split)))
    ]
    names = [shard.name for split in SPLITS for shard in index.of_split(split)]
    missing = [t for t, name in zip(tasks, names, strict=True) if not _finished(store, held, name)]
    if len(missing) < len(tasks):
        log.event("resume", f"{len(tasks) - len(missing)} shards are there already")
    made = run_on_actors(
        load_state,
        work,
        missing,
        arguments=(config.model_dump(mode="json"),),
        workers=workers,
        gpus=config.gpus_per_worker,
    )
    with log.Progress("features", sum(shard.samples for shard in index.shards)) as progress:
        done = 0
        for _, samples in made if missing else ():
            done += samples
            progress.update(done)
    return [_read(store, name) for name in names]


@dataclass
class State:
    """What a worker holds: what takes features, and the set, a split at a time."""

    taker: Taker
    pooling: str
    network_sha256: str
    layer: str
    sets: dict[str, OpenSet]
    true_masks: bool


def load_state(fields: dict[str, Any]) -> State:
    """A worker's state from the job's configuration."""
    config = FeaturesJob.model_validate(fields)
    index, models = read_index(Store(config.data)), load_models(config)
    cache = ShardCache(config.cache_dir, CACHE_BYTES)
    splits = [split for split in SPLITS if index.of_split(split)]
    return State(
        taker_of(config, index, models),
        pooling(config, models),
        models.network.sha256,
        config.layer,
        {split: OpenSet(Source(config.data), split, cache) for split in splits},
        config.mask == "true",
    )


def work(state: State, out: str, plan: str, split: str, number: int) -> int:
    """Takes one shard's features and publishes them; how many samples it has."""
    store, opened = Store(out), state.sets[split]
    name = opened.shards[number].name
    empty = 0
    with ShardWriter(store, name, split, "raw") as writer:
        for samples in _batches(opened, number):
            rows, empty_N = state.taker(*_arrays(samples, state.true_masks))
            for sample, row, without in zip(samples, rows, empty_N, strict=True):
                writer.add(_featured(state, sample, row, bool(without)))
            empty += int(empty_N.sum())
        shard = writer.close()
    body = {"plan": plan, "shard": asdict(shard), "empty_regions": empty}
    text = json.dumps({**body, "sha256": _out.plan_hash(body)}, indent=1, sort_keys=True)
    store.write_bytes(f"{PARTS}/{name}.json", (text + "\n").encode())
    return shard.samples


def _batches(opened: OpenSet, number: int) -> Iterator[list[Sample]]:
    reader = opened.reader(number)
    for first in range(0, len(reader), BATCH):
        yield [reader.sample(n) for n in range(len(reader))[first : first + BATCH]]


def _arrays(
    samples: list[Sample], true_masks: bool
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any] | None]:
    """Images (N, C, H, W) and, where they are the regions, masks (N, H, W), absent ones empty."""
    images = [s.image[None] if s.image.ndim == 2 else s.image.transpose(2, 0, 1) for s in samples]
    if len({(image.shape, image.dtype) for image in images}) > 1:
        raise DataError(
            "the images of the set differ in size or type", code="MR-D030", where=samples[0].key
        )
    images_NCHW = np.ascontiguousarray(np.stack(images))
    if not true_masks:
        return images_NCHW, None
    none = np.zeros(images_NCHW.shape[2:], np.uint8)
    return images_NCHW, np.stack([none if s.mask is None else s.mask for s in samples])


def _featured(state: State, sample: Sample, row: np.ndarray[Any, Any], empty: bool) -> Sample:
    """A sample with features for its image, all else as it was."""
    extra = {**sample.extra, FEATURES: tag(state.network_sha256, state.layer, state.pooling)}
    if empty:
        extra[REGION] = EMPTY
    return replace(sample, image=row, mask=None, extra=extra)


def _finished(store: Store, plan: str, name: str) -> bool:
    """Whether a shard is there and whole."""
    try:
        body = _read(store, name)
        stated = body.pop("sha256")
        shard = Shard(**body["shard"])
        return (
            (stated, body["plan"]) == (_out.plan_hash(body), plan)
            and _digest(store, f"{name}.tar") == shard.sha256
            and _digest(store, f"{name}.idx") == shard.idx_sha256
        )
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return False


def _read(store: Store, name: str) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(store.read_bytes(f"{PARTS}/{name}.json"))
    return body


def _digest(store: Store, name: str) -> str:
    return hashlib.sha256(store.read_bytes(name)).hexdigest()


# --- the end ------------------------------------------------------------------------------------


def _summary(
    config: FeaturesJob, models: Models, taker: Taker, parts: list[dict[str, Any]]
) -> dict[str, Any]:
    samples = {split: 0 for split in SPLITS}
    empty = dict(samples)
    for part in parts:
        samples[part["shard"]["split"]] += part["shard"]["samples"]
        empty[part["shard"]["split"]] += part["empty_regions"]
    return {
        "network_sha256": models.network.sha256,
        "role": models.network.role,
        "layer": config.layer,
        "pooling": pooling(config, models),
        "shape": list(taker.shape),
        "samples": {split: count for split, count in samples.items() if count},
        # Of these the features are means over the whole image.
        **({"empty_regions": empty} if config.pool == "masked" else {}),
    }


def _leave(
    config: FeaturesJob,
    store: Store,
    index: ShardIndex,
    taker: Taker,
    parts: list[dict[str, Any]],
    summary: dict[str, Any],
) -> None:
    """Everything beside the shards; the index last."""
    # Images of an archive hand on what made them saw.
    archive = config.data if Store(config.data).exists(lineage.SEEN) else None
    seen = lineage.united([config.model, config.mask_model, archive])
    if seen is None:
        log.warn("lineage", f"{config.model} does not say what it saw, nor will its features")
    else:
        lineage.write(store, seen)
    text = json.dumps(summary, indent=1, sort_keys=True) + "\n"
    store.write_bytes(SUMMARY, text.encode())
    maps = len(taker.shape) == 3
    made = replace(
        index,
        channels=taker.shape[0],
        size_px=taker.shape[1] if maps else 1,
        bits=32,
        encoding="raw",
        shards=tuple(Shard(**part["shard"]) for part in parts),
    )
    write_index(store, made)


def _describe(config: FeaturesJob, index: ShardIndex, taker: Taker, workers: int) -> None:
    total = sum(shard.samples for shard in index.shards)
    size_bytes = total * (4 * int(np.prod(taker.shape)) + 2048)
    log.event(
        "dry_run",
        f"{total:,} samples, features {'x'.join(map(str, taker.shape))} float32, about "
        f"{size_bytes / 2**20:,.0f} MiB, {workers or 'no'} Ray workers; nothing was written",
        samples=total,
        shape=list(taker.shape),
    )


def _say(config: FeaturesJob, summary: dict[str, Any]) -> None:
    counts = ", ".join(f"{split} {count:,}" for split, count in summary["samples"].items())
    empty = sum(summary.get("empty_regions", {}).values())
    if empty:
        log.warn(
            "empty_regions",
            f"{empty:,} of {sum(summary['samples'].values()):,} samples have an empty region: "
            "their features are means over the whole image",
            empty=empty,
        )
    log.event(
        "done",
        f"done: {'x'.join(map(str, summary['shape']))} features of {counts}\n"
        f"  features  {Store(config.out).url}",
        **summary,
    )
