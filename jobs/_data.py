"""What jobs that train share: where runs go, and phantoms where no data is given."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from medray import config as configuration
from medray.errors import ResourceError
from medray.store import Store


def runs_dir() -> str:
    """Where numbered run folders are made."""
    return configuration.absolute(os.environ.get("MEDRAY_RUNS_DIR", "runs"))


def source_name(data: tuple[str, ...], phantoms: str) -> str:
    """What to call the data in a folder's name."""
    return Path(data[0].rstrip("/")).name if data else phantoms


def sources_of(
    data: tuple[str, ...],
    *,
    phantoms: str,
    count: int,
    size_px: int,
    seed: int,
    cache_dir: str | None,
) -> tuple[str, ...]:
    """The sets to train on; where none is given phantoms, made once, in the cache."""
    if data:
        return data
    cache = Path(cache_dir or os.environ.get("MEDRAY_CACHE_DIR") or _default_cache())
    name = f"phantoms-{phantoms}-{size_px}px-{count}-{seed}"
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(
            f"cannot make the cache {cache}: {error.strerror}", hint="give another --cache-dir"
        ) from error
    # Ranks of one machine share the cache: the first makes the set, the others wait for it.
    with (cache / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        url = str(cache / name)
        if not Store(url).exists("index.json"):
            _make(url, name, phantoms, count, size_px, seed)
    return (url,)


def _make(url: str, name: str, kind: str, count: int, size_px: int, seed: int) -> None:
    from medray import phantoms, shards

    samples = phantoms.dataset(kind, seed, count, size_px)
    shards.write_set(
        url, samples, name=name, classes=phantoms.CLASSES[kind], size_px=size_px, encoding="raw"
    )


def _default_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(base).expanduser() / "medray"
