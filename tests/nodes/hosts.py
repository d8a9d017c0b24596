"""Hosts of a network of their own on this machine, without root: namespaces joined by a switch.

Each has its own address, name, processes, /tmp/ray and /dev/shm; the rest of the disk is shared. A
host can be cut off the network and come back, or lose its power (everything in it is killed at once
and nobody is told). Its name stands for 127.0.1.1 in its /etc/hosts, as Debian writes it.
"""

from __future__ import annotations

import contextlib
import functools
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.faults.kill import kill_group, wait_for
from tests.nodes.rig import ROOT, Job, children, environment

GATE = "10.77.0"
PORT = 6379
# As the first process of a host: it adopts and buries what its children leave.
INIT = "while :; do sleep 1000 & wait $!; done"
WORDS = {"user": "-U", "net": "-n", "pid": "-p", "mnt": "-m", "uts": "-u"}
STORE_BYTES = 80 * 2**20


@functools.cache
def possible() -> bool:
    """Whether this machine allows such hosts."""
    tools = all(shutil.which(name) for name in ("unshare", "nsenter", "ip", "mount"))
    words = ["unshare", "-Urnpfmu", "--mount-proc", "ip", "link", "add", "probe", "type", "veth"]
    return tools and subprocess.run(words, capture_output=True).returncode == 0


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    """A network without hosts."""
    if not possible():
        pytest.skip("this machine allows no namespaces to its users (unshare, nsenter, ip)")
    with Network(tmp_path_factory.mktemp("network")) as found:
        yield found


class Host:
    """A host: runs commands, loses its network or its power."""

    def __init__(self, network: Network, number: int) -> None:
        self.network, self.name = network, f"node{number}"
        self.address = f"{GATE}.{10 + number}"
        self.link = f"to{number}"
        words = ["unshare", "-n", "-p", "-f", "-m", "-u", "--mount-proc", "--kill-child"]
        self._keeper = subprocess.Popen([*network.within(), *words, "bash", "-c", INIT])
        self.first = _first(self._keeper.pid)
        self.up = True
        # Both ends are made in the switch, then one is given away.
        network.run("ip", "link", "add", self.link, "type", "veth", "peer", "name", f"of{number}")
        network.run("ip", "link", "set", f"of{number}", "netns", str(network.inner(self.first)))
        network.run("ip", "link", "set", self.link, "master", "switch", "up")
        self.run("hostname", self.name)
        for words in (
            ("lo", "up"), (f"of{number}", "name", "eth0"), ("eth0", "up"),
        ):  # fmt: skip
            self.run("ip", "link", "set", *words)
        self.run("ip", "address", "add", f"{self.address}/24", "dev", "eth0")
        self.run("ip", "route", "add", "default", "via", f"{GATE}.1")
        self._file("/etc/hosts", f"127.0.0.1 localhost\n127.0.1.1 {self.name}\n")
        # Nobody there: refused at once, where a network that leads nowhere would be waited for.
        self._file("/etc/resolv.conf", "nameserver 127.0.0.1\n")
        Path("/tmp/ray").mkdir(exist_ok=True)
        for place in ("/tmp/ray", "/dev/shm"):
            self.run("mount", "-t", "tmpfs", "tmpfs", place)

    def _file(self, place: str, text: str) -> None:
        """A file of its own in place of this machine's."""
        own = self.network.folder / f"{self.name}-{Path(place).name}"
        own.write_text(text)
        self.run("mount", "--bind", str(own), place)

    def within(self) -> list[str]:
        """What goes before a command that is to run here."""
        return _entered(self.first, "user", "net", "pid", "mnt", "uts")

    def run(self, *words: str, **env: str) -> str:
        """Runs a command here; its output."""
        done = subprocess.run(
            [*self.within(), *words], capture_output=True, text=True, timeout=120, cwd=ROOT,
            env=environment(**env),
        )  # fmt: skip
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout

    def start(self, words: Sequence[str], log: Path, **env: str) -> Job:
        """Starts a command here."""
        job = Job([*self.within(), *words], environment(**env), log).start()
        self.network.jobs.append(job)
        return job

    def ray(
        self,
        log: Path,
        *words: str,
        head: Host | None = None,
        cpus: int = 2,
        again: bool = False,
        **env: str,
    ) -> Job:
        """Starts Ray here, as the head or as a node of `head`; `again`: whenever it ends."""
        role = [f"--address={head.address}:{PORT}"] if head else ["--head", f"--port={PORT}"]
        own = [f"--node-ip-address={self.address}", f"--num-cpus={cpus}", "--disable-usage-stats"]
        ray = str(Path(sys.executable).with_name("ray"))
        start = [ray, "start", "--block", *role, *own, f"--object-store-memory={STORE_BYTES}"]
        loop = ["bash", "-c", 'while :; do "$@"; sleep 1; done', "again"] if again else []
        return self.start([*loop, *start, *words], log, **env)

    def cut(self) -> None:
        """Pulls the network's plug."""
        self.network.run("ip", "link", "set", self.link, "down")

    def join(self) -> None:
        """Puts it back."""
        self.network.run("ip", "link", "set", self.link, "up")

    @contextlib.contextmanager
    def cut_off(self, seconds: float) -> Iterator[None]:
        """Cut off for so long at least, while the body runs."""
        until_s = time.monotonic() + seconds
        self.cut()
        try:
            yield
            time.sleep(max(0.0, until_s - time.monotonic()))
        finally:
            self.join()

    def power_off(self) -> None:
        """Everything in it is killed, and its network is silent: nobody is told."""
        if self.up:
            self.cut()
            self._keeper.kill()
            self._keeper.wait()
            self.up = False


