"""The gate: who may what, how much, how long; every refusal a problem that tells no secret."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import APIRoute

from medray.errors import UsageError
from serve import gate, keys
from serve.front import Front
from serve.in_process import InProcess
from serve.keys import KeyBook
from serve.limits import Exchange, Granted, Ledger, Limits
from tests.serve.fakes import GENERATE, args, asking, book, loads, one, run, slow
from tests.serve.test_limits import Clock

OPEN = {"/livez", "/readyz", "/metrics"}


def problem(answer: Any, status: int, code: str) -> dict[str, Any]:
    """The body of a refusal, checked for its form."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    found: dict[str, Any] = answer.json()
    assert (found["status"], found["code"]) == (status, code)
    assert found["detail"] and found["request_id"] == answer.headers["x-request-id"]
    assert "Traceback" not in answer.text and ".py" not in answer.text
    return found


def routes_of(tmp_path: Path) -> list[APIRoute]:
    app = gate.build(InProcess(args(tmp_path), load=loads, keys=book()[1]))
    return [route for route in app.routes if isinstance(route, APIRoute)]


def test_every_guarded_route_asks_for_a_scope(tmp_path: Path) -> None:
    checked = 0
    for route in routes_of(tmp_path):
        if not route.path.startswith("/v1/") or route.path.startswith("/v1/studies"):
            continue
        needed = [d.call.scope for d in route.dependant.dependencies if hasattr(d.call, "scope")]
        assert needed and set(needed) <= set(keys.SCOPES), f"{route.path} asks for no scope"
        checked += 1
    assert checked >= 9


def test_without_a_key_nothing_guarded_answers(tmp_path: Path) -> None:
    async def main() -> None:
        async with asking(args(tmp_path)) as ask:
            for route in routes_of(tmp_path):
                if route.path.startswith("/v1/") and not route.path.startswith("/v1/studies"):
                    path = route.path.replace("{job_id}", "0" * 24).replace("{name}", "x")
                    for method in sorted(route.methods):
                        answer = await ask(method, path, None)
                        problem(answer, 401, "key_missing")
                        assert answer.headers["www-authenticate"].startswith("Bearer")
            for path in OPEN:
                assert (await ask("GET", path, None)).status_code == 200

    run(main())


@pytest.mark.parametrize(
    ("header", "code"),
    [
        ("Bearer mrk_wrong", "key_unknown"),
        ("Bearer ", "key_malformed"),
        ("Basic YTpi", "key_malformed"),
        ("mrk_only", "key_malformed"),
        ("Bearer " + "x" * 2000, "key_malformed"),
        ("Bearer a b", "key_unknown"),
    ],
)
def test_a_wrong_key_is_told_from_a_missing_one(tmp_path: Path, header: str, code: str) -> None:
    async def main() -> None:
        async with asking(args(tmp_path)) as ask:
            answer = await ask("POST", "/v1/ping", None, headers={"authorization": header})
            problem(answer, 401, code)
            twice = [("authorization", f"Bearer {ask.tokens['admin']}")] * 2
            answer = await ask.client.post("/v1/ping", headers=twice)
            problem(answer, 401, "key_malformed")

    run(main())


def test_a_key_does_what_its_scopes_say_and_no_more(tmp_path: Path) -> None:
    async def main() -> None:
        async with asking(args(tmp_path)) as ask:
            assert (await ask("POST", "/v1/ping", "reader")).json()["key"] == "reader"
            problem(await ask("POST", GENERATE, "reader", json=one(1)), 403, "scope_missing")
            assert (await ask("POST", GENERATE, "maker", json=one(1))).status_code == 200
            put = {"kind": "generator", "url": str(tmp_path / "two")}
            for who in ("reader", "maker"):
                answer = await ask("PUT", "/v1/models/generator", who, json=put)
                problem(answer, 403, "scope_missing")
            assert (await ask("PUT", "/v1/models/generator", json=put)).status_code == 200

    run(main())


def test_an_expired_key_is_refused(tmp_path: Path) -> None:
    async def main() -> None:
        token, key = keys.make("old", ["admin"], expires="2020-01-01T00:00:00+00:00")
        async with asking(args(tmp_path), key_book=({"old": token}, KeyBook([key]))) as ask:
            problem(await ask("POST", "/v1/ping", "old"), 401, "key_expired")

    run(main())


def test_a_body_is_capped_by_its_stated_length_and_while_it_streams(tmp_path: Path) -> None:
    async def main() -> None:
        async with asking(args(tmp_path, body_mib=0.01)) as ask:
            cap = int(0.01 * 2**20)
            assert (await ask("POST", "/v1/ping", content=b"x" * cap)).json()["bytes"] == cap
            answer = await ask("POST", "/v1/ping", content=b"x" * (cap + 1))
            assert str(cap + 1) in problem(answer, 413, "body_too_large")["detail"]
            sent = 0

            async def endless() -> AsyncIterator[bytes]:
                nonlocal sent
                for _ in range(1000):
                    sent += 1000
                    yield b"x" * 1000

            problem(await ask("POST", "/v1/ping", content=endless()), 413, "body_too_large")
            assert sent <= cap + 2000, "it is not read to its end"
            # A route that reads JSON is no way around.
            answer = await ask("POST", GENERATE, content=endless())
            problem(answer, 413, "body_too_large")
            for length in ("-1", "1e3", "0x10", "9" * 40):
                headers = {"content-length": length}
                assert (await ask("POST", "/v1/ping", headers=headers)).status_code == 413

    run(main())


