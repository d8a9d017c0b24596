"""The place of a job with --out: begun with a plan, gone on with where the plan agrees."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from medray._parts import remove_dead
from medray.errors import UsageError
from medray.store import Store, make_folder

PLAN = "plan.json"
# A lock of the process that writes; no part of the result.
LOCK = ".lock"

Facts = Mapping[str, Any]


def plan_hash(facts: Facts) -> str:
    """SHA-256 of what decides a result."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@contextlib.contextmanager
def alone(store: Store, what: str) -> Iterator[None]:
    """Keeps a second `what` out of a folder; the kernel frees it when this process ends.

    What writers that were killed left unfinished in it goes, before and after.
    """
    if not store.is_local:
        yield
        return
    make_folder(store.path())
    with open(store.path(LOCK), "wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(
                f"another {what} is writing to {store.url}",
                hint="wait for it, or take another --out",
            ) from None
        _remove_unfinished(store)
        yield
        _remove_unfinished(store)


def _remove_unfinished(store: Store) -> None:
    for folder, _, _ in os.walk(store.path()):
        remove_dead(Path(folder))


def start(store: Store, facts: Facts, *, what: str, done: str, overwrite: bool) -> bool:
    """Makes the place ready; whether there is nothing left to do, that is `done` is there.

    `what` is what the job makes. UsageError where something else is there, or another plan's.
    """
    there = [name for name in store.names() if name != LOCK]
    if overwrite and PLAN in there:
        # The plan last: what is left after a kill is still known for what it is.
        for name in sorted(there, key=lambda name: name == PLAN):
            store.remove(name)
        there = []
    if not there:
        body = {"hash": plan_hash(facts), "plan": dict(facts)}
        store.write_bytes(PLAN, (json.dumps(body, indent=1, sort_keys=True) + "\n").encode())
        return False
    try:
        held = json.loads(store.read_bytes(PLAN))
        before, held_hash = dict(held["plan"]), held["hash"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        raise UsageError(
            f"--out {store.url} is not empty and holds no {what} of this command",
            hint="take an empty place",
        ) from None
    if held_hash != plan_hash(facts):
        raise UsageError(
            f"--out {store.url} holds {what} of another plan: {_difference(before, facts)}",
            hint="take another --out, give the same flags, or --overwrite",
        )
    return done in there


def _difference(before: Facts, facts: Facts) -> str:
    return "; ".join(
        f"{name} was {before.get(name)!r}, is {facts.get(name)!r}"
        for name in sorted({*before, *facts})
        if before.get(name) != facts.get(name)
    )
