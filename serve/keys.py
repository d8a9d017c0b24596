#!/usr/bin/env python3
"""Bearer keys: random, kept as SHA-256, with scopes, expiry, rate and quota of their own.

`python -m serve.keys new --file keys.json --name alice --scopes read,generate` prints a key, once.
A service reads the file again when it changes: adding and revoking need no restart.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import hmac
import json
import os
import re
import secrets
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastapi import Request

from medray.errors import MedrayError, UsageError
from serve.problems import Problem

SCHEMA = "medray.keys/1"
# `real` shows real images: no other scope but `admin` has it in it.
SCOPES = ("read", "generate", "real", "admin")
PREFIX = "mrk_"
ENVIRONMENT = "MEDRAY_SERVE_KEYS"
OPEN = "local"
LOOKED_UP_BYTES = 8
NAME = re.compile(r"^[A-Za-z0-9._-]{1,64}$")


@dataclass(frozen=True)
class Key:
    """What is kept of a key; `expires` is an ISO time with a zone. None: the service's default."""

    name: str
    sha256: str
    scopes: tuple[str, ...]
    expires: str | None = None
    rate_per_s: float | None = None
    burst: int | None = None
    images_per_day: int | None = None

    def __post_init__(self) -> None:
        if not NAME.match(self.name):
            raise UsageError(f"key name {self.name!r}: letters, digits, '.', '_', '-', at most 64")
        if not re.fullmatch("[0-9a-f]{64}", self.sha256):
            raise UsageError(f"key {self.name}: sha256 must be 64 lower-case hexadecimal digits")
        if unknown := set(self.scopes) - set(SCOPES):
            raise UsageError(f"key {self.name}: scope {min(unknown)!r}, allowed: {_SCOPES_TEXT}")
        if not self.scopes:
            raise UsageError(f"key {self.name}: at least one scope of {_SCOPES_TEXT}")
        if self.expires is not None:
            self.expires_at(self.expires)

    @property
    def ends_s(self) -> float:
        """When it expires, in seconds since 1970; infinity: never."""
        return self.expires_at(self.expires) if self.expires else float("inf")

    def expires_at(self, text: str) -> float:
        try:
            moment = datetime.datetime.fromisoformat(text)
        except ValueError:
            raise UsageError(f"key {self.name}: expires {text!r} is not an ISO time") from None
        if moment.tzinfo is None:
            raise UsageError(f"key {self.name}: expires {text!r} lacks a zone, such as +00:00")
        return moment.timestamp()


_SCOPES_TEXT = ", ".join(SCOPES)
Entry = tuple[bytes, Key, frozenset[str], float]


class KeyBook:
    """The keys of a service: of a file, or of the environment; `open` where there are none."""

    def __init__(self, keys: Iterable[Key] = (), path: Path | None = None) -> None:
        self.path = path
        self._stamp: tuple[int, int] | None = None
        self._by_start: dict[bytes, Entry] = {}
        self.by_name: dict[str, Key] = {}
        self._take(keys)
        # Decided once: a file emptied later closes the service, it does not open it.
        self.open = not self.by_name and path is None
        if path is not None:
            self.refresh()

    @classmethod
    def of(cls, url: str | None) -> KeyBook:
        """The keys of a file, or of $MEDRAY_SERVE_KEYS; UsageError for what is not such a list."""
        if url:
            path = Path(url.removeprefix("file://"))
            if not path.exists():
                hint = f"python -m serve.keys new --file {path} --name NAME --scopes read,generate"
                raise UsageError(f"there is no file of keys {path}", hint=hint)
            return cls(path=path)
        text = os.environ.get(ENVIRONMENT, "")
        return cls(parsed(text, f"${ENVIRONMENT}")) if text else cls()

    def _take(self, keys: Iterable[Key]) -> None:
        found = list(keys)
        digests = [bytes.fromhex(key.sha256) for key in found]
        self._by_start = {
            digest[:LOOKED_UP_BYTES]: (digest, key, _with_implied(key.scopes), key.ends_s)
            for digest, key in zip(digests, found, strict=True)
        }
        self.by_name = {key.name: key for key in found}

    def refresh(self) -> bool:
        """Reads the file again where it changed; a file that is not a list changes nothing."""
        if self.path is None:
            return False
        try:
            stat = self.path.stat()
        except FileNotFoundError:
            self._take(())
            return True
        stamp = (stat.st_mtime_ns, stat.st_size)
        if stamp == self._stamp:
            return False
        # What cannot be read is told once, not every time.
        self._stamp = stamp
        self._take(parsed(self.path.read_text("utf-8", "replace"), str(self.path)))
        return True

    def find(self, token: bytes, now_s: float) -> tuple[Key, frozenset[str]]:
        """The key of a token and its scopes; Problem 401 for an unknown or expired one.

        What is looked up and compared (in constant time) is the token's hash: how long it takes
        tells nothing of a key.
        """
        digest = hashlib.sha256(token).digest()
        entry = self._by_start.get(digest[:LOOKED_UP_BYTES])
        if entry is None or not hmac.compare_digest(entry[0], digest):
            raise _unauthorized("key_unknown", "the key is not known here")
        if entry[3] <= now_s:
            raise _unauthorized("key_expired", "the key has expired")
        return entry[1], entry[2]


