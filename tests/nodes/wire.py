"""Listens on the wire: `python -m tests.nodes.wire WORD` counts the frames that show WORD.

Says "listening", and as JSON, once its input has ended, how many frames passed and showed it. It
looks at every interface of its network, as whoever owns a switch can.
"""

from __future__ import annotations

import json
import select
import socket
import sys

ALL = 0x0003


def main(word: bytes) -> None:
    """Listens until the input ends."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ALL)) as wire:
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 24)
        print("listening", flush=True)
        frames = shown = 0
        while True:
            ready, _, _ = select.select([wire, sys.stdin], [], [])
            if wire in ready:
                frames += 1
                shown += word in wire.recv(1 << 16)
            elif not sys.stdin.readline():
                break
    print(json.dumps({"frames": frames, "shown": shown}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1].encode())
