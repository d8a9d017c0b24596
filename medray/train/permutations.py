"""Permutations of nine pieces that differ in as many places as can be, the same for a seed.

Shape letters: M candidates, P permutations, S = 9 places.
"""

from __future__ import annotations

import numpy as np

from medray import rng
from medray.errors import UsageError

PIECES = 9
STREAM = "jigsaw.permutations"
CANDIDATES = 20_000
LEAST, MOST = 2, 5_000


def choose(count: int, seed: int) -> tuple[str, ...]:
    """`count` different permutations as texts like 021345678, chosen greedily from candidates.

    The next is always the candidate whose least Hamming distance to those chosen is the greatest,
    then the one whose distances sum to most, then the first (Noroozi and Favaro, ECCV 2016,
    appendix). UsageError outside 2 to 5,000.
    """
    if not LEAST <= count <= MOST:
        raise UsageError(f"permutations must be {LEAST} to {MOST:,}, got {count}")
    words_MS = rng.bits(seed, STREAM, np.arange(CANDIDATES), PIECES)
    orders_MS = np.unique(np.argsort(words_MS, 1, kind="stable"), axis=0).astype(np.int8)
    least_M = np.full(len(orders_MS), PIECES + 1)
    total_M = np.zeros(len(orders_MS), np.int64)
    chosen = [int(rng.integers(seed, f"{STREAM}.first", 0, 1, 0, len(orders_MS))[0])]
    while len(chosen) < count:
        distance_M = (orders_MS != orders_MS[chosen[-1]]).sum(1)
        least_M = np.minimum(least_M, distance_M)
        total_M += distance_M
        # Distance 0 is the permutation itself: it comes last.
        chosen.append(int(np.argmax(least_M * (total_M.max() + 1) + total_M)))
    return tuple("".join(map(str, orders_MS[number])) for number in chosen)


def least_distance(permutations: tuple[str, ...]) -> int:
    """The least number of places in which two of them differ."""
    orders_PS = np.array([list(map(int, text)) for text in permutations], np.int8)
    distances = [
        int((orders_PS[number + 1 :] != row).sum(1).min())
        for number, row in enumerate(orders_PS[:-1])
    ]
    return min(distances)