def test_a_body_that_does_not_come_and_an_answer_that_does_not_are_ended(tmp_path: Path) -> None:
    async def main() -> None:
        settings = args(tmp_path, body_timeout_s=0.2, timeout_s=0.3)
        async with asking(settings, load=slow(0.8)) as ask:

            async def stuck() -> AsyncIterator[bytes]:
                yield b"{"
                await asyncio.sleep(30)

            begun_s = time.perf_counter()
            problem(await ask("POST", "/v1/ping", content=stuck()), 408, "body_timeout")
            answer = await ask("POST", GENERATE, json=one(1))
            problem(answer, 503, "timeout")
            assert int(answer.headers["retry-after"]) >= 1
            assert time.perf_counter() - begun_s < 15
            assert (await ask("GET", "/livez", None)).status_code == 200

    run(main())


def test_a_rate_is_kept_and_says_when_to_come_back(tmp_path: Path) -> None:
    async def main() -> None:
        settings, key_book, clock = args(tmp_path), book(rate_per_s=5.0, burst=4), Clock()
        ledger = Ledger(clock)

        async def trade(asks: Exchange) -> Granted:
            return ledger.exchange("here", asks)

        async with asking(settings, key_book=key_book) as ask:
            ask.services.limits = Limits(settings, key_book[1], trade)
            await ask.services.limits.trade()
            answers = [await ask("POST", "/v1/ping", "reader") for _ in range(10)]
            passed = [a for a in answers if a.status_code == 200]
            assert len(passed) == 4
            problem(answers[-1], 429, "rate_exceeded")
            assert answers[-1].headers["retry-after"] == "1"
            assert (await ask("POST", "/v1/ping", "other")).status_code == 403, "others go on"
            clock.s += 0.5
            await ask.services.limits.trade()
            assert (await ask("POST", "/v1/ping", "reader")).status_code == 200

    run(main())


def test_a_quota_counts_images_and_gives_back_what_was_refused(tmp_path: Path) -> None:
    async def main() -> None:
        async with asking(args(tmp_path), key_book=book(images_per_day=10)) as ask:
            assert (await ask("POST", GENERATE, "maker", json=one(0, n=8))).status_code == 200
            answer = await ask("POST", GENERATE, "maker", json=one(0, n=3))
            problem(answer, 429, "quota_exceeded")
            # One that fails costs nothing.
            problem(await ask("POST", GENERATE, "maker", json=one(666)), 500, "internal")
            assert (await ask("POST", GENERATE, "maker", json=one(0, n=2))).status_code == 200

    run(main())


def test_an_error_inside_tells_nothing_of_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def main() -> None:
        async with asking(args(tmp_path)) as ask:
            answer = await ask("POST", GENERATE, json=one(666))
            assert "patient" not in json.dumps(problem(answer, 500, "internal"))
            request_id = answer.headers["x-request-id"]
            logged = capsys.readouterr().err
            assert request_id in logged and "RuntimeError at fakes.py" in logged
            assert "patient" not in logged

    run(main())


def test_request_ids_are_taken_over_unless_they_are_no_ids(tmp_path: Path) -> None:
    async def main() -> None:
        async with asking(args(tmp_path)) as ask:
            mine = await ask("GET", "/livez", None, headers={"x-request-id": "trace-1.a"})
            assert mine.headers["x-request-id"] == "trace-1.a"
            ids = set()
            for bad in ("a b", "x" * 65, "<script>", ""):
                answer = await ask("GET", "/livez", None, headers={"x-request-id": bad})
                assert answer.headers["x-request-id"] != bad
                ids.add(answer.headers["x-request-id"])
            assert len(ids) == 4

    run(main())


def test_without_keys_only_this_machine_and_its_own_pages_are_answered(tmp_path: Path) -> None:
    async def main() -> None:
        nobody: tuple[dict[str, str], KeyBook] = ({}, KeyBook())
        async with asking(args(tmp_path), key_book=nobody) as ask:
            assert (await ask("POST", "/v1/ping", None)).json()["key"] == "local"
            headers = {"host": "evil.example"}
            problem(await ask("POST", "/v1/ping", None, headers=headers), 403, "host_unknown")
            headers = {"origin": "http://evil.example"}
            problem(await ask("POST", "/v1/ping", None, headers=headers), 403, "origin_other")
            headers = {"origin": "http://localhost"}
            assert (await ask("POST", "/v1/ping", None, headers=headers)).status_code == 200
        async with asking(args(tmp_path), key_book=nobody, address="192.0.2.7") as ask:
            problem(await ask("POST", "/v1/ping", None), 403, "key_needed")

    run(main())


