"""The table of faults says what is so: its tests exist, and make as many trials as it says."""

from __future__ import annotations

import ast
import functools
import json
from pathlib import Path

import pytest

from tests import reliability
from tests.reliability import Cell, Shown, cells

ROOT = Path(__file__).resolve().parent.parent
TABLE = cells()


@functools.cache
def names_in(name: str) -> set[str]:
    """The tests of a file."""
    tree = ast.parse((ROOT / name).read_text())
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in ast.walk(tree) if isinstance(node, kinds)}


@functools.cache
def asked_in(name: str) -> set[tuple[int, int]]:
    """What the tests of a file ask the knob for: trials(short, full)."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / name).read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "trials":
            found.add(tuple(ast.literal_eval(argument) for argument in node.args))
    return found  # type: ignore[return-value]


def _place(cell: Cell) -> str:
    return f"{cell.fault}: {cell.part}"


@pytest.mark.parametrize("cell", TABLE, ids=_place)
def test_a_cell_is_shown_by_tests_that_are_there_or_says_what_is_not_shown(cell: Cell) -> None:
    assert bool(cell.tests) != bool(cell.not_shown), "either tests, or what no test shows"
    for shown in cell.tests:
        name, _, test = shown.test.partition("::")
        assert test in names_in(name), f"{name} has no {test}"
        if shown.by_knob:
            pair = shown.every or tuple(count // shown.times for count in shown.trials)
            assert pair in asked_in(name), f"{test} does not take trials{pair}"


@pytest.mark.parametrize("cell", TABLE, ids=_place)
def test_the_long_form_makes_as_many_trials_as_are_asked_for_or_says_why_not(cell: Cell) -> None:
    full = sum(shown.trials[1] for shown in cell.tests)
    everywhere = any(shown.every for shown in cell.tests)
    enough = full >= cell.asked or everywhere
    assert enough or cell.fewer or cell.not_shown, f"{full} of {cell.asked}"
    assert not (cell.fewer and enough and not everywhere) or full < cell.asked


def test_a_test_that_is_gone_and_a_knob_that_is_not_turned_are_found() -> None:
    """The control: what the checks above would say."""
    name = "tests/archive/test_check.py"
    assert "test_that_is_gone" not in names_in(name)
    assert (1200, 6000) in asked_in(name) and (1, 2) not in asked_in(name)


def test_the_table_has_the_counts_of_both_forms() -> None:
    lines = list(
        reliability.coverage(
            [
                Cell("cut", "pack", (Shown.of("a::b", [3, 50]), Shown.of("a::c", 4))),
                Cell("cut", "serve", not_shown="anything"),
                Cell("cut", "archive", (Shown.of("a::d", every=[5, 1]),)),
            ]
        )
    )
    assert lines[2] == "| cut | 7 / 54 | - | 1 in 5 k / all k | - | not shown | - |"


def _line(**more: object) -> str:
    usual = {"part": "pack", "fault": "cut", "trials": 3, "lost": 1, "unit": "shards"}
    return json.dumps({**usual, "recovered_s": None, "wrong": 0, "test": "t", **more})


def test_costs_are_summed_over_tests_and_of_one_run_again_the_newest_counts(tmp_path: Path) -> None:
    path = tmp_path / "outcomes.jsonl"
    path.write_text(
        "\n".join(
            (
                _line(part="serve", fault="new", lost=0, wrong=2, recovered_s=8.0),
                _line(trials=90),
                _line(trials=5, lost=2),
                _line(test="other", recovered_s=2.5),
                _line(test="other", note="eio", lost=0, unit="files"),
            )
        )
    )
    lines = list(reliability.costs(reliability.read([path]), ["cut"]))
    assert lines[2:] == [
        "| pack | cut | 11 | 2 shards | 2.5 s | 0 |",
        "| serve | new | 3 | nothing | 8 s | 2 |",
    ]
