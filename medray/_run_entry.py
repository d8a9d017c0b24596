"""The way into a run folder: what it refuses, what it clears, and numbered names."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medray import _run_info
from medray.errors import ResourceError, UsageError
from medray.lease import FOLDER as LEASE_FOLDER
from medray.store import PART, Store

CONFIG = "config.yaml"


def check_entry(
    store: Store, given: dict[str, Any], resume: bool, overwrite: bool, may_change: frozenset[str]
) -> None:
    """UsageError unless the folder may be entered as asked; changes nothing."""
    if store.is_local and store.exists() and not store.path().is_dir():
        raise UsageError(f"--run-dir must be a folder, {store.url} is a file")
    if is_empty(store):
        return
    if not resume and not overwrite:
        raise UsageError(
            f"the run folder {store.url} is not empty",
            hint="--resume goes on with it, --overwrite empties it first, another --run-dir leaves "
            f"it as it is (with --init-from {store.url} to start from its weights)",
        )
    # What is to be emptied may be garbled.
    before = stored_config(store) if not overwrite else {} if store.exists(CONFIG) else None
    if before is None:
        raise UsageError(
            f"{store.url} is not empty and no run folder (it has no {CONFIG})",
            hint="give another --run-dir, or empty this folder yourself",
        )
    changed = _run_info.config_changes(before, given, may_change) if resume else []
    if changed:
        raise UsageError(
            f"the configuration differs from that of the run in {store.url}:\n    "
            + "\n    ".join(changed),
            hint="give the same values to resume it, or --overwrite, or another --run-dir with "
            f"--init-from {store.url}",
        )


def is_empty(store: Store) -> bool:
    """Whether there is nothing but the lease, empty folders and what a fault left unfinished."""
    if not store.is_local:
        return all(name.startswith(f"{LEASE_FOLDER}/") for name in store.names())
    for folder, folders, files in os.walk(store.path()):
        if any(not name.endswith(PART) for name in files):
            return False
        if Path(folder) == store.path() and LEASE_FOLDER in folders:
            folders.remove(LEASE_FOLDER)
    return True


def stored_config(store: Store) -> dict[str, Any] | None:
    """The run's configuration, None where there is none."""
    try:
        data = store.read_bytes(CONFIG)
    except FileNotFoundError:
        return None
    return _run_info.parsed(data, f"{store.url}/{CONFIG}")


def clear(store: Store) -> None:
    """Removes all but the lease; the configuration last, so that a fault leaves a run folder."""
    names = [name for name in store.names() if not name.startswith(f"{LEASE_FOLDER}/")]
    tops = sorted({name.split("/")[0] for name in names} - {CONFIG})
    for top in tops:
        if any(name.startswith(f"{top}/") for name in names):
            store.remove_tree(top)
        else:
            store.remove(top)
    store.remove(CONFIG)


def remove_parts(store: Store) -> None:
    """Removes what earlier writers, dead by now, left unfinished."""
    if store.is_local:
        for path in store.path().rglob(f"*{PART}"):
            store.remove(path.relative_to(store.path()).as_posix())


# --- numbered folders ---


def numbered(runs_dir: str, name: str) -> str:
    """Makes the next folder `runs_dir/00012-name` and points `runs_dir/latest` to it; its path.

    Numbers are never used twice, also when folders were removed or two commands start at once.
    """
    store = Store(runs_dir)
    if not store.is_local:
        raise UsageError(
            f"folders are numbered on a local disk only, got {runs_dir}", hint="give --run-dir URL"
        )
    base = store.path()
    try:
        base.mkdir(parents=True, exist_ok=True)
        with _counter(base) as number:
            path = base / f"{number:05d}-{name}"
            path.mkdir()
            _point(base / "latest", path.name)
    except OSError as error:
        raise ResourceError(f"cannot make a run folder in {base}: {error.strerror}") from error
    return str(path)


@contextlib.contextmanager
def _counter(base: Path) -> Iterator[int]:
    """The next number, held against other processes until the folder is there."""
    with (base / ".last").open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        text = file.read().strip()
        used = [int(p.name[:5]) for p in base.iterdir() if p.name[:5].isdigit() and p.is_dir()]
        number = max([int(text) if text.isdigit() else -1, *used]) + 1
        yield number
        file.truncate(0)
        file.write(f"{number}\n")


def _point(link: Path, target: str) -> None:
    """Makes `link` point to `target`, in one step."""
    new = link.with_name(f".latest.{os.getpid()}")
    new.unlink(missing_ok=True)
    new.symlink_to(target)
    os.replace(new, link)
