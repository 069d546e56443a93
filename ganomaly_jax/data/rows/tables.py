"""Tables of sensors from files: CSV with a header, or Parquet. NumPy; pyarrow only for Parquet."""

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
# Columns that say when or in which place a row is, in lower case.
TIMES = ("time", "timestamp", "datetime", "date_time", "date", "index", "", "unnamed: 0", "__index_level_0__")
_MISSING = frozenset({"", "na", "n/a", "nan", "null", "none"})
# Rows that are turned into numbers at a time: as text they take some ten times the memory.
_BLOCK = 8192


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """Rows of sensors, one recording."""

    name: str
    columns: tuple[str, ...]
    values: np.ndarray
    """[N, D] float64, NaN where a value is missing."""
    labels: np.ndarray | None
    """[N] words of the column `label`, None where there is none."""
    notes: tuple[str, ...] = ()
    """Which columns are no sensors, a sentence each."""


def read(path: Path, wanted: Sequence[str] = (), left_out: Sequence[str] = ()) -> Table:
    """Reads one file.

    Sensors are the columns of numbers. No sensors are: a column called `label`; one whose name says that it holds the
    time or counts rows (`TIMES`); and one without a single number. These are told in `notes`.

    Args:
      path: a CSV file with a header, or a Parquet file.
      wanted: names of the sensors; the result has these, in this order, wherever they are in the file. Empty: all.
      left_out: names of columns that are not used.

    Raises:
      UserError: no such file, not a table, a column that is missing or there twice, or that holds both numbers and
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
    """A column of a file: its numbers, NaN where there is none, and what stands in the places that are no numbers."""

    numbers: np.ndarray
    words: dict[int, str]
    """{row: text} of what is neither a number nor missing; of a column of text only some."""
    text: np.ndarray | None = None
    """All of it as text, for the label."""

    def __len__(self) -> int:
        return len(self.numbers)


def names_of(text: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Parses `data.columns` into (wanted, left out): names separated by commas, with - before those to leave out.

    Raises:
      UserError: some with and some without.
    """
    words = [word.strip() for word in next(csv.reader([text], skipinitialspace=True), [])]
    words = [word for word in words if word]
    out = tuple(word[1:] for word in words if word.startswith("-"))
    if out and len(out) < len(words):
        raise UserError(f"data.columns={text!r}: expected names to take, or names to leave out with - before each")
    if len(set(words)) < len(words):
        raise UserError(f"data.columns={text!r}: a name stands there twice")
    return (() if out else tuple(words)), out


def as_text(names: Iterable[str]) -> str:
    """Returns the inverse of `names_of` for names to take."""
    return ",".join('"' + name.replace('"', '""') + '"' if set(name) & set(',"') else name for name in names)


def _made(
    path: str,
    name: str,
    names: Sequence[str],
    columns: Sequence[_Column],
    wanted: Sequence[str],
    left_out: Sequence[str],
) -> Table:
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise UserError(f"{path}: several columns are called {', '.join(map(repr, twice[:5]))}: expected unique names")
    if not columns or not len(columns[0]):
        raise UserError(f"{path} holds no rows: expected a line of names and then a line of numbers for each row")
    held = dict(zip(names, columns, strict=True))
    chosen, notes = _sensors(path, name, held, wanted, left_out)
    label = next((name for name in names if name.lower() == LABEL), None)
    values = np.stack([held[name].numbers for name in chosen], axis=1)
    labels = None if label is None else _labels(path, held[label])
    return Table(name, tuple(chosen), values, labels, tuple(notes))


def _sensors(
    path: str, name_of: str, held: dict[str, _Column], wanted: Sequence[str], left_out: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Names of the columns that are sensors, and what is to say of the others."""
    for name in (*wanted, *left_out):
        if name not in held:
            near = difflib.get_close_matches(name, held, n=1, cutoff=0.0)
            raise UserError(
                f"{path} has no column {name!r}, but {listed(list(held))}; the nearest is {near[0] if near else ''!r}"
            )
    notes = []
    if wanted:
        chosen = list(wanted)
        # A column that nobody has spoken of may be one that should have been renamed.
        others = [
            name for name, column in held.items() if name not in wanted and not _is_other(name) and not _is_text(column)
        ]
        if others:
            notes.append(f"{name_of}: columns that are not asked for and not used: {listed(others)}")
    else:
        times = [name for name in held if name.lower() in TIMES and name not in left_out]
        words = [name for name in held if not _is_other(name) and _is_text(held[name]) and name not in left_out]
        if times:
            notes.append(f"{name_of}: no sensor, because of its name: {listed(times)}")
        if words:
            notes.append(f"{name_of}: no sensor, because it holds no numbers: {listed(words)}")
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
    return name.lower() == LABEL or name.lower() in TIMES


def _is_text(column: _Column) -> bool:
    """Returns True for a column without anything that could be a number."""
    return not np.isfinite(column.numbers).any()


def listed(names: Sequence[str]) -> str:
    """Returns some of the names for a sentence."""
    shown = ", ".join(name or "(no name)" for name in names[:8])
    return shown + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _labels(path: str, column: _Column) -> np.ndarray:
    """Words, integers without a point."""
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
    """Returns `1` for `1.0`."""
    try:
        number = float(word)
    except ValueError:
        return word.strip()
    return str(int(number)) if number.is_integer() else word.strip()


def _csv(path: Path) -> tuple[list[str], list[_Column]]:
    path.stat()  # says that there is none
    if not path.is_file():  # opening a named pipe would wait for ever
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
    """Converts a block of a column to float64; adds what is not a number to `words`, by its row."""
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
    try:
        return float(word)
    except ValueError:
        return None


def _parquet(path: Path) -> tuple[list[str], list[_Column]]:
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
    """Replaces each missing value of [N, D] by the previous one in its column; leading ones stay NaN."""
    at = np.where(np.isnan(values), 0, np.arange(len(values))[:, None])
    return np.take_along_axis(values, np.maximum.accumulate(at, axis=0), axis=0)


def counted(columns: Sequence[str], counts: np.ndarray, most: int = 8) -> str:
    """Counts [D] of each column as `a 3, b 1`, the largest first; empty where all are 0."""
    order = [k for k in np.argsort(-counts, kind="stable") if counts[k]]
    words = [f"{columns[k]} {counts[k]}" for k in order[:most]]
    return ", ".join(words) + (f" and {len(order) - most} more columns" if len(order) > most else "")


def as_table(given: Any, name: str, wanted: Sequence[str] = (), left_out: Sequence[str] = ()) -> Table | None:
    """Converts a pandas data frame to a table, None for anything else; arguments and errors as `read`."""
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
    """Returns a column that is text by its type."""
    first = {i: word for i, word in enumerate(words[:10]) if word}
    return _Column(np.full(len(words), np.nan), first or {0: ""}, np.array(words))
