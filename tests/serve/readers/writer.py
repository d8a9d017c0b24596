"""Processes that answer as fast as they can and say after each what was acknowledged."""

from __future__ import annotations

import os
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


def write(url: str) -> None:
    """Answers until it is killed; each that was acknowledged goes to stdout, at once."""
    store, reader = opened(url, 10)
    for number in range(len(store.answers(reader.id)), 100_000):
        store.add_answer(answer(reader, number), None, final=False)
        os.write(1, b"%d\n" % number)


def main() -> None:
    """For each line of stdin a fresh child that writes; its id first, `end` when it is gone."""
    for _ in sys.stdin:
        child = os.fork()
        if child == 0:
            write(sys.argv[1])
            os._exit(1)
        os.write(1, b"child %d\n" % child)
        os.waitpid(child, 0)
        os.write(1, b"end\n")


if __name__ == "__main__":
    main()
