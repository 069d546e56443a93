"""Parses lines of text as rows of sensors: CSV with a header, or JSON objects. Problems of a line are named."""

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
_TIME_NAMES = tuple(name for name in TIMES if name and not name.startswith(("unnamed", "__")))


@dataclasses.dataclass(frozen=True)
class Format:
    """Format of the lines, as far as it is known.

    Attributes:
      sensors: the detector's sensors.
      kind: one of `FORMATS`; empty until the first line.
      time: column of the time; empty for the first column with a usual name.
      header: names in the CSV header.
    """

    sensors: tuple[str, ...]
    kind: str = ""
    time: str = ""
    header: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """One parsed row.

    Attributes:
      values: [D] float64, NaN for missing values.
      time: seconds, or any other number; None if there is no time or it cannot be parsed.
      time_text: the time as written.
      absent: sensors without a column.
      unreadable: (sensor, text) of values that are neither numbers nor missing.
      problem: why the whole row cannot be parsed; empty otherwise.
    """

    values: np.ndarray
    time: float | None = None
    time_text: str = ""
    absent: tuple[str, ...] = ()
    unreadable: tuple[tuple[str, str], ...] = ()
    problem: str = ""


def parse(fmt: Format, line: bytes) -> tuple[Format, Row | None]:
    """Parses one line.

    Args:
      fmt: the format so far.
      line: the line, with or without its end.

    Returns:
      The format after the line, and the row; None for a header or an empty line.

    Raises:
      UserError: the header names none of the sensors, or one of them twice.
    """
    text = line.decode("utf-8", errors="replace").lstrip("\ufeff").strip("\r\n")
    if not text.strip():
        return fmt, None
    if not fmt.kind:
        fmt = dataclasses.replace(fmt, kind="jsonl" if text.lstrip().startswith("{") else "csv")
    if fmt.kind == "jsonl":
        return fmt, _parse_json(fmt, text)
    try:
        cells = [cell.strip() for cell in next(csv.reader([text], strict=True))]
    except (csv.Error, StopIteration) as error:
        return fmt, _unreadable(fmt, f"{error}")
    if not fmt.header or _is_header(fmt, cells):
        return _with_header(fmt, cells), None
    if len(cells) != len(fmt.header):
        return fmt, _unreadable(fmt, f"{len(cells)} values, the header has {len(fmt.header)}")
    return fmt, _make_row(fmt, dict(zip(fmt.header, cells, strict=True)))


def _is_header(fmt: Format, cells: Sequence[str]) -> bool:
    """Returns True if a line among the data repeats the header, as after a restart of the writer."""
    return len(set(cells) & set(fmt.sensors)) * 2 > len(fmt.sensors)


def _with_header(fmt: Format, cells: Sequence[str]) -> Format:
    """Returns the format with this header."""
    twice = [name for name in dict.fromkeys(cells) if cells.count(name) > 1 and name in fmt.sensors]
    if twice:
        raise UserError(f"several columns are called {', '.join(map(repr, twice[:5]))}: expected unique names")
    if not set(cells) & set(fmt.sensors):
        near = difflib.get_close_matches(fmt.sensors[0], cells, n=1, cutoff=0.0)
        raise UserError(
            f"the first line names {listed(cells)}, none of the detector's sensors {listed(fmt.sensors)} (closest to "
            f"the first: {near[0] if near else ''!r}); expected CSV with a header, or one JSON object per line"
        )
    if fmt.time and fmt.time not in cells:
        raise UserError(f"--time {fmt.time}: no such column; there are {listed(cells)}")
    return dataclasses.replace(fmt, header=tuple(cells))


def _parse_json(fmt: Format, text: str) -> Row:
    """Parses a JSON object."""
    try:
        cells_by_name = json.loads(text)
    except (ValueError, RecursionError) as error:
        return _unreadable(fmt, f"not JSON: {error}")
    if not isinstance(cells_by_name, dict):
        return _unreadable(fmt, "not a JSON object")
    return _make_row(fmt, cells_by_name)


def _unreadable(fmt: Format, why: str) -> Row:
    """Returns a row of missing values with the reason."""
    return Row(np.full(len(fmt.sensors), np.nan), problem=why[:200])


def _make_row(fmt: Format, cells_by_name: dict[str, Any]) -> Row:
    """Returns the row of these cells."""
    unreadable: list[tuple[str, str]] = []
    absent = tuple(name for name in fmt.sensors if name not in cells_by_name)
    given = [cells_by_name.get(name) for name in fmt.sensors]
    try:
        values = np.array(given, np.float64)  # the common case, all numbers; None becomes NaN
    except (ValueError, TypeError, OverflowError):
        values = np.array([_number(name, cell, unreadable) for name, cell in zip(fmt.sensors, given, strict=True)])
    clock = fmt.time or next(
        (name for name in cells_by_name if name.lower() in _TIME_NAMES and name not in fmt.sensors), ""
    )
    clock_cell = cells_by_name.get(clock) if clock else None
    return Row(values, _time(clock_cell), "" if clock_cell is None else str(clock_cell)[:64], absent, tuple(unreadable))


def _number(name: str, cell: Any, unreadable: list[tuple[str, str]]) -> float:
    """Returns a cell as a number, NaN if it is missing; adds others to `unreadable`."""
    if cell is None:
        return math.nan
    try:
        if isinstance(cell, (str, int, float)):
            return float(cell)
    except (ValueError, OverflowError):
        pass
    if not (isinstance(cell, str) and cell.strip().lower() in _MISSING):
        unreadable.append((name, str(cell)[:64]))
    return math.nan


def _time(clock_cell: Any) -> float | None:
    """Returns a time in seconds: a number, or an ISO 8601 date and time (UTC without a zone); None otherwise."""
    if clock_cell is None or isinstance(clock_cell, bool):
        return None
    try:
        found = float(clock_cell)
        return found if math.isfinite(found) else None
    except (ValueError, TypeError, OverflowError):
        pass
    try:
        when = datetime.datetime.fromisoformat(str(clock_cell))
        return (when if when.tzinfo else when.replace(tzinfo=datetime.UTC)).timestamp()
    except (ValueError, OverflowError):
        return None
