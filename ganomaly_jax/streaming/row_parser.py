"""Parses lines of text as rows of sensors: CSV with a header, or JSON objects. Problems of a line are named."""

from __future__ import annotations

import csv
import dataclasses
import datetime
import difflib
import json
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from ganomaly_jax.core.errors import UserError
from ganomaly_jax.core.printable import listed, quoted
from ganomaly_jax.data.rows import clock, dialects
from ganomaly_jax.data.rows.dialects import COMMA, MISSING, POINT, Dialect

FORMATS = ("csv", "jsonl")
_TIME_NAMES = (*clock.NAMES, "index")
_PLAIN = Dialect(",", POINT)


@dataclasses.dataclass(frozen=True)
class Format:
    """Format of the lines as far as it is known.

    Attributes:
      sensors: the detector's sensors.
      kind: one of `FORMATS`; empty until the first line.
      time: column of the time; empty for the first column with a usual name.
      header: names in the CSV header.
      stated: format of CSV where the lines are ambiguous.
      dialect: format of CSV, known from the header on.
    """

    sensors: tuple[str, ...]
    kind: str = ""
    time: str = ""
    header: tuple[str, ...] = ()
    stated: Dialect = dataclasses.field(default_factory=Dialect)
    dialect: Dialect = _PLAIN


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """One parsed row.

    Attributes:
      values: [D] float64, NaN for missing values.
      time: seconds, or any other number; None if there is no time or it cannot be parsed.
      time_text: the time as written.
      shown: the time for the output: ISO 8601, or a number; None if there is no time or it cannot be parsed.
      absent: sensors without a column.
      unreadable: (sensor, text) of values that are neither numbers nor missing.
      problem: why the whole row cannot be parsed; empty otherwise.
    """

    values: np.ndarray
    time: float | None = None
    time_text: str = ""
    shown: str | float | None = None
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
    text = _text(line, not fmt.kind).lstrip("\ufeff").strip("\r\n")
    if not text.strip():
        return fmt, None
    if not fmt.kind:
        fmt = dataclasses.replace(fmt, kind="jsonl" if text.lstrip().startswith("{") else "csv")
    if fmt.kind == "jsonl":
        return fmt, _parse_json(fmt, text)
    try:
        separator = fmt.dialect.separator if fmt.header else _separator(fmt, text)
        cells = dialects.split(text, separator)
    except (csv.Error, StopIteration) as error:
        return fmt, _unreadable(fmt, f"{error}")
    if not fmt.header or _is_header(fmt, cells):
        return _with_header(fmt, cells, separator), None
    if len(cells) != len(fmt.header):
        return fmt, _unreadable(fmt, f"{len(cells)} values, the header has {len(fmt.header)}")
    cells_by_name = dict(zip(fmt.header, cells, strict=True))
    if not fmt.dialect.decimal:
        mark = dialects.decimal_of([cells_by_name.get(name, "") for name in fmt.sensors])
        fmt = dataclasses.replace(fmt, dialect=dataclasses.replace(fmt.dialect, decimal=mark))
    return fmt, _make_row(fmt, cells_by_name, fmt.dialect)


def _text(line: bytes, is_first: bool) -> str:
    """Returns a line as text.

    Raises:
      UserError: the first line is UTF-16.
    """
    if is_first and (line.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in line):
        raise UserError("the first line is UTF-16: expected UTF-8; convert it with `iconv -f UTF-16 -t UTF-8`")
    try:
        return line.decode()
    except UnicodeDecodeError:  # as of files, see data.rows.csv_files
        return line.decode("cp1252", errors="replace")


def _separator(fmt: Format, header: str) -> str:
    """Returns the separator in the header that finds the most sensors."""
    sensors, scores = set(fmt.sensors), {}
    for mark in dialects.separators_in(header):
        found = len(set(dialects.split(header, mark)) & sensors)
        if found:
            scores[mark] = (found,)
    return dialects.best_separator(scores, fmt.stated, "the first line")


def _is_header(fmt: Format, cells: Sequence[str]) -> bool:
    """Returns True if a line among the data repeats the header, as after a restart of the writer."""
    return len(set(cells) & set(fmt.sensors)) * 2 > len(fmt.sensors)


