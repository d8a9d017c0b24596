"""Checkpoints of a run: `checkpoints/<images>/` with state.safetensors, state.json, manifest.json.

The manifest holds size and SHA-256 of the other two and is written last, so a checkpoint exists
whole or not at all, on a folder and on an object store alike. Nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from medray import log
from medray._parts import part_path
from medray._tensors import Tensors, read_tensors, write_tensors
from medray.errors import DataError, ResourceError
from medray.lease import Lease
from medray.store import Store, fsync_folder, make_folder

FOLDER = "checkpoints"
MANIFEST, TENSORS, STATE = "manifest.json", "state.safetensors", "state.json"
SCHEMA, STATE_SCHEMA = "medray.checkpoint/1", "medray.state/1"
CHUNK_BYTES = 2**22
REREADS = 4


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint whose digests agree; the best have the lowest `score`.

    One saved in `passing`, because a run was asked to stop, is no more than a place to go on from.
    """

    images: int
    epoch: int
    score: float | None
    files: dict[str, dict[str, Any]]
    passing: bool = False


class Damaged(DataError):
    """A checkpoint with a manifest that its files do not agree with."""


class Checkpoints:
    """The checkpoints of a run folder. Without a lease (None) they can be read only."""

    def __init__(self, store: Store, lease: Lease | None) -> None:
        self.store, self.lease = store, lease

    def save(
        self, images: int, tensors: Tensors, state: Mapping[str, Any], *, passing: bool = False
    ) -> None:
        """Publishes a checkpoint: afterwards there is it or, after a fault, what was there before.

        LeaseLost where another start or writer owns the folder by now; then nothing is published.
        """
        assert self.lease is not None, "a checkpoint is saved by a holder of the run folder's lease"
        self.lease.check()
        folder = _folder(images)
        body = {"schema": STATE_SCHEMA, "images": images, **state}
        data = json.dumps(body, indent=1, allow_nan=False).encode()
        with tempfile.TemporaryDirectory() as spare:
            path = self._part(folder, Path(spare))
            files = {TENSORS: _written(path, tensors), STATE: _digest(data)}
            if self._is_there(images, files):
                path.unlink()
                return
            # What is here has other contents: it must stop counting before its files change. Much
            # time may have gone by, and another writer may have come.
            self.lease.check()
            self.store.remove(f"{folder}/{MANIFEST}")
            self.store.publish(path, f"{folder}/{TENSORS}")
        self.store.write_bytes(f"{folder}/{STATE}", data)
        manifest = {
            "schema": SCHEMA,
            "images": images,
            "epoch": self.lease.epoch,
            "score": state.get("score"),
            "files": files,
            **({"passing": True} if passing else {}),
        }
        self.lease.check()
        self.store.write_bytes(f"{folder}/{MANIFEST}", json.dumps(manifest, indent=1).encode())

    def _part(self, folder: str, spare: Path) -> Path:
        """Where the tensors are written first: in a folder, beside the name they will get."""
        if not self.store.is_local:
            return spare / TENSORS
        try:
            make_folder(self.store.path(folder))
        except OSError as error:
            raise _not_written(self.store.path(folder), error) from error
        return part_path(self.store.path(f"{folder}/{TENSORS}"))

    def _is_there(self, images: int, files: dict[str, dict[str, Any]]) -> bool:
        try:
            return self.at(images).files == files
        except (FileNotFoundError, Damaged):
            return False

    def complete(self) -> list[int]:
        """Images of the checkpoints that have a manifest, in order."""
        names = self.store.names(f"{FOLDER}/")
        return sorted(
            int(name.split("/")[1])
            for name in names
            if name.endswith(f"/{MANIFEST}") and name.split("/")[1].isdigit()
        )

    def at(self, images: int) -> Checkpoint:
        """The checkpoint at `images`, its digests checked; Damaged or FileNotFoundError."""
        manifest = self._manifest(images)
        for name, wanted in manifest.files.items():
            self._steadily(self._verify, f"{_folder(images)}/{name}", wanted)
        return manifest

    def _steadily(self, verify: Callable[[str, dict[str, Any]], None], *arguments: Any) -> None:
        """On an object store a read may break off: only what is wrong each time is damage."""
        for _ in range(0 if self.store.is_local else REREADS):
            try:
                return verify(*arguments)
            except (Damaged, OSError):
                continue
        verify(*arguments)

    def newest(self) -> Checkpoint | None:
        """The newest sound checkpoint, or None where there is none at all.

        A damaged one is passed over with a warning; where all are damaged that is a DataError: to
        start from nothing again is the user's choice.
        """
        damaged: list[str] = []
        for images in reversed(self.complete()):
            try:
                return self.at(images)
            except Damaged as error:
                damaged.append(f"{error.where}: {error.message}")
                log.warn("checkpoint_damaged", f"{damaged[-1]}; trying the one before")
        if damaged:
            raise DataError(
                f"no checkpoint of {self.store.url} is sound: {'; '.join(damaged)}",
                code="MR-D040",
                where=self.store.url,
                hint="restore the files from a copy, or start again with --overwrite",
            )
        return None

    def _manifest(self, images: int) -> Checkpoint:
        where = f"{_folder(images)}/{MANIFEST}"
        content = _json(self.store.read_bytes(where), where)
        _check_schema(content, SCHEMA, where)
        try:
            files = {name: dict(content["files"][name]) for name in (TENSORS, STATE)}
            found = Checkpoint(
                int(content["images"]),
                int(content["epoch"]),
                content["score"],
                files,
                content.get("passing") is True,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged(f"lacks or garbles {error}", where) from None
        if found.images != images:
            raise _damaged(f"says {found.images} images, its folder {images}", where)
        return found

    def _verify(self, name: str, wanted: dict[str, Any]) -> None:
        try:
            with self.store.open(name) as file:
                found = _digest_of(file)
        except FileNotFoundError:
            raise _damaged("is missing", name) from None
        for what in ("bytes", "sha256"):
            if found[what] != wanted.get(what):
                raise _damaged(f"{what} must be {wanted.get(what)}, got {found[what]}", name)

    def load(
        self,
        checkpoint: Checkpoint,
        *,
        as_numpy: bool = False,
        expect: Mapping[str, Sequence[int]] | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Tensors by name (torch on the CPU, or NumPy) and the state.

        `expect` maps each name to its shape: what is missing, unexpected or of another shape is a
        DataError that lists it.
        """
        folder = _folder(checkpoint.images)
        data = self.store.read_bytes(f"{folder}/{TENSORS}")
        if _digest(data) != checkpoint.files[TENSORS]:
            raise _damaged("changed while it was read", f"{folder}/{TENSORS}")
        try:
            tensors = read_tensors(data, as_numpy)
        except ValueError as error:
            raise _damaged(f"these are no tensors ({error})", f"{folder}/{TENSORS}") from error
        if expect is not None:
            check_tensors(tensors, expect, f"{self.store.url}/{folder}/{TENSORS}")
        state = _json(self.store.read_bytes(f"{folder}/{STATE}"), f"{folder}/{STATE}")
        _check_schema(state, STATE_SCHEMA, f"{folder}/{STATE}")
        return tensors, {name: value for name, value in state.items() if name != "schema"}

    def prune(self, keep_last: int, keep_best: int = 0) -> None:
        """Removes all but the newest `keep_last` (1 at least) and the `keep_best` of lowest score.

        One saved in passing is kept as long as it is the newest, and counts for no other then. Of
        each the manifest goes first, so that what a fault leaves is no checkpoint.
        """
        assert self.lease is not None, "checkpoints are removed by a holder of the lease"
        self.lease.check()
        complete = self.complete()
        newest = complete[-1] if complete else -1
        found = {images: self._told(images) for images in complete}
        usual = [n for n in complete if n == newest or not ((m := found[n]) and m.passing)]
        scored = sorted(
            (float(m.score), n) for n in usual if (m := found[n]) and m.score is not None
        )
        keep = set(usual[-max(keep_last, 1) :]) | {n for _, n in scored[:keep_best]}
        present = {name.split("/")[1] for name in self._all_names()}
        for folder in sorted(name for name in present if name.isdigit()):
            images = int(folder)
            # Beyond the newest there may be one in the making.
            if images not in keep and images <= newest:
                self._remove(f"{FOLDER}/{folder}")

    def _remove(self, folder: str) -> None:
        self.store.remove(f"{folder}/{MANIFEST}")
        if not self.store.is_local:
            self.store.remove_tree(folder)
            return
        # Durable in this order, or a power cut could leave a manifest without its files.
        fsync_folder(self.store.path(folder))
        self.store.remove_tree(folder)
        fsync_folder(self.store.path(FOLDER))

    def _all_names(self) -> list[str]:
        if not self.store.is_local:
            return self.store.names(f"{FOLDER}/")
        base = self.store.path(FOLDER)
        return [f"{FOLDER}/{path.name}" for path in base.iterdir()] if base.exists() else []

    def _told(self, images: int) -> Checkpoint | None:
        """What a manifest says; None, with a warning, where it is damaged."""
        try:
            return self._manifest(images)
        except DataError as error:
            log.warn("checkpoint_damaged", str(error))
            return None


def _folder(images: int) -> str:
    return f"{FOLDER}/{images:010d}"


def _damaged(text: str, where: str) -> Damaged:
    return Damaged(text, code="MR-D043", where=where, hint="an older checkpoint may be sound")


def _json(data: bytes, where: str) -> dict[str, Any]:
    try:
        content = json.loads(data)
    except ValueError as error:
        raise _damaged(f"is not JSON ({error})", where) from None
    if not isinstance(content, dict):
        raise _damaged(f"must hold an object, got {type(content).__name__}", where)
    return content


def _check_schema(content: dict[str, Any], known: str, where: str) -> None:
    found = content.get("schema")
    if found != known:
        raise DataError(
            f"schema must be {known!r}, got {found!r}",
            code="MR-D044",
            where=where,
            hint="use the version of medray that wrote it",
        )


def check_tensors(tensors: Tensors, expect: Mapping[str, Sequence[int]], where: str) -> None:
    """DataError that lists every tensor that is missing, unexpected or of another shape."""
    wrong = [f"missing {name} {tuple(expect[name])}" for name in sorted(set(expect) - set(tensors))]
    wrong += [f"unexpected {name}" for name in sorted(set(tensors) - set(expect))]
    for name in sorted(set(tensors) & set(expect)):
        found = tuple(tensors[name].shape)
        if found != tuple(expect[name]):
            wrong.append(f"{name} must have shape {tuple(expect[name])}, got {found}")
    if wrong:
        more = f" and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise DataError(
            f"the checkpoint does not fit the networks: {'; '.join(wrong[:8])}{more}",
            code="MR-D045",
            where=where,
            hint="resolution, width, channels and engine must be those that it was saved with",
        )


# --- bytes ---


def _digest(data: bytes) -> dict[str, Any]:
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _digest_of(file: IO[bytes]) -> dict[str, Any]:
    digest, size = hashlib.sha256(), 0
    while chunk := file.read(CHUNK_BYTES):
        digest.update(chunk)
        size += len(chunk)
    return {"bytes": size, "sha256": digest.hexdigest()}


def _not_written(path: Path, error: OSError) -> ResourceError:
    return ResourceError(
        f"cannot write {path}: {error.strerror}",
        hint="the checkpoints that were there are as they were; make room, then --resume goes on",
    )


def _written(path: Path, tensors: Tensors) -> dict[str, Any]:
    """`write_tensors`; where it cannot, nothing stays and ResourceError says why."""
    try:
        return write_tensors(path, tensors)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise _not_written(path, error) from error
