"""The log of `ganomaly serve`: one line on standard error per failure; repeated ones are counted."""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path
from typing import Any

# Seconds in which a repeated failure is logged once, so that clients cannot fill the disk.
_EVERY_S = 10.0
_MOST_CHARACTERS = 500
_said: dict[object, tuple[float, int]] = {}


def say(line: str) -> None:
    """Writes a line to standard error."""
    print(f"ganomaly: {line[:_MOST_CHARACTERS]}", file=sys.stderr, flush=True)


def seldom(kind: object, line: str) -> None:
    """Writes a line unless one of its kind was written in the last 10 s; the next one states how many were omitted.

    Args:
      kind: key of messages counted together; there must be few of them.
      line: the line.
    """
    now = time.monotonic()
    last, left_out = _said.get(kind, (-_EVERY_S, 0))
    if now - last < _EVERY_S:
        _said[kind] = last, left_out + 1
        return
    _said[kind] = now, 0
    say(f"{line} ({left_out:,} similar ones omitted)" if left_out else line)


class Handler(logging.Handler):
    """Writes the warnings and errors of libraries as lines, without tracebacks."""

    def emit(self, record: logging.LogRecord) -> None:
        """Writes a record, with the exception and its place if there is one."""
        # asyncio puts a repr of its sockets on further lines.
        line = (record.getMessage().strip().splitlines() or [""])[0]
        if record.exc_info and record.exc_info[1] is not None:
            line = f"{line}: {described(record.exc_info[1])}"
        seldom((record.name, record.pathname, record.lineno), line)


def described(error: BaseException) -> str:
    """Returns an exception in one line: its type, its message and the line of code that raised it."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"[:_MOST_CHARACTERS]
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    return text if place is None else f"{text} ({Path(place.tb_frame.f_code.co_filename).name}:{place.tb_lineno})"


def settings() -> dict[str, Any]:
    """Returns the settings of `logging.config.dictConfig` by which Uvicorn and asyncio write such lines."""
    here = {"handlers": ["lines"], "level": "WARNING", "propagate": False}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "handlers": {"lines": {"()": Handler}},
        "loggers": {"uvicorn": here, "asyncio": here},
    }
