"""nginx as a process of its own over a temporary folder: http, and https with its own authority."""

from __future__ import annotations

import ctypes
import datetime
import ipaddress
import os
import signal
import subprocess
from pathlib import Path
from types import TracebackType

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.faults.kill import kill_group
from tests.faults.proxy import free_port

NGINX = "/usr/sbin/nginx"
CONFIG = """
daemon off;
master_process off;
{user}
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 64; }}
http {{
  access_log {folder}/access.log;
  types {{ application/json json; text/html html; application/octet-stream tar idx; }}
  default_type application/octet-stream;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  gzip on; gzip_types application/json application/octet-stream; gzip_min_length 1;
  server {{
    listen 127.0.0.1:{http_port};
    listen 127.0.0.1:{https_port} ssl;
    ssl_certificate {folder}/server.pem;
    ssl_certificate_key {folder}/server.key;
    location / {{ root {root}; }}
    location /listed/ {{ alias {root}/; autoindex on; }}
    location /noranges/ {{ alias {root}/; max_ranges 0; }}
  }}
}}
"""


def dies_with_its_parent() -> None:
    """For a child before it starts: it ends when the tests do, however these end."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class Web:
    """The server while the context lasts; `root` is what it serves."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.root = folder, folder / "root"
        self.root.mkdir()
        self.http_port, self.https_port = free_port(), free_port()
        self.http, self.https = (
            f"http://127.0.0.1:{self.http_port}",
            f"https://127.0.0.1:{self.https_port}",
        )
        self.authority = folder / "authority.pem"
        _certificates(folder)
        # As root nginx would serve as another user, who cannot read the folder.
        user = "user root;" if os.getuid() == 0 else ""
        text = CONFIG.format(
            folder=folder,
            root=self.root,
            user=user,
            http_port=self.http_port,
            https_port=self.https_port,
        )
        (folder / "nginx.conf").write_text(text)

    def __enter__(self) -> Web:
        command = [NGINX, "-c", str(self.folder / "nginx.conf"), "-p", str(self.folder)]
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=dies_with_its_parent,
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        kill_group(self.process)

    def requests(self) -> list[str]:
        """The lines of its access log."""
        return (self.folder / "access.log").read_text().splitlines()


def _certificates(folder: Path) -> None:
    """An authority's certificate, and one for 127.0.0.1 that it signed."""
    authority_key, server_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    authority_name = _named("medray tests' authority")
    authority = (
        _made(authority_name, authority_name, authority_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    server = (
        _made(_named("127.0.0.1"), authority_name, server_key.public_key())
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .sign(authority_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "authority.pem").write_bytes(authority.public_bytes(pem))
    (folder / "server.pem").write_bytes(server.public_bytes(pem))
    (folder / "server.key").write_bytes(
        server_key.private_bytes(
            pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _made(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=2))
    )
