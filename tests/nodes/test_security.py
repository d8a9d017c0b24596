"""Who may talk to a cluster: from another host, with no token or a wrong one, without TLS."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.archive import made_parts
from tests.faults.kill import tree_sha256, wait_for
from tests.nodes.certificates import Authority
from tests.nodes.hosts import PORT, Host, Network, network, token
from tests.nodes.jobs import Archiving
from tests.nodes.rig import ROOT, environment, long
from tests.nodes.test_autoscaling import counts

__all__ = ["network"]
pytestmark = [pytest.mark.ray, pytest.mark.chaos, pytest.mark.timeout(600)]
DASHBOARD = 8265
# What anybody may ask (SECURITY.md): health, and metrics ("metrics" as the answer), nothing else.
ALLOWED = {
    "GET /api/healthz", "GET /api/local_raylet_healthz", "GET /api/gcs_healthz",
    "grpc.health.v1.Health/Check",
}  # fmt: skip
# Metrics; refused for want of a token; nobody there of that name.
HARMLESS = {401, 403, 404, 405, "metrics", "UNAUTHENTICATED", "UNIMPLEMENTED", "UNAVAILABLE"}
# 127.0.0.1 and ::1, as the kernel writes them.
LOOPBACK = ("0100007F", "0" * 24 + "01000000")
WORK = """
import ray, sys, time
ray.init(address=sys.argv[1], logging_level="error")
@ray.remote
class Worker:
    def here(self):
        return True
worker = Worker.remote()
assert ray.get(worker.here.remote())
print("at work", flush=True)
time.sleep(3600)
"""


@dataclass
class Home:
    """A cluster of one host and a worker in it, and a host beside it that has no part in it."""

    host: Host
    stranger: Host
    secret: dict[str, str]
    folder: Path

    @property
    def address(self) -> str:
        return f"{self.host.address}:{PORT}"

    def listening(self) -> set[int]:
        """Ports at which the host listens beyond loopback."""
        found = set()
        for kind in ("tcp", "tcp6"):
            lines = Path(f"/proc/{self.host.first}/net/{kind}").read_text().splitlines()[1:]
            for line in lines:
                place, state = line.split()[1], line.split()[3]
                address, _, port = place.partition(":")
                if state == "0A" and address not in LOOPBACK:
                    found.add(int(port, 16))
        return found

    def answers(self) -> dict[str, dict[str, int | str]]:
        """What the stranger is answered, without a token, by port."""
        ports = [str(port) for port in sorted(self.listening())]
        words = (sys.executable, "-m", "tests.nodes.stranger", self.host.address, *ports)
        return dict(json.loads(self.stranger.run(*words)))


def given_away(answers: dict[str, dict[str, int | str]]) -> list[tuple[str, str, int | str]]:
    """(port, request, answer) of everything answered that should not be."""
    return [
        (port, asked, answer)
        for port, found in answers.items()
        for asked, answer in found.items()
        if answer not in HARMLESS and asked not in ALLOWED
    ]


def cluster(network: Network, folder: Path, secret: dict[str, str]) -> Home:
    """A cluster with the dashboard and one worker, on a host of its own."""
    home = Home(network.host(), network.host(), secret, folder)
    log = folder / "head.log"
    home.host.ray(log, "--dashboard-host=127.0.0.1", f"--dashboard-port={DASHBOARD}", **secret)
    wait_for(lambda: "Ray runtime started" in log.read_text(), 90)
    words = [sys.executable, "-W", "ignore", "-c", WORK, home.address]
    worker = home.host.start(words, folder / "worker.log", **secret)
    worker.until(lambda: "at work" in worker.said(), 90)
    return home


@pytest.fixture(scope="module")
def home(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Home:
    return cluster(network, tmp_path_factory.mktemp("home"), token())


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_parts.make_parts(tmp_path_factory.mktemp("parts"))


def test_another_host_gets_metrics_and_health_and_nothing_else_without_the_token(
    home: Home,
) -> None:
    wait_for(lambda: len(home.listening()) >= 8, 60)
    answers = home.answers()
    for port, found in answers.items():
        print(port, {asked: answer for asked, answer in found.items() if answer != "UNIMPLEMENTED"})
    assert str(PORT) in answers and str(DASHBOARD) not in answers
    assert given_away(answers) == []
    # It did reach them: metrics are told, and gRPC says that a token is missing.
    told = {(asked, answer) for found in answers.values() for asked, answer in found.items()}
    assert ("GET /metrics", "metrics") in told
    assert ("ray.rpc.NodeInfoGcsService/GetAllNodeInfo", "UNAUTHENTICATED") in told
    assert ("ray.rpc.CoreWorkerService/PushTask", "UNAUTHENTICATED") in told


def test_control_a_cluster_without_a_token_gives_everything_away(
    network: Network, tmp_path: Path
) -> None:
    home = cluster(network, tmp_path, {"RAY_AUTH_MODE": "disabled"})
    try:
        asked = {asked for _, asked, _ in given_away(home.answers())}
        assert "ray.rpc.NodeInfoGcsService/GetAllNodeInfo" in asked
        assert "ray.rpc.CoreWorkerService/GetCoreWorkerStats" in asked
    finally:
        home.host.power_off()


ASK_JOBS = """
import sys, urllib.request, urllib.error
headers = {"Authorization": f"Bearer {sys.argv[2]}"} if sys.argv[2] else {}
ask = urllib.request.Request(sys.argv[1], headers=headers)
try:
    print(urllib.request.urlopen(ask, timeout=20).status)
except urllib.error.HTTPError as error:
    print(error.code)
