"""What a power cut would leave: the log of preload.c replayed onto a copy made before it began.

Strict, as POSIX allows: a file's bytes are safe after an fsync of the file, a name (made, renamed
or removed) after an fsync of its folder. What came later is lost (`seed=None`), or survives in
part: for each file and each folder a random number of its oldest unsafe changes.
"""

from __future__ import annotations

import random
import shutil
import struct
from dataclasses import dataclass, field
from pathlib import Path

WRITE, CREATE, TRUNCATE, RENAME, UNLINK, MKDIR, RMDIR, FSYNC = range(1, 9)
HEAD = struct.Struct("=6Q")


@dataclass
class File:
    """Safe bytes, and the changes made since."""

    safe: bytes = b""
    pending: list[tuple[int, int, bytes]] = field(default_factory=list)

    def after(self, count: int) -> bytes:
        """The bytes with the first `count` pending changes."""
        data = bytearray(self.safe)
        for kind, offset, new in self.pending[:count]:
            if kind == WRITE:
                data.extend(bytes(max(0, offset + len(new) - len(data))))
                data[offset : offset + len(new)] = new
            else:
                data = data[:offset] + bytes(max(0, offset - len(data)))
        return bytes(data)

    def sync(self) -> None:
        """Makes all bytes safe."""
        self.safe, self.pending = self.after(len(self.pending)), []


@dataclass
class Folder:
    """Safe names, names as the process saw them, and the changes between the two."""

    safe: dict[str, Node] = field(default_factory=dict)
    now: dict[str, Node] = field(default_factory=dict)
    pending: list[dict[str, Node | None]] = field(default_factory=list)

    def change(self, names: dict[str, Node | None]) -> None:
        """Sets and removes names, as one change."""
        _apply(self.now, names)
        self.pending.append(names)

    def sync(self) -> None:
        """Makes all names safe."""
        self.safe, self.pending = dict(self.now), []

    def after(self, count: int) -> dict[str, Node]:
        """The names with the first `count` pending changes."""
        names = dict(self.safe)
        for change in self.pending[:count]:
            _apply(names, change)
        return names


Node = File | Folder


def _apply(names: dict[str, Node], change: dict[str, Node | None]) -> None:
    for name, node in change.items():
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node


def _loaded(path: Path) -> Node:
    if path.is_file():
        return File(path.read_bytes())
    names = {child.name: _loaded(child) for child in path.iterdir()}
    return Folder(dict(names), dict(names))


class Disk:
    """The folder `prefix` as it was in the copy `before`, then changed as the log says."""

    def __init__(self, prefix: Path, before: Path) -> None:
        self.prefix = str(prefix.resolve())
        root = _loaded(before)
        assert isinstance(root, Folder), f"{before} must be a folder"
        self.root = root

    def _find(self, path: str) -> Node:
        node: Node = self.root
        for name in path.removeprefix(self.prefix).strip("/").split("/"):
            if name:
                assert isinstance(node, Folder), f"{path} lies below a file"
                node = node.now[name]
        return node

    def _place(self, path: str) -> tuple[Folder, str]:
        parent, _, name = path.rpartition("/")
        folder = self._find(parent)
        assert isinstance(folder, Folder), f"{parent} is a file"
        return folder, name

    def replay(self, log: Path) -> Disk:
        """Does what the log says."""
        data = log.read_bytes() if log.exists() else b""
        place = 0
        while place < len(data):
            kind, first, second, offset, _, count = HEAD.unpack_from(data, place)
            place += HEAD.size
            path = data[place : place + first].decode()
            other = data[place + first : place + first + second].decode()
            place += first + second
            self._do(kind, path, other, offset, data[place : place + count])
            place += count
        return self

    def _do(self, kind: int, path: str, other: str, offset: int, data: bytes) -> None:
        if kind == FSYNC:
            self._find(path).sync()
        elif kind in (WRITE, TRUNCATE):
            file = self._find(path)
            assert isinstance(file, File), f"{path} is a folder"
            file.pending.append((kind, offset, data))
        elif kind == RENAME:
            self._rename(path, other)
        else:
            folder, name = self._place(path)
            made = {CREATE: File, MKDIR: Folder}
            folder.change({name: made[kind]() if kind in made else None})

    def _rename(self, path: str, other: str) -> None:
        (old, name), (new, new_name) = self._place(path), self._place(other)
        node = old.now[name]
        if old is new:
            old.change({name: None, new_name: node})
        else:
            # Two changes: a cut between them may leave both names, as POSIX allows.
            new.change({new_name: node})
            old.change({name: None})

    def write(self, out: Path, seed: int | None = None, *, everything: bool = False) -> Path:
        """Writes what a cut leaves (or, to check the log, everything) as the folder `out`."""
        shutil.rmtree(out, ignore_errors=True)
        draw = None if seed is None else random.Random(seed)
        _write(self.root, out, draw, everything)
        return out


def _write(node: Node, path: Path, draw: random.Random | None, everything: bool) -> None:
    count = len(node.pending) if everything else 0
    if draw is not None:
        count = draw.randint(0, len(node.pending))
    if isinstance(node, File):
        path.write_bytes(node.after(count))
        return
    path.mkdir()
    for name, child in sorted(node.after(count).items()):
        _write(child, path / name, draw, everything)
