"""Object stores and web servers through fsspec: opened alike, and what their clients raise sorted.

Each client has its own errors, and some call everything "not found" or nothing at all: here the
status that the server gave counts, where there was one, then what kind of error it was.
"""

from __future__ import annotations

import errno
import os
import ssl
from typing import Any, Literal

from medray import log
from medray.errors import UsageError

# absent: it is not there. beyond: a range past its end. passing: worth asking again. refused: not.
Kind = Literal["absent", "beyond", "passing", "refused"]

WEB, S3 = ("http://", "https://"), ("s3://", "s3a://")
# Of these an answer that is cut is an error of the client; of others it may be handed on as it is.
WHOLE_OR_ERROR = (*WEB, *S3)
# An answer that takes longer is asked for again: by us, so the clients' own retries are off.
CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 10.0, 30.0
_STATUS: dict[int, Kind] = {404: "absent", 410: "absent", 416: "beyond"}
# 400: a body that was cut on its way up. 409: two at once. 425, 429: too early, too often.
_PASSING_STATUS = frozenset((400, 408, 409, 425, 429))
# Objects of at least two parts are sent in parts, so many at once (each is in memory).
PART_BYTES, PARTS_AT_ONCE, PART_ATTEMPTS = 50 << 20, 4, 5
# What a client says before it has asked anybody.
_REFUSED_NAMES = frozenset(
    "NoCredentialsError PartialCredentialsError ProfileNotFound ParamValidationError "
    "UnknownEndpointError InvalidRegionError NoRegionError ConfigParseError "
    "CredentialRetrievalError DefaultCredentialsError InvalidURL InvalidUrlClientError".split()
)
_CLIENTS = ("aiohttp", "botocore", "aiobotocore", "gcsfs", "google", "urllib3", "requests")


def refuse_password(url: str) -> None:
    """UsageError for a URL with a password in it, which logs and run folders would repeat."""
    place = url.partition("://")[2].partition("/")[0]
    user, at, host = place.rpartition("@")
    if at and ":" in user:
        raise UsageError(
            f"the URL of {host} has a password in it, which logs and run folders would repeat",
            hint="give it without, and the password by ~/.netrc or the store's own configuration",
        )


def open_remote(url: str) -> tuple[Any, str]:
    """The client for a URL and the root there; UsageError for a scheme that nothing opens."""
    import fsspec

    refuse_password(url)
    try:
        filesystem, root = fsspec.core.url_to_fs(url, **_options(url))
    except (ValueError, ImportError, OSError) as error:
        raise UsageError(
            f"cannot open {url}: {error}",
            hint="give a folder or a URL such as file://, memory://, s3:// (s3 needs medray[s3])",
        ) from error
    # Clients answer from a listing made earlier unless told not to; other processes write, too.
    for holder in (filesystem, getattr(filesystem, "dircache", None)):
        if holder is not None and hasattr(holder, "use_listings_cache"):
            holder.use_listings_cache = False
    if url.startswith(S3):
        filesystem.retries = 1
        filesystem = _S3(filesystem)
    elif url.startswith(WEB):
        filesystem = _Web(filesystem)
    return filesystem, str(root).rstrip("/")


def _options(url: str) -> dict[str, Any]:
    """How to open a client, where the user's own fsspec configuration does not say it."""
    import fsspec

    if url.startswith(WEB):
        import aiohttp

        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=READ_TIMEOUT_S
        )
        # Without it proxies that the environment names would not be asked.
        own: dict[str, Any] = {"client_kwargs": {"timeout": timeout, "trust_env": True}}
        # What is packed on the way has no ranges: each would come as the whole file.
        own["headers"] = {"Accept-Encoding": "identity"}
    elif url.startswith(S3):
        timeouts = {"connect_timeout": CONNECT_TIMEOUT_S, "read_timeout": READ_TIMEOUT_S}
        own = {"config_kwargs": {**timeouts, "retries": {"total_max_attempts": 1}}}
    else:
        return {}
    given = fsspec.config.conf.get(url.partition("://")[0], {})
    return {name: value for name, value in own.items() if name not in given}


