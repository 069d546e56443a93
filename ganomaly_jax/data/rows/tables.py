"""Reads tables of sensors: CSV files with a header, Parquet files (with pyarrow) and pandas data frames."""

from __future__ import annotations

import csv
import dataclasses
import difflib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ganomaly_jax.core.errors import UserError
from ganomaly_jax.core.printable import listed, printable, quoted
from ganomaly_jax.data.images.decode import shown
from ganomaly_jax.data.rows import clock, csv_files, dialects, typed_columns
from ganomaly_jax.data.rows.columns import INDICES, Column
from ganomaly_jax.data.rows.dialects import MISSING, Dialect

ENDINGS = (".csv", ".parquet")
LABEL = "label"
# Names that are searched for the closest match to a missing one.
_NEAR = 1000


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """A table of sensor values: the rows of one recording."""

    name: str
    columns: tuple[str, ...]
    values: np.ndarray
    """[N, D] float64, NaN where a value is missing."""
    labels: np.ndarray | None
    """[N] words of the column `label`; None without such a column."""
    times: clock.Times | None = None
    """[N] times of the rows; None without a column of times."""
    dialect: Dialect = dataclasses.field(default_factory=Dialect)
    """The format of the file."""
    notes: tuple[str, ...] = ()
    """Sentences for the user on the format of the file and on columns that are not sensors."""


def read(path: Path, wanted: Sequence[str] = (), left_out: Sequence[str] = (), stated: str = dialects.AUTO) -> Table:
    """Reads a table from a file.

    Columns of numbers are sensors. These columns are not, and the `notes` of the table list them with an example: one
    named `label`, one whose name says that it holds the time or the number of a row, one of times, one without any
    value, and one of words that are the same in all rows or have no digits. The first column of times is the time axis.

    Args:
      path: CSV file with a header, or Parquet file.
      wanted: Names of the sensors, in the order of the result, which may differ from that in the file; empty: all.
      left_out: Names of columns that are not used.
      stated: The format in `data.csv`, for what is ambiguous in the file.

    Raises:
      UserError: The file does not exist or is not a table, a column is missing, duplicated or not numeric, or a
        number is ambiguous because the decimal mark is unknown.
    """
    name, form, encoding = shown(path), dialects.of_words(stated), ""
    try:
        if path.suffix.lower() == ".parquet":
            names, columns, dialect = typed_columns.parquet(path, name, wanted, left_out, LABEL, form)
        else:
            names, columns, dialect, encoding = csv_files.read(path, name, wanted, left_out, LABEL, form)
    except UserError:
        raise
    except (OSError, ValueError, csv.Error, MemoryError) as error:
        detail = " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__
        raise UserError(f"{name} cannot be read: {detail}") from None
    unusual = [one for one in (encoding, dialects.describe(dialect)) if one]
    notes = [f"{printable(path.name)} is read as {', '.join(unusual)}"] if unusual else []
    table = _made(name, printable(path.name), names, columns, wanted, left_out)
    return dataclasses.replace(table, dialect=dialect, notes=(*notes, *table.notes))


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
    columns: Sequence[Column],
    wanted: Sequence[str],
    left_out: Sequence[str],
) -> Table:
    """Makes a table of the columns of a file; errors as `read`."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(f"{path}: several columns are called {listed(twice)}: expected unique names")
    if not columns or not len(columns[0]):
        raise UserError(f"{path} holds no rows: expected a line of names, followed by a line of numbers for each row")
    held = dict(zip(names, columns, strict=True))
    for one in (*wanted, *left_out):
        if one not in held:
            raise _lacks(path, one, list(held))
    chosen, notes = _chosen(name, held, wanted) if wanted else _sensors(path, name, held, left_out)
    if not chosen:
        raise UserError(f"{path} has no numeric column besides {listed(list(held))}: expected one for each sensor")
    for one in chosen:
        words = held[one].words
        if words is not None:
            raise UserError(
                f"{path}: column {quoted(one)} holds {quoted(words.text)} in row {words.row}: expected "
                "numbers, or nothing where a value is missing; --config.data.columns=-NAME excludes a column"
            )
    times, said = _times(name, held, {*chosen, *left_out})
    label = next((one for one in names if one.lower() == LABEL and one not in left_out), None)
    values = np.stack([held[one].numbers for one in chosen], axis=1)
    labels = None if label is None else _labels(path, held[label])
    return Table(name, tuple(chosen), values, labels, times, notes=(*notes, *said))


def _lacks(path: str, name: str, names: Sequence[str]) -> UserError:
    """Returns the error for a column that a table does not have."""
    near = difflib.get_close_matches(name, names[:_NEAR], n=1, cutoff=0.0)
    return UserError(f"{path} has no column {quoted(name)}, only {listed(names)}; the closest is {quoted(near[0])}")


def _chosen(name: str, held: dict[str, Column], wanted: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns the names of the sensors that are wanted, and notes on the other columns."""
    used = set(wanted)
    # A column that is neither used nor left out may have the wrong name.
    others = [one for one, column in held.items() if one not in used and not _is_other(one) and _has_numbers(column)]
    if not others:
        return list(wanted), []
    return list(wanted), [f"{name}: columns not used because data.columns does not list them: {listed(others)}"]


