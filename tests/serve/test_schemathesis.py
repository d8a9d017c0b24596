"""Schemathesis over the OpenAPI: 50 cases an operation, well-formed and not, find nothing.

Left out is `positive_data_acceptance`: which classes, models and files there are no schema says, so
that a well-formed request may be refused.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest

from serve import door, gate
from serve.front import Front
from serve.in_process import InProcess
from tests.serve.fakes import args as settings
from tests.serve.fakes import book, loads
from tests.serve.test_jobs import Runner

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    from schemathesis import checks

CASES = 50
SESSIONS = "/v1/studies"


@pytest.fixture(scope="module")
def opened_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Address of a service behind its own door, and a token that may do everything."""
    folder = tmp_path_factory.mktemp("schema")
    tokens, known = book()
    made = settings(folder, classifier=str(folder / "two"))

    def make_app() -> Front:
        # Jobs are ordered many times over: none of them makes an archive.
        return gate.front(InProcess(made, load=loads, keys=known, runner=Runner()))

    with door.opened(make_app, made) as port:
        yield f"http://127.0.0.1:{port}", tokens["admin"]


@pytest.fixture(scope="module")
def schema(opened_service: tuple[str, str]) -> Any:
    return schemathesis.openapi.from_url(f"{opened_service[0]}/openapi.json")


def operations(schema: Any) -> list[Any]:
    """Those of this service; the reader study's have sessions and tests of their own."""
    found = [result.ok() for result in schema.get_all_operations()]
    return [operation for operation in found if not operation.path.startswith(SESSIONS)]


@pytest.mark.parametrize("mode", ["POSITIVE", "NEGATIVE"])
def test_no_case_of_the_schema_finds_anything(
    mode: str, schema: Any, opened_service: tuple[str, str]
) -> None:
    address, token = opened_service
    headers = {"Authorization": f"Bearer {token}"}
    tried = 0
    for operation in operations(schema):
        strategy = operation.as_strategy(generation_mode=schemathesis.GenerationMode[mode])

        @hypothesis.settings(
            max_examples=CASES // 2,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(case=strategy)
        def check(case: Any) -> None:
            case.call_and_validate(
                base_url=address,
                headers=headers,
                timeout=20,
                excluded_checks=[checks.positive_data_acceptance],
            )

        with warnings.catch_warnings(), quiet(mode):
            warnings.simplefilter("ignore")
            check()
            tried += 1
    assert tried >= (9 if mode == "POSITIVE" else 5)


@contextlib.contextmanager
def quiet(mode: str) -> Iterator[None]:
    """An operation that takes nothing cannot be asked wrongly: that is no finding."""
    try:
        yield
    except (hypothesis.errors.Unsatisfiable, schemathesis.errors.InvalidSchema):
        assert mode == "NEGATIVE"


def test_an_answer_that_is_an_error_of_the_server_is_found(
    schema: Any, opened_service: tuple[str, str]
) -> None:
    """The control: this model breaks at one index, which the same checks do not let pass."""
    address, token = opened_service
    operation = schema["/v1/images/generations"]["POST"]
    case = operation.Case(body={"model": "generator", "start": 666}, media_type="application/json")
    headers = {"Authorization": f"Bearer {token}"}
    with warnings.catch_warnings(), pytest.raises(schemathesis.errors.FailureGroup) as found:
        warnings.simplefilter("ignore")
        case.call_and_validate(base_url=address, headers=headers, timeout=20)
    assert any("Server error" in str(error) for error in found.value.exceptions)
