"""Loops of the samplers on the CPU; each fills the rows it is given, addressed by `indices_N`.

Philox gives the same words as `medray.rng`. Normals are Box and Muller's in float32: polynomials
instead of library calls, so that whole vectors of them are drawn at once. They agree with
`rng.normals` to 1e-6 relative. The coefficients are minimax fits; `device.h` has the same.

All in one file: Numba's cache on disk notices a change of the file that holds a loop, not of
another that it calls.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from medray.kernels._cpu import compiled, inlined
from medray.rng import MULTIPLIERS, ROUNDS, WEYL

Floats = NDArray[np.float32]
Longs = NDArray[np.int64]
Indices = NDArray[np.uint64]

_M0, _M1 = np.uint64(MULTIPLIERS[0]), np.uint64(MULTIPLIERS[1])
_W0, _W1 = np.uint64(WEYL[0]), np.uint64(WEYL[1])
_LOW, _HALF = np.uint64(2**32 - 1), np.uint64(32)
_ONE, _TWO, _HALF_ONE = np.float32(1), np.float32(2), np.float32(0.5)
_LOG_2, _UNIT = np.float32(np.log(2)), np.float32(2.0**-32)
_ANGLE, _UNIT_24 = np.float32(2 * np.pi * 2.0**-32), np.float32(2.0**-24)

# log(1 + f) = f + f^2 (L0 + L1 f + ...) for |f| <= 1/3.
_L0, _L1 = np.float32(-0.4999988377094269), np.float32(0.3333313465118408)
_L2, _L3 = np.float32(-0.2501034438610077), np.float32(0.20014029741287231)
_L4, _L5 = np.float32(-0.1637904942035675), np.float32(0.13957449793815613)
_L6, _L7 = np.float32(-0.1555522233247757), np.float32(0.14187538623809814)
# sin x = x + x^3 (S0 + S1 x^2 + ...), cos x = 1 - x^2 / 2 + x^4 (C0 + ...) for |x| <= pi / 4.
_S0, _S1 = np.float32(-0.1666666716337204), np.float32(0.008332965895533562)
_S2 = np.float32(-0.00019612714822869748)
_C0, _C1 = np.float32(0.0416666679084301), np.float32(-0.0013888097601011395)
_C2 = np.float32(2.4505186956957914e-05)

_THIRD, _TWO_THIRDS = np.uint32(0x3F2AAAAB), np.uint32(0xAAAAAAAB)
_EIGHTH = np.uint32(0x20000000)
_U1, _U2, _U30 = np.uint32(1), np.uint32(2), np.uint32(30)
_U8, _I23, _I32 = np.uint32(8), np.int32(23), np.int32(32)
_ZERO64, _ONE64 = np.uint64(0), np.uint64(1)
_TINY = np.float32(1e-8)


@inlined
def philox(seed: Any, stream: Any, index: Any, block: Any) -> Any:
    """Four words of an address, uint64 all: Philox4x32-10 as in `rng.philox4x32`."""
    c0, c1, c2, c3 = block, stream, index & _LOW, index >> _HALF
    k0, k1 = seed & _LOW, seed >> _HALF
    for _ in range(ROUNDS):
        p0, p1 = _M0 * c0, _M1 * c2
        c0, c1, c2, c3 = (p1 >> _HALF) ^ c1 ^ k0, p1 & _LOW, (p0 >> _HALF) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
    return np.uint32(c0), np.uint32(c1), np.uint32(c2), np.uint32(c3)


@inlined
def integer(high: Any, low: Any, span: Any) -> Any:
    """`rng.integers` in [0, span): the upper half of 64 random bits times the span (uint64)."""
    return np.int64((np.uint64(high) * span + ((np.uint64(low) * span) >> _HALF)) >> _HALF)


@inlined
def uniform(word: Any) -> Any:
    """`rng.uniforms` in [0, 1): the upper 24 bits of a word."""
    return np.float32(np.uint32(word >> _U8)) * _UNIT_24


@inlined
def minus_log(word: Any) -> Any:
    """-log((word + 1) / 2^32): near 1 from the word's complement, else m 2^e, m in [2/3, 4/3)."""
    bits = np.float32(np.uint32(word + _U1)).view(np.uint32)
    exponent = np.int32(np.int32(np.uint32(bits - _THIRD)) >> _I23)
    m = np.uint32(bits - np.uint32(np.int32(exponent << _I23))).view(np.float32)
    near = word >= _TWO_THIRDS
    f = -np.float32(np.uint32(~word)) * _UNIT if near else m - _ONE
    k = np.float32(0) if near else np.float32(exponent - _I32)
    p = ((((((_L7 * f + _L6) * f + _L5) * f + _L4) * f + _L3) * f + _L2) * f + _L1) * f + _L0
    return -(k * _LOG_2 + (f + f * f * p))


