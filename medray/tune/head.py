"""A small head on features: multinomial logistic regression or one hidden layer, in torch.

Shape letters: N rows, D features, K classes, H hidden units.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import threadpoolctl
import torch
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays
from scipy import special

from medray import rng
from medray.tune.data import Features, Numbers, Probabilities

Weights = npt.NDArray[np.float64]

BATCH = 64
# Rows of noise that are drawn once and then picked from: a draw for each step would take longer
# than the step.
NOISE_ROWS = 1024
STEPS_AT_ONCE = 256
BETAS, EPSILON = (0.9, 0.99), 1e-8


@dataclass(frozen=True)
class HeadConfig:
    """How a head is trained; `hidden` 0 is a linear one; a look at validation each `look` steps."""

    lr: float = 1e-2
    weight_decay: float = 1e-2
    jitter: float = 0.3
    hidden: int = 0
    steps: int = 240
    look: int = 20
    patience: int = 6


@dataclass(frozen=True)
class Lesson:
    """Rows to train on for a share of the steps: standardised features, classes, class weights."""

    features_ND: Features
    labels_N: Numbers
    weights_K: Weights
    share: float = 1.0


@dataclass(frozen=True)
class Head:
    """A trained head with the standardisation that it was trained under."""

    mean_D: Features
    scale_D: Features
    layers: tuple[tuple[Features, Features], ...]

    def probabilities(self, features_ND: Features) -> Probabilities:
        """(N, K) of features as they are stored."""
        hidden = (np.asarray(features_ND, np.float64) - self.mean_D) / self.scale_D
        for number, (weight, bias) in enumerate(self.layers):
            hidden = hidden @ weight.T.astype(np.float64) + bias
            if number + 1 < len(self.layers):
                hidden = np.maximum(hidden, 0)
        return np.asarray(special.softmax(hidden, axis=1), np.float32)

    def to_bytes(self) -> bytes:
        """safetensors."""
        arrays = {"mean": self.mean_D, "scale": self.scale_D}
        for number, (weight, bias) in enumerate(self.layers):
            arrays |= {f"{number}.weight": weight, f"{number}.bias": bias}
        return bytes(save_arrays({n: np.ascontiguousarray(a) for n, a in arrays.items()}))

    @classmethod
    def from_bytes(cls, data: bytes) -> Head:
        """What `to_bytes` gave."""
        arrays = load_arrays(data)
        layers = tuple(
            (arrays[f"{n}.weight"], arrays[f"{n}.bias"]) for n in range((len(arrays) - 2) // 2)
        )
        return cls(arrays["mean"], arrays["scale"], layers)


def standard_of(features_ND: Features) -> tuple[Features, Features]:
    """Mean and scale of each feature; a constant one has scale 1."""
    scale_D = features_ND.std(0, dtype=np.float64)
    scale_D[scale_D < 1e-6 * max(1e-12, float(scale_D.max(initial=0)))] = 1.0
    scale_D[scale_D == 0] = 1.0
    mean_D = features_ND.mean(0, dtype=np.float64)
    return mean_D.astype(np.float32), scale_D.astype(np.float32)


def train(
    lessons: list[Lesson],
    val: tuple[Features, Numbers],
    standard: tuple[Features, Features],
    classes: int,
    config: HeadConfig,
    seed: int,
) -> Head:
    """A head taught by `lessons` one after the other; the last one stops by validation.

    Features are standardised already, by `standard`. What is kept is best by the log loss on `val`,
    mean over its classes. Every random number is an address, and one thread adds: the same
    arguments give the same bits.
    """
    with one_thread():
        network = _network(lessons[0].features_ND.shape[1], classes, config.hidden, seed)
        shares = np.cumsum([lesson.share for lesson in lessons])
        ends = np.rint(config.steps * shares / shares[-1]).astype(int).tolist()
        begin, stream = 0, 0
        for lesson, end in zip(lessons, ends, strict=True):
            last = lesson is lessons[-1]
            _teach(network, lesson, val if last else None, config, seed, (begin, end, stream))
            begin, stream = end, stream + 1
    layers = tuple(
        (m.weight.detach().numpy().copy(), m.bias.detach().numpy().copy())
        for m in network
        if isinstance(m, torch.nn.Linear)
    )
    return Head(*standard, layers)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """One thread in torch and in NumPy's products while it lasts.

    Their number changes the last bits, and a worker of Ray has another than a script.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with _blas().limit(limits=1, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(before)


@functools.cache
def _blas() -> threadpoolctl.ThreadpoolController:
    return threadpoolctl.ThreadpoolController()


def _network(dims: int, classes: int, hidden: int, seed: int) -> torch.nn.Sequential:
    sizes = [dims, hidden, classes] if hidden else [dims, classes]
    layers: list[torch.nn.Module] = []
    for number, (fan_in, fan_out) in enumerate(zip(sizes, sizes[1:], strict=False)):
        layer = torch.nn.Linear(fan_in, fan_out, device="meta").to_empty(device="cpu")
        last = number + 2 == len(sizes)
        gain = 0.01 if last else 2**0.5
        drawn = rng.normals(seed, "tune.head.weights", number, fan_in * fan_out)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(drawn.reshape(fan_out, fan_in)))
            layer.weight.mul_(gain / fan_in**0.5)
            layer.bias.zero_()
        layers += [layer] if last else [layer, torch.nn.ReLU()]
    return torch.nn.Sequential(*layers)


