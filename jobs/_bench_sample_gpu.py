"""Rows of `bench.py --suite gpu` about sampling kernels.

A round is the rate of CUDA events around 20 calls after 5. Against the torch composition, against
`cupy.random` writing as many normals, and against `cudaMemset` of as many bytes (the write
roofline).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from medray.kernels import gaussian, interpolate, labels, nearest, truncated

DIMS, CLASSES, RANK, NEIGHBOURS = 512, 10, 32, 5
DRAWN, LABELS, FULL_ROWS, NEAR_ROWS, TABLE_ROWS = 4_000_000, 10_000_000, 1_000_000, 50_000, 10_000
WARM, CALLS = 5, 20

Call = Callable[[], Any]
Case = tuple[str, str, float, Callable[[], float], Callable[[], float], Callable[[], None]]

WRITING = ("labels", "gaussian", "truncated", "smote", "mixup")


def rows(rounds: int) -> Iterator[Case]:
    """Every kernel against its alternatives."""
    import torch

    made = Made(torch)
    for name, (ours, composed, numbers, check) in made.pairs().items():
        yield _case(f"gpu_{name}", "torch composition", ours, composed, check)
        if name in WRITING:
            place = torch.empty(numbers, device="cuda")
            yield _case(f"gpu_{name}_memset", "cudaMemset", ours, place.zero_, check)
            del place
            torch.cuda.empty_cache()
            drawn = functools.partial(random_numbers(name), numbers)
            yield _case(f"gpu_{name}_cupy", "cupy.random", ours, drawn, check)
        torch.cuda.empty_cache()


def random_numbers(name: str) -> Callable[[int], Any]:
    """cupy.random's way to as many numbers: integers for labels, normals for the others."""
    random = random_of_cupy()
    if name == "labels":
        return lambda count: random.randint(0, CLASSES, count, dtype=np.int32)
    return lambda count: random.standard_normal(count, dtype=np.float32)


def random_of_cupy() -> Any:
    """cupy.random, by the kernels' own way to CuPy."""
    from medray.kernels._launch import require_gpu

    return require_gpu().random


def _case(name: str, against: str, ours: Call, other: Call, check: Callable[[], None]) -> Case:
    return name, against, 0.0, lambda: rate(ours), lambda: rate(other), check


def rate(call: Call) -> float:
    """Calls per second by CUDA events."""
    import torch

    event: Any = torch.cuda.Event
    for _ in range(WARM):
        call()
    start, stop = event(enable_timing=True), event(enable_timing=True)
    start.record()
    for _ in range(CALLS):
        call()
    stop.record()
    stop.synchronize()
    return 1000 * CALLS / float(start.elapsed_time(stop))


