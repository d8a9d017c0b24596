"""Jobs on a Ray cluster through `ray job submit`, with the program's own exit code at the end.

Ray turns every failure into exit code 1; the job's frame prints its true code as the last line,
which is read here. Token authentication stays on.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from medray import log
from medray.config import ENVIRONMENT_PREFIX, SUBMIT_DIR
from medray.errors import ResourceError, UsageError
from medray.job import EXIT_LINE

PACKAGE_LIMIT_MIB = 100
# Ray's own chatter around the program's lines; its log files keep it.
CHATTER = re.compile(
    r"^\S+ \S+\s+(INFO|SUCC|WARNING|ERR) "
    r"(packaging|working_dir|dashboard_sdk|cli|sdk|job_manager)\.py"
)
BACKEND = re.compile(r"^(\S*\(\w+( pid=\d+[^)]*)?\)\S* )?\[[-\d]+ [\d:,]+ [IWE] \d+ \d+\]")
PREFIX = re.compile(r"^\(RayTrainWorker pid=\d+[^)]*\) ")
CONTROL = re.compile(r"\x1b\[[0-9;]*m")
# Before this line what Ray says is a traceback at worst; the last line of it is the reason.
TAKEN = "submitted successfully"
START_TIMEOUT_S = 90
# What a job's description, which Ray shows on its dashboard and keeps, must not hold.
SECRETS = ("MEDRAY_SECRET_KEY", "MEDRAY_SERVE_KEYS", "MEDRAY_DATABASE_URL")


def submit(name: str, argv: Sequence[str], *, ours: bool = False) -> int:
    """Submits jobs/NAME.py with this folder's files, shows its log, returns its exit code.

    `ours`: to a Ray that this process started, whose nodes have its environment.
    """
    script = Path("jobs") / f"{name}.py"
    if not script.exists():
        raise UsageError(
            f"no {script} here: submit from a checkout of medray", hint="cd into the checkout first"
        )
    _check_package(Path.cwd())
    entrypoint = shlex.join(["python", str(script), *argv])
    environment = {SUBMIT_DIR: os.environ.get(SUBMIT_DIR, os.getcwd()), **_sent(os.environ, ours)}
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--working-dir", "."),
        *("--log-style", "record", "--log-color", "false"),
        *("--runtime-env-json", json.dumps({"env_vars": environment})),
        *("--", *shlex.split(entrypoint)),
    ]
    return _run_and_read_code(command)


def _sent(environment: Mapping[str, str], ours: bool = False) -> dict[str, str]:
    """The variables that a job's description holds; secrets stay here, and that is said."""
    sent = {k: v for k, v in environment.items() if k.startswith(ENVIRONMENT_PREFIX)}
    kept = [name for name in SECRETS if sent.pop(name, None)]
    if kept and not ours:
        log.warn(
            "secrets",
            f"{', '.join(kept)}: not sent, for a job's description is shown on the dashboard; the "
            "nodes must have it in their environment",
        )
    return sent


def _run_and_read_code(command: Sequence[str]) -> int:
    environment = {"RAY_AUTH_MODE": "token", **os.environ}
    code, taken, said = None, False, ""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            taken = taken or TAKEN in line
            if not taken:
                said = CONTROL.sub("", line).strip() or said
            elif EXIT_LINE in line:
                code = int(line.rpartition(EXIT_LINE)[2].split()[0])
            elif code is None and not CHATTER.match(line) and not BACKEND.match(line):
                # After the program's last line Ray tells its end once more.
                sys.stderr.write(PREFIX.sub("", CONTROL.sub("", line)))
                sys.stderr.flush()
    hint = "is the cluster reachable (RAY_API_SERVER_ADDRESS), and RAY_AUTH_TOKEN its token?"
    if not taken:
        raise ResourceError(f"the cluster did not take the job: {said}", hint=hint)
    if process.returncode != 0 and code is None:
        raise ResourceError("the job ended without an exit code of its own", hint=hint)
    return code or 0


def _check_package(folder: Path) -> None:
    """Says how large the package is that Ray uploads; refuses one that Ray would refuse."""
    listed = subprocess.run(
        ["git", "-C", str(folder), "ls-files", "-co", "--exclude-standard", "-z"],
        capture_output=True,
        text=True,
    )
    if listed.returncode != 0:
        log.debug("package", "not a git checkout: the package's size is not known beforehand")
        return
    files = [folder / name for name in listed.stdout.split("\0") if name]
    sizes = sorted(((p.stat().st_size, p) for p in files if p.is_file()), reverse=True)
    total_mib = sum(size for size, _ in sizes) / 2**20
    largest = ", ".join(f"{p.relative_to(folder)} {s / 2**20:.1f} MiB" for s, p in sizes[:3])
    log.debug("package", f"package: {total_mib:.1f} MiB in {len(sizes)} files; largest: {largest}")
    if total_mib > PACKAGE_LIMIT_MIB:
        raise UsageError(
            f"the folder is {total_mib:.0f} MiB, Ray takes {PACKAGE_LIMIT_MIB}; largest: {largest}",
            hint="name what the job does not need in .gitignore",
        )


def local(name: str, argv: Sequence[str]) -> int:
    """Starts a Ray on loopback, submits the job to it, and stops it again, whatever happens."""
    with local_ray() as (address, token):
        os.environ |= {"RAY_API_SERVER_ADDRESS": address, "RAY_AUTH_TOKEN": token}
        os.environ["RAY_AUTH_MODE"] = "token"
        return submit(name, argv, ours=True)


@contextlib.contextmanager
def local_ray() -> Iterator[tuple[str, str]]:
    """A Ray head of this machine's own: yields its dashboard's URL and its token."""
    token = secrets.token_hex(32)
    port = dict(zip(("gcs", "dashboard", "client", "agent"), _free_ports(4), strict=True))
    folder = tempfile.mkdtemp(prefix="mr-")
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
        *("--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", "--disable-usage-stats"),
        *(f"--port={port['gcs']}", f"--dashboard-port={port['dashboard']}"),
        *(f"--ray-client-server-port={port['client']}", f"--temp-dir={folder}"),
        *(f"--dashboard-agent-listen-port={port['agent']}", "--object-store-memory=300000000"),
    ]
    binaries = str(Path(sys.executable).parent)
    environment = {
        **os.environ,
        "PATH": f"{binaries}{os.pathsep}{os.environ.get('PATH', '')}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        # Ray starts its workers at niceness 15: beside anything else they would hardly run.
        "RAY_worker_niceness": os.environ.get("RAY_worker_niceness", "0"),
    }
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        try:
            _wait_for(port["dashboard"], process)
            # The node's agent comes up after its node, which jobs need too.
            _wait_for(port["agent"], process)
            yield f"http://127.0.0.1:{port['dashboard']}", token
        finally:
            _stop(process)


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s:
        if process.poll() is not None:
            raise ResourceError(f"`ray start` ended with {process.returncode}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.2)
    raise ResourceError(f"Ray did not answer on port {port} within {START_TIMEOUT_S} s")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
