"""What was found, a file a trial: read back, a search goes on where it was."""

from __future__ import annotations

import json

from medray.errors import DataError
from medray.store import Store
from medray.tune.cells import Cell
from medray.tune.search import Record, Searches

TRIALS = "trials"


class Journal:
    """Records of trials below `trials/`, each written whole."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def add(self, cell: Cell, record: Record) -> None:
        """Keeps what came of a trial."""
        text = json.dumps(record.to_dict(), sort_keys=True)
        self._store.write_bytes(_name(cell, record.number), (text + "\n").encode())

    def replay(self, searches: Searches) -> int:
        """Tells the searches what is kept; how many trials that is."""
        there = set(self._store.names(f"{TRIALS}/"))
        found = 0
        for search in searches:
            for number in range(search.trials):
                if (name := _name(search.cell, number)) in there:
                    search.take(self._read(name))
                    found += 1
        return found

    def _read(self, name: str) -> Record:
        try:
            return Record.from_dict(json.loads(self._store.read_bytes(name)))
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(
                f"the record of a trial cannot be read: {error}",
                code="MR-D414",
                where=f"{self._store.url}/{name}",
                hint="remove the file: the trial is run again",
            ) from error


def _name(cell: Cell, number: int) -> str:
    return f"{TRIALS}/{cell.name}/{number:03d}.json"