def test_an_open_door_without_a_key_is_refused_at_start(tmp_path: Path) -> None:
    for host in ("0.0.0.0", "192.0.2.2", "::", "example.org"):
        with pytest.raises(UsageError, match="key is needed"):
            InProcess(args(tmp_path, host=host), load=loads, keys=KeyBook())
        InProcess(args(tmp_path, host=host), load=loads, keys=book()[1])
    for host in ("127.0.0.1", "localhost", "::1", "127.0.0.9"):
        InProcess(args(tmp_path, host=host), load=loads, keys=KeyBook())


def test_no_origin_is_ever_allowed_and_every_answer_has_its_policy(tmp_path: Path) -> None:
    async def main() -> None:
        async with asking(args(tmp_path)) as ask:
            headers = {"origin": "http://evil.example", "access-control-request-method": "POST"}
            for answer in (
                await ask("OPTIONS", "/v1/ping", None, headers=headers),
                await ask("POST", "/v1/ping", headers=headers),
                await ask("GET", "/nothing", None),
            ):
                assert not any(name.startswith("access-control") for name in answer.headers)
                assert "default-src 'none'" in answer.headers["content-security-policy"]
                assert answer.headers["x-content-type-options"] == "nosniff"

    run(main())


def test_it_works_under_a_prefix_whether_a_proxy_strips_it_or_not(tmp_path: Path) -> None:
    async def main() -> None:
        async with asking(args(tmp_path, root_path="/tools/medray")) as ask:
            for path in ("/v1/ping", "/tools/medray/v1/ping"):
                problem(await ask("POST", path, None), 401, "key_missing")
                assert (await ask("POST", path)).status_code == 200
            servers = (await ask("GET", "/tools/medray/openapi.json", None)).json()["servers"]
            assert servers == [{"url": "/tools/medray"}]

    run(main())


def test_what_is_not_there_and_what_is_not_meant_are_problems(tmp_path: Path) -> None:
    async def main() -> None:
        async with asking(args(tmp_path)) as ask:
            problem(await ask("GET", "/v1/nothing"), 404, "not_found")
            answer = await ask("GET", "/v1/ping")
            problem(answer, 405, "method_not_allowed")
            assert "POST" in answer.headers["allow"]
            answer = await ask(
                "POST", GENERATE, content=b"{", headers={"content-type": "application/json"}
            )
            problem(answer, 400, "json_invalid")
            found = problem(await ask("POST", GENERATE, json=one(1, n=0)), 422, "invalid")
            assert "n" in found["detail"]
            answer = await ask("POST", GENERATE, json=one(1, model="nobody"))
            assert "generator" in problem(answer, 404, "model_unknown")["detail"]

    run(main())


def test_openapi_describes_every_route_its_problems_and_examples(tmp_path: Path) -> None:
    async def main() -> None:
        async with asking(args(tmp_path)) as ask:
            schema = (await ask("GET", "/openapi.json", None)).json()
            assert {"/v1/ping", "/v1/jobs", "/v1/models/{name}", GENERATE} <= set(schema["paths"])
            for path, methods in schema["paths"].items():
                for operation in methods.values():
                    assert operation["summary"] and "default" in operation["responses"]
                    if path.startswith("/v1/") and not path.startswith("/v1/studies"):
                        assert operation["security"] == [{"key": []}]
            assert "example" in json.dumps(schema["components"]["schemas"]["Generation"])

    run(main())


def test_metrics_count_requests_by_route_and_no_caller(tmp_path: Path) -> None:
    async def main() -> None:
        async with asking(args(tmp_path)) as ask:
            await ask("POST", GENERATE, "maker", json=one(1, n=5))
            await ask("GET", "/v1/secret-path-of-a-caller")
            text = (await ask("GET", "/metrics", None)).text
            line = f'medray_http_requests_total{{route="{GENERATE}",method="POST",status="200"}} 1'
            assert line in text
            assert 'medray_images_total{model="generator",op="generate"} 5' in text
            assert "secret-path" not in text and "maker" not in text

    run(main())


def test_a_service_is_ready_when_its_models_are(tmp_path: Path) -> None:
    async def main() -> None:
        services = InProcess(args(tmp_path), load=loads, keys=book()[1])
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        async def receive() -> Any:
            return {"type": "http.request", "body": b"", "more_body": False}

        scope = {
            "type": "http", "method": "GET", "path": "/readyz", "raw_path": b"/readyz",
            "query_string": b"", "headers": [], "client": None, "server": None, "scheme": "http",
            "http_version": "1.1", "root_path": "",
        }  # fmt: skip
        front: Front = gate.front(services)
        await front(dict(scope), receive, send)
        assert sent[0]["status"] == 503
        await services.start()
        await front(dict(scope), receive, send)
        assert sent[2]["status"] == 200
        await services.close()

    run(main())
