"""/v1/nearest: copies of training images are found, and nobody sees a real image who may not."""

from __future__ import annotations

import base64
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest

from medray import phantoms
from medray.errors import DataError
from medray.images import decode_png, encode_png
from medray.pack import thumbs
from medray.records import Sample
from medray.shards import write_set
from serve import keys
from serve.client import Client, Refused
from serve.compute.likeness import COPY, Likeness
from serve.keys import KeyBook
from tests.serve.fakes import args, opened

PX, TRAIN, VAL = 64, 70, 5
CLASSES = ("clear", "opacity")


def film(index: int, bits: int = 8) -> np.ndarray:
    """A chest phantom."""
    image = phantoms.chest(5, index, PX).image
    return image if bits == 8 else image.astype(np.uint16) * 257


def make_set(folder: Path, bits: int = 8) -> str:
    """Phantoms 0 to 69 to train with and five more to look at, in shards of 32."""
    samples = [
        Sample("", film(n, bits), CLASSES[n % 2], split="train" if n < TRAIN else "val")
        for n in range(TRAIN + VAL)
    ]
    write_set(folder, samples, name="films", classes=CLASSES, size_px=PX, samples_per_shard=32)
    return str(folder)


def looked(url: str, most: int = 1000) -> Likeness:
    real = Likeness(url, most)
    real.look()
    return real


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_set(tmp_path_factory.mktemp("set") / "films")


def smaller_and_back(image: np.ndarray) -> np.ndarray:
    return cv2.resize(cv2.resize(image, (48, 48), interpolation=cv2.INTER_AREA), (PX, PX))


def brighter(image: np.ndarray) -> np.ndarray:
    return np.clip(image * 0.8 + 40, 0, 255).astype(np.uint8)


def with_margins(image: np.ndarray) -> np.ndarray:
    return cv2.resize(np.pad(image, 4), (PX, PX), interpolation=cv2.INTER_AREA)


@pytest.mark.parametrize(
    ("change", "least"),
    # At 64 px new margins blur the picture: it is found, and a little below what counts as a copy.
    [(np.copy, COPY), (smaller_and_back, COPY), (brighter, COPY), (with_margins, 0.9)],
)
def test_a_copy_is_found_however_it_was_changed(
    made: str, change: Callable[[np.ndarray], np.ndarray], least: float
) -> None:
    asked = [0, 31, 32, TRAIN - 1]
    found = looked(made).nearest([change(film(n)) for n in asked], 2)
    for n, (first, second) in zip(asked, found, strict=True):
        assert first.sample.key == f"train-{n:08d}" and first.sample.label == CLASSES[n % 2]
        np.testing.assert_array_equal(first.sample.image, film(n))
        assert first.similarity >= least > second.similarity


def test_similarities_are_the_correlations_of_all_thumbnails(made: str) -> None:
    image = film(1000)
    rows = thumbs.thumbnails([thumbs.reduced(i) for i in [image, *map(film, range(TRAIN))]], 8)
    whole = np.array([[np.corrcoef(form[0], row)[0, 1] for row in form[1:]]
                      for form in rows.transpose(1, 0, 2)]).max(axis=0)  # fmt: skip
    (found,) = looked(made).nearest([image], 5)
    order = np.argsort(-whole)[:5]
    assert [match.sample.key for match in found] == [f"train-{n:08d}" for n in order]
    # A correlation takes the mean away, which fine structure has almost none of.
    assert [match.similarity for match in found] == pytest.approx(whole[order], abs=0.01)
    assert found[0].similarity < COPY


def test_sixteen_bits_are_as_eight_and_a_blank_image_is_like_none(tmp_path: Path) -> None:
    real = looked(make_set(tmp_path / "deep", bits=16))
    copy, blank = real.nearest([film(3, bits=16), np.full((PX, PX), 7, np.uint16)], 1)
    assert copy[0].sample.key == "train-00000003" and copy[0].similarity == pytest.approx(1)
    assert blank[0].similarity == 0


def test_of_a_large_set_the_first_images_are_taken(made: str) -> None:
    real = looked(made, most=40)
    (matches,) = real.nearest([film(60)], 40)
    assert real.images == 40 == len(matches)
    assert {match.sample.key for match in matches} == {f"train-{n:08d}" for n in range(40)}


