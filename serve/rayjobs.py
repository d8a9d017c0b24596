"""Who runs jobs on a Ray cluster: its own job interface, by the dashboard of this cluster."""

from __future__ import annotations

import asyncio
import functools
import os
from typing import Any

from serve.jobbook import entrypoint

STATES = {
    "PENDING": "running",
    "RUNNING": "running",
    "SUCCEEDED": "done",
    "FAILED": "failed",
    "STOPPED": "canceled",
}


class RayJobs:
    """Submits, asks and stops jobs; the handle is Ray's id of a job."""

    @functools.cached_property
    def _client(self) -> Any:
        from ray.job_submission import JobSubmissionClient

        address = os.environ.get("RAY_API_SERVER_ADDRESS") or dashboard()
        return JobSubmissionClient(address)

    async def start(self, command: list[str], log_path: str) -> str:
        """Submits a command; its log is Ray's."""
        del log_path
        environment = {"OMP_NUM_THREADS": "1"}

        def submit() -> str:
            return str(
                self._client.submit_job(
                    entrypoint=entrypoint(command), runtime_env={"env_vars": environment}
                )
            )

        return await asyncio.to_thread(submit)

    async def state(self, handle: str) -> str:
        """`running`, `done`, `failed` or `canceled`."""
        try:
            found = await asyncio.to_thread(lambda: self._client.get_job_status(handle))
        except RuntimeError:
            # A cluster that was started anew does not know the jobs of the one before.
            return "failed"
        return STATES[str(getattr(found, "value", found))]

    async def stop(self, handle: str) -> None:
        """Asks a job to end."""
        await asyncio.to_thread(lambda: self._client.stop_job(handle))

    async def close(self) -> None:
        """Jobs of a cluster outlive the service."""


def dashboard() -> str | None:
    """The address of this cluster's dashboard, where jobs are submitted; None: Ray's default."""
    from ray._private.services import get_webui_url_from_internal_kv

    url = get_webui_url_from_internal_kv()
    return f"http://{url}" if url else None
