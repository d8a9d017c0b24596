"""A table of requests that are to be refused: what is wrong, where it goes, which status."""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from medray.images import encode_png
from tests.images.test_images_bombs import BOMBS
from tests.made_dicom import dicom_bytes

GENERATE, CLASSIFY, FEATURES = "/v1/images/generations", "/v1/classify", "/v1/features"
FILM = np.arange(4096, dtype=np.uint8).reshape(64, 64)
PNG = encode_png(FILM)
GOOD = {"model": "generator", "class": "clear"}


@dataclass(frozen=True)
class Bad:
    """A request and the statuses that refuse it."""

    name: str
    path: str
    statuses: tuple[int, ...]
    request: dict[str, Any] = field(default_factory=dict)
    who: str | None = "both"
    method: str = "POST"


def every() -> list[Bad]:
    """The whole table."""
    makers = (fields, vectors, bodies, files, forms, queries, keys, paths, headers)
    return [bad for make in makers for bad in make()]


# --- generations --------------------------------------------------------------------------------

LONG = "x" * 300
ODD = (
    *("", " ", "../../etc/passwd", "..\\..\\boot.ini", "/etc/passwd", "file:///etc/passwd"),
    *("clear\r\nX-Evil: 1", "clear\n", "clear\0", "\u202eraelc", "ｃｌｅａｒ", "CLEAR", "clear "),
    *("<script>alert(1)</script>", "'; DROP TABLE models;--", "${jndi:ldap://x}", "{{7*7}}", "%00"),
    *("\ud800", "😀" * 40, LONG, "a" * 100_000, "http://169.254.169.254/", "__class__", "None"),
)
NO_INTEGER = (None, "3", "three", "", 1.5, True, [1], {"n": 1}, -1, 2**64, 10**400, -(2**63))


def fields() -> Iterator[Bad]:
    """Every field of a generation wrong in turn."""
    for field_name, values in {
        "n": (*NO_INTEGER, 0, 4097, 10**9),
        "seed": NO_INTEGER,
        "start": NO_INTEGER,
        "truncation": (None, "0.5", "nan", True, [0.5], {}, -0.1, 1.1, 1e308, 10**400),
        "format": (
            None,
            "",
            "PNG",
            "jpeg",
            "png\r\nX: 1",
            1,
            True,
            ["png"],
            {},
            "../png",
            "tar.gz",
        ),
        "model": (1, True, 1.5, ["generator"], {}, *ODD),
        "class": (1, True, 1.5, ["clear"], {}, *ODD),
    }.items():
        for number, value in enumerate(values):
            body = {**GOOD, field_name: value}
            if field_name in ("class", "model") and value is None:
                continue
            statuses = (404, 422) if field_name == "model" else (422,)
            request = {"content": json.dumps(body).encode(), "headers": JSON}
            yield Bad(f"generate {field_name} {number}: {value!r:.30}", GENERATE, statuses, request)
    for text in ("NaN", "Infinity", "-Infinity", "1e999"):
        body = b'{"class": "clear", "truncation": ' + text.encode() + b"}"
        yield Bad(f"truncation {text}", GENERATE, (400, 422), {"content": body, "headers": JSON})


JSON = {"content-type": "application/json"}


def vectors() -> Iterator[Bad]:
    """Labels that are none of the model's vectors, fields that there are not, and both at once."""
    asked = {"model": "generator"}
    for number, labels in enumerate(
        ([], [1], [1, 1], [0, 0], [1, 0, 0], [0.5, 0.5], ["1", "0"], [None, 1], [1e308, 0], "clear")
        + ({"x": 1}, {"clear": "1"}, {"clear": 2}, {"": 1}, {"clear": 1, "opacity": 1}, 7, True)
        + ([1] * 1000, {str(n): 1 for n in range(1000)}, {"../x": 1}, {"clear\n": 1}, [[1, 0]])
    ):
        yield Bad(
            f"labels {number}: {labels!r:.30}", GENERATE, (422,), _json({**asked, "labels": labels})
        )
    yield Bad("class and labels", GENERATE, (422,), _json({**GOOD, "labels": [1, 0]}))
    yield Bad("no class", GENERATE, (422,), _json(asked))
    yield Bad("no model of two", GENERATE, (404,), _json({"class": "clear"}))
    yield Bad("a classifier", GENERATE, (404,), _json({**GOOD, "model": "classifier"}))
    yield Bad("truncation of plain", GENERATE, (422,), _json({"model": "plain", "truncation": 0.5}))
    yield Bad("class of plain", GENERATE, (422,), _json({"model": "plain", "class": "clear"}))
    last = {**GOOD, "start": 2**64 - 1, "n": 2}
    yield Bad("past the last index", GENERATE, (422,), _json(last))
    for name in ("N", "n ", "seeds", "class_", "__proto__", "", "\0", "\ud83d", LONG):
        yield Bad(f"unknown field {name!r:.20}", GENERATE, (422,), _json({**GOOD, name: 1}))