@inlined
def cos_sin(word: Any) -> Any:
    """Cosine and sine of a turn times word / 2^32: the quarter from the word, a series inside."""
    quarter = np.uint32(np.uint32(word + _EIGHTH) >> _U30)
    x = np.float32(np.int32(np.uint32(word - np.uint32(quarter << _U30)))) * _ANGLE
    x2 = x * x
    s = x + x * x2 * ((_S2 * x2 + _S1) * x2 + _S0)
    c = _ONE - _HALF_ONE * x2 + x2 * x2 * ((_C2 * x2 + _C1) * x2 + _C0)
    swapped = np.uint32(quarter & _U1) != 0
    even, odd = (s if swapped else c), (c if swapped else s)
    left, lower = np.uint32(np.uint32(quarter + _U1) & _U2), np.uint32(quarter & _U2)
    return (-even if left != 0 else even), (-odd if lower != 0 else odd)


@inlined
def four_normals(seed: Any, stream: Any, index: Any, block: Any) -> Any:
    """Standard normals 4 block .. 4 block + 3 of an address (Box and Muller 1958)."""
    w0, w1, w2, w3 = philox(seed, stream, index, block)
    first, second = np.sqrt(_TWO * minus_log(w0)), np.sqrt(_TWO * minus_log(w2))
    cos0, sin0 = cos_sin(w1)
    cos1, sin1 = cos_sin(w3)
    return first * cos0, first * sin0, second * cos1, second * sin1


@inlined
def log(x: Any) -> Any:
    """Natural logarithm of a positive normal float32: m 2^e with m in [2/3, 4/3)."""
    bits = np.float32(x).view(np.uint32)
    exponent = np.int32(np.int32(np.uint32(bits - _THIRD)) >> _I23)
    f = np.uint32(bits - np.uint32(np.int32(exponent << _I23))).view(np.float32) - _ONE
    p = ((((((_L7 * f + _L6) * f + _L5) * f + _L4) * f + _L3) * f + _L2) * f + _L1) * f + _L0
    return np.float32(exponent) * _LOG_2 + (f + f * f * p)


@compiled
def noise_rows(out_ND: Floats, indices_N: Indices, seed: Any, stream: Any, first: Any) -> None:
    """Standard normals 4 first .. 4 first + D of each sample; `first` is a block of four."""
    dims = out_ND.shape[1]
    whole = dims // 4
    for n in range(len(out_ND)):
        row_D, index = out_ND[n], indices_N[n]
        for block in range(whole):
            at = 4 * block
            drawn = four_normals(seed, stream, index, np.uint64(first + block))
            row_D[at], row_D[at + 1], row_D[at + 2], row_D[at + 3] = drawn
        if dims % 4:
            drawn = four_normals(seed, stream, index, np.uint64(first + whole))
            for d in range(4 * whole, dims):
                row_D[d] = drawn[d - 4 * whole]


@compiled
def class_rows(
    out_ND: Floats,
    indices_N: Indices,
    seed: Any,
    stream: Any,
    labels_N: NDArray[np.int32],
    means_KD: Floats,
    scales_KD: Floats,
) -> None:
    """mean + scale * noise of each row's class."""
    dims = out_ND.shape[1]
    whole = dims // 4
    for n in range(len(out_ND)):
        row_D, index = out_ND[n], indices_N[n]
        mean_D, scale_D = means_KD[labels_N[n]], scales_KD[labels_N[n]]
        for block in range(whole):
            at = 4 * block
            a, b, c, d = four_normals(seed, stream, index, np.uint64(block))
            row_D[at] = mean_D[at] + scale_D[at] * a
            row_D[at + 1] = mean_D[at + 1] + scale_D[at + 1] * b
            row_D[at + 2] = mean_D[at + 2] + scale_D[at + 2] * c
            row_D[at + 3] = mean_D[at + 3] + scale_D[at + 3] * d
        if dims % 4:
            drawn = four_normals(seed, stream, index, np.uint64(whole))
            for at in range(4 * whole, dims):
                row_D[at] = mean_D[at] + scale_D[at] * drawn[at - 4 * whole]


