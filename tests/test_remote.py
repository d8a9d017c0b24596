"""What clients of stores raise, sorted into absent, passing and refused."""

from __future__ import annotations

import ssl
from collections.abc import Callable

import pytest

from medray import _remote
from medray._remote import kind_of
from medray.config import absolute
from medray.errors import UsageError
from medray.store import Store


def client_error(module: str, name: str, base: type = Exception, **fields: object) -> Exception:
    """An error as a client of this package would raise it."""
    kind = type(name, (base,), {"__module__": module, **fields})
    found: Exception = kind("said so")
    return found


def answered(status: int) -> Exception:
    """botocore's error for an answer with this status."""
    response = {"ResponseMetadata": {"HTTPStatusCode": status}, "Error": {}}
    return client_error("botocore.exceptions", "ClientError", response=response)


def caused(error: Exception, cause: Exception) -> Exception:
    """`error`, raised from `cause`."""
    error.__cause__ = cause
    return error


CASES = [
    (FileNotFoundError("x"), "absent"),
    (caused(FileNotFoundError("x"), answered(404)), "absent"),
    (caused(FileNotFoundError("x"), answered(503)), "passing"),
    (caused(FileNotFoundError("x"), ConnectionResetError()), "passing"),
    (caused(OSError(22, "InvalidRange"), answered(416)), "beyond"),
    (caused(OSError(22, "BadDigest"), answered(400)), "passing"),
    (caused(PermissionError("ExpiredToken"), answered(400)), "refused"),
    (caused(PermissionError("no"), answered(403)), "refused"),
    (client_error("aiohttp.client_exceptions", "ClientResponseError", status=404), "absent"),
    (client_error("aiohttp.client_exceptions", "ClientResponseError", status=429), "passing"),
    (client_error("aiohttp.client_exceptions", "ClientResponseError", status=502), "passing"),
    (client_error("aiohttp.client_exceptions", "ClientResponseError", status=401), "refused"),
    (client_error("aiohttp.client_exceptions", "ServerDisconnectedError"), "passing"),
    (client_error("aiohttp.client_exceptions", "ClientPayloadError"), "passing"),
    (client_error("botocore.exceptions", "EndpointConnectionError"), "passing"),
    (client_error("botocore.exceptions", "ReadTimeoutError"), "passing"),
    (client_error("botocore.exceptions", "NoCredentialsError"), "refused"),
    (client_error("gcsfs.retry", "HttpError", code=503), "passing"),
    (client_error("gcsfs.retry", "HttpError", code=403), "refused"),
    (ConnectionResetError(), "passing"),
    (TimeoutError(), "passing"),
    (ssl.SSLCertVerificationError(1, "unknown authority"), "refused"),
    (NotImplementedError(), "refused"),
    (ValueError("no such bucket name"), "refused"),
    (TypeError("a mistake of the program"), None),
    (KeyError("x"), None),
]


@pytest.mark.parametrize(
    "error, kind", CASES, ids=[f"{type(e).__name__}-{k}-{n}" for n, (e, k) in enumerate(CASES)]
)
def test_what_a_client_raises_is_sorted_by_the_status_then_by_its_kind(
    error: Exception, kind: str | None
) -> None:
    assert kind_of(error) == kind


def test_a_mistake_of_the_program_is_not_called_a_failure_of_the_store() -> None:
    store = Store("memory://mistake")
    with pytest.raises(TypeError):
        store._call("size")


@pytest.mark.parametrize("open_it", [Store, absolute])
def test_a_password_in_a_url_is_refused_and_not_repeated(open_it: Callable[[str], object]) -> None:
    with pytest.raises(UsageError, match=r"URL of films\.example has a password") as refused:
        open_it("https://ann:s3cret@films.example/set")
    assert "s3cret" not in str(refused.value) and "netrc" in str(refused.value)


@pytest.mark.parametrize(
    "url", ["https://films.example/a@b:c", "https://ann@films.example/set", "memory://a:1/b"]
)
def test_other_urls_are_as_they_are(url: str) -> None:
    assert absolute(url) == url


def test_a_url_that_nothing_opens_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="cannot open nosuch://"):
        Store("nosuch://bucket")


class Completed:
    """A client whose last answer to a large upload was lost: asked again, S3 knows no upload."""

    storage_options: dict[str, object] = {}

    def __init__(self, **config: object) -> None:
        self.config = config

    def info(self, path: str) -> dict[str, object]:
        return {"ETag": type(self).etag, "LastModified": 0}

    def size(self, path: str) -> int:
        return 4

    def pipe_file(self, path: str, data: bytes, **parts: object) -> None:
        type(self).etag += type(self).stored
        response = {"Error": {"Code": self.code}, "ResponseMetadata": {"HTTPStatusCode": 404}}
        raise caused(
            FileNotFoundError("no upload"), client_error("botocore", "E", response=response)
        )

    etag, stored, code = 0, 1, "NoSuchUpload"


@pytest.mark.parametrize(
    "stored, code, error",
    [
        (1, "NoSuchUpload", None),
        (0, "NoSuchUpload", ConnectionError),
        (1, "NoSuchBucket", FileNotFoundError),
    ],
)
def test_a_large_upload_that_nobody_knows_of_counts_only_where_the_object_is_new(
    monkeypatch: pytest.MonkeyPatch, stored: int, code: str, error: type[Exception] | None
) -> None:
    monkeypatch.setattr(_remote, "PART_BYTES", 2)
    monkeypatch.setattr(Completed, "stored", stored)
    monkeypatch.setattr(Completed, "code", code)
    store = _remote._S3(Completed())
    if error is None:
        store.pipe_file("bucket/x", b"1234")
        return
    with pytest.raises(error) as caught:
        store.pipe_file("bucket/x", b"1234")
    assert kind_of(caught.value) == ("passing" if code == "NoSuchUpload" else "absent")
