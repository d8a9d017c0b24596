"""What a search may choose in each arm, and a round of proposals: a pure function of what is known.

The parameters that all arms share (learning rate, weight decay, augmentation) have the same ranges
in all of them: an arm has no more freedom than another but for what makes it that arm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medray import rng
from medray.errors import UsageError

# What adds synthetic rows, and so has a ratio.
SYNTHETIC = ("smote", "adasyn", "mixup", "gaussian", "acgan", "archive", "pretrain", "shuffled")
# Whose candidates are judged by a network trained on the real rows alone.
ACCEPTING = ("gaussian", "acgan", "archive", "pretrain")
ARMS = ("none", "class-weights", *SYNTHETIC)
NEEDS_ARCHIVE = ("archive", "pretrain")
ON_IMAGES = ("none", "class-weights", "archive", "pretrain")

Settings = Mapping[str, float]


@dataclass(frozen=True)
class Range:
    """A real number from `low` to `high`; `start` is what the first trial takes."""

    low: float
    high: float
    start: float
    log: bool = False


@dataclass(frozen=True)
class Choice:
    """One of `options`; `start` is what the first trial takes."""

    options: tuple[float, ...]
    start: float


Space = Mapping[str, Range | Choice]

ON_FEATURES: Space = {
    "lr": Range(1e-3, 5e-2, 1e-2, log=True),
    "weight_decay": Range(1e-4, 1.0, 1e-2, log=True),
    "jitter": Range(0.0, 1.0, 0.3),
}
ON_PIXELS: Space = {
    "lr": Range(2e-4, 5e-3, 1e-3, log=True),
    "weight_decay": Range(5e-3, 0.5, 5e-2, log=True),
    "augment": Range(0.0, 2.0, 1.0),
}


def check_ratios(ratios: Sequence[float]) -> tuple[float, ...]:
    """The ratios, rising; UsageError for one below 0 or not finite, or for none."""
    bad = [ratio for ratio in ratios if not (math.isfinite(ratio) and ratio >= 0)]
    if bad or not ratios:
        raise UsageError(
            f"ratios are synthetic samples per real one: 0 or more, at least one of them, "
            f"got {', '.join(map(str, ratios)) or 'none'}"
        )
    return tuple(sorted(set(ratios)))


def space_of(arm: str, ratios: Sequence[float], *, images: bool = False) -> Space:
    """What may be chosen in an arm; UsageError for an arm that there is not."""
    allowed = ON_IMAGES if images else ARMS
    if arm not in allowed:
        kind = "images" if images else "features"
        raise UsageError(f"no arm {arm!r} on {kind}; there are {', '.join(allowed)}")
    space = dict(ON_PIXELS if images else ON_FEATURES)
    if arm in SYNTHETIC:
        options = check_ratios(ratios)
        start = min(options, key=lambda ratio: (abs(ratio - 1), ratio))
        space["ratio"] = Choice(options, start)
    if arm in ACCEPTING and not images:
        space["threshold"] = Choice((0.0, 0.5, 0.8), 0.0)
    if arm == "pretrain":
        space["share"] = Choice((0.25, 0.5, 0.75), 0.5)
    return space


def start_of(space: Space) -> dict[str, float]:
    """What the first trial takes."""
    return {name: parameter.start for name, parameter in space.items()}


@dataclass(frozen=True)
class Tried:
    """What a proposal knows of an earlier trial: its score, None where it failed."""

    settings: Settings
    score: float | None


def propose(space: Space, tried: Sequence[Tried], count: int, seed: int) -> list[dict[str, float]]:
    """The next `count` settings: a pure function of the arguments.

    The first of all is `start_of`; then Optuna's tree-structured Parzen estimator (Bergstra et al.,
    NeurIPS 2011), asked `count` times before any answer, as workers side by side would ask it.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    address = int(rng.integers(seed, "tune.propose", len(tried), 1, 0, 2**31)[0])
    sampler = optuna.samplers.TPESampler(seed=address, n_startup_trials=4, constant_liar=True)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    distributions = {name: _distribution(parameter) for name, parameter in space.items()}
    for trial in tried:
        study.add_trial(_frozen(trial, distributions))
    found = [] if tried else [start_of(space)]
    while len(found) < count:
        asked = study.ask(distributions).params
        found.append({name: float(asked[name]) for name in space})
    return found


def _distribution(parameter: Range | Choice) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if isinstance(parameter, Choice):
        return CategoricalDistribution(parameter.options)
    return FloatDistribution(parameter.low, parameter.high, log=parameter.log)


def _frozen(trial: Tried, distributions: Mapping[str, Any]) -> Any:
    from optuna.trial import TrialState, create_trial

    state = TrialState.FAIL if trial.score is None else TrialState.COMPLETE
    return create_trial(
        params={name: trial.settings[name] for name in distributions},
        distributions=dict(distributions),
        value=trial.score,
        state=state,
    )
