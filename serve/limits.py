"""Rates and quotas of keys, shared by all gates through leases: no request makes a remote call.

A ledger holds the truth. Every gate exchanges with it in the background: it says what it holds of
each key's allowance, and gets or gives back so that the gates' holdings are about equal. What a
gate holds it spends by itself. A gate that is lost takes with it at most what it held: of the rate
one burst, which fills again, of a day's quota one block.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from serve.keys import Key, KeyBook
from serve.problems import too_many
from serve.settings import Args

GONE_AFTER_S = 5.0
STOCK_PAUSE_S = 0.5
DAY_S = 86_400
# A block of a day's quota: what a gate may hold of it.
BLOCKS = 64

# key -> {"held": requests, "images": images, "rate", "burst", "quota", "block", "day"}
Exchange = Mapping[str, Mapping[str, float]]
# key -> {"requests": more or (negative) fewer, "images": more, "wait_s", "day"}
Granted = dict[str, dict[str, float]]


@dataclass
class _Account:
    tokens: float
    at_s: float
    day: int
    images: float
    held: dict[str, tuple[float, float]] = field(default_factory=dict)


class Ledger:
    """The truth about every key: what is left, and which gate holds what."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._clock, self._wall = clock, wall
        self._accounts: dict[str, _Account] = {}
        self._spent: dict[str, float] = {}
        self._day = -1

    @property
    def day(self) -> int:
        """The day that quotas are of, counted from 1970.

        A clock that is set back over midnight, or another node's that is behind, begins no day a
        second time; one that is more than a day back was wrong before.
        """
        day = int(self._wall() // DAY_S)
        if not self._day - 1 <= day <= self._day:
            self._day = day
        return self._day

    def exchange(self, gate: str, asks: Exchange) -> Granted:
        """What this gate gets (or gives back) of each key, after saying what it holds."""
        now_s, day = self._clock(), self.day
        return {name: self._one(gate, name, ask, now_s, day) for name, ask in asks.items()}

    def _one(
        self, gate: str, name: str, ask: Mapping[str, float], now_s: float, day: int
    ) -> dict[str, float]:
        rate, burst, quota = ask["rate"], ask["burst"], ask["quota"]
        account = self._accounts.get(name)
        if account is None:
            spent = self._spent.pop(name, 0.0)
            account = self._accounts[name] = _Account(burst, now_s, day, max(0.0, quota - spent))
        if account.day != day:
            account.day, account.images = day, quota
        account.held = {g: h for g, h in account.held.items() if now_s - h[1] <= GONE_AFTER_S}
        held = ask["held"]
        others = sum(h[0] for g, h in account.held.items() if g != gate)
        account.tokens += rate * max(0.0, now_s - account.at_s)
        account.tokens = max(0.0, min(account.tokens, burst - others - held))
        account.at_s = now_s
        gates = len(account.held.keys() | {gate})
        requests = min(max(1.0, burst / gates) - held, account.tokens)
        account.tokens -= requests
        account.held[gate] = (held + requests, now_s)
        held_images = ask["images"] if ask["day"] == day else 0.0
        images = max(0.0, min(ask["block"] - held_images, account.images / gates))
        account.images -= images
        wait_s = 1.0 / rate if rate else 1.0
        return {"requests": requests, "images": images, "wait_s": wait_s, "day": float(day)}

    def spent(self, quotas: Mapping[str, float]) -> dict[str, float]:
        """Images given out today of each key's quota: what is kept, with `day`, over a restart."""
        day = self.day
        return {
            name: quotas[name] - account.images
            for name, account in self._accounts.items()
            if name in quotas and account.day == day
        }

    def restore(self, spent: Mapping[str, float], day: int) -> None:
        """Takes over what was given out on `day` before a restart, if that is today."""
        self._day = day
        if self.day == day:
            self._spent.update(spent)


@dataclass
class _Lease:
    requests: float = 0.0
    images: float = 0.0
    day: float = -1.0
    wait_s: float = 1.0
    used: bool = False
    rated: bool = False


Trade = Callable[[Exchange], Awaitable[Granted]]


class Limits:
    """A gate's side: takes from what it holds, says how long to wait where that is used up."""

    def __init__(self, args: Args, keys: KeyBook, trade: Trade) -> None:
        self._args, self._keys, self._trade = args, keys, trade
        self._leases: dict[str, _Lease] = {}

    def _rate(self, key: Key) -> float | None:
        return key.rate_per_s or self._args.rate_per_s

    def _burst(self, key: Key, rate: float) -> float:
        return float(key.burst or self._args.burst or max(2.0, 2 * rate))

    def _quota(self, key: Key) -> int | None:
        return key.images_per_day or self._args.images_per_day

    def request(self, key: Key | None) -> None:
        """Counts one request of a key (None: of nobody in particular); Problem 429."""
        if key is None or self._rate(key) is None:
            return
        lease = self._leases.setdefault(key.name, _Lease())
        lease.used = True
        if lease.requests < 1.0:
            detail = f"the key {key.name} has used up its {self._rate(key):g} requests per second"
            raise too_many(
                "rate_exceeded", detail, lease.wait_s, "wait as long as Retry-After says"
            )
        lease.requests -= 1.0

    def images(self, name: str | None, count: int) -> None:
        """Counts images of a key's day; Problem 429 where its quota does not hold so many."""
        key = self._keys.by_name.get(name or "")
        quota = self._quota(key) if key else None
        if key is None or quota is None:
            return
        lease = self._leases.setdefault(key.name, _Lease())
        lease.used = True
        if lease.images < count:
            detail = (
                f"{count} images asked, {int(lease.images)} of the day's quota of {quota} are left "
                f"here for the key {key.name}"
            )
            left_s = DAY_S - time.time() % DAY_S
            raise too_many("quota_exceeded", detail, left_s, "ask for fewer, or after 00:00 UTC")
        lease.images -= count

    def returned(self, name: str | None, count: int) -> None:
        """Gives back images that were counted and not made."""
        if lease := self._leases.get(name or ""):
            lease.images += count

    def asks(self) -> dict[str, dict[str, float]]:
        """What this gate holds and may hold of each limited key."""
        found = {}
        for key in self._keys.by_name.values():
            rate, quota = self._rate(key), self._quota(key)
            if rate is None and quota is None:
                continue
            lease = self._leases.setdefault(key.name, _Lease())
            lease.rated, rate = rate is not None, rate or 0.0
            found[key.name] = {
                "held": lease.requests,
                "images": lease.images,
                "day": lease.day,
                "rate": rate,
                "burst": self._burst(key, rate),
                "quota": float(quota or 0),
                "block": float(min(quota or 0, max(self._args.images, (quota or 0) // BLOCKS))),
            }
        return found

    @property
    def hungry(self) -> bool:
        """Whether something was taken since the last exchange, or nothing is left of a rate."""
        return self._starved or any(lease.used for lease in self._leases.values())

    async def stock(self) -> None:
        """Trades until some of every rate is held here, or as long as a lost gate counts.

        What the others hold comes when they trade next, what a lost one held when it is given up.
        """
        until_s = time.monotonic() + GONE_AFTER_S + STOCK_PAUSE_S
        await self.trade()
        while time.monotonic() < until_s and self._starved:
            await asyncio.sleep(STOCK_PAUSE_S)
            await self.trade()

    @property
    def _starved(self) -> bool:
        return any(lease.rated and lease.requests < 1 for lease in self._leases.values())

    async def trade(self) -> None:
        """One exchange with the ledger."""
        asks = self.asks()
        if not asks:
            return
        granted = await self._trade(asks)
        for name, grant in granted.items():
            lease = self._leases.setdefault(name, _Lease())
            if lease.day != grant["day"]:
                lease.images, lease.day = 0.0, grant["day"]
            lease.requests += grant["requests"]
            lease.images += grant["images"]
            lease.wait_s, lease.used = grant["wait_s"], False


def alone(args: Args, keys: KeyBook) -> Limits:
    """Limits of a service of one process: the ledger is beside it."""
    ledger = Ledger()

    async def trade(asks: Exchange) -> Granted:
        return ledger.exchange("here", asks)

    return Limits(args, keys, trade)
