"""Rows of `bench.py --suite stream`: images/s to batches of 64, against webdataset.

2,000 made-up grey 256 px images that compress as x-rays do. webdataset reads PNGs that PIL wrote,
with one worker process of a DataLoader that stays alive from round to round; medray has one decode
thread besides the caller. Ours is shuffled, webdataset's is not. The page cache is warm.
"""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medray.records import Sample
from medray.shards import write_set
from medray.stream import Source, Stream

IMAGES, SIZE_PX, BATCH, PER_SHARD = 2000, 256, 64, 500
CLASSES = tuple(str(number) for number in range(10))
ROUND_S = 1.0

Array = npt.NDArray[Any]
Case = tuple[str, str, float, Callable[[], float], Callable[[], float], Callable[[], None]]


def rows(rounds: int) -> Iterator[Case]:
    """The three rows: name, against, target, a timed round of each in images/s, the check."""
    import cv2
    import torch

    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="medray-bench-") as folder, ExitStack() as stack:
        images = make_images(IMAGES)
        tars = write_png_tars(Path(folder, "png"), images)
        with_pil, with_opencv = Webdataset(tars, from_pil), Webdataset(tars, from_opencv)
        for name, target in (("raw", 15.0), ("zstd", 8.0)):
            url = Path(folder, name)
            write_set(
                url, _samples(images), name=name, classes=CLASSES, size_px=SIZE_PX, encoding=name
            )
            ours = stack.enter_context(_stream(url, folder))
            yield _case(f"stream_{name}", "webdataset, PIL", target, ours, with_pil, images)
        ours = stack.enter_context(_stream(Path(folder, "png"), folder))
        yield _case("stream_foreign", "webdataset, OpenCV", 1.0, ours, with_opencv, images)


def _case(
    name: str, against: str, target: float, ours: Stream, other: Webdataset, images: Array
) -> Case:
    def timed() -> float:
        done, start = 0, time.perf_counter()
        while time.perf_counter() - start < ROUND_S:
            done += len(ours.next(BATCH).keys)
        return done / (time.perf_counter() - start)

    def check() -> None:
        assert_same(ours, other, images)

    return name, against, target, timed, other.images_per_second, check


def make_images(count: int) -> Array:
    """Smooth fields with a little noise: (N, H, W) uint8, as PNG about 4 bits a pixel."""
    import cv2

    generator = np.random.default_rng(0)
    size = (SIZE_PX, SIZE_PX)
    images_NHW = np.empty((count, *size), np.uint8)
    for image_HW in images_NHW:
        coarse, fine = (generator.standard_normal((n, n)).astype(np.float32) for n in (16, 64))
        field = (
            cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC) * 40
            + cv2.resize(fine, size) * 10
        )
        field += generator.standard_normal(size).astype(np.float32) * 2
        image_HW[...] = np.clip(field + 128, 0, 255)
    return images_NHW


def write_png_tars(folder: Path, images_NHW: Array) -> list[str]:
    """Shards as webdataset writes them, with PNGs as PIL writes them; their paths."""
    import webdataset as wds

    folder.mkdir()
    paths = []
    for first in range(0, len(images_NHW), PER_SHARD):
        paths.append(str(folder / f"train-{first // PER_SHARD:06d}.tar"))
        with wds.TarWriter(paths[-1], encoder=False) as writer:
            for number in range(first, min(first + PER_SHARD, len(images_NHW))):
                label = str(number % 10).encode()
                body = {"png": _pil_png(images_NHW[number]), "cls": label}
                writer.write({"__key__": f"{number:06d}", **body})
    return paths


def _pil_png(image: Array) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def _samples(images_NHW: Array) -> Iterator[Sample]:
    for number, image in enumerate(images_NHW):
        yield Sample(key=str(number), image=image, label=CLASSES[number % 10])


def _stream(url: Path, folder: str) -> Stream:
    return Stream([Source(url)], threads=1, cache_dir=Path(folder, "cache"))


def from_pil(data: bytes) -> Array:
    """A PNG decoded by PIL."""
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(data)))


def from_opencv(data: bytes) -> Array:
    """A PNG decoded by OpenCV."""
    import cv2

    return np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED))


class Webdataset:
    """The alternative: webdataset in a DataLoader with one worker that outlives an epoch."""

    def __init__(self, tars: list[str], decode: Callable[[bytes], Array]) -> None:
        import webdataset as wds
        from torch.utils.data import DataLoader

        def parts(sample: dict[str, Any]) -> tuple[str, Array, int]:
            return sample["__key__"], decode(sample["png"]), int(sample["cls"])

        dataset = wds.WebDataset(tars, shardshuffle=False).map(parts)
        self.loader = DataLoader(
            dataset, batch_size=BATCH, num_workers=1, persistent_workers=True, collate_fn=_collate
        )

    def images_per_second(self) -> float:
        """One timed epoch."""
        start = time.perf_counter()
        done = sum(len(images) for _, images, _ in self.loader)
        return done / (time.perf_counter() - start)


def _collate(samples: list[tuple[str, Array, int]]) -> tuple[list[str], Any, Any]:
    import torch

    keys, images, labels = zip(*samples, strict=True)
    return list(keys), torch.from_numpy(np.stack(images)), torch.tensor(labels)


def assert_same(ours: Stream, other: Webdataset, images_NHW: Array) -> None:
    """Both deliver every image once, with equal pixels and labels."""
    theirs = {
        int(key): (image, int(label))
        for keys, images, labels in other.loader
        for key, image, label in zip(keys, images.numpy(), labels, strict=True)
    }
    seen: set[int] = set()
    while len(seen) < len(images_NHW):
        batch = ours.next(BATCH)
        for key, image_CHW, label in zip(
            batch.keys, batch.images_NCHW, batch.labels_N, strict=True
        ):
            number = int(key.rpartition("-")[2])
            seen.add(number)
            image, their_label = theirs[number]
            assert np.array_equal(image_CHW[0], image), f"{key}: pixels differ"
            assert np.array_equal(image_CHW[0], images_NHW[number]), f"{key}: pixels differ"
            assert ours.classes[int(label)] == str(their_label), f"{key}: labels differ"
    assert len(theirs) == len(images_NHW), "webdataset lost images"
