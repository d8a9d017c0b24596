"""A folder, or a prefix of an object store, behind one small interface (fsspec underneath).

What is written appears whole or not at all, and survives a power cut: `.part`, fsync, rename,
fsync of the folder; on an object store a single PUT. A web server (https://) can be read only.

A store that does not answer, or not with what was asked for, is asked again for half a minute;
then it is a StoreOutage, which is never taken for something absent or damaged.
"""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import shutil
import time
from pathlib import Path
from typing import IO, Any, NoReturn

from medray import log
from medray._parts import PART, open_part, part_path
from medray._remote import WEB, WHOLE_OR_ERROR, kind_of, open_remote
from medray.errors import ResourceError, StoreOutage, UsageError

__all__ = ["PART", "RETRY_DELAYS_S", "Store", "fsync_folder", "make_folder", "pause"]
# An object store that answers 503, resets a connection or sends too few bytes is asked again.
RETRY_DELAYS_S = (0.1, 0.3, 0.9, 2.7, 8.1, 24.3)
# A person is told about waiting that they would notice.
LONG_S = 2.0
# What a file opened in an object store reads at a time, and objects that are removed in one call.
BUFFER_BYTES, REMOVED_AT_ONCE = 1 << 22, 1000


def pause(delay_s: float, url: str, why: object) -> None:
    """Waits before a store is asked again: many processes that it failed must not come at once."""
    if delay_s >= LONG_S:
        log.warn("store", f"the store {url} is asked again in {delay_s:.0f} s: {why}", store=url)
    time.sleep(delay_s * (0.75 + secrets.randbelow(1000) / 2000))


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
        remote = (None, "") if self.is_local else open_remote(self.url)
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
        size = self._call("size", self._remote(name))
        if size is None:
            raise ResourceError(
                f"{self.url}/{name}: the server does not say how many bytes it has",
                hint="serve the files as they are: no compression, no pages made on the way",
            )
        return int(size)

    def open(self, name: str) -> IO[bytes]:
        """Opens `name` for reading."""
        if self.is_local:
            return self.path(name).open("rb")
        raw = _RemoteFile(self, name, self.size(name))
        return io.BufferedReader(raw, BUFFER_BYTES)

    def read_bytes(self, name: str) -> bytes:
        """All of `name`; FileNotFoundError where it is absent."""
        if self.is_local:
            return self.path(name).read_bytes()
        for delay_s in (*RETRY_DELAYS_S, None):
            data = bytes(self._call("cat_file", self._remote(name)))
            if self.url.startswith(WHOLE_OR_ERROR):
                break
            # Some clients hand on what came before a connection broke, in silence.
            size = self.size(name)
            if len(data) == size:
                break
            what = f"{self.url}/{name} has {size} bytes, {len(data)} arrived"
            if delay_s is None:
                raise _outage(what)
            pause(delay_s, self.url, what)
        return data

    def read_range(self, name: str, start: int, length: int) -> bytes:
        """`length` bytes of `name` from byte `start`; fewer at its end."""
        if self.is_local:
            with self.path(name).open("rb") as file:
                file.seek(start)
                return file.read(length)
        if length <= 0:
            return b""
        return bytes(self._call("cat_file", self._remote(name), start=start, end=start + length))

    def read_whole(self, name: str, start: int, length: int) -> bytes:
        """`length` bytes of `name` from byte `start`, as `read_range`, asked for until all came.

        Fewer where the store says itself that it has no more; StoreOutage where they do not come.
        """
        for delay_s in (*RETRY_DELAYS_S, None):
            data = self.read_range(name, start, length)
            if len(data) == length or len(data) == max(0, self.size(name) - start):
                return data
            what = f"{self.url}/{name}: of {length} bytes from {start} {len(data)} arrived"
            if delay_s is not None:
                pause(delay_s, self.url, what)
        raise _outage(what)

    def write_bytes(self, name: str, data: bytes) -> None:
        """Publishes `data` under `name`: whole or not at all."""
        if not self.is_local:
            self._write("pipe_file", self._remote(name), data)
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
            self._write("put_file", str(local_path), self._remote(name))
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
        self._check_writable()
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
        self._check_writable()
        if self.is_local:
            try:
                if self.path(name).exists():
                    shutil.rmtree(self.path(name))
            except OSError as error:
                raise _not_removed(self.path(name), error) from error
            return
        for _ in (*RETRY_DELAYS_S, None):
            found = self._remote_names(name)
            if not found:
                return
            for at in range(0, len(found), REMOVED_AT_ONCE):
                some = [self._remote(one) for one in found[at : at + REMOVED_AT_ONCE]]
                # What is gone already was removed by an answer that was lost.
                with contextlib.suppress(FileNotFoundError):
                    self._call("rm", some)
        raise ResourceError(f"cannot remove {len(found)} objects below {self.url}/{name}")

    def _check_writable(self) -> None:
        if self.url.startswith(WEB):
            raise UsageError(
                f"{self.url} is a web server: it can be read only",
                hint="write to a folder or an object store, and serve that",
            )

    def _write(self, method: str, *arguments: Any) -> None:
        self._check_writable()
        try:
            self._call(method, *arguments)
        except FileNotFoundError as error:
            raise ResourceError(
                f"cannot write to {self.url}: {error}",
                hint="make the bucket first, or mend its name",
            ) from error

    def _call(self, method: str, *arguments: Any, **named: Any) -> Any:
        """One call, repeated while the store fails; FileNotFoundError or ResourceError."""
        for delay_s in (*RETRY_DELAYS_S, None):
            try:
                return getattr(self._fs, method)(*arguments, **named)
            except Exception as error:
                kind = kind_of(error)
                if kind is None:
                    raise
                if kind == "beyond":
                    return b""
                if kind != "passing" or delay_s is None:
                    self._fail(method, kind, error)
                why = _words(error)
            pause(delay_s, self.url, why)
        raise AssertionError("the last attempt returns or raises")

    def _fail(self, method: str, kind: str, error: Exception) -> NoReturn:
        if kind == "absent":
            raise error if isinstance(error, FileNotFoundError) else FileNotFoundError(str(error))
        what = f"the store {self.url} failed at {method}: {_words(error)}"
        if kind == "passing":
            raise _outage(what) from error
        hint = "its keys, their rights, its name and its certificate must be right"
        raise ResourceError(what, hint=hint) from error


class _RemoteFile(io.RawIOBase):
    """An object read by ranges, each of them whole."""

    def __init__(self, store: Store, name: str, size: int) -> None:
        super().__init__()
        self._store, self._name, self._size, self._at = store, name, size, 0

    def readable(self) -> bool:
        """As a file's."""
        return True

    def seekable(self) -> bool:
        """As a file's."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As a file's."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        """As a file's; StoreOutage where bytes do not come."""
        length = min(len(buffer), max(0, self._size - self._at))
        data = self._store.read_whole(self._name, self._at, length) if length else b""
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def _words(error: BaseException) -> str:
    # Where something is called absent, what it was called so for says more.
    found = error.__cause__ if isinstance(error, FileNotFoundError) else None
    return f"{type(found or error).__name__}: {found or error}"


def _outage(what: str) -> StoreOutage:
    return StoreOutage(
        what, hint="the store may be unreachable for a while: the same command goes on"
    )


def _not_removed(path: Path, error: OSError) -> ResourceError:
    return ResourceError(f"cannot remove {path}: {error.strerror}")
