"""Reads tables of sensors: CSV files with a header, Parquet files (with pyarrow) and pandas data frames."""

from __future__ import annotations

import csv
import dataclasses
import difflib
import itertools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ganomaly_jax.core.errors import UserError

ENDINGS = (".csv", ".parquet")
LABEL = "label"
# Names, in lower case, of columns that hold the time or the number of a row.
TIMES = ("time", "timestamp", "datetime", "date_time", "date", "index", "", "unnamed: 0", "__index_level_0__")
_MISSING = frozenset({"", "na", "n/a", "nan", "null", "none"})
# Rows that are converted to numbers at once: as text they take about ten times the memory.
_BLOCK = 8192


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """A table of sensor values: the rows of one recording."""

    name: str
    columns: tuple[str, ...]
    values: np.ndarray
    """[N, D] float64, NaN where a value is missing."""
    labels: np.ndarray | None
    """[N] words of the column `label`; None without such a column."""
    notes: tuple[str, ...] = ()
    """Notes for the user on columns that are not used as sensors, a sentence each."""


def read(path: Path, wanted: Sequence[str] = (), left_out: Sequence[str] = ()) -> Table:
    """Reads a table from a file.

    Columns of numbers are sensors. These columns are not: one named `label`, one whose name says that it holds the time
    or the number of a row (`TIMES`), and one without a single number. The `notes` of the table list them.

    Args:
      path: CSV file with a header, or Parquet file.
      wanted: Names of the sensors, in the order of the result, which may differ from that in the file; empty: all.
      left_out: Names of columns that are not used.

    Raises:
      UserError: The file does not exist or is not a table, a column is missing, appears twice, or mixes numbers with
        something else.
    """
    try:
        if path.suffix.lower() == ".parquet":
            names, columns = _parquet(path)
        else:
            names, columns = _csv(path)
    except UserError:
        raise
    except (OSError, ValueError, csv.Error, MemoryError) as error:
        detail = " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__
        raise UserError(f"{path} cannot be read: {detail}") from None
    return _made(str(path), path.name, names, columns, wanted, left_out)


@dataclasses.dataclass(frozen=True, eq=False)
class _Column:
    """A column of a file."""

    numbers: np.ndarray
    """[N] float64, NaN where there is no number."""
    words: dict[int, str]
    """Text of values, by row, that are neither numbers nor missing: the first few."""
    text: np.ndarray | None = None
    """[N] all values as text; for the label only."""

    def __len__(self) -> int:
        """Returns the number of rows."""
        return len(self.numbers)


