"""The tables of `medray scaling`: the model beside the published run, then what it predicts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

from jobs._scaling_machines import (
    KINDS,
    PUBLISHED,
    PUBLISHED_BATCH,
    PUBLISHED_DAYS,
    PUBLISHED_SOURCE,
    V100,
    Kind,
)
from jobs.scaling import ScalingJob
from medray import log
from medray.errors import DataError, UsageError
from medray.train import scaling
from medray.train.pggan_config import PgganConfig
from medray.train.scaling import DAY_S, Prediction


@dataclass(frozen=True)
class Held:
    """The model against the published run on so many GPUs."""

    gpus: int
    published: float
    predicted: float

    @property
    def off(self) -> float:
        """Share by which the prediction is off."""
        return self.predicted / self.published - 1


def held() -> list[Held]:
    """One constant fitted to the time on one GPU, the others predicted with it."""
    configs = {
        gpus: PgganConfig(**PUBLISHED, batch=least, batch_by_px=by_px)  # type: ignore[arg-type]
        for gpus, (least, by_px) in PUBLISHED_BATCH.items()
    }
    # Operations of an image are the same in every batch.
    costs = scaling.costs_of(configs[1])
    machine = scaling.fitted(configs[1], costs, V100, PUBLISHED_DAYS[1] * DAY_S)
    return [
        Held(gpus, days, scaling.predict(configs[gpus], costs, machine, gpus).days)
        for gpus, days in PUBLISHED_DAYS.items()
    ]


def configured(config: ScalingJob) -> PgganConfig:
    """The training of a file; keys that say where and how it runs are left out."""
    try:
        told = yaml.safe_load(Path(config.train).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise DataError(f"{config.train} cannot be read as YAML: {error}") from error
    if not isinstance(told, dict):
        raise DataError(f"{config.train} holds no keys")
    known = {name: told[name] for name in PgganConfig.model_fields if name in told}
    if "fade_images" not in known or "stable_images" not in known:
        raise UsageError(f"{config.train} must name fade_images and stable_images")
    precision = "bf16" if known.get("precision", "auto") == "auto" else known["precision"]
    return PgganConfig(**{**known, "precision": precision})


def of_gpus(train: PgganConfig, gpus: int, images_per_gpu: int | None) -> PgganConfig:
    """The training on so many GPUs, with so many images each, or the batch that it has."""
    if images_per_gpu is None:
        return train
    batch = images_per_gpu * gpus
    more = {px: max(batch, size) for px, size in train.batch_by_px.items()}
    return train.model_copy(update={"batch": batch, "batch_by_px": more})


def predictions(
    config: ScalingJob, train: PgganConfig
) -> list[tuple[int, tuple[Prediction, Prediction] | str]]:
    """For each number of GPUs the quick and the slow prediction, or why there is none."""
    kind, found = KINDS[config.machine], []
    costs = scaling.costs_of(train)
    for gpus in config.gpus:
        own = of_gpus(train, gpus, config.images_per_gpu)
        made: tuple[Prediction, Prediction] | str
        try:
            quick, slow = (
                scaling.predict(own, costs, machine, gpus, checkpoint_images=100_000)
                for machine in (kind.quick, kind.slow)
            )
            made = quick, slow
        except UsageError as error:
            made = error.message
        found.append((gpus, made))
    return found


def tell(config: ScalingJob) -> None:
    """Prints both tables; writes them where a page is wanted."""
    kind, train = KINDS[config.machine], configured(config)
    shared = config.model_copy(update={"images_per_gpu": None})
    text = "\n".join(
        [
            _published_table(held()),
            _predicted_table("the batch of the training, shared out", predictions(shared, train)),
            *(
                [
                    _predicted_table(
                        f"{config.images_per_gpu} images a GPU: a larger batch with each GPU, "
                        "which is another training",
                        predictions(config, train),
                    )
                ]
                if config.images_per_gpu
                else []
            ),
            _sources(kind),
        ]
    )
    log.event("scaling", text)
    if config.page and not config.dry_run:
        Path(config.page).write_text(text + "\n", encoding="utf-8")


def _published_table(rows: list[Held]) -> str:
    lines = [
        "| GPUs (V100) | published, days | model, days | off | |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        how = "fitted" if row.gpus == 1 else "predicted"
        lines.append(
            f"| {row.gpus} | {row.published:g} | {row.predicted:.2f} | {row.off:+.0%} | {how} |"
        )
    return "\n".join(["", *lines, "", f"Published: {PUBLISHED_SOURCE}.", ""])


def _predicted_table(
    about: str, rows: list[tuple[int, tuple[Prediction, Prediction] | str]]
) -> str:
    lines = [
        f"Predicted, not measured; {about}:",
        "",
        "| GPUs | days | GPU hours | images a GPU | a last step, ms: GPU + all-reduce + store | "
        "waits most for |",
        "|---|---|---|---|---|---|",
    ]
    for gpus, made in rows:
        if isinstance(made, str):
            lines.append(f"| {gpus} | none | | | | {made} |")
            continue
        quick, slow = made
        step = slow.last
        parts = [1e3 * s for s in (step.compute_s, step.exposed_s, step.wait_s)]
        limits = dict.fromkeys((scaling.limit(quick), scaling.limit(slow)))
        lines.append(
            f"| {gpus} | {quick.days:.2g} to {slow.days:.2g} | {quick.gpu_hours:,.0f} to "
            f"{slow.gpu_hours:,.0f} | {step.images_per_gpu:g} | "
            f"{' + '.join(f'{part:.0f}' for part in parts)} (slow) | {' or '.join(limits)} |"
        )
    return "\n".join([*lines, ""])


def _sources(kind: Kind) -> str:
    return "\n".join(["Constants:", "", *(f"- {source}" for source in kind.sources)])
