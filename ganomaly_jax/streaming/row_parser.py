"""Lines of text as rows of sensors: CSV with a header, or JSON objects. What is wrong with a line is named."""

from __future__ import annotations

import csv
import dataclasses
import datetime
import difflib
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data.rows.tables import TIMES, listed

FORMATS = ("csv", "jsonl")
_MISSING = frozenset({"", "na", "n/a", "nan", "null", "none"})
_CLOCKS = tuple(name for name in TIMES if name and not name.startswith(("unnamed", "__")))


@dataclasses.dataclass(frozen=True)
class Form:
    """How lines are read: what is known of them so far."""

    sensors: tuple[str, ...]
    """The detector's."""
    kind: str = ""
    """One of `FORMATS`; empty: the first line says it."""
    time: str = ""
    """The column of the time; empty: the first that is called so."""
    header: tuple[str, ...] = ()
    """Of CSV."""


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """One row as it came."""

    values: np.ndarray
    """[D] float64, NaN where a value is missing."""
    time: float | None = None
    """Seconds, or whatever number it is; None: no such column, or it cannot be read."""
    said: str = ""
    """The time as it stands there."""
    absent: tuple[str, ...] = ()
    """Sensors that the row or the header has no place for."""
    words: tuple[tuple[str, str], ...] = ()
    """(sensor, text) of what is neither a number nor missing."""
    problem: str = ""
    """Why nothing of it can be read."""


def read(form: Form, line: bytes) -> tuple[Form, Row | None]:
    """One line without its end; the row is None for a header or an empty line.

    Raises:
      UserError: a header that has none of the sensors, or one of them twice.
    """
    text = line.decode("utf-8", errors="replace").lstrip("\ufeff").strip("\r\n")
    if not text.strip():
        return form, None
    if not form.kind:
        form = dataclasses.replace(form, kind="jsonl" if text.lstrip().startswith("{") else "csv")
    if form.kind == "jsonl":
        return form, _of_json(form, text)
    try:
        cells = [cell.strip() for cell in next(csv.reader([text], strict=True))]
    except (csv.Error, StopIteration) as error:
        return form, _unreadable(form, f"{error}")
    if not form.header or _is_header(form, cells):
        return _with_header(form, cells), None
    if len(cells) != len(form.header):
        return form, _unreadable(form, f"{len(cells)} values, the header has {len(form.header)}")
    return form, _made(form, dict(zip(form.header, cells, strict=True)))


def _is_header(form: Form, cells: Sequence[str]) -> bool:
    """Whether a line in the midst of others is a header again, as after a restart of what writes them."""
    return len(set(cells) & set(form.sensors)) * 2 > len(form.sensors)


def _with_header(form: Form, cells: Sequence[str]) -> Form:
    twice = [name for name in dict.fromkeys(cells) if cells.count(name) > 1 and name in form.sensors]
    if twice:
        raise UserError(f"several columns are called {', '.join(map(repr, twice[:5]))}: wanted a name for each")
    if not set(cells) & set(form.sensors):
        near = difflib.get_close_matches(form.sensors[0], cells, n=1, cutoff=0.0)
        raise UserError(
            f"the first line names {listed(cells)}, none of the detector's sensors {listed(form.sensors)} (nearest to "
            f"the first: {near[0] if near else ''!r}); wanted CSV with a header, or a JSON object a line"
        )
    if form.time and form.time not in cells:
        raise UserError(f"--time {form.time}: there is no such column, but {listed(cells)}")
    return dataclasses.replace(form, header=tuple(cells))


def _of_json(form: Form, text: str) -> Row:
    try:
        held = json.loads(text)
    except (ValueError, RecursionError) as error:
        return _unreadable(form, f"no JSON: {error}")
    if not isinstance(held, dict):
        return _unreadable(form, "no JSON object")
    return _made(form, held)


def _unreadable(form: Form, why: str) -> Row:
    return Row(np.full(len(form.sensors), np.nan), problem=why[:200])


def _made(form: Form, held: dict[str, Any]) -> Row:
    words: list[tuple[str, str]] = []
    absent = tuple(name for name in form.sensors if name not in held)
    given = [held.get(name) for name in form.sensors]
    try:
        values = np.array(given, np.float64)  # the common case at once: all are numbers; None becomes NaN
    except (ValueError, TypeError, OverflowError):
        values = np.array([_number(name, cell, words) for name, cell in zip(form.sensors, given, strict=True)])
    clock = form.time or next((name for name in held if name.lower() in _CLOCKS and name not in form.sensors), "")
    said = held.get(clock) if clock else None
    return Row(values, _time(said), "" if said is None else str(said)[:64], absent, tuple(words))


def _number(name: str, cell: Any, words: list[tuple[str, str]]) -> float:
    if cell is None:
        return math.nan
    try:
        if isinstance(cell, (str, int, float)):
            return float(cell)
    except (ValueError, OverflowError):
        pass
    if not (isinstance(cell, str) and cell.strip().lower() in _MISSING):
        words.append((name, str(cell)[:64]))
    return math.nan


def _time(said: Any) -> float | None:
    """A number, or a date and time of ISO 8601 as seconds (without a zone as UTC)."""
    if said is None or isinstance(said, bool):
        return None
    try:
        found = float(said)
        return found if math.isfinite(found) else None
    except (ValueError, TypeError, OverflowError):
        pass
    try:
        when = datetime.datetime.fromisoformat(str(said))
        return (when if when.tzinfo else when.replace(tzinfo=datetime.UTC)).timestamp()
    except (ValueError, OverflowError):
        return None
