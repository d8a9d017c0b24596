"""Patients become keyed hashes (HMAC-SHA256 with the project's secret) as soon as they are read.

The same secret gives the same hashes, so sets packed on different days fit together; without the
secret a hash cannot be tried against a list of names.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from pathlib import Path

from medray import log
from medray.errors import ResourceError, UsageError

ENVIRONMENT = "MEDRAY_SECRET_KEY"
DEFAULT_FILE = Path("~/.config/medray/secret.key")
LEAST_BYTES = 16


class Keyed:
    """Hashes under one secret, a purpose each, so that no two uses can be compared."""

    def __init__(self, secret: bytes) -> None:
        if len(secret) < LEAST_BYTES:
            raise UsageError(
                f"the secret has {len(secret)} bytes, at least {LEAST_BYTES} are wanted",
                hint=f"openssl rand -hex 32, in {ENVIRONMENT} or --secret-file",
            )
        self._secret = secret

    def digest(self, purpose: str, text: str) -> bytes:
        """32 bytes that only who has the secret can make of `text`."""
        return hmac.digest(self._secret, f"{purpose}\0{text}".encode(), "sha256")

    def patient(self, raw: str) -> str | None:
        """A patient's hash, 16 hexadecimal digits; None for an empty id."""
        text = raw.strip()
        return self.digest("patient", text).hex()[:16] if text else None

    def uniform(self, purpose: str, text: str) -> float:
        """A number in [0, 1) that belongs to `text`."""
        return int.from_bytes(self.digest(purpose, text)[:8], "big") / 2**64


def load_secret(secret_file: str | None) -> Keyed:
    """The project's secret: `secret_file`, MEDRAY_SECRET_KEY, or the user's own file."""
    if secret_file is not None:
        return Keyed(_read(Path(secret_file)))
    if os.environ.get(ENVIRONMENT):
        return Keyed(os.environ[ENVIRONMENT].encode())
    path = DEFAULT_FILE.expanduser()
    if not path.exists():
        _make(path)
    return Keyed(_read(path))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes().strip()
    except OSError as error:
        raise UsageError(f"cannot read the secret in {path}: {error.strerror}") from error


def _make(path: Path) -> None:
    """Makes the user's own secret, for the user alone; another process may do so too."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        part.write_bytes(secrets.token_hex(32).encode() + b"\n")
        part.chmod(0o600)
        try:
            os.link(part, path)  # unlike a rename, fails where there is one already
        except FileExistsError:
            return
        finally:
            part.unlink()
    except OSError as error:
        raise ResourceError(
            f"cannot make a secret in {path}: {error.strerror}", hint=f"set {ENVIRONMENT}"
        ) from error
    log.warn(
        "secret",
        f"made a secret for patient hashes in {path}: keep it (or set {ENVIRONMENT}), the same "
        "patients get the same hashes with it alone",
    )


def file_digest(data: bytes) -> str:
    """SHA-256 of a source file, hexadecimal."""
    return hashlib.sha256(data).hexdigest()
