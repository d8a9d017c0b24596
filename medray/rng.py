"""Addresses of random numbers: a draw is a pure function of (seed, stream, index, draw).

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) maps a counter
of four 32-bit words and a key of two to four random words. Here

    counter = (draw // 4, stream id, index low, index high)     key = (seed low, seed high)

and the stream id is the first four bytes of sha256(stream name), little endian. No generator has
a state, so any draw of any sample can be made again alone, in any order, by any worker.

Draw d of `uniforms` is made of word d; draw d of `normals` of the pair of words that holds d;
draw d of `integers` of words 2d and 2d + 1.

Shape letters: N addresses, R rounds, 4 words of a counter, 2 words of a key.
"""

import hashlib
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Index = int | np.integer[Any] | NDArray[np.integer[Any]]

WORDS = 2**32
DRAWS = 4 * WORDS
SEEDS = INDICES = 2**64

# Constants of Philox4x32: two multipliers, two Weyl increments of the key, ten rounds.
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10

# Rows of one pass: six work arrays of 8 bytes stay in a core's second-level cache.
_ROWS_AT_ONCE = 8192
_LOW = np.uint64(WORDS - 1)
_HALF = np.uint64(32)
_MULTIPLIERS_21 = np.array(MULTIPLIERS, np.uint64)[:, None]


