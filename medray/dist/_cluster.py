"""Ray itself: join the cluster of RAY_ADDRESS or start one here, and wait for its resources."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from medray import log
from medray.dist import _head
from medray.errors import ResourceError, UsageError

NOTICE_S = 10.0
# How long a cluster that grows may take to bring machines: minutes, where they are bought first.
WAIT = "MEDRAY_CLUSTER_WAIT_S"


def set_environment(more: dict[str, str]) -> None:
    """What Ray reads from the environment, unless the user has set it; call before `import ray`."""
    usual = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    for name, value in {**usual, **more}.items():
        os.environ.setdefault(name, value)
    if "ray" in sys.modules:
        # Ray read its authentication mode when it was imported.
        return
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    known = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS"} & set(os.environ)
    if os.environ["RAY_AUTH_MODE"] == "token" and not known and not _token_file().exists():
        # A token for this process and its children, so that none is left in the home folder.
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _token_file() -> Path:
    return Path.home() / ".ray" / "auth_token"


@contextlib.contextmanager
def connected() -> Iterator[bool]:
    """A connection to Ray while it lasts; gives whether the cluster is ours and so cannot grow.

    RAY_ADDRESS (set inside `ray job submit`) names the cluster; without it one is started on this
    machine, without a dashboard, and ended afterwards.
    """
    import ray

    if ray.is_initialized():
        yield False
        return
    ours = not os.environ.get("RAY_ADDRESS")
    _init(ours)
    address = ray.get_runtime_context().gcs_address
    try:
        with contextlib.nullcontext() if ours else _head.watched(address):
            yield ours
    finally:
        ray.shutdown()


def _init(ours: bool) -> None:
    import ray
    from ray.exceptions import AuthenticationError

    try:
        ray.init(
            address="local" if ours else os.environ["RAY_ADDRESS"],
            logging_level=logging.WARNING,
            include_dashboard=False if ours else None,
        )
    except (AuthenticationError, ConnectionError, OSError, RuntimeError, ValueError) as error:
        where = "start Ray here" if ours else f"reach Ray at {os.environ['RAY_ADDRESS']}"
        hint = "" if ours else "is it up, and is RAY_AUTH_TOKEN its token? `medray doctor` looks"
        raise ResourceError(f"cannot {where}: {error}".splitlines()[0], hint=hint) from error


def wait_for(bundles: list[dict[str, float]], *, can_grow: bool, timeout_s: float) -> None:
    """Returns once the cluster can hold all `bundles` at once; ResourceError after `timeout_s`.

    The bundles are asked for as a placement group, which an autoscaler sees and answers. Where the
    cluster can grow, MEDRAY_CLUSTER_WAIT_S makes the wait longer.
    """
    from ray.util import placement_group, remove_placement_group

    if can_grow:
        timeout_s = max(timeout_s, _patience_s())
    if not can_grow and _lacks(bundles):
        raise ResourceError(shortage(bundles), hint="ask for fewer workers or a larger cluster")
    group = placement_group(bundles, strategy="PACK")
    deadline, notice = time.monotonic() + timeout_s, time.monotonic() + NOTICE_S
    try:
        while not group.wait(max(0.1, min(NOTICE_S, deadline - time.monotonic()))):
            if time.monotonic() >= deadline:
                raise ResourceError(
                    f"{shortage(bundles)}; gave up after {timeout_s:.0f} s",
                    hint="ask for fewer workers, or free or enlarge the cluster",
                )
            if time.monotonic() >= notice:
                log.event("waiting", shortage(bundles))
                notice += NOTICE_S
            # A wait can end early where the cluster, as it is, can never hold them.
            time.sleep(0.1)
    finally:
        remove_placement_group(group)


def allowed_s(timeout_s: float) -> float:
    """How long workers may take to come: longer than `timeout_s` where the cluster buys machines.

    That holds for a group's later starts too: a lost machine is bought again.
    """
    return max(timeout_s, _patience_s()) if os.environ.get("RAY_ADDRESS") else timeout_s


def _patience_s() -> float:
    """Seconds that the environment allows; UsageError where it is no number."""
    given = os.environ.get(WAIT, "0")
    try:
        return float(given)
    except ValueError:
        raise UsageError(f"${WAIT} must be seconds, got {given!r}") from None


def _lacks(bundles: list[dict[str, float]]) -> bool:
    import ray

    total = ray.cluster_resources()
    return any(need > total.get(name, 0) for name, need in _needs(bundles).items())


def _needs(bundles: list[dict[str, float]]) -> dict[str, float]:
    names = sorted({name for bundle in bundles for name in bundle})
    return {name: sum(bundle.get(name, 0) for bundle in bundles) for name in names}


def shortage(bundles: list[dict[str, float]]) -> str:
    """In words: waiting for 8 CPU, cluster has 2 (1 free)."""
    import ray

    total, free = ray.cluster_resources(), ray.available_resources()
    return "; ".join(
        f"waiting for {need:g} {name}, cluster has {total.get(name, 0):g} "
        f"({free.get(name, 0):g} free)"
        for name, need in _needs(bundles).items()
    )
