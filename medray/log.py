"""One line per event, text for people or JSON with `--json`; progress with rate and time left.

Off a terminal there are no control codes, and at most one progress line per 30 seconds.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

PLAIN_INTERVAL_S = 30.0
LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}

_settings: dict[str, Any] = {"json": False, "level": 20}
# Where lines go besides stderr: the last one counts.
_sinks: list[Callable[[bytes], object]] = []


def setup(*, json_lines: bool = False, level: str = "info") -> None:
    """Sets the form (text or JSON lines) and the lowest level that is printed."""
    _settings["json"] = json_lines
    _settings["level"] = LEVELS[level]


@contextlib.contextmanager
def also_to(write: Callable[[bytes], object]) -> Iterator[None]:
    """Gives every line, debug included, to `write` as well while the context lasts.

    Where contexts are nested, the inner one gets the lines.
    """
    _sinks.append(write)
    try:
        yield
    finally:
        # It is gone already where it failed.
        if write in _sinks:
            _sinks.remove(write)


def event(name: str, text: str = "", **fields: Any) -> None:
    """Reports an event at level info."""
    _write("info", name, text, fields)


def warn(name: str, text: str = "", **fields: Any) -> None:
    """Reports something that a person should look at, though the work goes on."""
    _write("warning", name, text, fields)


def debug(name: str, text: str = "", **fields: Any) -> None:
    """Reports a detail, shown with -v."""
    _write("debug", name, text, fields)


def error(name: str, text: str = "", **fields: Any) -> None:
    """Reports what ended the work."""
    _write("error", name, text, fields)


def _write(level: str, name: str, text: str, fields: dict[str, Any]) -> None:
    line = _text_line(level, name, text, fields)
    _to_file(line)
    if LEVELS[level] < _settings["level"]:
        return
    if _settings["json"]:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        line = json.dumps(
            {"time": stamp, "level": level, "event": name, "text": text, **fields}, default=str
        )
    print(line, file=sys.stderr, flush=True)


def _to_file(line: str) -> None:
    if not _sinks:
        return
    write = _sinks[-1]
    try:
        write((time.strftime("%Y-%m-%dT%H:%M:%S ") + line + "\n").encode())
    except OSError as error:
        # A log that cannot be written (a full disk) must not hide the error that is being told.
        if write in _sinks:
            _sinks.remove(write)
        print(f"warning: the log file ends here: {error.strerror}", file=sys.stderr, flush=True)


def _text_line(level: str, name: str, text: str, fields: dict[str, Any]) -> str:
    body = text or " ".join([name, *(f"{key}={value}" for key, value in fields.items())])
    return body if level in ("info", "debug") else f"{level}: {body}"


class Progress:
    """Progress of `total` units: a bar on a terminal, else a plain line per 30 s.

    The rate counts from the first update, so that a resumed run does not flatter itself.
    """

    def __init__(self, what: str, total: int, unit: str = "images") -> None:
        self.what, self.total, self.unit = what, total, unit
        self._start_s = time.monotonic()
        self._last_s = self._start_s
        self._first: int | None = None
        self._done = 0
        self._bar = self._make_bar() if self._on_terminal() else None

    def _on_terminal(self) -> bool:
        return sys.stderr.isatty() and not _settings["json"] and bool(_settings["level"] <= 20)

    def _make_bar(self) -> Any:
        from rich import progress

        bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.TextColumn("{task.completed:,.0f}/{task.total:,.0f} {task.fields[note]}"),
            progress.TimeRemainingColumn(),
            transient=False,
        )
        self._task = bar.add_task(self.what, total=self.total, note="")
        bar.start()
        return bar

    @property
    def per_second(self) -> float:
        """Units per second since the first update."""
        elapsed_s = time.monotonic() - self._start_s
        return (self._done - (self._first or 0)) / elapsed_s if elapsed_s > 0 else 0.0

    @property
    def eta_s(self) -> float:
        """Seconds left at the present rate; infinity before there is one."""
        rate = self.per_second
        return (self.total - self._done) / rate if rate > 0 else float("inf")

    def update(self, done: int, **fields: Any) -> None:
        """Says that `done` units of the total are done."""
        if self._first is None:
            self._first, self._start_s = done, time.monotonic()
        self._done = done
        note = " ".join(f"{key}={_short(value)}" for key, value in fields.items())
        if self._bar is not None:
            rate = f"{self.per_second:.1f} {self.unit}/s {note}"
            self._bar.update(self._task, completed=done, note=rate)
        elif time.monotonic() - self._last_s >= PLAIN_INTERVAL_S:
            self._last_s = time.monotonic()
            self._plain(fields)

    def _plain(self, fields: dict[str, Any]) -> None:
        note = "".join(f" {key}={_short(value)}" for key, value in fields.items())
        text = (
            f"{self.what} {self._done:,}/{self.total:,} {self.unit}, "
            f"{self.per_second:.1f}/s, {duration(self.eta_s)} left{note}"
        )
        rounded = {"per_second": round(self.per_second, 2), "eta_s": round(self.eta_s, 1)}
        event("progress", text, done=self._done, total=self.total, **rounded, **fields)

    def close(self) -> None:
        """Ends the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def duration(seconds: float) -> str:
    """Seconds as people say them: 45 s, 12 min, 3.4 h."""
    if seconds == float("inf"):
        return "unknown time"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