def philox4x32(counter_N4: NDArray[np.uint32], key_2: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Philox4x32-10 of N counters (N, 4) under one key (2,), all uint32 (Salmon et al. 2011)."""
    counter_N4, key_2 = np.asarray(counter_N4), np.asarray(key_2)
    if counter_N4.ndim != 2 or counter_N4.shape[1] != 4 or counter_N4.dtype != np.uint32:
        raise ValueError(
            f"counters must be uint32 of shape (N, 4), "
            f"got {counter_N4.dtype} of shape {counter_N4.shape}"
        )
    if key_2.shape != (2,) or key_2.dtype != np.uint32:
        raise ValueError(
            f"the key must be uint32 of shape (2,), got {key_2.dtype} of shape {key_2.shape}"
        )
    round_keys_R21 = _round_keys(key_2)
    words_N4 = np.empty_like(counter_N4, order="C")
    for first in range(0, len(counter_N4), _ROWS_AT_ONCE):
        rows = slice(first, first + _ROWS_AT_ONCE)
        even_2N, odd_2N = (
            counter_N4[rows, side::2].T.astype(np.uint64, order="C") for side in (0, 1)
        )
        _rounds(even_2N, odd_2N, round_keys_R21)
        words_N4[rows, 0::2], words_N4[rows, 1::2] = even_2N.T, odd_2N.T
    return words_N4


def _round_keys(key_2: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """The key of each round, (ROUNDS, 2, 1): it grows by the Weyl increments modulo 2**32."""
    steps_R1 = np.arange(ROUNDS, dtype=np.uint64)[:, None]
    return ((key_2 + steps_R1 * np.array(WEYL, np.uint64)) & _LOW)[:, :, None]


def _rounds(
    even_2N: NDArray[np.uint64], odd_2N: NDArray[np.uint64], round_keys_R21: NDArray[np.uint64]
) -> None:
    """Ten rounds in place; words 0 and 2, 1 and 3, in 64 bits, where a product of two words fits.

    Each multiplied word goes, upper half and lower half, to the other side of its pair.
    """
    product_2N = np.empty_like(even_2N)
    crossed_2N = product_2N[::-1]
    for round_key_21 in round_keys_R21:
        np.multiply(even_2N, _MULTIPLIERS_21, out=product_2N)
        np.right_shift(crossed_2N, _HALF, out=even_2N)
        even_2N ^= odd_2N
        even_2N ^= round_key_21
        np.bitwise_and(crossed_2N, _LOW, out=odd_2N)


def bits(seed: int, stream: str, index: Index, count: int, start: int = 0) -> NDArray[np.uint32]:
    """Random words `start` to `start + count` of an address: uint32 (count,).

    An array of N indices gives (N, count). ValueError if an argument is negative or does not fit:
    seed and index have 64 bits, an address has 2**34 draws.
    """
    index_N = _indices(index)
    _check_draws(start, count, DRAWS)
    first_block, last_block = start // 4, -(-(start + count) // 4)
    blocks = last_block - first_block
    counter_NB4 = np.empty((len(index_N), blocks, 4), np.uint32)
    counter_NB4[..., 0] = np.arange(first_block, last_block, dtype=np.uint64)
    counter_NB4[..., 1] = stream_id(stream)
    counter_NB4[..., 2] = (index_N & _LOW)[:, None]
    counter_NB4[..., 3] = (index_N >> _HALF)[:, None]
    words = philox4x32(counter_NB4.reshape(-1, 4), key(seed)).reshape(len(index_N), 4 * blocks)
    words = words[:, start - 4 * first_block :][:, :count]
    return np.ascontiguousarray(words if np.ndim(index) else words[0])


def uniforms(
    seed: int, stream: str, index: Index, count: int, start: int = 0
) -> NDArray[np.float32]:
    """Uniform draws in [0, 1): float32, the upper 24 bits of each word. Shapes as `bits`."""
    words = bits(seed, stream, index, count, start)
    return (words >> np.uint32(8)).astype(np.float32) * np.float32(2**-24)


def normals(
    seed: int, stream: str, index: Index, count: int, start: int = 0
) -> NDArray[np.float32]:
    """Standard normal draws: float32, shapes as `bits` (Box and Muller 1958).

    Words 2k and 2k + 1 make draws 2k and 2k + 1. The radius comes from a number in (0, 1], so that
    its logarithm is finite. The arithmetic is float64 and only the result is rounded: libraries
    that differ in the last bit of a double (CUDA's too) then agree on the float32 but for about
    one draw in 10**8.
    """
    first = start - start % 2
    _check_draws(start, count, DRAWS)
    words = bits(seed, stream, index, (start + count + 1) // 2 * 2 - first, first)
    radius = np.sqrt(-2 * np.log((words[..., 0::2].astype(np.float64) + 1) * 2**-32))
    angle = words[..., 1::2] * (2 * np.pi * 2**-32)
    drawn = np.empty(words.shape, np.float32)
    drawn[..., 0::2] = radius * np.cos(angle)
    drawn[..., 1::2] = radius * np.sin(angle)
    return np.ascontiguousarray(drawn[..., start - first :][..., :count])


def integers(
    seed: int, stream: str, index: Index, count: int, low: int, high: int, start: int = 0
) -> NDArray[np.int64]:
    """Integers in [low, high): int64, shapes as `bits`; high - low is 1 to 2**32.

    64 random bits times the span, upper half: no value's share is off by more than 2**-32 of it.
    """
    span = high - low
    if not 1 <= span <= WORDS or not -(2**63) <= low <= high <= 2**63:
        raise ValueError(
            f"integers need 1 <= high - low <= 2**32 within int64, got low {low}, high {high}"
        )
    _check_draws(start, count, DRAWS // 2)
    words = bits(seed, stream, index, 2 * count, 2 * start).astype(np.uint64)
    factor = np.uint64(span)
    upper = words[..., 0::2] * factor + ((words[..., 1::2] * factor) >> _HALF)
    return (upper >> _HALF).astype(np.int64) + np.int64(low)


def permutation(seed: int, stream: str, index: int, n: int) -> NDArray[np.int64]:
    """A permutation of range(n): int64 (n,), the order of n 64-bit draws (equal ones by number)."""
    _check_draws(0, n, DRAWS // 2)
    words = bits(seed, stream, int(index), 2 * n).astype(np.uint64)
    return np.argsort((words[0::2] << _HALF) | words[1::2], kind="stable").astype(np.int64)


@cache
def stream_id(stream: str) -> int:
    """The 32-bit number of a named stream: the first 4 bytes of sha256, little endian."""
    return int.from_bytes(hashlib.sha256(stream.encode()).digest()[:4], "little")


def key(seed: int) -> NDArray[np.uint32]:
    """The two key words of a 64-bit seed, low word first; ValueError if it does not fit."""
    if not 0 <= seed < SEEDS:
        raise ValueError(f"a seed must be 0 to 2**64 - 1, got {seed}")
    return np.array([seed % WORDS, seed // WORDS], np.uint32)


def _indices(index: Index) -> NDArray[np.uint64]:
    """One index or an array of them as uint64 (N,)."""
    if not np.ndim(index) and not 0 <= int(index) < INDICES:
        raise ValueError(f"an index must be 0 to 2**64 - 1, got {index}")
    array = np.asarray(index)
    if array.ndim > 1 or array.dtype.kind not in "iu":
        raise ValueError(
            f"the index must be an integer or integers of shape (N,), "
            f"got {array.dtype} of shape {array.shape}"
        )
    if array.size and int(array.min()) < 0:
        raise ValueError(f"an index must be 0 to 2**64 - 1, got {array.min()}")
    return np.atleast_1d(array).astype(np.uint64)


def _check_draws(start: int, count: int, limit: int) -> None:
    if start < 0 or count < 0 or start + count > limit:
        raise ValueError(
            f"draws must lie in 0 to {limit}, got start {start} and count {count}, none negative"
        )
