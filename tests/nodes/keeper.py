"""A Ray cluster of several nodes on this machine, kept by a process that takes orders.

python -m tests.nodes.keeper CPUS: starts a head and tells its address and process ids as JSON. Each
line of orders, {"add": CPUS}, {"lose": NODE}, gets one of answers. It ends everything when its
orders end.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from ray.cluster_utils import Cluster

STORE_BYTES = 80 * 2**20


def _about(node: Any) -> dict[str, Any]:
    pids = {name: found[0].process.pid for name, found in node.all_processes.items() if found}
    return {"node": node.node_id, "pids": pids}


def main(cpus: int) -> None:
    """Keeps the cluster until the orders end."""
    usual = {"include_dashboard": False, "object_store_memory": STORE_BYTES}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": cpus, **usual})
    nodes = {cluster.head_node.node_id: cluster.head_node}
    _say({"address": cluster.address, **_about(cluster.head_node)})
    for line in sys.stdin:
        order = json.loads(line)
        if "add" in order:
            made = cluster.add_node(num_cpus=order["add"], object_store_memory=STORE_BYTES)
            nodes[made.node_id] = made
            _say(_about(made))
        else:
            cluster.remove_node(nodes.pop(order["lose"]), allow_graceful=False)
            _say({})
    cluster.shutdown()


def _say(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
