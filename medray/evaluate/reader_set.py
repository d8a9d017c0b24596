"""A blinded set for a reader study: what a reader may see, and apart from it the truth.

    study.json          mode, classes, size, the items in the order of their opaque ids
    images/<id>.npy     every image of the same shape, type and length in bytes
    truth.json          which are synthetic, labels, sources, which item repeats which

`study.json` is written last. Nothing but the report, and training with feedback, reads the truth.

Shape letters: H and W pixels, N items.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from medray import rng
from medray.errors import DataError
from medray.store import Store

SCHEMA = "medray.readers/1"
STUDY, TRUTH = "study.json", "truth.json"
IMAGES = "images"
Mode = Literal["feedback", "rating", "2afc"]
MODES: tuple[Mode, ...] = ("feedback", "rating", "2afc")
# Five points from surely real to surely synthetic.
POINTS, MIDDLE = 5, 3.0
ID = re.compile(r"[0-9a-f]{16}")

Image = npt.NDArray[Any]


@dataclass(frozen=True)
class Item:
    """One question: an image, or a pair of them (left, right), by opaque ids."""

    id: str
    images: tuple[str, ...]


@dataclass(frozen=True)
class Known:
    """The truth of an item: per image 1 where synthetic, its label, where it comes from.

    `repeats` names the item that shows the same once more.
    """

    synthetic: tuple[int, ...]
    labels: tuple[str | None, ...]
    sources: tuple[str, ...]
    repeats: str | None = None

    @property
    def answer(self) -> int:
        """1 for a synthetic image; of a pair, 1 where the right one is synthetic."""
        return self.synthetic[-1]

    @property
    def label(self) -> str | None:
        """The label of the image; of a pair none is asked for."""
        return self.labels[0] if len(self.labels) == 1 else None


@dataclass(frozen=True)
class ReaderSet:
    """An opened set, without the truth; `sha256` is that of study.json."""

    store: Store
    name: str
    mode: Mode
    classes: tuple[str, ...]
    size_px: int
    bits: int
    seed: int
    items: tuple[Item, ...]
    image_sha256: Mapping[str, str]
    truth_sha256: str
    sha256: str

    @classmethod
    def open(cls, url: str) -> ReaderSet:
        """The set at a folder or URL; DataError where it is not one that can be read."""
        store = Store(url)
        where = f"{store.url}/{STUDY}"
        try:
            data = store.read_bytes(STUDY)
            fields = json.loads(data)
            schema = fields["schema"]
            if schema != SCHEMA:
                raise DataError(f"schema {schema!r}, {SCHEMA} is read", code="MR-D020", where=where)
            items = tuple(Item(i["id"], tuple(i["images"])) for i in fields["items"])
            made = cls(
                store,
                name=fields["name"],
                mode=fields["mode"],
                classes=tuple(fields["classes"]),
                size_px=fields["size_px"],
                bits=fields["bits"],
                seed=fields["seed"],
                items=items,
                image_sha256=dict(fields["image_sha256"]),
                truth_sha256=fields["truth_sha256"],
                sha256=hashlib.sha256(data).hexdigest(),
            )
        except FileNotFoundError:
            raise DataError(
                "no reader study is here",
                code="MR-D020",
                where=where,
                hint="make one: medray reader_study --real SET --synthetic SET --out HERE",
            ) from None
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError("the study cannot be read", code="MR-D021", where=where) from None
        made._check(where)
        return made

    def _check(self, where: str) -> None:
        ids = [item.id for item in self.items]
        shown = [image for item in self.items for image in item.images]
        wrong = [name for name in (*ids, *shown) if not ID.fullmatch(str(name))]
        each = 2 if self.mode == "2afc" else 1
        if (
            wrong
            or self.mode not in MODES
            or len(set(ids)) != len(ids)
            or any(len(item.images) != each for item in self.items)
            or not set(shown) <= set(self.image_sha256)
        ):
            raise DataError("the study's items do not fit each other", code="MR-D021", where=where)

    @property
    def image_bytes(self) -> int:
        """The length of every image's file."""
        return len(encode_image(np.zeros((self.size_px,) * 2, dtype_of(self.bits))))

    def item(self, item_id: str) -> Item | None:
        """The item of this id."""
        return self._by_id.get(item_id)

    @functools.cached_property
    def _by_id(self) -> dict[str, Item]:
        return {item.id: item for item in self.items}

    def image(self, image_id: str) -> bytes:
        """The file of an image, its digest checked; DataError MR-D102 where it is damaged."""
        data = self.store.read_bytes(f"{IMAGES}/{image_id}.npy")
        if hashlib.sha256(data).hexdigest() != self.image_sha256[image_id]:
            raise DataError("the image is damaged", code="MR-D102", where=f"{IMAGES}/{image_id}")
        return data

    def truth(self) -> dict[str, Known]:
        """The truth of every item; DataError where it is damaged or another study's."""
        where = f"{self.store.url}/{TRUTH}"
        try:
            data = self.store.read_bytes(TRUTH)
        except FileNotFoundError:
            raise DataError("the truth of the study is missing", where=where) from None
        if hashlib.sha256(data).hexdigest() != self.truth_sha256:
            raise DataError("the truth is not this study's", code="MR-D021", where=where)
        return {
            name: Known(
                tuple(of["synthetic"]), tuple(of["labels"]), tuple(of["sources"]), of["repeats"]
            )
            for name, of in json.loads(data)["items"].items()
        }

    def order(self, reader: int, repeats: Mapping[str, str]) -> list[str]:
        """The items in the order of reader number `reader`: shuffled, repeats long after.

        `repeats` maps an item to the one that it shows again (from the truth, on the server alone).
        """
        names = [item.id for item in self.items]
        order = [names[n] for n in rng.permutation(self.seed, "readers.order", reader, len(names))]
        return parted(order, repeats)


