"""A part of the report: figures for summary.json, and blocks (text, tables, pictures) for the page.

What a section was made of is digested; a rerun takes a finished section as it is where the digest
agrees, so that a killed evaluation goes on where it was and ends with the same bytes.
"""

from __future__ import annotations

import hashlib
import html
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from medray import report
from medray.evaluate.resample import Figure
from medray.store import Store

CACHE = "cache"
# Counts up when the same inputs would give another section.
VERSION = 2


@dataclass
class Section:
    """One heading of the page; `pictures` are PNG by name, shown where a block names them."""

    heading: str
    figures: dict[str, Any] = field(default_factory=dict)
    blocks: list[dict[str, Any]] = field(default_factory=list)
    pictures: dict[str, bytes] = field(default_factory=dict)

    def text(self, words: str) -> None:
        """Adds a paragraph."""
        self.blocks.append({"text": words})

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Adds a table; a cell is text, a number, a `Figure` or None (not known)."""
        cells = [[cell(value) for value in row] for row in rows]
        self.blocks.append({"columns": list(columns), "rows": cells})

    def picture(self, name: str, png: bytes, words: str) -> None:
        """Adds a picture, which is also written as `name`."""
        self.pictures[name] = png
        self.blocks.append({"picture": name, "words": words})

    def html(self) -> str:
        """The blocks as HTML, pictures embedded."""
        return "\n".join(self._block(block) for block in self.blocks)

    def _block(self, block: dict[str, Any]) -> str:
        if "text" in block:
            return f"<p>{html.escape(block['text'])}</p>"
        if "picture" in block:
            shown = report.picture(self.pictures[block["picture"]], block["words"])
            return f"<figure>{shown}<figcaption>{html.escape(block['words'])}</figcaption></figure>"
        head = "".join(f"<th>{html.escape(name)}</th>" for name in block["columns"])
        rows = "".join(
            "<tr>" + "".join(f"<td>{html.escape(text)}</td>" for text in row) + "</tr>"
            for row in block["rows"]
        )
        return f"<table><tr>{head}</tr>{rows}</table>"


def cell(value: Any) -> str:
    """A value as it stands in a table."""
    if value is None:
        return "not defined"
    if isinstance(value, Figure):
        return f"{value.value:.4g} ({value.ci_low:.4g} to {value.ci_high:.4g})"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def kept(store: Store, name: str, inputs: dict[str, Any], make: Callable[[], Section]) -> Section:
    """The section `name` made of `inputs`: as it was left, or made and published now."""
    text = json.dumps({"version": VERSION, "name": name, **inputs}, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    file = f"{CACHE}/section-{name}.json"
    section = _read(store, file, digest)
    if section is None:
        section = make()
        _write(store, file, digest, section)
    return section


def _write(store: Store, file: str, digest: str, section: Section) -> None:
    for name, png in sorted(section.pictures.items()):
        store.write_bytes(name, png)
    body = {
        "digest": digest,
        "heading": section.heading,
        "figures": section.figures,
        "blocks": section.blocks,
        "pictures": {n: hashlib.sha256(p).hexdigest() for n, p in section.pictures.items()},
    }
    # NaN is not JSON and no figure.
    store.write_bytes(file, json.dumps(body, allow_nan=False).encode())


def _read(store: Store, file: str, digest: str) -> Section | None:
    """A finished section of this digest with its pictures, or None."""
    if not store.exists(file):
        return None
    try:
        body = json.loads(store.read_bytes(file))
        if body["digest"] != digest:
            return None
        pictures = {name: store.read_bytes(name) for name in body["pictures"]}
    except (ValueError, KeyError, TypeError, FileNotFoundError):
        return None
    found = {name: hashlib.sha256(png).hexdigest() for name, png in pictures.items()}
    if found != body["pictures"]:
        return None
    return Section(body["heading"], body["figures"], body["blocks"], pictures)
