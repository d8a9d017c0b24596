"""The service on Ray Serve: own door and proxy, models put on all replicas, one lost, more of them.

`serve.app:app` as `serve run` builds it, with a tiny real generator.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click import ClickException

from serve import keys
from serve.app import app
from serve.callers import Callers
from serve.client import Client, Refused
from serve.door import bound
from tests import outcomes
from tests.archive.made_parts import make_generator
from tests.chaos_budget import trials

# Ray Serve itself warns when it is imported.
pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]


@dataclass(frozen=True)
class Running:
    """A service on Ray: its own door, Serve's proxy, a token, where its models are."""

    door: int
    proxy: int
    token: str
    folder: Path
    settings: dict[str, Any]
    serve: Any

    def client(self, port: int | None = None, patience_s: float = 0) -> Client:
        return Client(f"http://127.0.0.1:{port or self.door}", self.token, patience_s=patience_s)

    def replicas(self, deployment: str) -> list[Any]:
        """The running replicas of a deployment, as Serve tells them."""
        from ray.serve.context import _get_global_client

        details = _get_global_client().get_serve_details()
        found = details["applications"]["tested"]["deployments"][deployment]["replicas"]
        return [replica for replica in found if replica["state"] == "RUNNING"]


@pytest.fixture(scope="module")
def running(ray_cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One service for the tests of this file."""
    from ray import serve

    folder = tmp_path_factory.mktemp("deployed")
    for seed, name in enumerate(("one", "two")):
        make_generator(folder / name, seed=seed)
    token, key = keys.make("tester", ["admin"], rate_per_s=1e5)
    keys.write(folder / "keys.json", [key])
    # Kept until the end, not listening: doors and proxy share a port, nobody else is given it.
    held = [bound("127.0.0.1", 0) for _ in range(2)]
    door, proxy = (int(one.getsockname()[1]) for one in held)
    serve.start(http_options={"host": "127.0.0.1", "port": proxy})
    settings: dict[str, Any] = {
        "generator": str(folder / "one"), "model_roots": (str(folder),), "port": str(door),
        "keys": str(folder / "keys.json"), "state_dir": str(folder / "state"), "gates": 2,
        "max_replicas": 2, "replica_cpus": 0.1, "upscale_delay_s": 1, "downscale_delay_s": 2,
        "look_back_s": 2, "drain_s": 5, "window_ms": 2,
    }  # fmt: skip
    serve.run(app(settings), name="tested", route_prefix="/")
    yield Running(door, proxy, token, folder, settings, serve)
    serve.shutdown()
    for one in held:
        one.close()


def until(what: Any, seconds: float = 150) -> float:
    """Waits until something is true; how long that took."""
    begun_s = time.monotonic()
    while not what():
        assert time.monotonic() - begun_s < seconds, "it did not come about"
        time.sleep(0.1)
    return time.monotonic() - begun_s


def test_door_and_proxy_give_the_same_bytes_and_put_reaches_every_replica(
    running: Running,
) -> None:
    with running.client() as door, running.client(running.proxy) as proxy:
        ours, theirs = door.generate(5, seed=3), proxy.generate(5, seed=3)
        assert ours == theirs and len({image.data for image in ours}) == 5
        before = door.models()[0]["sha256"]
        with pytest.raises(Refused, match="digest_mismatch"):
            door.put_model(
                "generator", kind="generator", url=str(running.folder / "two"), sha256="0" * 64
            )
        put = door.put_model("generator", kind="generator", url=str(running.folder / "two"))
        assert put["sha256"] != before
        # Every gate (each connection may come to another one) answers with the new one soon.
        until(lambda: _answering(running, 12) == {put["sha256"][:12]})
        door.put_model("generator", kind="generator", url=str(running.folder / "one"))
        until(lambda: _answering(running, 12) == {before[:12]})
        assert door.generate(5, seed=3) == ours
        # A gate tells what it has counted now and then.
        until(lambda: _generated(door) >= 15)


def _generated(client: Client) -> float:
    """Images that all gates together have made, by their metrics."""
    text = client.ask("GET", "/metrics")[1].decode()
    made = [line for line in text.splitlines() if line.startswith("medray_images_total")]
    return float(made[0].rpartition(" ")[2]) if made else 0.0


def _answering(running: Running, connections: int) -> set[str]:
    found = set()
    for index in range(connections):
        with running.client() as client:
            found.add(client.generate(start=index)[0].address.split(":")[1])
    return found


def test_a_key_is_needed_at_door_and_proxy(running: Running) -> None:
    for port in (running.door, running.proxy):
        with Client(f"http://127.0.0.1:{port}", "mrk_wrong") as client:
            with pytest.raises(Refused, match="key_unknown"):
                client.generate()


def stop_one(running: Running, deployment: str, number: int = signal.SIGKILL) -> int:
    """Kills a replica of two, or hangs it; its process's number."""
    pid = int(running.replicas(deployment)[0]["pid"])
    os.kill(pid, number)
    return pid


def replaced(running: Running, deployment: str, killed: int) -> bool:
    """Whether there are two again, and the killed one is not among them."""
    pids = [replica["pid"] for replica in running.replicas(deployment)]
    return len(pids) == 2 and killed not in pids


def images(running: Running) -> dict[int, bytes]:
    """What the addresses give that `Callers` ask for."""
    with running.client() as client:
        return {n: image.data for n, image in enumerate(client.generate(16, seed=Callers.SEED))}


@pytest.mark.chaos
def test_more_replicas_come_with_the_load_and_go_and_one_killed_gives_no_wrong_answer(
    running: Running,
) -> None:
    expected = images(running)
    assert len(running.replicas("Models")) == 1
    with Callers(running.client, 24, expected) as callers:
        up_s = until(lambda: len(running.replicas("Models")) == 2)
        time.sleep(1)
        before = callers.answers
        killed = stop_one(running, "Models")
        until(lambda: callers.answers > before + 200)
        until(lambda: replaced(running, "Models", killed))
    assert callers.wrong == 0
    failed = callers.failed
    assert set(callers.statuses) <= {200, 503}, callers.statuses
    # At most what was in flight on it.
    assert failed <= 24, callers.statuses
    down_s = until(lambda: len(running.replicas("Models")) == 1)
    print(f"1 -> 2 after {up_s:.1f} s, one killed: {callers.statuses}, 2 -> 1 after {down_s:.1f} s")


@pytest.mark.chaos
@pytest.mark.timeout(1500)
def test_replicas_killed_under_load_cost_what_was_in_flight_and_give_no_wrong_answer(
    running: Running,
) -> None:
    count, callers_at_once = trials(3, 20), 24
    expected = images(running)
    replaced_s = 0.0
    with Callers(running.client, callers_at_once, expected) as callers:
        until(lambda: len(running.replicas("Models")) == 2)
        for _ in range(count):
            before = callers.answers
            killed = stop_one(running, "Models")
            until(lambda before=before: callers.answers > before + 100)  # type: ignore[misc]
            found_s = until(lambda killed=killed: replaced(running, "Models", killed))  # type: ignore[misc]
            replaced_s = max(replaced_s, found_s)
    failed = callers.failed
    print(f"{count} killed: {callers.statuses}, longest pause {callers.pause_s:.1f} s")
    outcomes.record(
        part="serve", fault="kill -9 at a random instant", trials=count, lost=failed / count,
        unit="requests in flight", recovered_s=callers.pause_s, wrong=callers.wrong,
        note=f"two again within {replaced_s:.1f} s",
    )  # fmt: skip
    assert callers.wrong == 0 and set(callers.statuses) <= {200, 503}, callers.statuses
    assert failed <= callers_at_once * count and callers.pause_s < 10


@pytest.mark.chaos
@pytest.mark.timeout(1500)
def test_a_replica_that_hangs_is_replaced_and_its_callers_are_told(running: Running) -> None:
    count, callers_at_once = trials(1, 5), 24
    expected = images(running)
    replaced_s = 0.0
    with Callers(running.client, callers_at_once, expected) as callers:
        until(lambda: len(running.replicas("Models")) == 2)
        for _ in range(count):
            before = callers.answers
            # It holds its connections and says nothing: only the health check finds it out.
            hung = stop_one(running, "Models", signal.SIGSTOP)
            found_s = until(lambda hung=hung: replaced(running, "Models", hung), 120)  # type: ignore[misc]
            replaced_s = max(replaced_s, found_s)
            until(lambda before=before: callers.answers > before + 100)  # type: ignore[misc]
    print(f"{count} hung: {callers.statuses}, longest pause {callers.pause_s:.1f} s")
    outcomes.record(
        part="serve", fault="worker lost or hung", trials=count, lost=callers.failed / count,
        unit="requests in flight", recovered_s=callers.pause_s, wrong=callers.wrong,
        note=f"two again within {replaced_s:.1f} s",
    )  # fmt: skip
    assert callers.wrong == 0 and set(callers.statuses) <= {200, 503}, callers.statuses
    assert callers.failed <= callers_at_once * count


@pytest.mark.chaos
def test_a_new_version_takes_over_and_no_accepted_request_fails(running: Running) -> None:
    def ids() -> set[str]:
        both = [*running.replicas("Gate"), *running.replicas("Models")]
        return {replica["replica_id"] for replica in both}

    expected = images(running)
    before = ids()
    with Callers(running.client, 8, expected) as callers:
        changed = app({**running.settings, "window_ms": 3})
        running.serve.run(changed, name="tested", route_prefix="/")
        gone_s = until(lambda: not before & ids(), 90)
        asked = callers.answers
        until(lambda: callers.answers > asked + 100)
    print(f"new version after {gone_s:.1f} s more: {callers.statuses}, {callers.pause_s:.1f} s")
    assert callers.wrong == 0
    assert set(callers.statuses) == {200}, callers.statuses
    outcomes.record(
        part="serve", fault="a new version", trials=1, lost=0, unit="requests",
        recovered_s=callers.pause_s, wrong=callers.wrong,
    )  # fmt: skip


@pytest.mark.chaos
def test_a_gate_that_is_lost_is_replaced_while_the_other_answers(running: Running) -> None:
    until(lambda: len(running.replicas("Gate")) == 2)
    killed = stop_one(running, "Gate")
    with running.client(patience_s=20) as client:
        assert len(client.generate(3)) == 3
    until(lambda: replaced(running, "Gate", killed))


@pytest.mark.parametrize(
    ("gates", "nodes", "most"), [(2, 1, None), (2, 2, 1), (2, 3, 1), (5, 2, 3), (400, 2, 100)]
)
def test_gates_go_round_the_nodes(
    monkeypatch: pytest.MonkeyPatch, gates: int, nodes: int, most: int | None
) -> None:
    from serve import deployments

    there = [{"Alive": True}] * nodes + [{"Alive": False}]
    monkeypatch.setattr(deployments.ray, "is_initialized", lambda: True)
    monkeypatch.setattr(deployments.ray, "nodes", lambda: there)
    assert deployments._gates_per_node(gates) == most


@pytest.mark.parametrize("word", ["host=0.0.0.0", "generatr=x", "port=no"])
def test_settings_that_cannot_be_end_serve_run_with_2(word: str, tmp_path: Path) -> None:
    name, _, value = word.partition("=")
    # `serve run` shows such an error without a traceback, and ends with its code.
    with pytest.raises(ClickException, match=name) as refused:
        app({name: value, "state_dir": str(tmp_path)})
    assert refused.value.exit_code == 2
