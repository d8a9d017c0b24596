"""A folder, or a prefix of an object store, behind one small interface (fsspec underneath).

What is written appears whole or not at all, and survives a power cut: `.part`, fsync, rename,
fsync of the folder; on an object store a single PUT.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from pathlib import Path
from typing import IO, Any

from medray._parts import PART, open_part, part_path
from medray.errors import ResourceError, UsageError

__all__ = ["PART", "RETRY_DELAYS_S", "Store", "fsync_folder", "make_folder"]
# An object store that answers 503, resets a connection or sends too few bytes is asked again.
RETRY_DELAYS_S = (0.1, 0.3, 0.9, 2.7)


def fsync_folder(folder: Path) -> None:
    """Makes the names in `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(folder: Path) -> None:
    """Makes a folder and its parents, durably."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for new in reversed(missing):
        new.mkdir(exist_ok=True)
        fsync_folder(new.parent)


class Store:
    """A root (path or URL) and the objects below it; names are relative, with `/` between parts."""

    def __init__(self, url: str | Path) -> None:
        text = str(url)
        if text.startswith("file://"):
            text = text.removeprefix("file://")
        self.is_local = "://" not in text
        self.url = str(Path(text).absolute()) if self.is_local else text.rstrip("/")
        remote = (None, "") if self.is_local else _filesystem(self.url)
        self._fs: Any = remote[0]
        self._root: str = remote[1]

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    def child(self, name: str) -> Store:
        """The store below `name`."""
        return Store(f"{self.url}/{name}")

    def path(self, name: str = "") -> Path:
        """The path of `name`; only in a local store."""
        assert self.is_local, f"{self.url} is not a folder"
        return Path(self.url, name) if name else Path(self.url)

    def _remote(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def exists(self, name: str = "") -> bool:
        """Whether `name` exists."""
        if self.is_local:
            return self.path(name).exists()
        return bool(self._call("exists", self._remote(name)))

    def size(self, name: str) -> int:
        """Size of `name` in bytes."""
        if self.is_local:
            return self.path(name).stat().st_size
        return int(self._call("size", self._remote(name)))

    def open(self, name: str) -> IO[bytes]:
        """Opens `name` for reading."""
        if self.is_local:
            return self.path(name).open("rb")
        opened: IO[bytes] = self._call("open", self._remote(name), "rb")
        return opened

    def read_bytes(self, name: str) -> bytes:
        """All of `name`; FileNotFoundError where it is absent."""
        if self.is_local:
            return self.path(name).read_bytes()
        for delay_s in (*RETRY_DELAYS_S, None):
            data = bytes(self._call("cat_file", self._remote(name)))
            size = self.size(name)
            # Some clients hand on what came before a connection broke, in silence.
            if len(data) == size:
                break
            if delay_s is None:
                raise ResourceError(f"{self.url}/{name} has {size} bytes, {len(data)} arrived")
            time.sleep(delay_s)
        return data

    def read_range(self, name: str, start: int, length: int) -> bytes:
        """`length` bytes of `name` from byte `start`; fewer at its end."""
        if self.is_local:
            with self.path(name).open("rb") as file:
                file.seek(start)
                return file.read(length)
        return bytes(self._call("cat_file", self._remote(name), start=start, end=start + length))

    def write_bytes(self, name: str, data: bytes) -> None:
        """Publishes `data` under `name`: whole or not at all."""
        if not self.is_local:
            self._call("pipe_file", self._remote(name), data)
            return
        target = self.path(name)
        part = part_path(target)
        try:
            make_folder(target.parent)
            with open_part(part) as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                os.replace(part, target)
            fsync_folder(target.parent)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise ResourceError(f"cannot write {target}: {error.strerror}") from error

    def publish(self, local_path: Path, name: str) -> None:
        """Publishes a finished local file under `name` and removes it from where it was."""
        if not self.is_local:
            self._call("put_file", str(local_path), self._remote(name))
            local_path.unlink()
            return
        target = self.path(name)
        try:
            make_folder(target.parent)
            with local_path.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(local_path, target)
            fsync_folder(target.parent)
        except OSError as error:
            raise ResourceError(f"cannot write {target}: {error.strerror}") from error

    def names(self, prefix: str = "") -> list[str]:
        """Sorted names of all objects whose name starts with `prefix`, unfinished ones left out."""
        if self.is_local:
            base = self.path(prefix.rpartition("/")[0])
            found = [p.relative_to(self.url).as_posix() for p in base.rglob("*") if p.is_file()]
        else:
            found = self._remote_names(prefix.rpartition("/")[0])
        return sorted(n for n in found if n.startswith(prefix) and not n.endswith(PART))

    def _remote_names(self, folder: str) -> list[str]:
        try:
            found = self._call("find", self._remote(folder))
        except FileNotFoundError:
            return []
        cut = len(self._root.rstrip("/")) + 1
        return [str(path)[cut:] for path in found]

    def remove(self, name: str) -> None:
        """Removes `name`; nothing happens where it is absent."""
        if self.is_local:
            try:
                self.path(name).unlink(missing_ok=True)
            except OSError as error:
                raise _not_removed(self.path(name), error) from error
        elif self.exists(name):
            # An answer that was lost is asked for again: then it is gone already.
            with contextlib.suppress(FileNotFoundError):
                self._call("rm_file", self._remote(name))

    def remove_tree(self, name: str = "") -> None:
        """Removes everything below `name`."""
        if self.is_local:
            try:
                if self.path(name).exists():
                    shutil.rmtree(self.path(name))
            except OSError as error:
                raise _not_removed(self.path(name), error) from error
        elif self.exists(name):
            with contextlib.suppress(FileNotFoundError):
                self._call("rm", self._remote(name), recursive=True)

    def _call(self, method: str, *arguments: Any, **named: Any) -> Any:
        """One call, repeated while the network fails; FileNotFoundError or ResourceError."""
        for delay_s in (*RETRY_DELAYS_S, None):
            try:
                return getattr(self._fs, method)(*arguments, **named)
            except FileNotFoundError:
                raise
            except (OSError, ValueError, RuntimeError) as error:
                lasting = isinstance(error, PermissionError) or not isinstance(error, OSError)
                if lasting or delay_s is None:
                    raise ResourceError(
                        f"the store {self.url} failed at {method}: {type(error).__name__}: {error}",
                        hint="the store may be unreachable for a while: the same command goes on",
                    ) from error
            time.sleep(delay_s)
        raise AssertionError("the last attempt returns or raises")


def _not_removed(path: Path, error: OSError) -> ResourceError:
    return ResourceError(f"cannot remove {path}: {error.strerror}")


def _filesystem(url: str) -> tuple[Any, str]:
    import fsspec

    try:
        filesystem, root = fsspec.core.url_to_fs(url)
    except (ValueError, ImportError, OSError) as error:
        raise UsageError(
            f"cannot open {url}: {error}",
            hint="give a folder or a URL such as file://, memory://, s3:// (s3 needs medray[s3])",
        ) from error
    # Object stores answer from a listing made earlier unless told not to.
    if hasattr(filesystem, "use_listings_cache"):
        filesystem.use_listings_cache = False
    return filesystem, str(root).rstrip("/")