def _teach(
    network: torch.nn.Sequential,
    lesson: Lesson,
    val: tuple[Features, Numbers] | None,
    config: HeadConfig,
    seed: int,
    span: tuple[int, int, int],
) -> None:
    """Steps `begin` to `end` of the budget; with `val` the best weights are put back at the end."""
    begin, end, stream = span
    parameters = list(network.parameters())
    adam = torch.optim.Adam(parameters, lr=config.lr, betas=BETAS, eps=EPSILON)
    rows_ND, labels_N = torch.from_numpy(lesson.features_ND), torch.from_numpy(lesson.labels_N)
    weights_K = torch.from_numpy(lesson.weights_K).float()
    best, best_loss, waited = [p.detach().clone() for p in parameters], float("inf"), 0
    order = _Order(len(labels_N), lesson.features_ND.shape[1], seed, stream, config.jitter)
    for step in range(begin, end):
        numbers_B = order.batch(step - begin)
        noisy_BD = rows_ND[torch.from_numpy(numbers_B)]
        if config.jitter:
            noisy_BD = noisy_BD + torch.from_numpy(order.noise(step - begin))
        wanted_B = labels_N[torch.from_numpy(numbers_B)]
        losses_B = torch.nn.functional.cross_entropy(network(noisy_BD), wanted_B, reduction="none")
        adam.param_groups[0]["lr"] = config.lr * 0.5 * (1 + np.cos(np.pi * step / config.steps))
        adam.zero_grad()
        torch.autograd.backward((losses_B * weights_K[wanted_B]).mean())
        with torch.no_grad():
            for parameter in parameters[::2]:
                parameter.mul_(1 - adam.param_groups[0]["lr"] * config.weight_decay)
        adam.step()
        if val is not None and ((step + 1 - begin) % config.look == 0 or step + 1 == end):
            loss = balanced_log_loss(network, val)
            waited += 1
            if loss < best_loss:
                best, best_loss, waited = [p.detach().clone() for p in parameters], loss, 0
            if waited >= config.patience:
                break
    if val is not None:
        with torch.no_grad():
            for parameter, kept in zip(parameters, best, strict=True):
                parameter.copy_(kept)


class _Order:
    """Which rows a step takes, and its noise: functions of (seed, stream, step)."""

    def __init__(self, rows: int, dims: int, seed: int, stream: int, jitter: float) -> None:
        self._rows, self._dims, self._seed, self._stream = rows, dims, seed, stream
        self._batch, self._jitter = min(BATCH, rows), np.float32(jitter)
        self._picked_SB = np.empty((0, self._batch), np.int64)
        self._epoch = functools.lru_cache(maxsize=2)(self._permuted)

    def _permuted(self, epoch: int) -> Numbers:
        index = (self._stream << 32) + epoch
        return rng.permutation(self._seed, "tune.head.order", index, self._rows)

    def batch(self, step: int) -> Numbers:
        """The rows of a step, epochs one after the other."""
        places_B = step * self._batch + np.arange(self._batch)
        epochs_B = places_B // self._rows
        parts = [
            self._epoch(epoch)[places_B[epochs_B == epoch] % self._rows]
            for epoch in range(int(epochs_B[0]), int(epochs_B[-1]) + 1)
        ]
        return np.concatenate(parts)

    def noise(self, step: int) -> Features:
        """Gaussian rows, `jitter` of a feature's deviation strong."""
        if step >= len(self._picked_SB):
            steps = np.arange(len(self._picked_SB) + STEPS_AT_ONCE) + (self._stream << 32)
            self._picked_SB = rng.integers(
                self._seed, "tune.head.noise", steps, self._batch, 0, NOISE_ROWS
            )
        noise: Features = noise_bank(self._dims)[self._picked_SB[step]] * self._jitter
        return noise


@functools.lru_cache(maxsize=2)
def noise_bank(dims: int) -> Features:
    """Rows of standard normal numbers to pick from, (NOISE_ROWS, D)."""
    return rng.normals(0, "tune.head.bank", np.arange(NOISE_ROWS), dims)


@torch.no_grad()
def balanced_log_loss(network: torch.nn.Sequential, val: tuple[Features, Numbers]) -> float:
    """Mean over the classes that are there of the log loss within each."""
    features_ND, labels_N = val
    logits_NK = network(torch.from_numpy(features_ND))
    surprise_N = torch.nn.functional.cross_entropy(
        logits_NK, torch.from_numpy(labels_N), reduction="none"
    ).numpy()
    sums_K = np.bincount(labels_N, surprise_N.astype(np.float64))
    counts_K = np.bincount(labels_N)
    return float((sums_K[counts_K > 0] / counts_K[counts_K > 0]).mean())
