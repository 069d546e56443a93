"""Converts columns of text to numbers and times, block by block, and detects the format of the numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

import numpy as np

from ganomaly_jax.core.errors import UserError
from ganomaly_jax.core.printable import quoted
from ganomaly_jax.data.rows import clock, dialects
from ganomaly_jax.data.rows.dialects import COMMA, MISSING, POINT, Dialect

INDICES = (*clock.NAMES, "index", "", "unnamed: 0", "__index_level_0__")
"""Names, in lower case, of columns that hold the time or the number of a row."""
Found = tuple[str, int, str]
"""A cell: name of its column, row from 1, text."""


@dataclasses.dataclass(eq=False)
class Words:
    """The cells of a column that are neither numbers nor missing."""

    row: int
    """Row of the first, from 1."""
    text: str
    """The first."""
    constant: bool = True
    """Whether all are the same."""
    digits: bool = False
    """Whether one contains a digit and is not a time of day."""


@dataclasses.dataclass(eq=False)
class Column:
    """A column of a table."""

    numbers: np.ndarray
    """[N] float64, NaN where there is no number."""
    words: Words | None = None
    """Cells that are neither numbers nor missing; None: there are none."""
    text: np.ndarray | None = None
    """[N] all cells as text; for the label only."""
    times: clock.Times | None = None
    """The times, if every cell holds one or nothing."""

    def __len__(self) -> int:
        """Returns the number of rows."""
        return len(self.numbers)


@dataclasses.dataclass(eq=False)
class Growing:
    """Columns of text that are read block by block; numbers are kept for every decimal mark that is still possible."""

    name: str
    """The table in messages."""
    names: Sequence[str]
    """Names of the columns."""
    kept: Collection[int] = ()
    """Indices of columns that are kept as text."""
    dated: Collection[int] = ()
    """Indices of columns that may hold times, and are no sensors."""
    ignored: Collection[int] = ()
    """Indices of columns that are not used."""
    rows: int = 0
    numbers: dict[str, list[np.ndarray]] = dataclasses.field(default_factory=lambda: {POINT: [], COMMA: []})
    thousands: dict[str, set[str]] = dataclasses.field(default_factory=lambda: {POINT: set(), COMMA: set()})
    texts: dict[int, list[str]] = dataclasses.field(default_factory=dict)
    words: dict[int, Words] = dataclasses.field(default_factory=dict)
    times: dict[int, list[clock.Times] | None] = dataclasses.field(default_factory=dict)
    only: dict[str, Found] = dataclasses.field(default_factory=dict)
    """A cell that is a number only with this decimal mark."""
    either: dict[str, Found] = dataclasses.field(default_factory=dict)
    """By mark, a number whose value depends on the decimal mark."""


def begin(name: str, names: Sequence[str], wanted: Collection[str], left_out: Collection[str], label: str) -> Growing:
    """Returns the columns of a table before its first row.

    Args:
      name: The table in messages.
      names: Names of all columns.
      wanted: Names of the sensors; empty: not known.
      left_out: Names of columns that are not used.
      label: Name, in lower case, of the column that is kept as text.
    """
    chosen, out = set(wanted), set(left_out)
    kept = {k for k, one in enumerate(names) if one.lower() == label}
    other = {k for k, one in enumerate(names) if one not in chosen and (chosen or one.lower() in INDICES)} - kept
    return Growing(name, names, kept, other, {k for k, one in enumerate(names) if one in out})


def add(growing: Growing, rows: Sequence[Sequence[str]]) -> None:
    """Adds a block of rows.

    Raises:
      UserError: Some numbers have a decimal point and others a decimal comma.
    """
    if not rows:
        return
    if not (growing.kept or growing.dated or growing.ignored) and _add_plain(growing, rows):
        return
    blocks = {mark: np.full((len(rows), len(growing.names)), np.nan) for mark in growing.numbers}
    for k, cells in enumerate(zip(*rows, strict=True)):
        if k in growing.ignored:
            continue
        if k in growing.kept:
            growing.texts.setdefault(k, []).extend(cells)
        elif k in growing.dated:
            _add_dated(growing, k, cells, blocks)
        else:
            _add_numbers(growing, k, cells, blocks)
    for mark in list(growing.numbers):
        if set(growing.only) == {COMMA if mark == POINT else POINT}:
            del growing.numbers[mark]
        else:
            growing.numbers[mark].append(blocks[mark])
    growing.rows += len(rows)


def _add_plain(growing: Growing, rows: Sequence[Sequence[str]]) -> bool:
    """Adds a block in the common case: all cells are numbers that are the same under every possible decimal mark."""
    if COMMA in growing.numbers and any(POINT in cell or COMMA in cell for row in rows for cell in row):
        return False
    if POINT not in growing.numbers:
        return False
    try:
        values = np.array(rows, np.float64)
    except ValueError:
        return False
    for blocks in growing.numbers.values():
        blocks.append(values)
    growing.rows += len(rows)
    return True


def _add_dated(growing: Growing, k: int, cells: Sequence[str], blocks: dict[str, np.ndarray]) -> None:
    """Converts a block of a column that holds times, or numbers of rows, by its name."""
    _add_times(growing, k, cells)
    if growing.times[k] is None:
        values, failed, _ = _convert(cells, POINT)
        if failed and np.isnan(values).all():
            values, failed, _ = _convert(cells, COMMA)
        for block in blocks.values():
            block[:, k] = values
        if failed and k not in growing.words:
            growing.words[k] = Words(growing.rows + failed[0] + 1, cells[failed[0]])


def _add_numbers(growing: Growing, k: int, cells: Sequence[str], blocks: dict[str, np.ndarray]) -> None:
    """Converts a block of a column of numbers."""
    plain = len(blocks) == 2 and not any(POINT in cell or COMMA in cell for cell in cells)
    found = {mark: _convert(cells, mark) for mark in blocks if mark == POINT or not plain}
    if plain:
        found[COMMA] = found[POINT]
    for mark, (values, _, thousands) in found.items():
        blocks[mark][:, k] = values
        growing.thousands[mark] |= thousands
    if len(found) == 2 and not plain:
        _compare(growing, k, cells, found[POINT][0], found[COMMA][0])
    failed = sorted(set.intersection(*(set(bad) for _, bad, _ in found.values())))
    if failed and len(found) == 1:
        other = COMMA if POINT in found else POINT
        for i in failed:
            if dialects.parsed(cells[i], other) is not None:
                growing.only.setdefault(other, (growing.names[k], growing.rows + i + 1, cells[i]))
                break
    if len(growing.only) == 2:
        shown = [
            f"column {quoted(name)} {quoted(cell)} (row {row})"
            for name, row, cell in (growing.only[POINT], growing.only[COMMA])
        ]
        raise UserError(
            f"{growing.name}: {' and '.join(shown)} have different decimal marks: expected the same one "
            "everywhere; --config.data.columns=-NAME excludes a column"
        )
    if failed:
        _add_words(growing, k, cells, failed)
    elif growing.times.get(k) is not None:
        _add_times(growing, k, cells)


def _add_words(growing: Growing, k: int, cells: Sequence[str], failed: Sequence[int]) -> None:
    """Records the cells of a column that are neither numbers nor missing."""
    if k not in growing.words:
        growing.words[k] = Words(growing.rows + failed[0] + 1, cells[failed[0]])
        earlier = clock.Times(np.full(growing.rows, np.datetime64("NaT", "us"), "datetime64[us]"))
        seen = any(np.isfinite(block[:, k]).any() for blocks in growing.numbers.values() for block in blocks)
        growing.times[k] = None if seen else [earlier]
    words = growing.words[k]
    for i in failed:
        words.constant &= cells[i] == words.text
        words.digits = words.digits or (
            any(character.isdigit() for character in cells[i]) and not clock.is_of_day(cells[i])
        )
    _add_times(growing, k, cells)


def _add_times(growing: Growing, k: int, cells: Sequence[str]) -> None:
    """Adds a block of a column that may hold times."""
    before = growing.times.setdefault(k, [])
    if before is None:
        return
    found = clock.parse_all(cells, MISSING)
    known = [part.zoned for part in (*before, *([found] if found else [])) if not np.isnat(part.values).all()]
    if found is None or len(set(known)) > 1:
        growing.times[k] = None
    else:
        before.append(found)


def _convert(cells: Sequence[str], decimal: str) -> tuple[np.ndarray, list[int], set[str]]:
    """Returns a block of a column as numbers [n], the indices of other cells, and the thousands separators."""
    try:
        if decimal == POINT:
            return np.array(cells, np.float64), [], set()
        if not any(POINT in cell for cell in cells):
            return np.array([cell.replace(COMMA, POINT) for cell in cells], np.float64), [], set()
    except ValueError:
        pass
    values, failed, thousands = np.full(len(cells), np.nan), [], set()
    for i, cell in enumerate(cells):
        found = dialects.parsed(cell, decimal)
        if found is not None:
            values[i] = found[0]
            thousands |= set(found[1])
        elif cell.strip().lower() not in MISSING:
            failed.append(i)
    return values, failed, thousands


def _compare(growing: Growing, k: int, cells: Sequence[str], point: np.ndarray, comma: np.ndarray) -> None:
    """Records the numbers of a block that determine the decimal mark, and those that depend on it."""
    different = ~((point == comma) | (np.isnan(point) & np.isnan(comma)))
    for i in np.flatnonzero(different).tolist():
        found = (growing.names[k], growing.rows + i + 1, cells[i])
        if np.isnan(point[i]) or np.isnan(comma[i]):
            growing.only.setdefault(COMMA if np.isnan(point[i]) else POINT, found)
        else:
            growing.either.setdefault(COMMA if COMMA in cells[i] else POINT, found)
        if growing.only and len(growing.either) == 2:
            return


def finished(growing: Growing, stated: Dialect, separator: str) -> tuple[list[Column], Dialect]:
    """Returns the columns and their format.

    Args:
      growing: The columns after the last block.
      stated: The format as far as it is known, for what is ambiguous in the table.
      separator: What separates the columns; empty for columns of other files.

    Raises:
      UserError: The value of a number depends on the decimal mark, which is not known.
    """
    decimal = _decimal(growing, stated, separator)
    mark = decimal or POINT
    blocks = growing.numbers[mark]
    values = np.concatenate(blocks) if blocks else np.empty((0, len(growing.names)))
    columns = []
    for k in range(len(growing.names)):
        parts = growing.times.get(k)
        times = clock.joined([part for part in parts if not np.isnat(part.values).all()]) if parts else None
        if times is not None and parts is not None:
            times = clock.Times(np.concatenate([part.values for part in parts]), times.zoned)
        text = np.array(growing.texts.get(k, []), str) if k in growing.kept else None
        columns.append(Column(values[:, k], growing.words.get(k), text, times))
    return columns, Dialect(separator, decimal, "".join(sorted(growing.thousands[mark])))


def _decimal(growing: Growing, stated: Dialect, separator: str) -> str:
    """Returns the decimal mark; empty if no number has one."""
    if growing.only:
        return next(iter(growing.only))
    if not growing.either:
        return ""
    found = growing.either.get(COMMA) or growing.either[POINT]
    if stated.decimal and stated.separator in ("", separator):
        # A thousands separator not seen before could also be a different decimal mark.
        if all(mark == stated.decimal or mark in stated.thousands for mark in growing.either):
            return stated.decimal
    elif separator in ("", ",") and COMMA not in growing.either:
        return POINT  # as in any comma-separated file
    raise dialects.ambiguous(growing.name, *found, Dialect(separator))
