"""Pure functions as Ray tasks, a bounded number at a time."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from medray.errors import MedrayError, ResourceError

R = TypeVar("R")


def run_tasks(
    function: Callable[..., R], tasks: Sequence[tuple[Any, ...]], workers: int
) -> Iterator[tuple[int, R]]:
    """(number, result) of each task as it ends; `workers` at a time, -1: one per CPU there is.

    A worker that dies is replaced and its task done again, which gives the same bytes. Errors of
    medray come through as they are; ResourceError where Ray itself fails.
    """
    import ray

    _join(workers)
    at_a_time = workers if workers > 0 else max(1, int(ray.cluster_resources().get("CPU", 1)))
    remote = _remote(function)
    waiting = list(enumerate(tasks))[::-1]
    running: dict[Any, int] = {}
    try:
        while waiting or running:
            while waiting and len(running) < at_a_time:
                number, task = waiting.pop()
                running[remote.remote(*task)] = number
            ended, _ = ray.wait(list(running), num_returns=1)
            yield running.pop(ended[0]), _result(ended[0])
    finally:
        for left in running:
            ray.cancel(left)


@functools.cache
def _remote(function: Callable[..., Any]) -> Any:
    """The function as Ray knows it; made once, since each one is sent to every worker."""
    import ray

    return ray.remote(num_cpus=1, max_retries=3)(function)


def _join(workers: int) -> None:
    """Joins the Ray at RAY_ADDRESS, or starts one here."""
    import ray

    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS")
    try:
        ray.init(
            address=address or "local",
            logging_level=logging.WARNING,
            include_dashboard=None if address else False,
            num_cpus=None if address else max(workers, 1),
        )
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        where = f"reach Ray at {address}" if address else "start Ray here"
        raise ResourceError(f"cannot {where}: {error}".splitlines()[0]) from error


def _result(reference: Any) -> Any:
    import ray
    from ray.exceptions import RayError, RayTaskError

    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, MedrayError):
            raise error.cause from None
        raise
    except RayError as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ResourceError(
            f"Ray failed: {text}", hint="the same command goes on where it stopped"
        ) from error