def names_of(text: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Parses `data.columns` into (names to use, names to leave out).

    Args:
      text: Names separated by commas, all of them with a leading - if they are to be left out.

    Raises:
      UserError: Only some names have a leading -, or a name appears twice.
    """
    words = [word.strip() for word in next(csv.reader([text], skipinitialspace=True), [])]
    words = [word for word in words if word]
    out = tuple(word[1:] for word in words if word.startswith("-"))
    if out and len(out) < len(words):
        raise UserError(f"data.columns={text!r}: expected names to use, or names to leave out with - before each")
    if len(set(words)) < len(words):
        raise UserError(f"data.columns={text!r}: a name appears twice")
    return (() if out else tuple(words)), out


def as_text(names: Iterable[str]) -> str:
    """Returns the value of `data.columns` that `names_of` parses into these names to use."""
    return ",".join('"' + name.replace('"', '""') + '"' if set(name) & set(',"') else name for name in names)


def _made(
    path: str,
    name: str,
    names: Sequence[str],
    columns: Sequence[_Column],
    wanted: Sequence[str],
    left_out: Sequence[str],
) -> Table:
    """Makes a table of the columns of a file; errors as `read`."""
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise UserError(f"{path}: several columns are called {', '.join(map(repr, twice[:5]))}: expected unique names")
    if not columns or not len(columns[0]):
        raise UserError(f"{path} holds no rows: expected a line of names, followed by a line of numbers for each row")
    held = dict(zip(names, columns, strict=True))
    chosen, notes = _sensors(path, name, held, wanted, left_out)
    label = next((name for name in names if name.lower() == LABEL), None)
    values = np.stack([held[name].numbers for name in chosen], axis=1)
    labels = None if label is None else _labels(path, held[label])
    return Table(name, tuple(chosen), values, labels, tuple(notes))


def _sensors(
    path: str, name_of: str, held: dict[str, _Column], wanted: Sequence[str], left_out: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Returns the names of the columns that are sensors, and notes on the other columns."""
    for name in (*wanted, *left_out):
        if name not in held:
            near = difflib.get_close_matches(name, held, n=1, cutoff=0.0)
            raise UserError(
                f"{path} has no column {name!r}, but {listed(list(held))}; the nearest is {near[0] if near else ''!r}"
            )
    notes = []
    if wanted:
        chosen = list(wanted)
        # A column that is neither used nor left out may have the wrong name.
        others = [
            name for name, column in held.items() if name not in wanted and not _is_other(name) and not _is_text(column)
        ]
        if others:
            notes.append(
                f"{name_of}: columns that are not used, since data.columns does not name them: {listed(others)}"
            )
    else:
        times = [name for name in held if name.lower() in TIMES and name not in left_out]
        words = [name for name in held if not _is_other(name) and _is_text(held[name]) and name not in left_out]
        if times:
            notes.append(f"{name_of}: not used as sensors because of their names: {listed(times)}")
        if words:
            notes.append(f"{name_of}: not used as sensors because they hold no numbers: {listed(words)}")
        chosen = [name for name in held if not _is_other(name) and name not in left_out and name not in words]
    if not chosen:
        raise UserError(f"{path} has no column of numbers beside {listed(list(held))}: expected one for each sensor")
    for name in chosen:
        column = held[name]
        if column.words:
            row, word = next(iter(column.words.items()))
            raise UserError(
                f"{path}: column {name!r} holds {word!r} in row {row + 1}: expected numbers, or nothing where a value "
                "is "
                "missing; --config.data.columns=-NAME leaves a column out"
            )
    return chosen, notes


def _is_other(name: str) -> bool:
    """Returns whether a column is not a sensor according to its name."""
    return name.lower() == LABEL or name.lower() in TIMES


def _is_text(column: _Column) -> bool:
    """Returns whether a column holds no numbers."""
    return not np.isfinite(column.numbers).any()


def listed(names: Sequence[str]) -> str:
    """Returns names for a sentence: at most eight, and how many more there are."""
    shown = ", ".join(name or "(no name)" for name in names[:8])
    return shown + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _labels(path: str, column: _Column) -> np.ndarray:
    """Returns the labels as words; integers have no decimal point."""
    if column.text is None:
        words = np.array([str(int(v)) if float(v).is_integer() else str(v) for v in np.nan_to_num(column.numbers)])
        missing = np.isnan(column.numbers)
    else:
        words = np.array([_plain(word) for word in column.text])
        missing = np.array([word.lower() in _MISSING for word in words], bool)
    if missing.any():
        raise UserError(
            f"{path}: {missing.sum()} rows have no label, the first is row {missing.argmax() + 1}: expected 0 or "
            "1, or a "
            "word, in each, or no column `label` at all"
        )
    return words


def _plain(word: str) -> str:
    """Returns a word without surrounding spaces; integers have no decimal point."""
    try:
        number = float(word)
    except ValueError:
        return word.strip()
    return str(int(number)) if number.is_integer() else word.strip()


def _csv(path: Path) -> tuple[list[str], list[_Column]]:
    """Reads the names and the columns of a CSV file, a block of rows at a time."""
    path.stat()  # raises FileNotFoundError
    if not path.is_file():  # opening a named pipe would wait forever
        raise UserError(f"{path} is not a regular file")
    with open(path, encoding="utf-8-sig", newline="") as file:
        lines = csv.reader(file)
        names = [name.strip() for name in next(lines, [])]
        if not names:
            raise UserError(f"{path} is empty: expected a line of names and then a line of numbers for each row")
        if all(_number(name) is not None for name in names):
            raise UserError(
                f"{path}: the first line holds numbers only: expected a line with the names of the columns before them"
            )
        blocks: list[np.ndarray] = []
        found: list[dict[int, str]] = [{} for _ in names]
        label = next((i for i, name in enumerate(names) if name.lower() == LABEL), None)
        texts: list[str] = []
        first = 0
        while block := list(itertools.islice(lines, _BLOCK)):
            rows = [row for row in block if row]
            for i, row in enumerate(rows):
                if len(row) != len(names):
                    raise UserError(
                        f"{path}: row {first + i + 1} has {len(row)} values, the header {len(names)}: expected as many"
                    )
            numbers = np.empty((len(rows), len(names)))
            for k, column in enumerate(zip(*rows, strict=True)):
                numbers[:, k] = _numbers(column, found[k], first)
                if k == label:
                    texts.extend(column)
            blocks.append(numbers)
            first += len(rows)
    values = np.concatenate(blocks) if blocks else np.empty((0, len(names)))
    return names, [_Column(values[:, k], found[k], np.array(texts) if k == label else None) for k in range(len(names))]


def _numbers(column: Sequence[str], words: dict[int, str], first: int) -> np.ndarray:
    """Converts a block of a column to float64 and adds the first values that are not numbers to `words`, by row."""
    try:
        return np.array(column, np.float64)
    except ValueError:
        pass
    found = np.full(len(column), np.nan)
    for i, word in enumerate(column):
        number = _number(word)
        if number is not None:
            found[i] = number
        elif word.strip().lower() not in _MISSING and len(words) < 10:
            words[first + i] = word
    return found


def _number(word: str) -> float | None:
    """Returns the number that a word stands for, or None."""
    try:
        return float(word)
    except ValueError:
        return None


def _parquet(path: Path) -> tuple[list[str], list[_Column]]:
    """Reads the names and the columns of a Parquet file."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(f"{path}: Parquet needs pyarrow: pip install 'ganomaly-jax[rows]'") from None
    path.stat()
    if not path.is_file():
        raise UserError(f"{path} is not a regular file")
    table = parquet.read_table(path)
    columns = []
    for column in table.columns:
        kind = column.type
        if pyarrow.types.is_boolean(kind):
            column = column.cast(pyarrow.int8())
            kind = column.type
        if pyarrow.types.is_integer(kind) or pyarrow.types.is_floating(kind):
            columns.append(_Column(column.cast(pyarrow.float64(), safe=False).to_numpy().astype(np.float64), {}))
        else:
            columns.append(_of_words(["" if word is None else str(word) for word in column.to_pylist()]))
    return [str(name) for name in table.column_names], columns


def carried(values: np.ndarray) -> np.ndarray:
    """Replaces each missing value of rows [N, D] by the previous value of its column; leading ones stay NaN."""
    at = np.where(np.isnan(values), 0, np.arange(len(values))[:, None])
    return np.take_along_axis(values, np.maximum.accumulate(at, axis=0), axis=0)


def counted(columns: Sequence[str], counts: np.ndarray, most: int = 8) -> str:
    """Returns the nonzero counts [D] of columns as text, largest first, such as `a 3, b 1`."""
    order = [k for k in np.argsort(-counts, kind="stable") if counts[k]]
    words = [f"{columns[k]} {counts[k]}" for k in order[:most]]
    return ", ".join(words) + (f" and {len(order) - most} more columns" if len(order) > most else "")


def as_table(given: Any, name: str, wanted: Sequence[str] = (), left_out: Sequence[str] = ()) -> Table | None:
    """Converts a pandas data frame to a table.

    Args:
      given: Anything.
      name: Name of the table for messages.
      wanted: As in `read`.
      left_out: As in `read`.

    Returns:
      The table, or None if `given` is not a data frame.

    Raises:
      UserError: As `read`.
    """
    if not (hasattr(given, "columns") and hasattr(given, "iloc") and hasattr(given, "dtypes")):
        return None
    names, columns = [str(column) for column in given.columns], []
    for i in range(len(names)):
        series = given.iloc[:, i]
        if series.dtype.kind in "biuf":
            columns.append(_Column(series.to_numpy(np.float64, na_value=math.nan), {}))
        else:
            columns.append(_of_words(["" if word is None else str(word) for word in series.tolist()]))
    return _made(name, name, names, columns, wanted, left_out)


def _of_words(words: Sequence[str]) -> _Column:
    """Makes a column of text."""
    first = {i: word for i, word in enumerate(words[:10]) if word}
    return _Column(np.full(len(words), np.nan), first or {0: ""}, np.array(words))
