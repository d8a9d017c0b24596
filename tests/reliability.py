"""Which faults are shown of which parts, and what they cost when they were run.

`python -m tests.reliability [FILE ...]` prints both as Markdown: reliability.yaml, and the outcomes
that tests/outcomes.py left in the files.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

TABLE = Path(__file__).with_name("reliability.yaml")
PARTS = {
    "pack": "pack",
    "train": "stream, train",
    "archive": "latents, archive",
    "sweep": "evaluate, sweep",
    "serve": "serve",
    "readers": "reader study",
}
# What the parts of outcomes are called, by the column that they belong to.
ALSO = {"latents": "archive", "evaluate": "sweep", "reader study": "readers", "stream": "train"}


@dataclass(frozen=True)
class Shown:
    """A test of a cell: trials, or every how many operations, in `make chaos` and the long one."""

    test: str
    trials: tuple[int, int] = (0, 0)
    every: tuple[int, int] | None = None
    times: int = 1
    by_knob: bool = False

    @classmethod
    def of(cls, test: str, trials: Any = None, every: Any = None, times: int = 1) -> Shown:
        """As the file has it."""
        by_knob = isinstance(trials, list)
        if every is not None:
            return cls(test, every=tuple(every), by_knob=every[0] != every[1])
        pair = tuple(trials) if by_knob else (trials, trials)
        return cls(test, (pair[0] * times, pair[1] * times), times=times, by_knob=by_knob)


@dataclass(frozen=True)
class Cell:
    """A fault of a part: how it is shown, or what of it is not."""

    fault: str
    part: str
    tests: tuple[Shown, ...] = ()
    asked: int = 0
    fewer: str = ""
    not_shown: str = ""

    def text(self) -> str:
        """The cell in a table."""
        if self.not_shown and not self.tests:
            return "not shown"
        short, full = (sum(shown.trials[n] for shown in self.tests) for n in (0, 1))
        words = [f"{short:,}" if short == full else f"{short:,} / {full:,}"] if full else []
        steps = [shown.every for shown in self.tests if shown.every]
        if steps:
            shares = [_share(min(both)) for both in zip(*steps, strict=True)]
            words.insert(0, " / ".join(dict.fromkeys(shares)))
        return ", ".join(words)


def _share(step: int) -> str:
    return "all k" if step == 1 else f"1 in {step} k"


def cells(path: Path = TABLE) -> list[Cell]:
    """The table, a cell for each part of which something is promised under a fault."""
    found = []
    for row in yaml.safe_load(path.read_text()):
        for part in PARTS:
            if part in row:
                given = dict(row[part])
                tests = tuple(Shown.of(**shown) for shown in given.pop("tests", ()))
                found.append(Cell(row["fault"], part, tests, **given))
        unknown = set(row) - {"fault", *PARTS}
        assert not unknown, f"{row['fault']}: parts are {', '.join(PARTS)}, got {unknown}"
    return found


# --- as Markdown --------------------------------------------------------------------------------


def _row(words: Iterable[str]) -> str:
    return "| " + " | ".join(words) + " |"


def coverage(table: list[Cell]) -> Iterator[str]:
    """Lines of a table: how many trials of each fault there are, by part."""
    yield _row(["fault", *PARTS.values()])
    yield _row(["---"] * (len(PARTS) + 1))
    by_place = {(cell.fault, cell.part): cell.text() for cell in table}
    for fault in dict.fromkeys(cell.fault for cell in table):
        yield _row([fault, *(by_place.get((fault, part), "-") for part in PARTS)])


def read(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Outcomes; of a test that was run again the newest of each fault."""
    newest: dict[tuple[Any, ...], dict[str, Any]] = {}
    lines = [line for path in paths for line in path.read_text().splitlines()]
    for number, line in enumerate(lines):
        found = json.loads(line)
        # Lines without the name of a test cannot be told from each other: all count.
        test = found.get("test", number)
        newest[found["part"], found["fault"], test, found.get("note")] = found
    return list(newest.values())


def costs(found: list[dict[str, Any]], faults: list[str]) -> Iterator[str]:
    """Lines of a table: what each fault cost each part."""
    yield _row(["part", "fault", "trials", "done again, at most", "ran again within", "wrong"])
    yield _row(["---"] * 6)
    columns = list(PARTS)
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for line in found:
        groups.setdefault((line["part"], line["fault"]), []).append(line)

    def place(key: tuple[str, str]) -> tuple[int, int, tuple[str, str]]:
        part = ALSO.get(key[0], key[0])
        column = columns.index(part) if part in columns else len(columns)
        return column, faults.index(key[1]) if key[1] in faults else len(faults), key

    for part, fault in sorted(groups, key=place):
        lines = groups[part, fault]
        count, wrong = (sum(line[name] for line in lines) for name in ("trials", "wrong"))
        yield _row([part, fault, f"{count:,}", _lost(lines), _seconds(lines), f"{wrong:,}"])


def _lost(lines: list[dict[str, Any]]) -> str:
    most: dict[str, float] = {}
    for line in lines:
        most[line["unit"]] = max(most.get(line["unit"], 0), line["lost"])
    some = [f"{count:g} {unit}" for unit, count in most.items() if count]
    return ", ".join(some) or "nothing"


def _seconds(lines: list[dict[str, Any]]) -> str:
    known = [line["recovered_s"] for line in lines if line["recovered_s"] is not None]
    return f"{max(known):g} s" if known else ""


def main() -> None:
    """Prints the tables."""
    table = cells()
    print("\n".join(coverage(table)))
    if found := read(map(Path, sys.argv[1:])):
        print()
        print("\n".join(costs(found, list(dict.fromkeys(cell.fault for cell in table)))))


if __name__ == "__main__":
    main()