def _json(body: Any) -> dict[str, Any]:
    return {"content": json.dumps(body).encode(), "headers": JSON}


def bodies() -> Iterator[Bad]:
    """Bodies that are no JSON object."""
    for name, content in {
        "empty": b"",
        "null": b"null",
        "array": b"[]",
        "number": b"7",
        "string": b'"clear"',
        "cut": b'{"class": "cle',
        "two": b"{}{}",
        "trailing": b'{"class": "clear"} x',
        "comment": b'{"class": "clear" /* */}',
        "single quotes": b"{'class': 'clear'}",
        "utf-16": '{"class": "clear", "n": 0}'.encode("utf-16"),
        "latin": b'{"class": "\xe9"}',
        "nul": b"\0" * 100,
        "deep": b"[" * 100_000,
        "deep objects": b'{"a":' * 50_000,
        "long number": b'{"n": ' + b"9" * 5000 + b"}",
        "png": PNG,
        "gzip": zlib.compress(b"{}"),
        "twice": b'{"model": "generator", "class": "clear", "class": "other"}',
    }.items():
        yield Bad(f"body {name}", GENERATE, (400, 422), {"content": content, "headers": JSON})
    form = {"content": b"class=clear", "headers": FORM}
    yield Bad("body of a form", GENERATE, (415, 422), form)
    text = {"content": b'{"class": "clear"}', "headers": {"content-type": "text/plain"}}
    yield Bad("body as text", GENERATE, (415, 422), text)


FORM = {"content-type": "application/x-www-form-urlencoded"}


# --- files --------------------------------------------------------------------------------------


def _npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def _pillow(mode: str, format_name: str, **more: Any) -> bytes:
    file = io.BytesIO()
    Image.new(mode, (32, 32)).save(file, format_name, **more)
    return file.getvalue()


def _chunk(kind: bytes, body: bytes) -> bytes:
    checksum = zlib.crc32(kind + body)
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)