@dataclass
class Asked:
    """A service with its own door, as keys of three kinds ask it."""

    port: int
    tokens: dict[str, str]

    def client(self, who: str, patience_s: float = 60) -> Client:
        return Client(f"http://127.0.0.1:{self.port}", self.tokens[who], patience_s=patience_s)


@pytest.fixture
def ask(tmp_path: Path) -> Iterator[Callable[..., Asked]]:
    with contextlib.ExitStack() as stack:

        def begin(**settings: object) -> Asked:
            made = {who: keys.make(who, [who]) for who in ("read", "generate", "real", "admin")}
            book = (
                {w: token for w, (token, _) in made.items()},
                KeyBook(k for _, k in made.values()),
            )
            port, tokens = stack.enter_context(opened(args(tmp_path, **settings), key_book=book))
            return Asked(port, tokens)

        yield begin


def test_the_service_answers_with_the_real_image(made: str, ask: Callable[..., Asked]) -> None:
    service = ask(real=made)
    with service.client("real") as client:
        found = client.nearest(encode_png(film(2)), encode_png(film(900)), count=3)
    assert found["real"]["images"] == TRAIN and found["real"]["copy_from"] == COPY
    copy, other = found["images"]
    assert (copy["file"], other["file"]) == (0, 1) and len(other["nearest"]) == 3
    best = copy["nearest"][0]
    assert (best["key"], best["labels"], best["similarity"]) == ("train-00000002", ["clear"], 1.0)
    np.testing.assert_array_equal(decode_png(base64.b64decode(best["picture_png"])), film(2))
    assert all(-1 <= one["similarity"] < COPY for one in other["nearest"])
    # More pictures than fit into an answer are refused before anything is compared.
    with service.client("real") as client, pytest.raises(Refused, match="too_many_images"):
        client.nearest(*[encode_png(film(2))] * 5, count=16)
    # No image of another split is ever shown, even where it is what was asked about.
    with service.client("admin") as client:
        (mine,) = client.nearest(encode_png(film(TRAIN)))["images"]
    assert mine["nearest"][0]["similarity"] < COPY


def test_real_images_need_a_scope_of_their_own(made: str, ask: Callable[..., Asked]) -> None:
    service = ask(real=made)
    for who in ("read", "generate"):
        with service.client(who) as client, pytest.raises(Refused) as refused:
            client.nearest(encode_png(film(2)))
        assert (refused.value.status, refused.value.code) == (403, "scope_missing")
    with service.client("read") as client:
        assert client._json("GET", "/v1/nearest")["images"] == TRAIN


def test_without_a_set_there_is_nothing_to_compare_with(ask: Callable[..., Asked]) -> None:
    with ask().client("admin") as client:
        assert client._json("GET", "/v1/nearest")["images"] == 0
        with pytest.raises(Refused) as refused:
            client.nearest(encode_png(film(2)))
    assert (refused.value.status, refused.value.code) == (404, "real_absent")


def test_until_all_were_looked_at_it_is_to_be_asked_again(
    made: str, ask: Callable[..., Asked], monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, look = threading.Event(), Likeness.look

    def slow(real: Likeness) -> None:
        go_on.wait(30)
        look(real)

    monkeypatch.setattr(Likeness, "look", slow)
    service = ask(real=made)
    with service.client("real", patience_s=0) as client, pytest.raises(Refused) as refused:
        client.nearest(encode_png(film(2)))
    assert (refused.value.status, refused.value.code) == (503, "real_loading")
    assert refused.value.retry_after_s
    go_on.set()
    with service.client("real", patience_s=30) as client:
        assert client.nearest(encode_png(film(2)))["images"][0]["nearest"][0]["similarity"] == 1


def test_a_damaged_set_ends_this_route_alone(tmp_path: Path, ask: Callable[..., Asked]) -> None:
    url = make_set(tmp_path / "films")
    shard = sorted(Path(url).glob("*.tar"))[0]
    data = bytearray(shard.read_bytes())
    data[2000] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DataError):
        looked(url)
    with ask(real=url).client("admin", patience_s=0) as client:
        until_s = time.monotonic() + 30
        while True:
            with pytest.raises(Refused) as refused:
                client.nearest(encode_png(film(2)))
            if refused.value.code != "real_loading" or time.monotonic() > until_s:
                break
            time.sleep(0.02)
        assert (refused.value.status, refused.value.code) == (503, "real_damaged")
        assert len(client.generate(2)) == 2