@inlined
def _lower_quantile(p: Any) -> Any:
    """Normal quantile of p in (0, 1/2]: Wichura's PPND7 (1988); all branches, then a choice."""
    q = p - np.float32(0.5)
    s = np.float32(0.180625) - q * q
    above = np.float32(59.109374720) * s + np.float32(159.29113202)
    above = (above * s + np.float32(50.434271938)) * s + np.float32(3.3871327179)
    below = np.float32(67.187563600) * s + np.float32(78.757757664)
    below = (below * s + np.float32(17.895169469)) * s + np.float32(1)
    middle = q * above / below
    r = np.sqrt(-log(p))
    t = r - np.float32(1.6)
    above = np.float32(0.17023821103) * t + np.float32(1.3067284816)
    above = (above * t + np.float32(2.7568153900)) * t + np.float32(1.4234372777)
    below = (np.float32(0.12021132975) * t + np.float32(0.73700164250)) * t + np.float32(1)
    tail = -above / below
    t = r - np.float32(5)
    above = np.float32(0.017337203997) * t + np.float32(0.42868294337)
    above = (above * t + np.float32(3.0812263860)) * t + np.float32(6.6579051150)
    below = (np.float32(0.012258202635) * t + np.float32(0.24197894225)) * t + np.float32(1)
    far = -above / below
    outer = far if r > np.float32(5) else tail
    return middle if q >= np.float32(-0.425) else outer


@inlined
def _truncated(word: Any, cut: Any) -> Any:
    """One truncated normal of one word; `cut` is what `truncated.cut_of` gives."""
    below, above, width, low, high = cut
    unit = width * np.float32(2.0**-32)
    p = below + unit * (np.float32(word) + np.float32(0.5))
    rest = above + unit * (np.float32(np.uint32(~word)) + np.float32(0.5))
    upper = p > np.float32(0.5)
    x = _lower_quantile(rest if upper else p)
    return min(max(-x if upper else x, low), high)


@compiled
def truncated_rows(
    out_ND: Floats, indices_N: Indices, seed: Any, stream: Any, cut: Any, pixelnorm: bool
) -> None:
    """Truncated normals, draw d of word d; `pixelnorm` divides by the root of the mean square."""
    dims = out_ND.shape[1]
    whole = dims // 4
    for n in range(len(out_ND)):
        row_D, index = out_ND[n], indices_N[n]
        for block in range(whole):
            a, b, c, d = philox(seed, stream, index, np.uint64(block))
            row_D[4 * block], row_D[4 * block + 1] = _truncated(a, cut), _truncated(b, cut)
            row_D[4 * block + 2], row_D[4 * block + 3] = _truncated(c, cut), _truncated(d, cut)
        if dims % 4:
            words = philox(seed, stream, index, np.uint64(whole))
            for d in range(4 * whole, dims):
                row_D[d] = _truncated(words[d - 4 * whole], cut)
        if pixelnorm:
            total = np.float32(0)
            for d in range(dims):
                total += row_D[d] * row_D[d]
            scale = np.float32(1) / np.sqrt(total / np.float32(dims) + _TINY)
            for d in range(dims):
                row_D[d] *= scale


@compiled
def draw_labels(
    labels_N: NDArray[np.int32],
    indices_N: Indices,
    seed: Any,
    stream: Any,
    thresholds_K: NDArray[np.uint64],
    aliases_K: NDArray[np.int32],
) -> None:
    """Labels by alias table: a slot of words 0 and 1, kept where word 2 is below its threshold."""
    classes = np.uint64(len(thresholds_K))
    for n in range(len(labels_N)):
        a, b, c, _ = philox(seed, stream, indices_N[n], _ZERO64)
        slot = integer(a, b, classes)
        labels_N[n] = slot if np.uint64(c) < thresholds_K[slot] else aliases_K[slot]


