"""A thin client, of the standard library alone: `Client("http://127.0.0.1:8700", key="mrk_...")`.

Errors of the service are `Refused`, with its code and hint. What it asks to be asked again (429 and
503 with Retry-After, a connection that broke) is asked again, within `patience_s`; where a
connection broke that had been idle, once more in any case.
"""

from __future__ import annotations

import email.parser
import email.policy
import http.client
import json
import secrets
import time
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

AGAIN = (429, 503)
PAUSE_S = 0.2
BATCH = 64
# A server may end a connection that has been idle so long; one that breaks sooner lost a request.
IDLE_S = 0.25


class Refused(Exception):
    """What the service says is wrong."""

    def __init__(self, status: int, body: Mapping[str, Any], retry_after_s: float | None) -> None:
        self.status, self.retry_after_s = status, retry_after_s
        self.code = str(body.get("code", "unknown"))
        self.detail, self.hint = str(body.get("detail", "")), body.get("hint")
        self.request_id = body.get("request_id")
        super().__init__(f"{status} {self.code}: {self.detail}")


@dataclass(frozen=True)
class Image:
    """One synthetic image; its address makes the same bytes again."""

    data: bytes
    address: str
    media_type: str


class Client:
    """One service; not for several threads at once (a connection is kept)."""

    def __init__(
        self, url: str, key: str | None = None, *, timeout_s: float = 120, patience_s: float = 30
    ) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"url must be http://HOST[:PORT][/PREFIX] or https, got {url!r}")
        kind = http.client.HTTPConnection if parts.scheme == "http" else http.client.HTTPSConnection
        self._connection = kind(parts.hostname, parts.port, timeout=timeout_s)
        self._prefix, self._key, self._patience_s = parts.path.rstrip("/"), key, patience_s
        self._answered_s = 0.0

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection."""
        self._connection.close()

    # --- what the service does ----------------------------------------------------------------

    def models(self) -> list[dict[str, Any]]:
        """The models there are."""
        found: list[dict[str, Any]] = self._json("GET", "/v1/models")["models"]
        return found

    def generate(self, n: int = 1, **asked: Any) -> list[Image]:
        """`n` images; `asked`: model, class (as `class_`), labels, seed, start, truncation, format.

        Many are asked for in parts, so that one refusal does not cost all of them.
        """
        asked = {name.rstrip("_"): value for name, value in asked.items()}
        start, images = int(asked.pop("start", 0)), []
        for at in range(start, start + n, BATCH):
            count = min(BATCH, start + n - at)
            body = {**asked, "n": count, "start": at}
            headers, data = self.ask("POST", "/v1/images/generations", json_body=body)
            images += list(_images(headers, data))
        return images

    def classify(self, *files: bytes, **options: Any) -> dict[str, Any]:
        """What a classifier says of files (PNG, JPEG, NPY, NIfTI, DICOM)."""
        return self._files("/v1/classify", files, options)

    def features(self, *files: bytes, **options: Any) -> dict[str, Any]:
        """A classifier's features of files."""
        return self._files("/v1/features", files, options)

    def nearest(self, *files: bytes, count: int = 1) -> dict[str, Any]:
        """The real images that files are most like; a key of the scope `real` is needed."""
        return self._files("/v1/nearest", files, {"count": count})

    def start_job(self, count: int, **asked: Any) -> dict[str, Any]:
        """Starts an archive of `count` images."""
        return self._json("POST", "/v1/jobs", {"count": count, **asked})

    def job(self, job_id: str) -> dict[str, Any]:
        """How far a job is."""
        return self._json("GET", f"/v1/jobs/{urllib.parse.quote(job_id, safe='')}")

    def cancel_job(self, job_id: str) -> dict[str, Any]:
        """Cancels a job."""
        return self._json("DELETE", f"/v1/jobs/{urllib.parse.quote(job_id, safe='')}")

    def put_model(self, name: str, **asked: Any) -> dict[str, Any]:
        """Loads a model and lets it answer; `asked`: kind, url, latents, sha256, share."""
        return self._json("PUT", f"/v1/models/{urllib.parse.quote(name, safe='')}", asked)

    # --- requests -----------------------------------------------------------------------------

    def ask(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        content_type: str = "application/octet-stream",
        json_body: Any = None,
    ) -> tuple[Mapping[str, str], bytes]:
        """One request; headers and body of its answer, or Refused."""
        if json_body is not None:
            body, content_type = json.dumps(json_body).encode(), "application/json"
        until_s = time.monotonic() + self._patience_s
        while True:
            idle_s = time.monotonic() - self._answered_s
            idle = self._connection.sock is not None and idle_s >= IDLE_S
            try:
                return self._once(method, path, body, content_type)
            except Refused as refused:
                wait_s = refused.retry_after_s
                if refused.status not in AGAIN or wait_s is None:
                    raise
                if time.monotonic() + wait_s > until_s:
                    raise
            except (ConnectionError, http.client.HTTPException) as error:
                # Everything asked here may be asked twice, but for the start of a job.
                self._connection.close()
                if (method, path) == ("POST", "/v1/jobs"):
                    raise
                if idle and isinstance(error, ConnectionError):
                    continue  # by a new one
                if time.monotonic() > until_s:
                    raise
                wait_s = PAUSE_S
            time.sleep(wait_s)

    def _once(
        self, method: str, path: str, body: bytes, content_type: str
    ) -> tuple[Mapping[str, str], bytes]:
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        if body:
            headers["Content-Type"] = content_type
        self._connection.request(method, self._prefix + path, body or None, headers)
        answer = self._connection.getresponse()
        data = answer.read()
        self._answered_s = time.monotonic()
        if answer.status < 400:
            return {name.lower(): value for name, value in answer.getheaders()}, data
        wait = answer.getheader("retry-after")
        try:
            problem = json.loads(data)
        except ValueError:
            problem = {"detail": answer.reason}
        raise Refused(answer.status, problem, float(wait) if wait else None)

    def _json(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        _, data = self.ask(method, path, json_body=body)
        found: dict[str, Any] = json.loads(data)
        return found

    def _files(
        self, path: str, files: Sequence[bytes], options: Mapping[str, Any]
    ) -> dict[str, Any]:
        words = {name.rstrip("_"): _word(value) for name, value in options.items()}
        path += f"?{urllib.parse.urlencode(words)}" if words else ""
        if len(files) == 1:
            _, data = self.ask("POST", path, files[0])
        else:
            boundary = secrets.token_hex(16)
            kind = f"multipart/form-data; boundary={boundary}"
            _, data = self.ask("POST", path, _form(files, boundary), kind)
        found: dict[str, Any] = json.loads(data)
        return found


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _form(files: Sequence[bytes], boundary: str) -> bytes:
    parts = [
        f'--{boundary}\r\ncontent-disposition: form-data; name="file"; filename="{n}"\r\n'
        "content-type: application/octet-stream\r\n\r\n".encode()
        + data
        + b"\r\n"
        for n, data in enumerate(files)
    ]
    return b"".join(parts) + f"--{boundary}--\r\n".encode()


def _images(headers: Mapping[str, str], data: bytes) -> Iterator[Image]:
    """The images of an answer: one, or parts."""
    kind = headers["content-type"]
    if not kind.startswith("multipart/"):
        yield Image(data, headers.get("x-medray-address", ""), kind)
        return
    boundary = b"--" + kind.partition("boundary=")[2].strip('"').encode()
    at = data.find(boundary) + len(boundary)
    while data[at : at + 2] != b"--":
        end = data.index(b"\r\n\r\n", at)
        parser = email.parser.BytesHeaderParser(policy=email.policy.HTTP)
        head = parser.parsebytes(data[at + 2 : end])
        length = int(head["content-length"])
        content = data[end + 4 : end + 4 + length]
        yield Image(content, str(head["x-medray-address"]), str(head["content-type"]))
        at = end + 4 + length + 2 + len(boundary)