def parted(order: Sequence[str], repeats: Mapping[str, str]) -> list[str]:
    """`order` with every repeat at least a quarter of the other cases after what it repeats.

    What is repeated moves into the first half, repeats are spread over the last quarter. `repeats`
    maps an item to the one that it shows again; at most half of the others are repeated.
    """
    found = [name for name in order if name not in repeats]
    again = [name for name in order if name in repeats]
    twice = set(repeats.values())
    half = len(found) // 2
    free = [n for n in range(half) if found[n] not in twice]
    for late in range(half, len(found)):
        if found[late] in twice:
            early = free.pop(late % len(free))
            found[early], found[late] = found[late], found[early]
    start = 3 * len(found) // 4
    step = (len(found) - start) / (len(again) + 1)
    for number, name in reversed(list(enumerate(again))):
        found.insert(start + int((number + 1) * step), name)
    return found


def dtype_of(bits: int) -> npt.DTypeLike:
    """How pixels of 8 or 16 bits are stored."""
    return np.dtype("|u1") if bits == 8 else np.dtype("<u2")


def encode_image(image: Image) -> bytes:
    """The file of an image (H, W): `.npy`, not compressed, so that its length says nothing."""
    buffer = io.BytesIO()
    np.lib.format.write_array(
        buffer, np.ascontiguousarray(image), version=(1, 0), allow_pickle=False
    )
    return buffer.getvalue()


def decode_image(data: bytes) -> Image:
    """The pixels of `encode_image`."""
    return np.asarray(np.lib.format.read_array(io.BytesIO(data), allow_pickle=False))


def truth_bytes(items: Mapping[str, Known]) -> bytes:
    """The text of truth.json."""
    body = {
        name: {
            "synthetic": list(of.synthetic),
            "labels": list(of.labels),
            "sources": list(of.sources),
            "repeats": of.repeats,
        }
        for name, of in sorted(items.items())
    }
    return (json.dumps({"schema": SCHEMA, "items": body}, indent=1) + "\n").encode()


def study_bytes(
    *,
    name: str,
    mode: Mode,
    classes: Sequence[str],
    size_px: int,
    bits: int,
    seed: int,
    items: Sequence[Item],
    image_sha256: Mapping[str, str],
    truth: bytes,
) -> bytes:
    """The text of study.json: items in the order of their ids, which say nothing."""
    body = {
        "schema": SCHEMA,
        "name": name,
        "mode": mode,
        "classes": list(classes),
        "size_px": size_px,
        "bits": bits,
        "seed": seed,
        "items": [
            {"id": item.id, "images": list(item.images)}
            for item in sorted(items, key=lambda item: item.id)
        ],
        "image_sha256": dict(sorted(image_sha256.items())),
        "truth_sha256": hashlib.sha256(truth).hexdigest(),
    }
    return (json.dumps(body, indent=1) + "\n").encode()