def png_of(width: int, height: int, bits: int, colour: int, rows: bytes) -> bytes:
    """A PNG whose header says what it likes."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    chunks = [_chunk(b"IHDR", header), _chunk(b"IDAT", zlib.compress(rows)), _chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../../image.png", bytes(20 << 20))
    return file.getvalue()


def _npy_header(text: str) -> bytes:
    head = text.encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(head)) + head + bytes(64)


@cache
def bad_files() -> dict[str, tuple[bytes, tuple[int, ...]]]:
    """File by name, and the statuses that refuse it."""
    image = (422,)
    nan, inf = FILM.astype(np.float32), FILM.astype(np.float32)
    nan[3, 3], inf[3, 3] = np.nan, np.inf
    dicom = dicom_bytes(FILM)
    jpeg = _pillow("L", "JPEG")
    found = {
        "empty": (b"", (400,)),
        "one byte": (b"\x89", (415,)),
        "text": (b"hello", (415,)),
        "html": (b"<html><script>alert(1)</script>", (415,)),
        "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", (415,)),
        "gif": (_pillow("P", "GIF"), (415,)),
        "bmp": (_pillow("L", "BMP"), (415,)),
        "webp": (b"RIFF\x10\0\0\0WEBPVP8 ", (415,)),
        "tiff": (_pillow("L", "TIFF"), (415,)),
        "tiff cmyk": (_pillow("CMYK", "TIFF"), (415,)),
        "jpeg cmyk": (_pillow("CMYK", "JPEG"), (415,)),
        "pdf": (b"%PDF-1.7\n%\xe2\xe3", (415,)),
        "elf": (b"\x7fELF" + bytes(200), (415,)),
        "zip bomb": (_zip(), (415,)),
        "gzip of nothing": (b"\x1f\x8b", (415, 422)),
        "gzip bomb": (_gzip(bytes(300 << 20)), (413, 415)),
        "gzip of text": (_gzip(b"hello"), (415, 422)),
        "png cut": (PNG[:-20], image),
        "png header alone": (PNG[:33], image),
        "png signature": (PNG[:8], image),
        "png changed": (PNG[:60] + bytes([PNG[60] ^ 1]) + PNG[61:], image),
        "png huge": (png_of(100_000, 100_000, 8, 0, bytes(10)), (413,)),
        "png wide": (png_of(2**31 - 1, 1, 8, 0, bytes(10)), (413,)),
        "png 0 px": (png_of(0, 0, 8, 0, b""), image),
        "png 0 wide": (png_of(0, 10, 8, 0, b""), image),
        "png few rows": (png_of(64, 64, 8, 0, bytes(10)), image),
        "png bits 7": (png_of(64, 64, 7, 0, bytes(65 * 64)), image),
        "png colour 5": (png_of(64, 64, 8, 5, bytes(65 * 64)), image),
        "png transparent": (_pillow("RGBA", "PNG"), image),
        "png transparent, 16 bit": (png_of(8, 8, 16, 6, bytes(65 * 8)), image),
        "jpeg cut": (jpeg[: len(jpeg) // 2], image),
        "jpeg start": (jpeg[:3], image),
        "jpeg without frame": (b"\xff\xd8\xff\xd9", image),
        "jpeg huge": (_jpeg_of(jpeg, 65_500, 65_500), (413,)),
        "jpeg segments": (b"\xff\xd8" + b"\xff\xc4\0\0" * 500_000, image),
        "npy nan": (_npy(nan), image),
        "npy inf": (_npy(inf), image),
        "npy objects": (_npy(np.array([[{"a": 1}, "b"]], object)), image),
        "npy pickle": (b"\x93NUMPY\x01\0" + b"\x80\x04cposix\nsystem\n", image),
        "npy text": (_npy(np.array([["a", "b"]])), image),
        "npy complex": (_npy(FILM.astype(complex)), image),
        "npy dates": (_npy(FILM.astype("M8[s]")), image),
        "npy records": (_npy(np.zeros((4, 4), [("a", "u1")])), image),
        "npy scalar": (_npy(np.float32(1)), image),
        "npy row": (_npy(np.zeros(100)), image),
        "npy 4 axes": (_npy(np.zeros((2, 2, 8, 8))), image),
        "npy empty": (_npy(np.zeros((0, 64))), image),
        "npy rgba": (_npy(np.zeros((64, 64, 4), np.uint8)), image),
        "npy cut": (_npy(FILM)[:-10], image),
        "npy header alone": (_npy(FILM)[:128], image),
        "npy version 9": (b"\x93NUMPY\x09\0" + bytes(200), image),
        "npy says more": (
            _npy_header("{'descr':'|u1','fortran_order':False,'shape':(9999,9999)}"),
            (413, 422),
        ),
        "npy says 2**62": (
            _npy_header(f"{{'descr':'|u1','fortran_order':False,'shape':({2**62},1)}}"),
            (413, 422),
        ),
        "npy negative": (
            _npy_header("{'descr':'|u1','fortran_order':False,'shape':(-4,-4)}"),
            image,
        ),
        "npy code": (_npy_header("__import__('os').system('true')"), image),
        "npy parentheses": (_npy_header("(" * 90), image),
        "npy frames past the cap": (_npy(np.zeros((600, 8, 8), np.uint8)), (413,)),
        "nifti cut": (struct.pack("<i", 348) + bytes(100), (415, 422)),
        "nifti of zeros": (struct.pack("<i", 348) + bytes(400), (415, 422)),
        "dicom without pixels": (dicom[: dicom.index(b"\xe0\x7f\x10\0")], image),
        "dicom cut": (dicom[:-1000], image),
        "dicom preamble": (dicom[:132], image),
        "dicom zeros": (dicom[:132] + bytes(1000), image),
        "dicom 0 rows": (dicom_bytes(FILM, Rows=0), image),
        "dicom float64 syntax": (
            dicom.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.9.9.9\0"),
            (415, 422),
        ),
        "dicom frames past the cap": (dicom_bytes(FILM, NumberOfFrames=513), (413, 422)),
        "dicom 2 samples": (dicom_bytes(FILM, SamplesPerPixel=2), (415, 422)),
    }
    for name, (make, decodes) in BOMBS.items():
        if decodes is not True and name != "nested":
            found[f"bomb {name}"] = (make(), (413, 415, 422))
    found["bomb png under"] = (BOMBS["png_under"][0](), (413,))
    return found


def _gzip(data: bytes) -> bytes:
    stream = zlib.compressobj(1, zlib.DEFLATED, 31)
    return stream.compress(data) + stream.flush()


def _jpeg_of(data: bytes, height: int, width: int) -> bytes:
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def files() -> Iterator[Bad]:
    """Each bad file, alone to one route and as the second of a form to the other."""
    for name, (data, statuses) in bad_files().items():
        request = {"content": data, "params": {"model": "classifier"}, "headers": BYTES}
        yield Bad(f"file {name}", CLASSIFY, statuses, request)
    for name in ("empty", "text", "png cut", "npy objects", "dicom without pixels", "gzip of text"):
        data, statuses = bad_files()[name]
        form = [("file", ("a.png", PNG)), ("file", ("b.png", data))]
        request = {"files": form, "params": {"model": "classifier"}}
        yield Bad(f"file {name} beside a good one", FEATURES, statuses, request)


BYTES = {"content-type": "application/octet-stream"}
MODEL = {"model": "classifier"}


def forms() -> Iterator[Bad]:
    """Forms that cannot be read, or hold too much or nothing."""
    mixed = "multipart/form-data; boundary=b"
    part = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
    for name, content_type, content, statuses in (
        ("without boundary", "multipart/form-data", b"--b--", (400,)),
        ("empty", mixed, b"", (400,)),
        ("nothing in it", mixed, b"--b--\r\n", (400,)),
        ("cut", mixed, part + PNG[:50], (400, 422)),
        ("other boundary", mixed, part.replace(b"--b", b"--c") + PNG, (400,)),
        (
            "header without colon",
            mixed,
            b"--b\r\nContent-Disposition\r\n\r\nx\r\n--b--\r\n",
            (400,),
        ),
        ("no name", mixed, NAMELESS, (422,)),
        ("nul in name", mixed, part.replace(b"file", b"\0", 1) + b"x\r\n--b--\r\n", (400, 415)),
        ("10,000 parts", mixed, (part + b"x\r\n") * 10_000 + b"--b--\r\n", (413,)),
        (
            "10,000 headers",
            mixed,
            b"--b\r\n" + b"a: b\r\n" * 10_000 + b"\r\nx\r\n--b--\r\n",
            (400,),
        ),
    ):
        request = {"content": content, "headers": {"content-type": content_type}, "params": MODEL}
        yield Bad(f"form {name}", CLASSIFY, statuses, request)
    field_only = [("file", (None, b"text"))]
    yield Bad("form field", CLASSIFY, (422,), {"files": field_only, "params": MODEL})
    for name in (
        "../../evil",
        "/etc/passwd",
        "a\r\nX-Evil: 1",
        "x" * 5000,
        "\u202egnp.exe",
        "nul\0",
    ):
        form = [("file", (name, b"no picture"))]
        yield Bad(f"form file {name!r:.20}", CLASSIFY, (400, 415), {"files": form, "params": MODEL})
    many = [("file", (f"{n}.png", PNG)) for n in range(65)]
    yield Bad("form 65 files", CLASSIFY, (413,), {"files": many, "params": MODEL})


NAMELESS = b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--\r\n"


def queries() -> Iterator[Bad]:
    """Options that are not allowed."""
    for path, name, values in (
        (CLASSIFY, "model", ODD),
        (CLASSIFY, "heatmap", ("2", "maybe", "null", "1\r\n", "[]")),
        (CLASSIFY, "mask", ("2", "-1", "tru")),
        (CLASSIFY, "overlay", ("none", "%")),
        (CLASSIFY, "threshold", ("0", "-1", "2", "nan", "inf", "x", "0,5", "1e400")),
        (CLASSIFY, "frames", ("1",)),
        (FEATURES, "format", ("", "csv", "NPY", "json\r\n", "pickle")),
        (FEATURES, "model", ("generator", "none", "../classifier", "\0")),
        (FEATURES, "heatmap", ("1",)),
    ):
        for value in values:
            if len(value) > 1000 or "\ud800" in value:
                continue
            params = {**(MODEL if name != "model" else {}), name: value}
            statuses = (404, 422) if name == "model" else (422,)
            request = {"content": PNG, "headers": BYTES, "params": params}
            yield Bad(f"{path} {name}={value!r:.30}", path, statuses, request)
    for value in ("", "Clear", "none", "clear\n", "__proto__", LONG):
        params = {**MODEL, "heatmap": "1", "class": value}
        request = {"content": PNG, "headers": BYTES, "params": params}
        yield Bad(f"classify class={value!r:.20}", CLASSIFY, (422,), request)
    request = {"content": PNG, "headers": BYTES, "params": {**MODEL, "class": "clear"}}
    yield Bad("class without heatmap", CLASSIFY, (422,), request)


# --- the rest -----------------------------------------------------------------------------------


def keys() -> Iterator[Bad]:
    """No key, wrong keys, keys for something else."""
    for path, request in ((GENERATE, _json(GOOD)), (CLASSIFY, _upload()), (FEATURES, _upload())):
        yield Bad(f"{path} without a key", path, (401,), request, who=None)
        yield Bad(f"{path} expired", path, (401,), request, who="expired")
        for name, value in {
            "unknown": "Bearer mrk_" + "A" * 43,
            "basic": "Basic YTpi",
            "empty": "Bearer ",
            "bare": "mrk_",
            "long": "Bearer " + "x" * 5000,
            "odd bytes": "Bearer \xff\xfe",
        }.items():
            more = {**request, "headers": {**request["headers"], "authorization": value}}
            yield Bad(f"{path} key {name}", path, (401,), more, who=None)
    yield Bad("read alone generates", GENERATE, (403,), _json(GOOD), who="read")
    yield Bad("generate alone reads", CLASSIFY, (403,), _upload(), who="generate")


def _upload() -> dict[str, Any]:
    return {"content": PNG, "headers": BYTES, "params": MODEL}


def paths() -> Iterator[Bad]:
    """Methods and paths that there are not."""
    for path in (GENERATE, CLASSIFY, FEATURES):
        for method in ("GET", "PUT", "DELETE", "PATCH"):
            yield Bad(f"{method} {path}", path, (405,), method=method)
        for tail in (
            "/",
            "/../models",
            "/%2e%2e/%2e%2e/etc/passwd",
            "%00",
            "/x",
            ";a=b",
            "%0d%0aX:1",
        ):
            yield Bad(f"{path}{tail}", path + tail, (404, 405), _upload())
    for path in ("/v1/none", "/v1/", "/v1", "/v2/classify", "/V1/CLASSIFY", "//v1/classify"):
        yield Bad(f"path {path}", path, (404, 405), _upload())


def headers() -> Iterator[Bad]:
    """Content types, encodings and lengths that are not taken."""
    for value in ("text/html", "application/json", "image/svg+xml", "x", "", "a/b\t; c", "image/*"):
        request = {"content": PNG, "headers": {"content-type": value}, "params": MODEL}
        yield Bad(f"content-type {value!r}", CLASSIFY, (415,), request)
    squeezed = _gzip(bytes(50 << 20))
    for value in ("gzip", "br", "deflate", "zstd", "gzip, gzip", "x"):
        more = {**BYTES, "content-encoding": value}
        request = {"content": squeezed, "headers": more, "params": MODEL}
        yield Bad(f"content-encoding {value}", CLASSIFY, (415,), request)
    for value in ("-1", "1e3", "abc", "9" * 30, "99999999999", "+5"):
        request = {"content": PNG, "headers": {**BYTES, "content-length": value}, "params": MODEL}
        yield Bad(f"content-length {value}", CLASSIFY, (400, 413), request)
    large = {"content": bytes(3 << 20), "headers": BYTES, "params": MODEL}
    yield Bad("a body past the cap", CLASSIFY, (413,), large)
    yield Bad(
        "a body past the cap as JSON", GENERATE, (413,), {**large, "headers": JSON, "params": {}}
    )