@compiled
def balanced_labels(
    labels_N: NDArray[np.int32], start: Any, seed: Any, stream: Any, classes: int
) -> None:
    """Each run of `classes` samples a permutation: items by their 64-bit draws, then by number."""
    keys_K = np.empty(classes, np.uint64)
    count, span = np.uint64(len(labels_N)), np.uint64(classes)
    run, place = start // span, -np.int64(start % span)
    while place < np.int64(count):
        for item in range(classes):
            a, b, c, d = philox(seed, stream, run, np.uint64(item // 2))
            high, low = (c, d) if item % 2 else (a, b)
            keys_K[item] = (np.uint64(high) << _HALF) | np.uint64(low)
        order_K = np.argsort(keys_K, kind="mergesort")
        for rank in range(classes):
            if 0 <= place + rank < np.int64(count):
                labels_N[place + rank] = order_K[rank]
        place += classes
        run += _ONE64


@compiled
def smote_rows(
    out_ND: Floats,
    indices_N: Indices,
    seed: Any,
    stream: Any,
    rows_MD: Floats,
    neighbours_Mk: Longs,
    bases_N: Longs,
) -> None:
    """Rows between a row and one of its neighbours; a base of -1 is drawn."""
    span, k = np.uint64(len(rows_MD)), np.uint64(neighbours_Mk.shape[1])
    for n in range(len(out_ND)):
        a, b, c, d = philox(seed, stream, indices_N[n], _ZERO64)
        base = bases_N[n] if bases_N[n] >= 0 else integer(a, b, span)
        other = neighbours_Mk[base, np.int64((np.uint64(c) * k) >> _HALF)]
        _between(out_ND[n], rows_MD[base], rows_MD[other], uniform(d))


@inlined
def _between(out_D: Any, from_D: Any, to_D: Any, share: Any) -> None:
    for d in range(len(out_D)):
        out_D[d] = from_D[d] + share * (to_D[d] - from_D[d])


@compiled
def mixup_rows(
    out_ND: Floats,
    indices_N: Indices,
    seed: Any,
    stream: Any,
    rows_MD: Floats,
    alpha: float,
    given: bool,
    pairs_N2: Longs,
    weights_N: Floats,
) -> None:
    """Two rows of words 0 to 3 (unless given), the first's weight Beta's of words 4 and 5."""
    span = np.uint64(len(rows_MD))
    for n in range(len(out_ND)):
        a, b, c, d = philox(seed, stream, indices_N[n], _ZERO64)
        first, second = integer(a, b, span), integer(c, d, span)
        if given:
            first, second = pairs_N2[n, 0], pairs_N2[n, 1]
        u, v, _, _ = philox(seed, stream, indices_N[n], _ONE64)
        cosine = np.cos(2 * np.pi * 2.0**-32 * np.float64(v))
        spread = np.expm1(np.float64(minus_log(u)) / alpha) * cosine * cosine
        half = 0.5 / np.sqrt(1 + 1 / spread)
        weight = np.float32(0.5 - half if cosine < 0 else 0.5 + half)
        pairs_N2[n, 0], pairs_N2[n, 1], weights_N[n] = first, second, weight
        _between(out_ND[n], rows_MD[first], rows_MD[second], np.float32(1) - weight)


@compiled
def foreign_neighbours(
    counts_N: NDArray[np.int32],
    neighbours_Nk: Longs,
    own_N: NDArray[np.int32],
    labels_M: NDArray[np.int32],
) -> None:
    """How many neighbours have another label than the row's own."""
    for n in range(len(counts_N)):
        count = 0
        for slot in range(neighbours_Nk.shape[1]):
            count += labels_M[neighbours_Nk[n, slot]] != own_N[n]
        counts_N[n] = count


@compiled
def choose_rows(
    chosen_N: Longs,
    indices_N: Indices,
    seed: Any,
    stream: Any,
    labels_N: NDArray[np.int32],
    offsets_K1: Longs,
    rows_P: Longs,
    thresholds_P: NDArray[np.uint64],
    aliases_P: Longs,
) -> None:
    """A row of each sample's class by the class's alias table."""
    for n in range(len(chosen_N)):
        a, b, c, _ = philox(seed, stream, indices_N[n], _ZERO64)
        first = offsets_K1[labels_N[n]]
        slot = first + integer(a, b, np.uint64(offsets_K1[labels_N[n] + 1] - first))
        chosen_N[n] = rows_P[slot] if np.uint64(c) < thresholds_P[slot] else aliases_P[slot]
