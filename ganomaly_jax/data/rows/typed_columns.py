"""Reads the typed columns of Parquet files and pandas data frames; text is converted as in CSV files."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ganomaly_jax.core import memory
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data.rows import clock, columns
from ganomaly_jax.data.rows.columns import Column
from ganomaly_jax.data.rows.dialects import Dialect


def parquet(
    path: Path, name: str, wanted: Collection[str], left_out: Collection[str], label: str, stated: Dialect
) -> tuple[list[str], list[Column], Dialect]:
    """Reads the names and the columns of a Parquet file; arguments as `csv_files.read`.

    Returns:
      Names, columns, and the format of numbers in columns of text.

    Raises:
      UserError: pyarrow is missing, or the table does not fit into memory.
      OSError, ValueError: The file cannot be read.
    """
    try:
        import pyarrow
        from pyarrow import parquet as files
    except ImportError:
        raise UserError(f"{name}: Parquet needs pyarrow: pip install 'ganomaly-jax[rows]'") from None
    path.stat()
    if not path.is_file():
        raise UserError(f"{name} is not a regular file")
    with files.ParquetFile(path) as file:
        size, free = 8 * file.metadata.num_rows * file.metadata.num_columns, memory.free_memory()
        if free is not None and size > free:
            raise UserError(
                f"{name} declares {file.metadata.num_rows} rows of {file.metadata.num_columns} columns, "
                f"{size / 2**20:.0f} MiB, but {free / 2**20:.0f} MiB of memory are free"
            )
        table = file.read()
    names, found, texts = [str(one) for one in table.column_names], {}, {}
    types = pyarrow.types
    for k, column in enumerate(table.columns):
        kind = column.type
        if types.is_dictionary(kind):
            column = column.cast(kind.value_type)
            kind = column.type
        if types.is_boolean(kind):
            column = column.cast(pyarrow.int8())
        if types.is_timestamp(kind) or types.is_date(kind):
            zoned = types.is_timestamp(kind) and kind.tz is not None
            values = column.cast(pyarrow.timestamp("us", "UTC" if zoned else None), safe=False).to_numpy()
            found[k] = _of_times(values, zoned)
        elif types.is_boolean(kind) or types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind):
            found[k] = Column(column.cast(pyarrow.float64(), safe=False).to_numpy().astype(np.float64))
        else:
            texts[k] = ["" if word is None else str(word) for word in column.to_pylist()]
    made, dialect = _with_texts(name, names, found, texts, wanted, left_out, label, stated)
    return names, made, dialect


def of_frame(
    given: Any, name: str, wanted: Collection[str], left_out: Collection[str], label: str, stated: Dialect
) -> tuple[list[str], list[Column]]:
    """Returns the names and the columns of a pandas data frame; arguments and errors as `parquet`."""
    names, found, texts = [str(column) for column in given.columns], {}, {}
    for k in range(len(names)):
        series = given.iloc[:, k]
        if series.dtype.kind in "biuf":
            found[k] = Column(series.to_numpy(np.float64, na_value=math.nan))
        elif series.dtype.kind == "M":
            zoned = getattr(series.dtype, "tz", None) is not None
            found[k] = _of_times((series.dt.tz_convert(None) if zoned else series).to_numpy(), zoned)
        else:
            texts[k] = ["" if word is None else str(word) for word in series.tolist()]
    return names, _with_texts(name, names, found, texts, wanted, left_out, label, stated)[0]


def _of_times(values: np.ndarray, zoned: bool) -> Column:
    """Returns a column of times."""
    return Column(np.full(len(values), np.nan), times=clock.Times(values.astype("datetime64[us]"), zoned))


def _with_texts(
    name: str,
    names: Sequence[str],
    found: dict[int, Column],
    texts: dict[int, list[str]],
    wanted: Collection[str],
    left_out: Collection[str],
    label: str,
    stated: Dialect,
) -> tuple[list[Column], Dialect]:
    """Returns all columns in order, those of text converted, and the format of their numbers."""
    growing = columns.begin(name, [names[k] for k in texts], wanted, left_out, label)
    rows = list(zip(*texts.values(), strict=True))
    for block in (rows[:64], rows[64:]):  # the first rows usually reveal the decimal mark
        columns.add(growing, block)
    converted, dialect = columns.finished(growing, stated, "")
    known = found | dict(zip(texts, converted, strict=True))
    return [known[k] for k in range(len(names))], dialect
