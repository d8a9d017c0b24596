"""What a host answers to somebody without a token: `python -m tests.nodes.stranger ADDRESS PORT...`

Run on another host. As JSON, for each port: what each HTTP request got (status) and each gRPC
method (code); nothing where nobody answers.
"""

from __future__ import annotations

import http.client
import json
import sys
import warnings
from collections.abc import Iterator

warnings.simplefilter("ignore")

import grpc  # noqa: E402

ASK_S = 15.0
ASKED = {
    "GET": (
        "/", "/metrics", "/nodes?view=summary", "/logs", "/api/version", "/api/jobs/",
        "/api/v0/logs", "/api/v0/nodes", "/api/cluster_status", "/api/healthz",
        "/api/local_raylet_healthz",
        "/api/gcs_healthz", "/api/job_agent/jobs/x/logs", "/api/serve/applications/",
        "/worker/traceback?pid=1", "/memory_profile?pid=1", "/-/healthz", "/-/routes", "/livez",
    ),
    "POST": ("/api/jobs/", "/api/job_agent/jobs/", "/get_or_create_runtime_env"),
}  # fmt: skip
# One method at least of every service of Ray's that a port may have.
METHODS = (
    "grpc.health.v1.Health/Check", "ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "ray.rpc.JobInfoGcsService/GetAllJobInfo", "ray.rpc.InternalKVGcsService/InternalKVKeys",
    "ray.rpc.ActorInfoGcsService/GetAllActorInfo",
    "ray.rpc.autoscaler.AutoscalerStateService/GetClusterStatus",
    "ray.rpc.NodeManagerService/GetNodeStats", "ray.rpc.NodeManagerService/RequestWorkerLease",
    "ray.rpc.CoreWorkerService/PushTask", "ray.rpc.CoreWorkerService/GetCoreWorkerStats",
    "ray.rpc.CoreWorkerService/Exit", "ray.rpc.CoreWorkerService/KillActor",
    "ray.rpc.ObjectManagerService/Pull", "ray.rpc.ObjectManagerService/FreeObjects",
    "ray.rpc.ReporterService/GetTraceback", "ray.rpc.ReporterService/HealthCheck",
    "ray.rpc.LogService/ListLogs", "ray.rpc.EventService/ReceiveEvents",
    "ray.rpc.RuntimeEnvService/GetOrCreateRuntimeEnv",
    "ray.rpc.RayletDriver/ClusterInfo", "ray.rpc.RayletDriver/KVList", "ray.rpc.RayletDriver/Init",
    "opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
    "ray.rpc.events.EventAggregatorService/AddEvents",
)  # fmt: skip


def by_http(address: str, port: int) -> dict[str, int | str]:
    """The status of each request that was answered; "metrics" where metrics are all it tells."""
    found: dict[str, int | str] = {}
    for method, paths in ASKED.items():
        for path in paths:
            connection = http.client.HTTPConnection(address, port, timeout=ASK_S)
            try:
                connection.request(method, path, body=b"{}" if method == "POST" else None)
                answer = connection.getresponse()
                told = "metrics" if answer.read().startswith(b"# HELP") else answer.status
                found[f"{method} {path.partition('?')[0]}"] = told
            except (OSError, http.client.HTTPException):
                # No HTTP here: the first request says so.
                return found
            finally:
                connection.close()
    return found


def by_grpc(address: str, port: int) -> dict[str, int | str]:
    """The code of each method."""
    found: dict[str, int | str] = {}
    with grpc.insecure_channel(f"{address}:{port}") as channel:
        for method in METHODS:
            call = channel.unary_unary(f"/{method}")
            try:
                call(b"", timeout=ASK_S)
                found[method] = "OK"
            except grpc.RpcError as error:
                found[method] = error.code().name
                if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                    return found
    return found


def answers(address: str, ports: list[int]) -> Iterator[tuple[int, dict[str, int | str]]]:
    """(port, what it answered)."""
    for port in ports:
        yield port, by_http(address, port) or by_grpc(address, port)


if __name__ == "__main__":
    print(json.dumps(dict(answers(sys.argv[1], [int(word) for word in sys.argv[2:]]))))
