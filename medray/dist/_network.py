"""Which of this machine's interfaces reaches another machine."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
from urllib.parse import urlsplit

# From <linux/sockios.h>.
SIOCGIFADDR = 0x8915
ANY_PORT = 9


def interface_to(init_method: str) -> str | None:
    """The interface that reaches the meeting point of `tcp://HOST:PORT`, or of MASTER_ADDR.

    None where that is no address of IPv4. Left alone, gloo takes the one of this machine's own
    name, which Debian and others keep on loopback: no other machine reaches it there.
    """
    host = urlsplit(init_method).hostname or os.environ.get("MASTER_ADDR")
    if not host:
        return None
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        # Nothing is sent: the kernel says from where it would be.
        probe.connect((host, ANY_PORT))
        return _of_address(probe, probe.getsockname()[0])
    return None


def _of_address(probe: socket.socket, address: str) -> str | None:
    for _, name in socket.if_nameindex():
        # One without an address has none to compare.
        with contextlib.suppress(OSError):
            found = fcntl.ioctl(probe, SIOCGIFADDR, struct.pack("256s", name.encode()))
            if socket.inet_ntoa(found[20:24]) == address:
                return name
    return None