def _sensors(path: str, name: str, held: dict[str, Column], left_out: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns the names of the columns that are sensors, and notes on the other columns.

    Raises:
      UserError: A column of text may be a sensor.
    """
    chosen, words, empty = [], [], []
    out = set(left_out)
    for one, column in held.items():
        if one in out or _is_other(one) or column.times is not None:
            continue
        if _has_numbers(column):
            chosen.append(one)
        elif column.words is None:
            empty.append(one)
        elif column.words.constant or not column.words.digits:
            words.append(f"{one} ({quoted(column.words.text, 40)})")
        else:
            raise UserError(
                f"{path}: column {quoted(one)} holds text with digits, such as {quoted(column.words.text)} in row "
                f"{column.words.row}: expected numbers; --config.data.columns=-NAME excludes a column"
            )
    notes = []
    by_name = [one for one in held if one.lower() in INDICES and one not in out]
    for what, names in (("because of their names", by_name), ("because they contain words", words)):
        notes += [f"{name}: not used as sensors {what}: {listed(names)}"] if names else []
    return chosen, [
        *notes,
        *([f"{name}: not used as sensors because they are empty: {listed(empty)}"] if empty else []),
    ]


def _times(name: str, held: dict[str, Column], used: set[str]) -> tuple[clock.Times | None, list[str]]:
    """Returns the times of the rows, of columns that are not used otherwise, and notes on them."""
    by_name = [one for one in held if one.lower() in clock.NAMES and one not in used]
    by_value = [one for one in held if one not in used and one.lower() not in clock.NAMES]
    for one in (*by_name, *by_value):
        column = held[one]
        if column.times is not None:
            return column.times, [f"{name}: the time of a row is {printable(one)}"]
        if one.lower() in clock.NUMBERED and column.words is None and _has_numbers(column):
            return clock.Times(column.numbers), [f"{name}: the time of a row is {printable(one)}"]
    return None, [
        f"{name}: {printable(one)} holds {quoted(words.text)}, which is not a time: expected {clock.FORMS}"
        for one in by_name
        if (words := held[one].words) is not None
    ]


def _is_other(name: str) -> bool:
    """Returns whether a column is not a sensor according to its name."""
    return name.lower() == LABEL or name.lower() in INDICES


def _has_numbers(column: Column) -> bool:
    """Returns whether a column holds a number."""
    return bool((~np.isnan(column.numbers)).any())


def _labels(path: str, column: Column) -> np.ndarray:
    """Returns the labels as words; integers have no decimal point."""
    if column.text is None:
        words = np.array([str(int(v)) if float(v).is_integer() else str(v) for v in np.nan_to_num(column.numbers)])
        missing = np.isnan(column.numbers)
    else:
        words = np.array([_plain(word) for word in column.text])
        missing = np.array([word.lower() in MISSING for word in words], bool)
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


def carried(values: np.ndarray) -> np.ndarray:
    """Replaces each missing value of rows [N, D] by the previous value of its column; leading ones stay NaN."""
    at = np.where(np.isnan(values), 0, np.arange(len(values))[:, None])
    return np.take_along_axis(values, np.maximum.accumulate(at, axis=0), axis=0)


def counted(columns: Sequence[str], counts: np.ndarray, most: int = 8) -> str:
    """Returns the nonzero counts [D] of columns as text, largest first, such as `a 3, b 1`."""
    order = [k for k in np.argsort(-counts, kind="stable") if counts[k]]
    words = [f"{columns[k]} {counts[k]}" for k in order[:most]]
    return ", ".join(words) + (f" and {len(order) - most} more columns" if len(order) > most else "")


def as_table(
    given: Any, name: str, wanted: Sequence[str] = (), left_out: Sequence[str] = (), stated: str = dialects.AUTO
) -> Table | None:
    """Converts a pandas data frame to a table.

    Args:
      given: Anything.
      name: Name of the table for messages.
      wanted: As in `read`.
      left_out: As in `read`.
      stated: As in `read`, for columns of text.

    Returns:
      The table, or None if `given` is not a data frame.

    Raises:
      UserError: As `read`.
    """
    if not (hasattr(given, "columns") and hasattr(given, "iloc") and hasattr(given, "dtypes")):
        return None
    names, columns = typed_columns.of_frame(given, name, wanted, left_out, LABEL, dialects.of_words(stated))
    return _made(name, name, names, columns, wanted, left_out)
