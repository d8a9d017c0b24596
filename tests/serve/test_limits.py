"""Rates and quotas over several gates: never more than the allowance, nothing lost for long."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from serve import keys
from serve import limits as limits_module
from serve.keys import Key, KeyBook
from serve.limits import Exchange, Granted, Ledger, Limits
from serve.problems import Problem
from tests.serve.fakes import args


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.s = 1000.0

    def __call__(self) -> float:
        return self.s


def gates(tmp_path: Path, clock: Callable[[], float], key: Key, count: int) -> list[Limits]:
    """Gates that share a ledger."""
    ledger = Ledger(clock, clock)

    def one(name: str) -> Limits:
        async def trade(asks: Exchange) -> Granted:
            return ledger.exchange(name, asks)

        return Limits(args(tmp_path), KeyBook([key]), trade)

    return [one(f"gate-{n}") for n in range(count)]


def taken(limits: Limits, key: Key, tries: int) -> int:
    """How many requests of so many pass."""
    passed = 0
    for _ in range(tries):
        try:
            limits.request(key)
            passed += 1
        except Problem as problem:
            assert problem.status == 429 and int(problem.headers["retry-after"]) >= 1
    return passed


def trade(*limits: Limits) -> None:
    async def main() -> None:
        for each in limits:
            await each.trade()

    asyncio.run(main())


@pytest.mark.parametrize("count", [1, 2, 5])
def test_gates_together_never_pass_more_than_burst_and_rate(tmp_path: Path, count: int) -> None:
    clock = Clock()
    _, key = keys.make("one", ["read"], rate_per_s=40.0, burst=20)
    several = gates(tmp_path, clock, key, count)
    for _ in range(3):
        trade(*several)
    passed, seconds = 0, 10.0
    for step in range(int(seconds / 0.1)):
        clock.s += 0.1
        # All load on one gate at first, then on all of them.
        busy = several[:1] if step < 50 else several
        passed += sum(taken(each, key, 30) for each in busy)
        trade(*several)
    assert passed <= 20 + 40 * seconds + 1e-6
    assert passed >= 0.9 * 40 * seconds, "what is allowed is used"


def test_a_lost_gate_takes_at_most_a_burst_with_it_and_that_fills_again(tmp_path: Path) -> None:
    clock = Clock()
    _, key = keys.make("one", ["read"], rate_per_s=10.0, burst=20)
    kept, lost = gates(tmp_path, clock, key, 2)
    for _ in range(3):
        trade(kept, lost)
    first = taken(kept, key, 100)
    assert first >= 10, "half of the burst at least"
    # The other is never heard of again; after a while all of the burst is here.
    for _ in range(100):
        clock.s += 0.2
        trade(kept)
    assert taken(kept, key, 100) == 20


@pytest.mark.parametrize("other_lives", [True, False])
def test_a_new_gate_begins_with_some_of_every_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other_lives: bool
) -> None:
    monkeypatch.setattr(limits_module, "GONE_AFTER_S", 1.0)
    monkeypatch.setattr(limits_module, "STOCK_PAUSE_S", 0.05)
    _, key = keys.make("k", ["read"], rate_per_s=10, burst=20)
    old, new = gates(tmp_path, time.monotonic, key, 2)
    began_s = time.monotonic()
    trade(old)

    async def main() -> float:
        stocked = asyncio.create_task(new.stock())
        while not stocked.done():
            # The other one trades now and then where it lives; otherwise it is given up.
            await asyncio.sleep(0.1)
            if other_lives:
                await old.trade()
        return time.monotonic() - began_s

    # What a new gate gets by one exchange is nothing: the old one holds it all.
    trade(new)
    assert taken(new, key, 1) == 0
    took_s = asyncio.run(main())
    assert taken(new, key, 1) == 1
    assert took_s < 0.8 if other_lives else 0.9 < took_s < 5


def test_a_request_makes_no_remote_call(tmp_path: Path) -> None:
    calls = 0
    _, key = keys.make("one", ["read"], rate_per_s=1000.0)
    ledger = Ledger()

    async def counted(asks: Exchange) -> Granted:
        nonlocal calls
        calls += 1
        return ledger.exchange("gate", asks)

    limits = Limits(args(tmp_path), KeyBook([key]), counted)
    trade(limits)
    assert taken(limits, key, 500) == 500 and calls == 1


def test_a_days_quota_is_shared_and_starts_anew_at_midnight(tmp_path: Path) -> None:
    clock = Clock()
    _, key = keys.make("one", ["generate"], images_per_day=1000)
    several = gates(tmp_path, clock, key, 2)
    made = 0
    for _ in range(40):
        trade(*several)
        for each in several:
            for _ in range(10):
                try:
                    each.images("one", 7)
                    made += 7
                except Problem as problem:
                    assert problem.code == "quota_exceeded"
                    assert 0 < int(problem.headers["retry-after"]) <= 86_400
    assert 900 <= made <= 1000
    clock.s += 86_400
    trade(*several)
    several[0].images("one", 400)


def test_images_that_were_not_made_are_given_back(tmp_path: Path) -> None:
    _, key = keys.make("one", ["generate"], images_per_day=100)
    (limits,) = gates(tmp_path, Clock(), key, 1)
    trade(limits)
    limits.images("one", 100)
    limits.returned("one", 60)
    limits.images("one", 60)
    with pytest.raises(Problem):
        limits.images("one", 1)


def test_what_was_spent_before_a_restart_stays_spent() -> None:
    ask = {"one": {"held": 0.0, "images": 0.0, "day": -1.0, "rate": 0.0, "burst": 2.0,
                   "quota": 100.0, "block": 100.0}}  # fmt: skip
    before, yesterday = Ledger(), int(time.time() // 86_400) - 1
    before.exchange("gate", ask)
    spent = before.spent({"one": 100.0})
    assert spent == {"one": 100.0}
    after = Ledger()
    after.restore(spent, before.day)
    assert after.exchange("gate", ask)["one"]["images"] == 0
    after = Ledger()
    after.restore(spent, yesterday)
    assert after.exchange("gate", ask)["one"]["images"] == 100, "that was yesterday"
    assert Ledger().exchange("gate", ask)["one"]["images"] == 100, "without that, all of it"


HOUR_S = 3600.0
LATE_S = 86_400 * 20_000 + 23.5 * HOUR_S


def most(limits: Limits) -> int:
    """Images that pass, one at a time, with an exchange whenever one does not."""
    made = 0
    for _ in range(600):
        try:
            limits.images("one", 1)
            made += 1
        except Problem:
            trade(limits)
    return made


def test_a_clock_that_goes_back_over_midnight_and_forth_gives_a_day_once(tmp_path: Path) -> None:
    clock, wall = Clock(), Clock()
    _, key = keys.make("one", ["generate"], images_per_day=300)
    ledger = Ledger(clock, wall)

    async def exchange(asks: Exchange) -> Granted:
        return ledger.exchange("gate", asks)

    limits = Limits(args(tmp_path), KeyBook([key]), exchange)
    wall.s = LATE_S
    assert most(limits) == 300
    wall.s += HOUR_S
    assert most(limits) == 300, "a new day"
    for ahead_s in (-HOUR_S, HOUR_S, -HOUR_S, HOUR_S):
        wall.s += ahead_s
        assert most(limits) == 0, "the same two days again"
    wall.s += 24 * HOUR_S
    assert most(limits) == 300
    wall.s -= 96 * HOUR_S
    assert most(limits) == 300, "a clock that was days ahead keeps nobody from his quota for days"


def test_a_ledger_on_a_node_whose_clock_is_an_hour_behind_gives_no_day_again(
    tmp_path: Path,
) -> None:
    """Lost just after midnight, begun again where it is still before, and then after it."""
    wall, ask = Clock(), {"held": 0.0, "images": 0.0, "day": -1.0, "rate": 0.0}
    asks = {"one": {**ask, "burst": 2.0, "quota": 100.0, "block": 100.0}}
    wall.s = LATE_S + HOUR_S
    lost = Ledger(Clock(), wall)
    assert lost.exchange("gate", asks)["one"]["images"] == 100
    wall.s -= HOUR_S
    other = Ledger(Clock(), wall)
    other.restore(lost.spent({"one": 100.0}), lost.day)
    assert other.exchange("gate", asks)["one"]["images"] == 0
    wall.s += HOUR_S
    assert other.exchange("gate", asks)["one"]["images"] == 0
    assert other.spent({"one": 100.0}) == {"one": 100.0}