class _S3:
    """s3fs, but an object is read in one request: in several it could be two versions of it.

    Large objects go up in parts, each of which is sent again by itself where it failed.
    """

    def __init__(self, filesystem: Any) -> None:
        self._fs = filesystem

    def __getattr__(self, name: str) -> Any:
        return getattr(self._fs, name)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        """All of it, or a range."""
        return bytes(self._fs.cat_file(path, start=start, end=end, max_concurrency=1))

    def pipe_file(self, path: str, data: bytes) -> None:
        """Writes bytes."""
        self._put("pipe_file", (path, data), path, len(data))

    def put_file(self, local_path: str, path: str) -> None:
        """Writes a file's content."""
        self._put("put_file", (local_path, path), path, os.path.getsize(local_path))

    def _put(self, method: str, arguments: tuple[Any, ...], path: str, size: int) -> None:
        if size < 2 * PART_BYTES:
            getattr(self._fs, method)(*arguments)
            return
        before = self._version(path)
        parts = {"chunksize": PART_BYTES, "max_concurrency": PARTS_AT_ONCE}
        try:
            getattr(self._patient(), method)(*arguments, **parts)
        except FileNotFoundError as error:
            if _code(error) != "NoSuchUpload":
                raise
            # The answer to the last request was lost, and it was made again.
            if self._version(path) in (before, None) or self._fs.size(path) != size:
                raise ConnectionError(f"the upload of {path} was not completed") from None

    def _version(self, path: str) -> tuple[Any, Any] | None:
        """What changes when an object is written again, None where there is none."""
        try:
            found = self._fs.info(path)
        except FileNotFoundError:
            return None
        return found.get("ETag"), found.get("LastModified")

    def _patient(self) -> Any:
        """A client that sends a part again by itself."""
        options = dict(self._fs.storage_options)
        config = {**options.get("config_kwargs", {})}
        config["retries"] = {"total_max_attempts": PART_ATTEMPTS, "mode": "standard"}
        return type(self._fs)(**{**options, "config_kwargs": config})


class _Web:
    """A web server's files, read only; what fails is an error, never an empty answer."""

    def __init__(self, filesystem: Any) -> None:
        self._fs = filesystem
        self._told = False

    def exists(self, url: str) -> bool:
        """Whether the server has it: an error that is no 404 is none here either."""
        return bool(self._fs.exists(url, strict=True))

    def size(self, url: str) -> int | None:
        """Its length in bytes, None where the server does not say it."""
        size: int | None = self._fs.info(url)["size"]
        return size

    def cat_file(self, url: str, start: int | None = None, end: int | None = None) -> bytes:
        """All of it, or a range; all of it as well where the server knows no ranges."""
        data = bytes(self._fs.cat_file(url, start=start, end=end))
        if start is not None and end is not None and len(data) > end - start:
            self._tell(url)
            data = data[start:end]
        return data

    def _tell(self, url: str) -> None:
        if not self._told:
            text = "the server sends whole files where ranges are asked for: this will be slow"
            log.warn("store", f"{url}: {text}", url=url)
        self._told = True

    def find(self, url: str) -> list[str]:
        """The files below, as the server lists them."""
        return [name for name in self._fs.find(url, on_error="raise") if name.rstrip("/") != url]


def kind_of(error: BaseException) -> Kind | None:
    """What an error of a store's client stands for; None for one that is not of a store."""
    status = _status(error)
    if status is not None:
        return _kind_of_status(status, error)
    if isinstance(error, FileNotFoundError):
        cause = error.__cause__
        # The client of web servers says this whatever went wrong, and why as its cause.
        return (kind_of(cause) if cause is not None else None) or "absent"
    if isinstance(error, PermissionError | ssl.SSLCertVerificationError | NotImplementedError):
        return "refused"
    if isinstance(error, OSError):
        return "refused" if error.errno == errno.ENOSYS else "passing"
    if isinstance(error, ValueError | RuntimeError):
        return "refused"
    if type(error).__module__.partition(".")[0] not in _CLIENTS:
        return None
    names = {kind.__name__ for kind in type(error).__mro__}
    return "refused" if names & _REFUSED_NAMES else "passing"


def _kind_of_status(status: int, error: BaseException) -> Kind:
    if status in _STATUS:
        return _STATUS[status]
    if status >= 500 or (status in _PASSING_STATUS and not isinstance(error, PermissionError)):
        return "passing"
    return "refused"


def _code(error: BaseException) -> str:
    """What S3 calls an error; empty for others."""
    response = getattr(error.__cause__, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""


def _status(error: BaseException) -> int | None:
    """The HTTP status behind an error, where a server gave one."""
    for found in (error, error.__cause__):
        status = getattr(found, "status", None) or getattr(found, "code", None)
        response = getattr(found, "response", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if isinstance(status, int) and 100 <= status < 600:
            return status
    return None