"""


@pytest.mark.parametrize("word, status", [("", 401), ("0" * 64, 403), ("right", 200)])
def test_the_job_server_answers_the_right_token_alone(home: Home, word: str, status: int) -> None:
    given = home.secret["RAY_AUTH_TOKEN"] if word == "right" else word
    url = f"http://127.0.0.1:{DASHBOARD}/api/jobs/"
    assert int(home.host.run(sys.executable, "-c", ASK_JOBS, url, given)) == status


@pytest.mark.parametrize("word", ["", "0" * 64])
def test_a_driver_without_the_right_token_is_refused_with_4(
    home: Home, parts: Path, tmp_path: Path, word: str
) -> None:
    given = {"RAY_AUTH_MODE": "token", "HOME": str(tmp_path)}
    if word:
        given["RAY_AUTH_TOKEN"] = word
    job = driver(home, parts, tmp_path, **given)
    assert job.run() == 4, job.said()
    print(job.said())
    assert f"cannot reach Ray at {home.address}" in job.said() and job.shards() == 0
    assert "is RAY_AUTH_TOKEN its token?" in job.said() and "Traceback" not in job.said()


def test_a_node_with_a_wrong_token_cannot_join(home: Home, tmp_path: Path) -> None:
    wrong = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
    node = home.stranger.ray(tmp_path / "log", head=home.host, **wrong)
    assert node.wait(120) != 0
    assert "token" in node.said(), node.said()


# How often a driver tries to reach the head; usually for a minute and more.
IMPATIENT = {"RAY_NUM_REDIS_GET_RETRIES": "2", "RAY_gcs_rpc_server_connect_timeout_s": "2"}


def driver(home: Home, parts: Path, folder: Path, **env: str) -> Archiving:
    """A small archive by one worker of the cluster."""
    return Archiving.on(
        home.address, parts, folder / "archive", "--workers", 1,
        prefix=home.host.within(), **env, **IMPATIENT,
    )  # fmt: skip


# --- TLS ----------------------------------------------------------------------------------------


@dataclass
class Sealed:
    """Two hosts whose Ray speaks TLS, each with a certificate of one authority."""

    home: Home
    authority: Authority


@pytest.fixture(scope="module")
def sealed(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Sealed:
    folder = tmp_path_factory.mktemp("sealed")
    authority, secret = Authority.make(folder / "ca"), token()
    head, other = network.host(), network.host()
    own, log = own_of(authority, head), folder / "head.log"
    head.ray(log, "--include-dashboard=false", cpus=1, **secret, **own)
    wait_for(lambda: "Ray runtime started" in log.read_text(), 90)
    other.ray(folder / "other.log", head=head, cpus=1, **secret, **own_of(authority, other))
    home = Home(head, other, secret, folder)
    words = [sys.executable, "-W", "ignore", "-m", "tests.nodes.watch", home.address]
    watch = head.start(words, folder / "watch.log", **secret, **own)
    watch.until(lambda: counts(watch) and counts(watch)[-1][0] == 2, 90)
    return Sealed(home, authority)


def own_of(authority: Authority, host: Host) -> dict[str, str]:
    """The certificate of a host."""
    return authority.environment(host.name, (host.address, "127.0.0.1"))


class Wire:
    """Counts, on the switch, the frames that show a word."""

    def __init__(self, network: Network, word: str) -> None:
        words = [*network.within(), sys.executable, "-m", "tests.nodes.wire", word]
        self._process = subprocess.Popen(
            words, cwd=ROOT, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "listening\n"

    def end(self) -> dict[str, int]:
        """How many frames passed, and showed it."""
        told, _ = self._process.communicate(timeout=30)
        return dict(json.loads(told))


def test_with_certificates_two_hosts_work_together_and_the_token_is_not_on_the_wire(
    network: Network, sealed: Sealed, parts: Path, tmp_path: Path
) -> None:
    assert made_parts.run(parts, tmp_path / "clean") == 0
    wire = Wire(network, sealed.home.secret["RAY_AUTH_TOKEN"])
    job = Archiving.on(
        sealed.home.address, parts, tmp_path / "archive", "--workers", 2, "--min-workers", 2,
        prefix=sealed.home.host.within(), **sealed.home.secret,
        **own_of(sealed.authority, sealed.home.host),
    )  # fmt: skip
    assert job.run() == 0, job.said()[-3000:]
    found = wire.end()
    assert found["shown"] == 0 < found["frames"]
    assert job.results() == tree_sha256(tmp_path / "clean", made_parts.is_result)


def test_control_without_tls_the_token_is_on_the_wire(
    network: Network, home: Home, tmp_path: Path
) -> None:
    wire = Wire(network, home.secret["RAY_AUTH_TOKEN"])
    node = home.stranger.ray(tmp_path / "log", head=home.host, **home.secret)
    node.until(lambda: "Ray runtime started" in node.said(), 90)
    node.stop()
    assert wire.end()["shown"] > 0


@long
@pytest.mark.parametrize("who", ["of another authority", "in the clear"])
def test_a_driver_without_the_authority_is_refused(
    sealed: Sealed, parts: Path, tmp_path: Path, who: str
) -> None:
    own = {}
    if who == "of another authority":
        own = own_of(Authority.make(tmp_path / "other"), sealed.home.host)
    job = driver(sealed.home, parts, tmp_path, **sealed.home.secret, **own)
    begun_s = time.monotonic()
    try:
        assert job.start().wait(150) == 4, job.said()
    finally:
        job.stop()
        print(f"{time.monotonic() - begun_s:.1f} s: {job.said()[-1500:]}")
    assert job.shards() == 0