def _with_implied(scopes: Sequence[str]) -> frozenset[str]:
    return frozenset(SCOPES if "admin" in scopes else scopes)


def _unauthorized(code: str, detail: str) -> Problem:
    hint = "send the header: Authorization: Bearer KEY"
    return Problem(401, code, detail, hint, {"www-authenticate": 'Bearer realm="medray"'})


def missing() -> Problem:
    """401: nothing was given."""
    return _unauthorized("key_missing", "a key is needed")


def malformed() -> Problem:
    """401: something was given that is no bearer key."""
    return _unauthorized("key_malformed", "the Authorization header is not 'Bearer KEY'")


def scope(name: str) -> Callable[[Request], Awaitable[str]]:
    """A dependency: the caller's key has this scope (admin has all); gives the key's name."""
    assert name in SCOPES, f"scope {name!r}, allowed: {_SCOPES_TEXT}"

    async def need(request: Request) -> str:
        state = request.state
        if getattr(state, "key", None) is None:
            raise missing()
        if name not in state.scopes:
            detail = f"the key {state.key} lacks the scope {name!r}"
            raise Problem(
                403, "scope_missing", detail, f"it has: {', '.join(sorted(state.scopes))}"
            )
        return str(state.key)

    # Which scope a route needs stands in its OpenAPI, and a test reads it.
    need.scope = name  # type: ignore[attr-defined]
    return need


def parsed(text: str, where: str) -> list[Key]:
    """The keys of a file's text; UsageError says what is wrong with it."""
    try:
        content = json.loads(text)
        if not isinstance(content, Mapping) or content.get("schema") != SCHEMA:
            raise UsageError(f"{where} is not a list of keys (schema {SCHEMA})")
        keys = [Key(**{**entry, "scopes": tuple(entry["scopes"])}) for entry in content["keys"]]
    except (json.JSONDecodeError, TypeError, KeyError, AttributeError) as error:
        # The text itself is not shown: it may hold what should not stand in a log.
        raise UsageError(f"{where} is not a list of keys: {type(error).__name__}") from None
    names = [key.name for key in keys]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UsageError(f"{where} has the name {min(twice)!r} twice")
    return keys


def text_of(keys: Iterable[Key]) -> str:
    """The text of a file of keys."""
    return json.dumps({"schema": SCHEMA, "keys": [asdict(key) for key in keys]}, indent=1) + "\n"


def make(name: str, scopes: Sequence[str], **limits: Any) -> tuple[str, Key]:
    """A new key: its text, which is shown once, and what is kept of it."""
    token = PREFIX + secrets.token_urlsafe(32)
    return token, Key(name, hashlib.sha256(token.encode()).hexdigest(), tuple(scopes), **limits)


def write(path: Path, keys: Iterable[Key]) -> None:
    """Writes the file whole, readable by its owner alone."""
    part = path.with_name(path.name + ".part")
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text_of(keys))
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m serve.keys", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for command in ("new", "list", "revoke"):
        sub = commands.add_parser(command)
        sub.add_argument("--file", type=Path, default=Path("keys.json"), help="file of hashed keys")
        if command != "list":
            sub.add_argument("--name", required=True, help="whose key")
        if command == "new":
            sub.add_argument("--scopes", default="read", help=f"of {_SCOPES_TEXT}; with commas")
            sub.add_argument("--days", type=float, help="days until it expires (none: never)")
            sub.add_argument("--rate", type=float, help="requests per second")
            sub.add_argument("--burst", type=int, help="requests at once")
            sub.add_argument("--images-per-day", type=int, help="images made or read in a UTC day")
    return parser


def _new(flags: argparse.Namespace, keys: list[Key]) -> None:
    if any(key.name == flags.name for key in keys):
        raise UsageError(f"{flags.file} has a key named {flags.name!r} already: revoke it first")
    expires = None
    if flags.days is not None:
        moment = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=flags.days)
        expires = moment.isoformat(timespec="seconds")
    limits = {"rate_per_s": flags.rate, "burst": flags.burst, "expires": expires}
    limits["images_per_day"] = flags.images_per_day
    token, key = make(flags.name, flags.scopes.split(","), **limits)
    write(flags.file, [*keys, key])
    print(token)


def main(argv: Sequence[str] | None = None) -> int:
    """The command: 0, or 2 with what is wrong."""
    flags = _arguments().parse_args(argv)
    try:
        text = flags.file.read_text(encoding="utf-8") if flags.file.exists() else text_of(())
        keys = parsed(text, str(flags.file))
        if flags.command == "new":
            _new(flags, keys)
        elif flags.command == "list":
            for key in keys:
                print(f"{key.name}  {','.join(key.scopes)}  expires {key.expires or 'never'}")
        elif any(key.name == flags.name for key in keys):
            write(flags.file, [key for key in keys if key.name != flags.name])
        else:
            raise UsageError(f"{flags.file} has no key named {flags.name!r}")
    except MedrayError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
