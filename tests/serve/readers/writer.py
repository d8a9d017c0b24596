"""A process that answers as fast as it can and says after each what was acknowledged."""

from __future__ import annotations

import sys

from serve.readers.store import Answer, Reader, Store, Study


def opened(url: str, items: int) -> tuple[Store, Reader]:
    """A store with one study and one reader."""
    store = Store(url)
    store.add_study(Study("s", "s", "rating", "0", "open", 0.0))
    names = [f"{number:016x}" for number in range(items)]
    if not store.readers("s"):
        store.add_reader("s", "ann", "hash", 1e12, lambda _: names)
    return store, store.readers("s")[0]


def answer(reader: Reader, number: int, token: str = "", **named: object) -> Answer:
    """Answer to item `number`."""
    plain = {
        "id": 0,
        "reader": reader.id,
        "item": f"{number:016x}",
        "version": 0,
        "token": token or f"token-{number:08d}",
        "position": number,
        "score": 1 + number % 5,
        "choice": None,
        "label": None,
        "seconds": 1.5,
        "hidden": False,
        "idle": False,
        "received_s": float(number),
    }
    return Answer(**{**plain, **named})  # type: ignore[arg-type]


def main() -> None:
    store, reader = opened(sys.argv[1], 10)
    for number in range(len(store.answers(reader.id)), 100_000):
        store.add_answer(answer(reader, number), None, final=False)
        print(number, flush=True)


if __name__ == "__main__":
    main()