class Made:
    """Tables on the GPU, and what is timed on them."""

    def __init__(self, torch: Any) -> None:
        torch.manual_seed(0)
        self.torch = torch
        self.means = torch.randn(CLASSES, DIMS, device="cuda")
        self.scales = torch.rand(CLASSES, DIMS, device="cuda") + 0.1
        self.factors = torch.randn(CLASSES, DIMS, RANK, device="cuda")
        self.full = torch.randn(CLASSES, DIMS, DIMS, device="cuda")
        self.of = torch.randint(0, CLASSES, (DRAWN,), device="cuda", dtype=torch.int32)
        self.weights = torch.rand(CLASSES, device="cuda")
        self.ready = labels.Weights(self.weights)
        self.table = torch.randn(TABLE_ROWS, DIMS, device="cuda")
        self.near = torch.randint(0, TABLE_ROWS, (TABLE_ROWS, NEIGHBOURS), device="cuda")
        self.many = torch.randn(NEAR_ROWS, DIMS, device="cuda")

    def pairs(self) -> dict[str, tuple[Call, Call, int, Callable[[], None]]]:
        """Of each kernel: ours, torch's composition, numbers written, the check."""
        some = self.of[:FULL_ROWS]
        return {
            "labels": (
                lambda: labels.draw(1, LABELS, self.ready),
                lambda: self.torch.multinomial(self.weights, LABELS, replacement=True),
                LABELS, self.check_labels,
            ),
            "gaussian": (
                lambda: gaussian.diagonal(1, self.of, self.means, self.scales),
                self.compose_gaussian, DRAWN * DIMS, self.check_gaussian,
            ),
            "truncated": (
                lambda: truncated.normal(1, DRAWN, DIMS, model=self.means),
                lambda: self.torch.nn.init.trunc_normal_(
                    self.torch.empty(DRAWN, DIMS, device="cuda"), a=-2, b=2
                ),
                DRAWN * DIMS, self.check_truncated,
            ),
            "smote": (
                lambda: interpolate.smote(1, DRAWN, self.table, self.near),
                self.compose_smote, DRAWN * DIMS, self.check_smote,
            ),
            "mixup": (
                lambda: interpolate.mixup(1, DRAWN, self.table, 0.4),
                self.compose_mixup, DRAWN * DIMS, self.check_mixup,
            ),
            "low_rank": (
                lambda: gaussian.low_rank(1, some, self.means, self.scales, self.factors),
                self.compose_low_rank, FULL_ROWS * DIMS, self.check_gaussian,
            ),
            "full": (
                lambda: gaussian.full(1, some, self.means, self.full),
                self.compose_full, FULL_ROWS * DIMS, self.check_gaussian,
            ),
            "nearest": (
                lambda: nearest(self.many, self.many, NEIGHBOURS, exclude_self=True),
                self.compose_nearest, NEAR_ROWS * NEIGHBOURS, self.check_nearest,
            ),
        }  # fmt: skip

    def compose_gaussian(self) -> Any:
        """mean[label] + std[label] * randn."""
        noise = self.torch.randn(DRAWN, DIMS, device="cuda")
        return self.means[self.of] + self.scales[self.of] * noise

    def compose_smote(self) -> Any:
        """randint, two gathers, lerp."""
        torch = self.torch
        base = torch.randint(0, TABLE_ROWS, (DRAWN,), device="cuda")
        slot = torch.randint(0, NEIGHBOURS, (DRAWN,), device="cuda")
        share = torch.rand(DRAWN, 1, device="cuda")
        return torch.lerp(self.table[base], self.table[self.near[base, slot]], share)

    def compose_mixup(self) -> Any:
        """randint, Beta, two gathers, lerp."""
        torch = self.torch
        first, second = torch.randint(0, TABLE_ROWS, (2, DRAWN), device="cuda")
        alpha = torch.tensor(0.4, device="cuda")
        share = torch.distributions.Beta(alpha, alpha).sample((DRAWN, 1))
        return torch.lerp(self.table[first], self.table[second], share)

    def compose_low_rank(self) -> Any:
        """Noise, a batched product by class, mean and scale."""
        return self._by_class(self.factors, RANK) + self.scales[self.of[:FULL_ROWS]] * (
            self.torch.randn(FULL_ROWS, DIMS, device="cuda")
        )

    def compose_full(self) -> Any:
        """Noise, a product by class, mean."""
        return self._by_class(self.full, DIMS)

    def _by_class(self, factors: Any, rank: int) -> Any:
        of = self.of[:FULL_ROWS]
        noise = self.torch.randn(FULL_ROWS, rank, device="cuda")
        out = self.means[of]
        for c in range(CLASSES):
            members = (of == c).nonzero()[:, 0]
            out[members] += noise[members] @ factors[c].T
        return out

    def compose_nearest(self) -> Any:
        """addmm and topk in blocks of float32."""
        squares, found = self.many.square().sum(1), []
        for block in self.many.split(8192):
            products = self.torch.addmm(squares[None], block, self.many.T, alpha=-2)
            found.append(products.topk(NEIGHBOURS + 1, largest=False).indices[:, 1:])
        return self.torch.cat(found)

    def check_labels(self) -> None:
        """The labels are the definition's."""
        drawn = labels.draw(1, 1000, self.ready).cpu().numpy()
        expected = labels.draw_ref(1, 1000, self.weights.cpu())
        np.testing.assert_array_equal(drawn, expected)

    def check_gaussian(self) -> None:
        """All three forms are their definitions."""
        of, made = self.of[:64], (self.means, self.scales)
        cpu = [a.cpu().numpy() for a in (of, *made, self.factors, self.full)]
        for ours, expected in (
            (gaussian.diagonal(1, of, *made), gaussian.diagonal_ref(1, *cpu[:3])),
            (gaussian.low_rank(1, of, *made, self.factors), gaussian.low_rank_ref(1, *cpu[:4])),
            (
                gaussian.full(1, of, made[0], self.full),
                gaussian.full_ref(1, cpu[0], cpu[1], cpu[4]),
            ),
        ):
            np.testing.assert_allclose(ours.cpu().numpy(), expected, rtol=1e-4, atol=1e-3)

    def check_truncated(self) -> None:
        """The draws are the definition's."""
        drawn = truncated.normal(1, 64, DIMS, model=self.means).cpu().numpy()
        np.testing.assert_allclose(drawn, truncated.normal_ref(1, 64, DIMS), atol=1e-5)

    def check_smote(self) -> None:
        """The rows are the definition's."""
        drawn = interpolate.smote(1, 64, self.table, self.near).cpu().numpy()
        expected = interpolate.smote_ref(1, 64, self.table.cpu(), self.near.cpu())
        np.testing.assert_allclose(drawn, expected, atol=1e-5)

    def check_mixup(self) -> None:
        """The rows are the definition's."""
        drawn = interpolate.mixup(1, 64, self.table, 0.4)[0].cpu().numpy()
        expected = interpolate.mixup_ref(1, 64, self.table.cpu(), 0.4)[0]
        np.testing.assert_allclose(drawn, expected, atol=1e-3)

    def check_nearest(self) -> None:
        """The neighbours are the definition's."""
        rows = self.many[:300]
        _, ours = nearest(rows, self.many, NEIGHBOURS)
        _, expected = nearest(rows.cpu(), self.many.cpu(), NEIGHBOURS)
        assert float((ours.cpu() == expected).float().mean()) > 0.999