class Network:
    """A switch and its hosts; at the end all of it is gone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hosts: list[Host] = []
        self.jobs: list[Job] = []
        words = ["unshare", "-Urnpfm", "--mount-proc", "--kill-child", "bash", "-c", INIT]
        self._keeper = subprocess.Popen(words, start_new_session=True)
        self.first = _first(self._keeper.pid)
        self.run("ip", "link", "set", "lo", "up")
        self.run("ip", "link", "add", "switch", "type", "bridge")
        self.run("ip", "link", "set", "switch", "up")
        self.run("ip", "address", "add", f"{GATE}.1/24", "dev", "switch")

    def host(self) -> Host:
        """One host more."""
        self.hosts.append(Host(self, len(self.hosts) + 1))
        return self.hosts[-1]

    def within(self) -> list[str]:
        """What goes before a command that is to run on the switch."""
        return _entered(self.first, "user", "net", "pid", "mnt")

    def run(self, *words: str) -> None:
        """Runs a command on the switch."""
        done = subprocess.run([*self.within(), *words], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, (words, done.stderr)

    def inner(self, pid: int) -> int:
        """A process's number as the switch sees it."""
        return _numbers(pid)[len(_numbers(self.first)) - 1]

    def __enter__(self) -> Network:
        return self

    def __exit__(self, *_: object) -> None:
        for job in self.jobs:
            job.stop()
        # With the switch's first process everything that is left below it is killed.
        kill_group(self._keeper)
        for host in self.hosts:
            host._keeper.kill()
            host._keeper.wait()


def _entered(pid: int, *kinds: str) -> list[str]:
    words = [WORDS[kind] for kind in kinds]
    return ["nsenter", "-t", str(pid), *words, "--preserve-credentials"]


def _numbers(pid: int) -> list[int]:
    """A process's numbers, from this machine's inwards."""
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("NSpid:"))
    return [int(word) for word in line.split()[1:]]


def _first(keeper: int) -> int:
    """The first process of the innermost namespace below `keeper`, once it is there."""
    found: list[int] = []

    def there() -> bool:
        found[:] = [pid for pid in children(keeper) if _is_init(pid)]
        return bool(found)

    wait_for(there, 30)
    return found[-1]


def _is_init(pid: int) -> bool:
    with contextlib.suppress(OSError):
        is_bash = Path(f"/proc/{pid}/comm").read_text().strip() == "bash"
        return is_bash and _numbers(pid)[-1] == 1
    return False


def token() -> dict[str, str]:
    """Ray's token, new, as an environment has it."""
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
