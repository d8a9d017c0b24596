"""Tar headers: what is written any tar program reads, what others write is read or refused."""

from __future__ import annotations

import io
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medray.errors import DataError
from medray.shards import _tar

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
LONG = "folder/" * 30 + "name.png"


def archive(entries: dict[str, bytes], form: str = "ustar", **fields: object) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=FORMATS[form]) as tar:
        for name, data in entries.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            for field, value in fields.items():
                setattr(member, field, value)
            tar.addfile(member, io.BytesIO(data))
    return file.getvalue()


def walked(data: bytes) -> list[tuple[str, bytes]]:
    return [
        (member.name, data[member.offset : member.offset + member.size])
        for member in _tar.walk(memoryview(data), "x.tar")
    ]


@settings(max_examples=50, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 1100), max_size=5),
    name=st.text("abcXYZ019_-./", min_size=1, max_size=60).filter(lambda n: n[-1] != "/"),
)
def test_headers_are_those_that_python_reads(sizes: list[int], name: str) -> None:
    bodies = [bytes([number]) * size for number, size in enumerate(sizes)]
    blocks = b"".join(
        _tar.header(f"{n}{name}", len(body)) + body + bytes(_tar.padding(len(body)))
        for n, body in enumerate(bodies)
    )
    with tarfile.open(fileobj=io.BytesIO(blocks + _tar.END), mode="r:") as tar:
        for number, member in enumerate(tar):
            assert (member.name, member.size) == (f"{number}{name}", sizes[number])
            assert (member.mtime, member.uid, member.mode) == (0, 0, 0o644)
            if member.isreg():
                assert tar.extractfile(member).read() == bodies[number]  # type: ignore[union-attr]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 70_000])
def test_archives_of_every_common_form_are_walked_as_python_does(form: str, size: int) -> None:
    entries = {"a.png": b"x" * size, "b/c.json": b"{}", "ü.txt": b"u"}
    if form != "ustar":
        entries[LONG] = b"long"
    data = archive(entries, form, mtime=12.5 if form == "pax" else 12)
    assert walked(data) == list(entries.items())


def test_folders_are_passed_over() -> None:
    data = archive({"folder": b""}, type=tarfile.DIRTYPE)
    assert walked(data) == []


@pytest.mark.parametrize(
    "name", ["../a.png", "a/../../b.png", "/etc/a.png", "a\\b.png", "a\nb.png", "..", "a/.."]
)
def test_names_that_lead_outside_are_refused(name: str) -> None:
    for form in FORMATS:
        with pytest.raises(DataError, match="refused: it must be relative") as caught:
            walked(archive({"good.png": b"1", name: b"2"}, form))
        assert caught.value.code == "MR-D028"


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE]
)
def test_links_and_devices_are_refused(kind: bytes) -> None:
    with pytest.raises(DataError, match="link or device"):
        walked(archive({"a.png": b""}, type=kind, linkname="/etc/passwd"))


def test_a_cut_at_any_byte_is_refused() -> None:
    data = archive({"a.png": b"x" * 700, "b.json": b"{}"})
    ends = data.rindex(b"{}") + 512
    for length in range(0, ends - 1, 7):
        with pytest.raises(DataError) as caught:
            walked(data[:length])
        assert caught.value.code == "MR-D024" and "x.tar byte" in caught.value.where


def test_a_flip_in_any_header_bit_is_refused() -> None:
    data = bytearray(archive({"a.png": b"x"}))
    checksum_field = range(8 * 148, 8 * 156)
    for bit in set(range(8 * 512)) - set(checksum_field):
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DataError):
            walked(bytes(data))
        data[bit // 8] ^= 1 << bit % 8
    assert walked(bytes(data)) == [("a.png", b"x")]


@pytest.mark.parametrize("data", [b"\x1f\x8b" + bytes(510), b"PK\x03\x04" + bytes(600), b"text"])
def test_what_is_no_tar_is_refused(data: bytes) -> None:
    with pytest.raises(DataError):
        walked(data)
