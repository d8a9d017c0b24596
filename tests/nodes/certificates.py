"""An authority and certificates for hosts, by openssl, as Ray's TLS wants them."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Authority:
    """Who signs; its key and certificate are in `folder`."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> Authority:
        """A new one."""
        folder.mkdir()
        key, out = str(folder / "ca.key"), str(folder / "ca.crt")
        _openssl("req", "-x509", *NEW, "-subj", "/CN=a test", "-keyout", key, "-out", out)
        return cls(folder)

    def environment(self, name: str, addresses: Sequence[str]) -> dict[str, str]:
        """What Ray's processes need that are `name`, reached at `addresses`: a certificate."""
        key, asked, out = (str(self.folder / f"{name}.{end}") for end in ("key", "csr", "crt"))
        names = ",".join([f"DNS:{name}", "DNS:localhost", *(f"IP:{one}" for one in addresses)])
        extra = self.folder / f"{name}.ext"
        extra.write_text(f"subjectAltName={names}\n")
        _openssl("req", *NEW[:-2], "-subj", f"/CN={name}", "-keyout", key, "-out", asked)
        signer = ("-CA", str(self.folder / "ca.crt"), "-CAkey", str(self.folder / "ca.key"))
        how = ("-CAcreateserial", "-days", "2", "-extfile", str(extra))
        _openssl("x509", "-req", "-in", asked, "-out", out, *signer, *how)
        return {
            "RAY_USE_TLS": "1",
            "RAY_TLS_SERVER_CERT": out,
            "RAY_TLS_SERVER_KEY": key,
            "RAY_TLS_CA_CERT": str(self.folder / "ca.crt"),
        }


NEW = ("-newkey", "rsa:2048", "-nodes", "-days", "2")


def _openssl(*words: str) -> None:
    subprocess.run(["openssl", *words], check=True, capture_output=True)
