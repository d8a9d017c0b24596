"""What replicas share: the ledger of keys, the table of models, the sum of their counts.

Plain Python; `deployments.py` puts one of it into a replica of its own. Losing it loses little: the
table and the day's quotas are in the state folder, leases are made again, counts start anew.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from typing import Any

from medray import log
from medray.errors import MedrayError
from medray.store import Store
from serve import metrics
from serve.limits import Exchange, Granted, Ledger
from serve.registry import Registry, Version
from serve.settings import Args

STATE = "shared.json"
GONE_AFTER_S = 15.0
SAVE_EVERY_S = 5.0


class Shared:
    """The truth that replicas exchange with, in one call each."""

    def __init__(self, args: Args) -> None:
        self._store = Store(args.state_dir)
        self._named = _digest(args)
        self._ledger, self._registry = Ledger(), Registry()
        self._number = 0
        self._counts: dict[str, tuple[float, Mapping[str, Any]]] = {}
        self._gone: Mapping[str, Any] = metrics.Metrics().snapshot()
        self._quotas: dict[str, float] = {}
        self._saved_s = 0.0
        self._restore()

    def _restore(self) -> None:
        try:
            kept = json.loads(self._store.read_bytes(STATE))
        except (FileNotFoundError, ValueError, MedrayError):
            return
        self._ledger.restore(kept.get("spent", {}), kept.get("day", -1))
        # Started with other models, it is those that are wanted now.
        if kept.get("named") == self._named:
            self._registry.take(kept.get("models", {}))
            self._number = 1

    def _save(self) -> None:
        self._saved_s = time.monotonic()
        body = {
            "named": self._named, "models": self._registry.body(),
            "spent": self._ledger.spent(self._quotas), "day": self._ledger.day,
        }  # fmt: skip
        self._store.write_bytes(STATE, json.dumps(body).encode())

    def _keep(self) -> None:
        """Saves now and then; callers are not to suffer where that fails."""
        try:
            self._save()
        except MedrayError as error:
            log.warn("shared", f"what was spent of the day's quotas is not kept: {error}")

    def exchange(
        self, replica: str, asks: Exchange, counts: Mapping[str, Any] | None, known: int
    ) -> tuple[Granted, int, dict[str, Any] | None]:
        """What a replica may spend; the table's number, and the table unless `known` is that."""
        if counts is not None:
            self._counts[replica] = time.monotonic(), counts
        granted = self._ledger.exchange(replica, asks) if asks else {}
        self._quotas |= {name: ask["quota"] for name, ask in asks.items() if ask["quota"]}
        if self._quotas and time.monotonic() - self._saved_s > SAVE_EVERY_S:
            self._keep()
        table = None if known == self._number else self._registry.body()
        return granted, self._number, table

    def put(self, name: str, body: Mapping[str, Any], share: float) -> None:
        """Puts a model into the table; where that cannot be kept, nothing is changed."""
        before = self._registry.body()
        self._registry.put(name, Version.of(body), share)
        try:
            self._save()
        except MedrayError:
            self._registry.take(before)
            raise
        self._number += 1

    def counts(self, replica: str, own: Mapping[str, Any]) -> dict[str, Any]:
        """The sum of what all replicas said, the caller's new counts among it."""
        self._counts[replica] = time.monotonic(), own
        for name, (at_s, counts) in list(self._counts.items()):
            if time.monotonic() - at_s > GONE_AFTER_S:
                # What a lost replica counted stays counted; what it held is gone.
                left = metrics.without_gauges(counts)
                self._gone = metrics.total([self._gone, left]).snapshot()
                del self._counts[name]
        return metrics.total([self._gone, *(c for _, c in self._counts.values())]).snapshot()


def _digest(args: Args) -> str:
    named = sorted((name, repr(spec)) for name, spec in args.named().items())
    return hashlib.sha256(json.dumps(named).encode()).hexdigest()
