"""How many nodes a cluster has: `python -m tests.nodes.watch ADDRESS` says so whenever it changes.

A line of JSON each time, {"nodes": N, "s": SECONDS}, until it is killed.
"""

from __future__ import annotations

import json
import sys
import time

from ray._raylet import GcsClient

ALIVE = 0


def main(address: str) -> None:
    """Watches until it is killed."""
    client, before = GcsClient(address=address), -1
    while True:
        found = client.get_all_node_info()
        now = sum(node.state == ALIVE for node in found.values())
        if now != before:
            print(json.dumps({"nodes": now, "s": time.monotonic()}), flush=True)
            before = now
        time.sleep(0.25)


if __name__ == "__main__":
    main(sys.argv[1])