def _with_header(fmt: Format, cells: Sequence[str], separator: str) -> Format:
    """Returns the format with this header."""
    sensors = set(fmt.sensors)
    twice = [name for name, count in Counter(cells).items() if count > 1 and name in sensors]
    if twice:
        raise UserError(f"several columns are called {listed(twice)}: expected unique names")
    if not set(cells) & sensors:
        near = difflib.get_close_matches(fmt.sensors[0], cells[:1000], n=1, cutoff=0.0)
        raise UserError(
            f"the first line names {listed(cells)}, none of the detector's sensors {listed(fmt.sensors)} (closest to "
            f"the first: {quoted(near[0])}); expected CSV with a header, or one JSON object per line"
        )
    if fmt.time and fmt.time not in cells:
        raise UserError(f"--time {fmt.time}: no such column; there are {listed(cells)}")
    dialect = dataclasses.replace(fmt.stated, separator=separator)
    if fmt.stated.separator not in ("", separator):  # what is known is of other files
        dialect = Dialect(separator)
    if separator == "," and not dialect.decimal:
        dialect = dataclasses.replace(dialect, decimal=POINT)
    return dataclasses.replace(fmt, header=tuple(cells), dialect=dialect)


def _parse_json(fmt: Format, text: str) -> Row:
    """Parses a JSON object."""
    try:
        cells_by_name = json.loads(text)
    except (ValueError, RecursionError) as error:
        return _unreadable(fmt, f"not JSON: {error}")
    if not isinstance(cells_by_name, dict):
        return _unreadable(fmt, "not a JSON object")
    return _make_row(fmt, cells_by_name, _PLAIN)


def _unreadable(fmt: Format, why: str) -> Row:
    """Returns a row of missing values with the reason."""
    return Row(np.full(len(fmt.sensors), np.nan), problem=why[:200])


def _make_row(fmt: Format, cells_by_name: dict[str, Any], dialect: Dialect) -> Row:
    """Returns the row of these cells."""
    unreadable: list[tuple[str, str]] = []
    absent = tuple(name for name in fmt.sensors if name not in cells_by_name)
    given = [cells_by_name.get(name) for name in fmt.sensors]
    values = _plain_numbers(given, dialect)
    if values is None:
        found = [_number(name, cell, dialect, unreadable) for name, cell in zip(fmt.sensors, given, strict=True)]
        values = np.array(found, np.float64)
    cell = _clock_cell(fmt, cells_by_name)
    if cell is None:
        return Row(values, absent=absent, unreadable=tuple(unreadable))
    seconds, shown = _time(cell)
    return Row(values, seconds, str(cell)[:64], shown, absent, tuple(unreadable))


def _plain_numbers(given: Sequence[Any], dialect: Dialect) -> np.ndarray | None:
    """Returns the cells as numbers in the common case: all are numbers without marks between thousands."""
    try:
        if dialect.decimal == POINT:
            return np.array(given, np.float64)  # None becomes NaN
        if dialect.decimal == COMMA and not any(POINT in cell for cell in given if cell):
            return np.array([cell and cell.replace(COMMA, POINT) for cell in given], np.float64)
    except (ValueError, TypeError, OverflowError):
        pass
    return None


def _number(name: str, cell: Any, dialect: Dialect, unreadable: list[tuple[str, str]]) -> float:
    """Returns a cell as a number, NaN if it is missing; adds others to `unreadable`."""
    if cell is None or (isinstance(cell, str) and cell.strip().lower() in MISSING):
        return math.nan
    try:
        found = dialects.number(cell, dialect) if isinstance(cell, str) else None
        if found is None and isinstance(cell, (int, float)):
            found = float(cell)
    except OverflowError:
        found = None
    if found is None:
        unreadable.append((name, str(cell)[:64]))
        return math.nan
    return found


def _clock_cell(fmt: Format, cells_by_name: dict[str, Any]) -> Any:
    """Returns the cell with the time: that of `fmt.time`, of the first usual name, or the first that is a time."""
    if fmt.time:
        return cells_by_name.get(fmt.time)
    sensors = set(fmt.sensors)
    others = {name: cell for name, cell in cells_by_name.items() if name not in sensors}
    named = next((name for name in others if name.lower() in _TIME_NAMES), None)
    if named is not None:
        return others[named]
    return next((cell for cell in others.values() if isinstance(cell, str) and clock.parse(cell)), None)


def _time(cell: Any) -> tuple[float | None, str | float | None]:
    """Parses a number or a form of `clock`; returns the time in seconds (UTC without a zone) and as shown."""
    if isinstance(cell, bool):
        return None, None
    try:
        found = float(cell)
        return (found, found) if math.isfinite(found) else (None, None)
    except (ValueError, TypeError, OverflowError):
        pass
    when = clock.parse(str(cell))
    if when is None:
        return None, None
    try:
        return (when if when.tzinfo else when.replace(tzinfo=datetime.UTC)).timestamp(), clock.iso(when)
    except (ValueError, OverflowError):
        return None, None
