"""The service on the cluster of RAY_ADDRESS, kept by a process that takes orders.

python -m tests.nodes.served SETTINGS_JSON: says {"ready": true}. Each line of its input is a
deployment's name, answered with its running replicas. It ends the service when its input ends.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import ray
from ray import serve
from ray.serve.context import _get_global_client

from serve.app import app

NAME = "tested"


def replicas(deployment: str) -> list[dict[str, Any]]:
    """Node and process of each running replica."""
    details = _get_global_client().get_serve_details()
    found = details["applications"][NAME]["deployments"][deployment]["replicas"]
    return [
        {"node": one["node_id"], "pid": one["pid"]} for one in found if one["state"] == "RUNNING"
    ]


def main(settings: dict[str, Any]) -> None:
    """Serves until the input ends."""
    ray.init(address="auto", logging_level="error")
    serve.start(http_options={"host": "127.0.0.1", "port": settings.pop("proxy")})
    serve.run(app(settings), name=NAME, route_prefix="/")
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        print(json.dumps(replicas(line.strip())), flush=True)
    serve.shutdown()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
