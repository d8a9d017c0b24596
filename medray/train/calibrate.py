"""Probabilities that mean what they say: temperature and bias fitted on validation; thresholds.

Shape letters: N samples, K classes. Truth is 1, 0, or -1 where it is not known.

Temperature scaling (Guo et al., ICML 2017) with a bias a class (Alexandari et al., ICML 2020): the
network was trained with rare classes weighted up, which a temperature alone cannot take back. Both
are held near where training says they are, so that few validation images, or none of a class, move
them little.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

# How far, as a standard deviation, temperature (its logarithm) and bias may be from their start.
SPREAD_TEMPERATURE, SPREAD_BIAS = 1.0, 0.5
ITERATIONS = 60

Rows = npt.NDArray[np.float64]


class Calibration(NamedTuple):
    """probabilities = softmax or sigmoid of logits / temperature + bias.

    One temperature () for classes of which one holds, one a finding (K,).
    """

    temperature: Rows
    bias_K: Rows


def fit(
    logits_NK: npt.NDArray[np.floating],
    truth_NK: npt.NDArray[np.int8],
    bias_K: Rows,
    *,
    multi_label: bool,
) -> Calibration:
    """The most likely temperature and bias; `bias_K` is where the class weights say it is."""
    logits = torch.from_numpy(np.asarray(logits_NK, np.float64))
    truth, start = torch.from_numpy(truth_NK), torch.from_numpy(bias_K)
    shape = start.shape if multi_label else ()
    log_temperature = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    bias = start.clone().requires_grad_(True)
    optimiser = torch.optim.LBFGS(
        [log_temperature, bias], max_iter=ITERATIONS, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = _surprise(logits / log_temperature.exp() + bias, truth, multi_label)
        loss = loss + (log_temperature / SPREAD_TEMPERATURE).square().sum() / 2
        loss = loss + ((bias - start) / SPREAD_BIAS).square().sum() / 2
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    return Calibration(log_temperature.detach().exp().numpy(), bias.detach().numpy())


def _surprise(scaled_NK: Tensor, truth_NK: Tensor, multi_label: bool) -> Tensor:
    """Minus the log likelihood of what is known, summed."""
    if multi_label:
        each = functional.binary_cross_entropy_with_logits(
            scaled_NK, (truth_NK == 1).double(), reduction="none"
        )
        return each[truth_NK >= 0].sum()
    known = truth_NK[:, 0] >= 0
    return functional.cross_entropy(scaled_NK[known], truth_NK[known].argmax(1), reduction="sum")


def thresholds(
    probabilities_NK: npt.NDArray[np.floating], truth_NK: npt.NDArray[np.int8], otherwise_K: Rows
) -> Rows:
    """For each finding the probability from which sensitivity + specificity is greatest.

    Half-way between neighbours, so that it does not hang on one image; where validation has no
    positive or no negative, `otherwise_K`.
    """
    chosen = np.array(otherwise_K, np.float64)
    for k in range(len(chosen)):
        known = truth_NK[:, k] >= 0
        p, t = probabilities_NK[known, k].astype(np.float64), truth_NK[known, k] == 1
        if t.any() and not t.all():
            chosen[k] = _best_cut(p, t)
    return chosen


def _best_cut(p_N: Rows, truth_N: npt.NDArray[np.bool_]) -> float:
    order = np.argsort(-p_N, kind="stable")
    p, t = p_N[order], truth_N[order]
    gain = np.cumsum(t) / t.sum() - np.cumsum(~t) / (~t).sum()
    # A cut between equal probabilities is none.
    gain[:-1][p[:-1] == p[1:]] = -1
    best = int(gain.argmax())
    below = p[best + 1] if best + 1 < len(p) else 0.0
    return float((p[best] + below) / 2)
