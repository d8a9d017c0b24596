"""Philox and what is drawn with it as compiled loops: the same words as `medray.rng`.

Normals are Box and Muller's in float32: polynomials instead of library calls, so that whole vectors
of them are drawn at once. They agree with `rng.normals` to 1e-6 relative. The coefficients are
minimax fits; `device.h` has the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from medray.kernels._cpu import inlined
from medray.rng import MULTIPLIERS, ROUNDS, WEYL

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
