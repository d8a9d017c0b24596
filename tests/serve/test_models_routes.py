"""Models by name: put under load, refused with nothing changed, canaries, the least used."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from medray import store
from serve.engine import Pool, load_model
from serve.metrics import Metrics
from serve.records import ModelSpec
from tests.archive.made_parts import make_generator
from tests.faults import stores
from tests.serve.fakes import GENERATE, Fake, args, asking, loads, one, run, slow

PUT = "/v1/models/generator"


def spec(folder: Path, name: str, **more: Any) -> dict[str, Any]:
    return {"kind": "generator", "url": str(folder / name), **more}


def sha_of(folder: Path, name: str) -> str:
    return Fake(ModelSpec("generator", str(folder / name))).sha256


def test_fifty_swaps_under_load_fail_nothing_and_each_answer_is_of_one_version(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        async with asking(args(tmp_path, queue_images=4096), load=slow(0.001)) as ask:
            stop, statuses, made_by = False, Counter[int](), Counter[str]()

            async def caller(number: int) -> None:
                index = (number + 1) * 100_000
                while not stop:
                    index += 20
                    answer = await ask("POST", GENERATE, "maker", json=one(index, n=20))
                    statuses[answer.status_code] += 1
                    assert answer.status_code == 200, answer.text
                    versions = {
                        line.split(b":")[1]
                        for line in answer.content.split(b"\r\n")
                        if line.startswith(b"mr1:")
                    }
                    assert len(versions) == 1
                    made_by[versions.pop().decode()] += 1

            callers = [asyncio.create_task(caller(number)) for number in range(6)]
            for swap in range(50):
                name = ("two", "one")[swap % 2]
                answer = await ask("PUT", PUT, json=spec(tmp_path, name))
                assert answer.json()["sha256"] == sha_of(tmp_path, name)
                sha12 = sha_of(tmp_path, name)[:12]
                before = made_by[sha12]
                while made_by[sha12] < before + 2 and not any(c.done() for c in callers):
                    await asyncio.sleep(0.001)
            stop = True
            await asyncio.gather(*callers)
            assert set(statuses) == {200} and statuses[200] > 50
            assert set(made_by) == {sha_of(tmp_path, name)[:12] for name in ("one", "two")}

    run(main())


def test_a_model_with_another_digest_or_none_at_all_changes_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with asking(args(tmp_path)) as ask:
            before = (await ask("GET", "/v1/models", "reader")).json()
            for body, status, code in (
                (spec(tmp_path, "two", sha256="0" * 64), 422, "digest_mismatch"),
                (spec(tmp_path, "absent"), 422, "model_absent"),
                ({**spec(tmp_path, "two"), "kind": "classifier"}, 422, "kind_other"),
                (spec(tmp_path, "../elsewhere/two"), 403, "place_not_allowed"),
                ({**spec(tmp_path, "two"), "url": "/etc"}, 403, "place_not_allowed"),
                (
                    {**spec(tmp_path, "two"), "url": "http://169.254.169.254/x"},
                    403,
                    "place_not_allowed",
                ),
                (
                    {**spec(tmp_path, "two"), "url": f"{tmp_path}-beside/two"},
                    403,
                    "place_not_allowed",
                ),
                (spec(tmp_path, "two", latents="/etc"), 403, "place_not_allowed"),
                (spec(tmp_path, "two", share=0), 422, "invalid"),
                (spec(tmp_path, "two", more=1), 422, "invalid"),
            ):
                answer = await ask("PUT", PUT, json=body)
                assert (answer.status_code, answer.json()["code"]) == (status, code), body
            for name in ("a b", "..", "%2e%2e", "x" * 65, "é"):
                answer = await ask("PUT", f"/v1/models/{name}", json=spec(tmp_path, "two"))
                assert answer.status_code in (404, 405, 422), name
            assert (await ask("GET", "/v1/models", "reader")).json() == before
            right = spec(tmp_path, "two", sha256=sha_of(tmp_path, "two"))
            assert (await ask("PUT", PUT, json=right)).status_code == 200

    run(main())


def test_a_store_that_fails_while_a_model_is_loaded_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "RETRY_DELAYS_S", (0.0,) * 4)
    stores.register()
    root = "faulty://models"
    shas = {name: make_generator(f"{root}/{name}", seed=n) for n, name in enumerate("ab")}
    settings = args(tmp_path, generator=f"{root}/a", model_roots=(root,))
    put = {"kind": "generator", "url": f"{root}/b"}

    async def main() -> None:
        async with asking(settings, load=load_model) as ask:
            first = await ask("POST", GENERATE, "maker", json=one(0))
            assert (first.status_code, first.headers["x-medray-model"]) == (200, shas["a"])
            before = (await ask("GET", "/v1/models", "reader")).json()
            for rates in ({"unavailable": 1.0}, {"reset": 1.0}):
                with stores.faults(seed=0, **rates) as faults:
                    answer = await ask("PUT", PUT, json=put)
                    assert faults.total
                assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
                assert int(answer.headers["retry-after"]) > 0
                assert (await ask("GET", "/v1/models", "reader")).json() == before
                same = await ask("POST", GENERATE, "maker", json=one(0))
                assert same.content == first.content
            # A store that fails now and then is asked again.
            with stores.faults(seed=1, unavailable=0.2, short_read=0.2) as faults:
                answer = await ask("PUT", PUT, json=put)
                assert faults.total
            assert (answer.status_code, answer.json()["sha256"]) == (200, shas["b"]), answer.text

    run(main())


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_a_canary_gets_its_share_and_is_promoted_or_taken_back(
    tmp_path: Path, share: float
) -> None:
    async def main() -> None:
        async with asking(args(tmp_path, window_ms=0)) as ask:

            async def versions(count: int) -> Counter[str]:
                found: Counter[str] = Counter()
                for index in range(count):
                    answer = await ask("POST", GENERATE, "maker", json=one(index))
                    found[answer.headers["x-medray-model"]] += 1
                return found

            one_sha, two_sha = sha_of(tmp_path, "one"), sha_of(tmp_path, "two")
            await ask("PUT", PUT, json=spec(tmp_path, "two", share=share))
            shares = {
                m["sha256"]: m["share"] for m in (await ask("GET", "/v1/models")).json()["models"]
            }
            assert shares == {one_sha: 1 - share, two_sha: share}
            found = await versions(200)
            assert abs(found[two_sha] - 200 * share) <= 2
            await ask("PUT", PUT, json=spec(tmp_path, "one"))
            assert set(await versions(20)) == {one_sha}
            await ask("PUT", PUT, json=spec(tmp_path, "two", share=share))
            await ask("PUT", PUT, json=spec(tmp_path, "two"))
            assert set(await versions(20)) == {two_sha}

    run(main())


def test_several_models_answer_by_name_and_the_least_used_is_dropped(tmp_path: Path) -> None:
    async def main() -> None:
        async with asking(args(tmp_path, loaded_models=2)) as ask:
            for name in ("b", "c", "d"):
                body = spec(tmp_path, name)
                assert (await ask("PUT", f"/v1/models/{name}", json=body)).status_code == 200
            for name in ("b", "c", "d", "generator", "b", "d"):
                answer = await ask("POST", GENERATE, "maker", json=one(1, model=name))
                assert answer.status_code == 200
                place = "one" if name == "generator" else name
                assert answer.headers["x-medray-model"] == sha_of(tmp_path, place)
            assert len(ask.services.pool._loaded) <= 2
            names = [m["name"] for m in (await ask("GET", "/v1/models")).json()["models"]]
            assert names == ["b", "c", "d", "generator"]

    run(main())


def test_callers_at_the_same_time_load_a_model_once_and_one_in_use_is_kept(
    tmp_path: Path,
) -> None:
    loaded: list[str] = []

    def counting(spec: ModelSpec, name: str, settings: Any) -> Fake:
        loaded.append(spec.url)
        return loads(spec, name, settings)

    async def main() -> None:
        pool = Pool(args(tmp_path, loaded_models=1), Metrics(), counting)
        first, second = (ModelSpec("generator", str(tmp_path / name)) for name in ("x", "y"))
        await asyncio.gather(*(pool.get(first, "m") for _ in range(10)))
        assert loaded == [first.url]
        async with pool.using(first, "m"):
            async with pool.using(second, "m"):
                pass
            assert first in pool._loaded
        assert len(pool._loaded) == 1

    run(main())


def test_without_roots_nothing_can_be_put(tmp_path: Path) -> None:
    async def main() -> None:
        async with asking(args(tmp_path, model_roots=())) as ask:
            answer = await ask("PUT", PUT, json=spec(tmp_path, "two"))
            assert answer.json()["code"] == "place_not_allowed"

    run(main())
