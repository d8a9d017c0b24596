"""Whole copies of remote shards on this machine, the least recently used removed past a limit.

Copies are named by what they hold, so that ranks of one machine can share a folder, and a set that
was packed again is never confused with what it was.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import tempfile
import weakref
from functools import cached_property
from pathlib import Path

from medray.errors import ResourceError
from medray.shards.reader import read_whole
from medray.store import PART, Store

CHUNK_BYTES = 1 << 24


class ShardCache:
    """Local copies below `folder`, or below a temporary folder that goes with this object."""

    def __init__(self, folder: str | Path | None, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self.lasting = folder is not None
        self._given = folder

    @cached_property
    def folder(self) -> Path:
        """The folder, made when it is first needed."""
        if self._given is None:
            folder = Path(tempfile.mkdtemp(prefix="medray-cache-"))
            weakref.finalize(self, shutil.rmtree, folder, True)
            return folder
        folder = Path(self._given)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def path(self, identity: str, suffix: str = ".tar") -> Path:
        """Where the copy of what `identity` names is, or would be."""
        return self.folder / (hashlib.sha256(identity.encode()).hexdigest()[:40] + suffix)

    def copy(self, store: Store, name: str, size: int, identity: str) -> Path:
        """The path of a whole copy of `name`, `size` bytes long; fetched if it is not there.

        FileNotFoundError if the store lacks it, ResourceError if the store or the disk fails.
        """
        target = self.path(identity)
        if target.exists() and target.stat().st_size == size:
            os.utime(target)
            return target
        part = target.with_name(f"{target.name}.{secrets.token_hex(4)}{PART}")
        try:
            with part.open("wb") as file:
                for start in range(0, size, CHUNK_BYTES):
                    file.write(read_whole(store, name, start, min(CHUNK_BYTES, size - start)))
            os.replace(part, target)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise ResourceError(
                f"cannot cache {name} in {self.folder}: {error.strerror}",
                hint="free space there, or give another --cache-dir",
            ) from error
        finally:
            part.unlink(missing_ok=True)
        self._trim(keep=target)
        return target

    def drop(self, identity: str) -> None:
        """Removes a copy, so that the next use fetches it again."""
        self.path(identity).unlink(missing_ok=True)

    def _trim(self, keep: Path) -> None:
        found = []
        for path in self.folder.glob("*.tar"):
            # Another rank may remove a copy between the listing and this look at it.
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            found.append((status.st_mtime, status.st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self._limit_bytes:
                return
            if path != keep:
                path.unlink(missing_ok=True)
                total -= size
