"""Every draw is a pure function of (seed, stream, index, draw): loop = NumPy, known answers."""

import hashlib
import math

import numpy as np
import pytest

from medray import rng

KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000",
     "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
     "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
     "d16cfe09 94fdcceb 5001e420 24126ea1"),
]  # fmt: skip


def philox_loop(counter, key):
    """Philox4x32-10 of one counter in Python integers."""
    c0, c1, c2, c3 = (int(word) for word in counter)
    k0, k1 = (int(word) for word in key)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 % 2**32, (p0 >> 32) ^ c3 ^ k1, p0 % 2**32
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return [c0, c1, c2, c3]


def word_loop(seed, stream, index, draw):
    name = int.from_bytes(hashlib.sha256(stream.encode()).digest()[:4], "little")
    counter = [draw // 4, name, index % 2**32, index // 2**32]
    return philox_loop(counter, [seed % 2**32, seed // 2**32])[draw % 4]


def words_of(text):
    return np.array([int(word, 16) for word in text.split()], np.uint32)


@pytest.mark.parametrize("counter, key, expected", KNOWN)
def test_philox_gives_the_published_known_answers(counter, key, expected):
    drawn = rng.philox4x32(words_of(counter)[None], words_of(key))
    np.testing.assert_array_equal(drawn[0], words_of(expected))
    assert philox_loop(words_of(counter), words_of(key)) == list(words_of(expected))


@pytest.mark.parametrize("rows", [0, 1, 3, 8191, 8192, 8193])
def test_philox_equals_the_loop_across_the_chunk_border(rows):
    counters = np.random.default_rng(rows).integers(0, 2**32, (rows, 4), np.uint32)
    key = np.array([7, 2**32 - 1], np.uint32)
    drawn = rng.philox4x32(counters, key)
    assert drawn.shape == (rows, 4)
    for row in {0, rows // 2, rows - 2, rows - 1} if rows > 2 else range(rows):
        assert list(drawn[row]) == philox_loop(counters[row], key)


@pytest.mark.parametrize("seed", [0, 5, 2**32 + 3, 2**64 - 1])
@pytest.mark.parametrize("index", [0, 1, 2**32 - 1, 2**32, 2**40 + 9, 2**64 - 1])
@pytest.mark.parametrize("start, count", [(0, 1), (0, 9), (3, 6), (4, 4), (2**34 - 2, 2)])
def test_bits_equal_the_loop_at_every_border(seed, index, start, count):
    expected = [word_loop(seed, "train.latents", index, start + i) for i in range(count)]
    assert list(rng.bits(seed, "train.latents", index, count, start)) == expected


DRAWERS = [
    rng.bits,
    rng.uniforms,
    rng.normals,
    lambda *address, **options: rng.integers(*address, low=-5, high=90, **options),
]


@pytest.mark.parametrize("draw", DRAWERS)
@pytest.mark.parametrize("start", [0, 1, 2, 3, 4, 5, 9, 10])
def test_start_addresses_single_draws(draw, start):
    whole = draw(3, "s", 11, count=10)
    np.testing.assert_array_equal(whole[start:], draw(3, "s", 11, count=10 - start, start=start))
    if start < 10:
        np.testing.assert_array_equal(
            whole[start : start + 1], draw(3, "s", 11, count=1, start=start)
        )


@pytest.mark.parametrize("draw", DRAWERS)
def test_an_array_of_indices_gives_the_rows_of_its_members(draw):
    index = np.array([5, 0, 2**33 + 1, 5], np.int64)
    rows = draw(1, "s", index, count=7, start=1)
    assert rows.shape == (4, 7)
    assert rows.flags.c_contiguous
    for row, member in zip(rows, index, strict=True):
        np.testing.assert_array_equal(row, draw(1, "s", int(member), count=7, start=1))
    assert draw(1, "s", np.zeros(0, np.uint64), count=3).shape == (0, 3)


def test_seed_stream_and_index_each_change_the_draws():
    base = rng.bits(1, "a", 2, 64)
    for other in [rng.bits(2, "a", 2, 64), rng.bits(1, "b", 2, 64), rng.bits(1, "a", 3, 64)]:
        assert np.count_nonzero(base == other) < 3
    assert rng.bits(1, "a", 2, 64).tobytes() == base.tobytes()


def test_uniforms_are_the_upper_24_bits_and_stay_below_one():
    words = rng.bits(4, "u", 0, 100_000)
    drawn = rng.uniforms(4, "u", 0, 100_000)
    assert drawn.dtype == np.float32
    assert 0 <= drawn.min() < 1e-3 and 0.999 < drawn.max() < 1
    np.testing.assert_array_equal(drawn.astype(np.float64), (words >> 8) / 2**24)
    assert float(np.float32((2**32 - 1) >> 8) * np.float32(2**-24)) < 1
    assert abs(drawn.mean() - 0.5) < 5 / math.sqrt(12 * 1e5)


@pytest.mark.parametrize("draw", [0, 1, 2, 7, 1000, 1001])
def test_normals_equal_box_muller_in_a_loop(draw):
    pair = draw - draw % 2
    first, second = (word_loop(9, "n", 4, pair + i) for i in (0, 1))
    radius = math.sqrt(-2 * math.log((first + 1) / 2**32))
    turn = math.sin if draw % 2 else math.cos
    expected = np.float32(radius * turn(2 * math.pi * second / 2**32))
    assert rng.normals(9, "n", 4, 1, start=draw)[0] == pytest.approx(expected, rel=1e-7)


def test_normals_are_standard_finite_and_independent_of_their_neighbour():
    drawn = rng.normals(0, "n", 0, 400_000).astype(np.float64)
    error = 5 / math.sqrt(len(drawn))
    assert np.isfinite(drawn).all()
    assert abs(drawn.mean()) < error and abs(drawn.var() - 1) < math.sqrt(2) * error
    assert abs(np.mean(drawn**4) - 3) < math.sqrt(96) * error
    assert abs(np.mean(drawn[0::2] * drawn[1::2])) < math.sqrt(2) * error
    below = np.mean(drawn[:, None] < np.array([-3.0, -1.0, 0.0, 2.0]), axis=0)
    exact = [0.5 * math.erfc(-x / math.sqrt(2)) for x in (-3.0, -1.0, 0.0, 2.0)]
    np.testing.assert_allclose(below, exact, atol=error)


def test_normals_stay_finite_for_the_extreme_words(monkeypatch):
    monkeypatch.setattr(rng, "bits", lambda *_: np.array([0, 0, 2**32 - 1, 2**32 - 1], np.uint32))
    drawn = rng.normals(0, "n", 0, 4)
    assert np.isfinite(drawn).all() and 6.6 < drawn[0] < 6.7 and abs(drawn[2]) < 1e-4


@pytest.mark.parametrize(
    "low, high", [(0, 1), (-3, 4), (0, 10), (5, 5 + 2**32), (2**62, 2**62 + 3)]
)
def test_integers_equal_exact_multiplication(low, high):
    drawn = rng.integers(2, "i", 1, 50, low, high)
    for draw, value in enumerate(drawn):
        wide = word_loop(2, "i", 1, 2 * draw) * 2**32 + word_loop(2, "i", 1, 2 * draw + 1)
        assert value == low + wide * (high - low) // 2**64


def test_integers_are_evenly_spread():
    counts = np.bincount(rng.integers(0, "i", 0, 70_000, 0, 7), minlength=7)
    assert ((counts - 10_000) ** 2 / 10_000).sum() < 30  # chi squared, 6 degrees: p < 1e-4


@pytest.mark.parametrize("n", [0, 1, 2, 3, 1000])
def test_a_permutation_holds_every_number_once(n):
    order = rng.permutation(1, "p", 0, n)
    assert order.dtype == np.int64
    np.testing.assert_array_equal(np.sort(order), np.arange(n))
    keys = [word_loop(1, "p", 0, 2 * i) * 2**32 + word_loop(1, "p", 0, 2 * i + 1) for i in range(n)]
    assert list(order) == sorted(range(n), key=keys.__getitem__)


def test_equal_keys_of_a_permutation_fall_back_on_the_number(monkeypatch):
    monkeypatch.setattr(rng, "bits", lambda *_: np.zeros(64, np.uint32))
    assert list(rng.permutation(1, "p", 0, 32)) == list(range(32))


def test_permutations_of_different_addresses_differ_and_reach_all_orders():
    orders = {tuple(rng.permutation(0, "p", index, 3)) for index in range(60)}
    assert len(orders) == 6


BAD = [
    lambda: rng.bits(-1, "s", 0, 1),
    lambda: rng.bits(2**64, "s", 0, 1),
    lambda: rng.bits(0, "s", -1, 1),
    lambda: rng.bits(0, "s", 2**64, 1),
    lambda: rng.bits(0, "s", np.array([0, -1]), 1),
    lambda: rng.bits(0, "s", np.zeros((2, 2), np.int64), 1),
    lambda: rng.bits(0, "s", np.zeros(2), 1),
    lambda: rng.bits(0, "s", 1.5, 1),  # type: ignore[arg-type]
    lambda: rng.bits(0, "s", 0, -1),
    lambda: rng.bits(0, "s", 0, 1, start=-1),
    lambda: rng.bits(0, "s", 0, 2, start=2**34 - 1),
    lambda: rng.normals(0, "s", 0, 1, start=-1),
    lambda: rng.normals(0, "s", 0, 1, start=2**34),
    lambda: rng.integers(0, "s", 0, 1, 3, 3),
    lambda: rng.integers(0, "s", 0, 1, 4, 3),
    lambda: rng.integers(0, "s", 0, 1, 0, 2**32 + 1),
    lambda: rng.integers(0, "s", 0, 1, 2**63 - 1, 2**63 + 1),
    lambda: rng.integers(0, "s", 0, 1, 0, 2, start=2**33),
    lambda: rng.permutation(0, "s", 0, -1),
    lambda: rng.philox4x32(np.zeros((2, 3), np.uint32), np.zeros(2, np.uint32)),
    lambda: rng.philox4x32(np.zeros((2, 4), np.int64), np.zeros(2, np.uint32)),
    lambda: rng.philox4x32(np.zeros((2, 4), np.uint32), np.zeros(3, np.uint32)),
]


@pytest.mark.parametrize("call", BAD)
def test_an_argument_that_does_not_fit_is_refused_with_what_is_allowed(call):
    with pytest.raises(ValueError, match=r"must|need"):
        call()


def test_the_largest_arguments_that_fit_are_drawn():
    assert rng.bits(2**64 - 1, "s", np.array([2**64 - 1], np.uint64), 1).shape == (1, 1)
    assert rng.normals(0, "s", 0, 1, start=2**34 - 1).shape == (1,)
    assert rng.integers(0, "s", 0, 1, 2**63 - 2, 2**63, start=2**33 - 1)[0] >= 2**63 - 2
