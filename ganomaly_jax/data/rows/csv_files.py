"""Reads CSV files with a header and detects their separator, number format and encoding."""

from __future__ import annotations

import codecs
import csv
import itertools
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import IO

from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data.rows import clock, columns, dialects
from ganomaly_jax.data.rows.columns import Column
from ganomaly_jax.data.rows.dialects import Dialect

# Cells converted to numbers at once: as text they take about ten times the memory.
_BLOCK_CELLS = 2**19
_FIRST_ROWS = 64
# Rows from which the separator is detected.
_SAMPLE = 20


def read(
    path: Path, name: str, wanted: Collection[str], left_out: Collection[str], label: str, stated: Dialect
) -> tuple[list[str], list[Column], Dialect, str]:
    """Reads the names and the columns of a CSV file, a block of rows at a time.

    Args:
      path: The file.
      name: The file in messages.
      wanted: Names of the sensors; empty: not known.
      left_out: Names of columns that are not used.
      label: Name, in lower case, of the column that is kept as text.
      stated: The format in `data.csv`, for what is ambiguous in the file.

    Returns:
      Names, columns, their format, and the encoding if it is unusual.

    Raises:
      UserError: The file is empty, its first line holds numbers, or rows differ in length.
      OSError, ValueError, csv.Error: The file cannot be read.
    """
    path.stat()  # raises FileNotFoundError
    if not path.is_file():  # opening a named pipe would wait forever
        raise UserError(f"{name} is not a regular file")
    encoding = _encoding(path, name)
    try:
        return *_read(path, name, encoding, wanted, left_out, label, stated), _said(encoding)
    except UnicodeDecodeError:
        if encoding != "utf-8-sig":
            raise
    # Spreadsheets in Europe and America write Windows-1252 unless told otherwise; only names are concerned.
    return *_read(path, name, "cp1252", wanted, left_out, label, stated), "Windows-1252"


def _encoding(path: Path, name: str) -> str:
    """Returns the encoding according to the first bytes of a file, by default UTF-8."""
    with open(path, "rb") as file:
        head = file.read(4096)
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if b"\0" in head:
        raise UserError(f"{name} is not text, or is UTF-16 without a byte order mark: expected UTF-8")
    return "utf-8-sig"


def _said(encoding: str) -> str:
    return "" if encoding == "utf-8-sig" else encoding.upper()


def _read(
    path: Path,
    name: str,
    encoding: str,
    wanted: Collection[str],
    left_out: Collection[str],
    label: str,
    stated: Dialect,
) -> tuple[list[str], list[Column], Dialect]:
    """Reads a file in an encoding; arguments and errors as `read`."""
    with open(path, encoding=encoding, errors="replace" if encoding == "cp1252" else "strict", newline="") as file:
        separator = _separator(file, name, wanted, stated)
        file.seek(0)
        lines = csv.reader(file, delimiter=separator, skipinitialspace=True, strict=True)
        names = [one.strip() for one in next(lines, [])]
        if not names:
            raise UserError(f"{name} is empty: expected a line of names, then a line of numbers for each row")
        if all(_is_number(one) for one in names):
            raise UserError(
                f"{name}: the first line contains only numbers: expected a line with the column names before them"
            )
        growing = columns.begin(name, names, wanted, left_out, label)
        # Until the decimal mark is known, each number is converted twice; most files reveal it in the first rows.
        size = min(_FIRST_ROWS, max(1, _BLOCK_CELLS // len(names)))
        while block := list(itertools.islice(lines, size)):
            size = max(1, _BLOCK_CELLS // len(names))
            rows = [row for row in block if row]
            _refuse_ragged(name, rows, growing.rows, names, separator)
            columns.add(growing, rows)
    return names, *columns.finished(growing, stated, separator)


def _refuse_ragged(name: str, rows: Sequence[Sequence[str]], before: int, names: Sequence[str], separator: str) -> None:
    for i, row in enumerate(rows):
        if len(row) != len(names):
            word = dialects.to_words(Dialect(separator))
            raise UserError(
                f"{name}: row {before + i + 1} has {len(row)} values, the header {len(names)}, separated by {word}s: "
                f"expected the same number; set another separator with {dialects.OPTION} ({dialects.FLAG})"
            )


def _separator(file: IO[str], name: str, wanted: Collection[str], stated: Dialect) -> str:
    """Returns the separator of the columns.

    Of the separators in the header, it is the one that finds the most sensors, then gives the most rows as long as the
    header, then the most cells that are numbers, times or missing.
    """
    header = file.readline()
    known, scores = set(wanted), {}
    for mark in dialects.separators_in(header):
        file.seek(0)
        try:
            head, *rows = _sample(file, mark)
        except (csv.Error, ValueError):
            continue
        names = [cell.strip() for cell in head]
        if len(names) < 2:
            continue
        found = sum(one in known for one in names)
        even = sum(len(row) == len(names) for row in rows) / max(len(rows), 1)
        cells = [cell for row in rows for cell in row[:1000]]
        scores[mark] = (found, even, sum(map(_is_value, cells)) / max(len(cells), 1))
    return dialects.best_separator(scores, stated, name)


def _sample(file: IO[str], mark: str) -> Iterator[list[str]]:
    """Returns the header and the first rows, split by a separator."""
    rows = csv.reader(file, delimiter=mark, skipinitialspace=True)
    return itertools.islice((row for row in rows if row), 1 + _SAMPLE)


def _is_number(cell: str) -> bool:
    return any(dialects.parsed(cell, mark) is not None for mark in (dialects.POINT, dialects.COMMA))


def _is_value(cell: str) -> bool:
    return cell.strip().lower() in dialects.MISSING or _is_number(cell) or clock.parse(cell) is not None
