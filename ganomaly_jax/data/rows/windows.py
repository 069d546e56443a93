"""Makes data sets of rows of sensors: reads tables and arrays, and cuts recordings into windows.

A recording is a sequence of consecutive rows: a file, or a part of an array. Windows do not cross its end.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ganomaly_jax.core import config
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.core.printable import listed
from ganomaly_jax.data import lazy
from ganomaly_jax.data.datasets import NORMAL_WORDS, Dataset, normal_by_words, plain_word
from ganomaly_jax.data.images.decode import shown
from ganomaly_jax.data.lazy import Images, LazyImages
from ganomaly_jax.data.rows import clock, dialects, folders, tables
from ganomaly_jax.data.rows.clock import Times
from ganomaly_jax.data.rows.layout import NAME, RowLayout


@dataclasses.dataclass(frozen=True, eq=False)
class Recording:
    """A sequence of consecutive rows."""

    name: str
    values: np.ndarray
    """[N, D] floating point, NaN where a value is missing."""
    labels: np.ndarray | None = None
    """[N] words; None: there are none."""
    part: int = 0
    """0 train, 1 test."""
    times: Times | None = None
    """[N] times of the rows, if they are known."""


def takes(given: Any, settings: config.Data) -> bool:
    """Returns whether arrays are rows of sensors.

    Arrays of an npz file are rows if one is named `rows` or `x_train` is an array of rows. Any other array is if
    `data.kind` says so or, with `auto`, if it has the shape [N, D], is a data frame, or `data.window` is set.
    """
    if isinstance(given, dict):
        return "rows" in given or takes(given.get("x_train"), settings)
    if settings.kind != "auto":
        return settings.kind == NAME
    x = given[0] if isinstance(given, tuple) and given else given
    return settings.window > 0 or hasattr(x, "dtypes") or getattr(x, "ndim", 0) == 2


def load(path: Path, settings: config.Data) -> Dataset:
    """Loads a table, or a folder of tables that may have subfolders `train/` and `test/` or one for each class.

    Raises:
      UserError: There are no tables, a table cannot be read or has other columns than the first, or labels are not
        recognised.
    """
    wanted, left_out = tables.names_of(settings.columns)
    if not path.is_dir():
        found: list[tuple[Path, str, int | None]] = [(path, "", None)]
    else:
        found = list(folders.layout(path))
        if not found:
            raise UserError(f"{shown(path)} holds no tables: expected {' '.join(tables.ENDINGS)}")
    recordings: list[Recording] = []
    notes: list[str] = []
    first: tables.Table | None = None
    csv = settings.csv
    for file, word, part in found:
        table = tables.read(file, wanted, left_out, csv)
        csv = dialects.learnt(csv, table.dialect)
        if first is None:
            first, wanted = table, table.columns
            notes += table.notes
        elif set(first.columns) != set(table.columns):
            raise UserError(f"{shown(file)} has different columns from {shown(first.name)}")
        labels = table.labels
        if word and labels is None:
            labels = np.full(len(table.values), word)
        name = str(file.relative_to(path)) if path.is_dir() else path.name
        recordings.append(Recording(name, table.values, labels, part or 0, table.times))
    assert first is not None
    parts = any(part is not None for _, _, part in found)
    settings = dataclasses.replace(settings, csv=csv)
    return made(recordings, first.columns, settings, path.name, parts, tuple(notes))


def from_arrays(given: Any, settings: config.Data, name: str = "the array") -> Dataset:
    """Makes a data set of an array or a data frame.

    Args:
      given: Rows [N, D], windows [N, T, D] or a pandas data frame; or a pair of these and labels [N].
      settings: Columns, window, stride and treatment of missing values.
      name: Name of the data set for messages.

    Raises:
      UserError: Shape, type, labels or columns cannot be used.
    """
    x, labels = given if isinstance(given, tuple) else (given, None)
    return from_rows(x, labels, settings=settings, name=name)


def from_rows(
    x: Any,
    labels: Any = None,
    columns: Sequence[str] = (),
    segments: Any = None,
    parts: Any = None,
    settings: config.Data | None = None,
    name: str = "the array",
) -> Dataset:
    """Makes a data set of an array or a data frame of sensors.

    Args:
      x: Rows [N, D] in the order of time, of any number type, NaN where a value is missing; windows [N, T, D]; or a
        pandas data frame of rows.
      labels: [N], 0 normal and 1 anomalous, or words; None: all normal.
      columns: Names of the D sensors; empty: those of `data.columns` or of the data frame, or sensor_0, sensor_1, ...
      segments: [N] values that change where a new recording begins; None: all rows are one recording.
      parts: [N], 0 train and 1 test; None: split in time. A new recording begins where it changes.
      settings: Columns, window, stride and treatment of missing values; None: the defaults.
      name: Name of the data set for messages and paths (`name:row`, counted from 1).

    Raises:
      UserError: Shape, type, labels or columns cannot be used.
    """
    settings = settings or config.Data()
    wanted, left_out = tables.names_of(settings.columns)
    table = tables.as_table(x, name, wanted, left_out, settings.csv)
    notes: tuple[str, ...] = ()
    times = None
    if table is not None:
        x, columns, notes, times = table.values, table.columns, table.notes, table.times
        labels = table.labels if labels is None else labels
    try:
        x = np.asarray(x)
    except ValueError:
        raise UserError(f"{name}: the rows differ in length: expected one array [N, D] or [N, T, D]") from None
    if x.dtype.kind not in "biuf" or x.ndim not in (2, 3) or 0 in x.shape:
        raise UserError(f"{name}: {x.dtype} of shape {x.shape}: expected numbers [N, D], rows, or [N, T, D], windows")
    if left_out and table is None:
        raise UserError(f"data.columns={settings.columns!r}: an array has no names to leave out")
    columns = tuple(columns) or wanted or tuple(f"sensor_{i}" for i in range(x.shape[-1]))
    if len(columns) != x.shape[-1]:
        raise UserError(f"{name} has {x.shape[-1]} columns, got {len(columns)} names: {listed(columns)}")
    n = len(x)
    labels = _words(labels, n, name)
    parts = None if parts is None else _checked(parts, n, f"{name}: parts")
    segments = np.zeros(n) if segments is None else _checked(segments, n, f"{name}: segments")
    if x.ndim == 3:
        return _of_windows(x, labels, columns, parts, settings, name)
    changes = segments[1:] != segments[:-1]
    if parts is not None:
        changes |= parts[1:] != parts[:-1]
    ends = [0, *(np.flatnonzero(changes) + 1).tolist(), n]
    recordings = []
    for first, last in itertools.pairwise(ends):
        own = None if labels is None else labels[first:last]
        part = 0 if parts is None else int(parts[first])
        called = name if len(ends) == 2 else f"{name}@{first}"
        at = None if times is None else times[np.arange(first, last)]
        recordings.append(Recording(called, x[first:last].astype(np.float64), own, part, at))
    return made(recordings, columns, settings, name, parts is not None, notes)


def from_npz(held: dict[str, np.ndarray], settings: config.Data, name: str) -> Dataset:
    """Makes a data set of the arrays of an npz file.

    Args:
      held: `rows` and optionally `labels`; or `x_train` and optionally `y_train`, `x_test` and `y_test`; and optionally
        `columns` and `segments`, see `from_rows`.
      settings: Columns, window, stride and treatment of missing values.
      name: Name of the data set for messages.

    Raises:
      UserError: The names, shapes, types, labels or columns cannot be used.
    """
    columns = tuple(map(str, np.atleast_1d(held.get("columns", ()))))
    if "rows" in held:
        return from_rows(held["rows"], held.get("labels"), columns, held.get("segments"), None, settings, name)
    if "x_train" not in held:
        raise UserError(f"{name} holds {', '.join(list(held)[:9])}: expected rows and labels, or x_train, y_train, ...")
    x, y, parts = [held["x_train"]], [held.get("y_train")], [0]
    if "x_test" in held:
        x, y, parts = [*x, held["x_test"]], [*y, held.get("y_test")], [0, 1]
    if y[0] is None and y[-1] is not None:  # trained on normal rows alone
        y[0] = np.full(len(x[0]), "normal" if y[-1].dtype.kind in "US" else 0)
    known = [labels for labels in y if labels is not None]
    if len(known) not in (0, len(x)) or len({one.shape[1:] for one in x}) > 1:
        raise UserError(f"{name}: labels of one part only, or parts of different shapes: expected both alike")
    labels = np.concatenate(known) if known else None
    part = np.repeat(parts, [len(one) for one in x]) if len(x) > 1 else None
    return from_rows(np.concatenate(x), labels, columns, held.get("segments"), part, settings, name)


def made(
    recordings: Sequence[Recording],
    columns: tuple[str, ...],
    settings: config.Data,
    name: str,
    parts: bool,
    notes: tuple[str, ...] = (),
) -> Dataset:
    """Makes a data set of recordings: rows [N, D] or, if `settings.window` is set, windows [N, T, D].

    A window with an anomalous row is anomalous; its class is that of the last such row.

    Raises:
      UserError: No recording is as long as a window, or only some recordings have labels.
    """
    said, recordings = _without_missing(recordings, columns, settings.missing)
    size = settings.window or 1
    spans = [
        (number, first, first + size)
        for number, recording in enumerate(recordings)
        for first in range(0, len(recording.values) - size + 1, settings.stride if settings.window else 1)
    ]
    if not spans:
        longest = max((len(recording.values) for recording in recordings), default=0)
        raise UserError(
            f"{name}: the longest recording has {longest} rows, a window {size}: expected a shorter data.window"
        )
    at = np.array(spans, np.int64)
    lengths = np.array([len(recording.values) for recording in recordings])
    short = [recording.name for recording in recordings if len(recording.values) < size]
    if short:
        said.append(
            f"{len(short)} recordings have fewer rows than a window of {size} and are not used: {short[0]}, ..."
        )
    offsets = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    with np.errstate(over="ignore"):
        base = np.concatenate([recording.values for recording in recordings]).astype(np.float32)
    times = clock.joined([recording.times for recording in recordings])
    words, classes = _classes(recordings, name)
    normal = _normal(classes)
    here = normal if not settings.abnormal else frozenset(classes) - {settings.abnormal}
    labels = _labels(words, classes, here, offsets[at[:, 0]] + at[:, 1], offsets[at[:, 0]] + at[:, 2])
    if normal is not None and (extra := sorted(set(classes) - normal)) not in ([], ["1"]):
        said.append(f"label {', '.join(sorted(normal & set(classes)))} is normal; anomalous: {listed(extra)}")
    return Dataset(
        images=_cut(base, offsets[at[:, 0]] + at[:, 1], settings),
        labels=labels,
        classes=classes,
        normal=normal,
        parts=np.array([recordings[i].part for i in at[:, 0]], np.int8) if parts else None,
        paths=tuple(f"{recordings[number].name}:{last}" for number, _, last in spans),
        low=None,
        high=None,
        name=name,
        notes=(*notes, *said),
        modality=NAME,
        layout=RowLayout(
            columns,
            at,
            times=None if times is None else times[offsets[at[:, 0]] + at[:, 2] - 1],
            csv=settings.csv,
        ),
    )


def _cut(base: np.ndarray, first: np.ndarray, settings: config.Data) -> Images:
    """Returns rows [R, D], or windows that begin at rows `first` [N]: in memory if they fit, or read on demand."""
    if not settings.window:
        return base[first]
    shape = (len(first), settings.window, base.shape[1])
    steps = np.arange(settings.window)

    def read(indices: np.ndarray) -> np.ndarray:
        return base[first[indices][:, None] + steps]

    windows = LazyImages(read, shape, base.dtype)
    return windows if lazy.wanted(settings.stream, windows.nbytes) else read(np.arange(len(first)))


def _of_windows(
    x: np.ndarray,
    labels: np.ndarray | None,
    columns: tuple[str, ...],
    parts: np.ndarray | None,
    settings: config.Data,
    name: str,
) -> Dataset:
    """Makes a data set of windows [N, T, D], each a recording of its own."""
    n, size = x.shape[:2]
    if settings.window not in (0, size):
        raise UserError(
            f"{name}: windows of {size} rows, data.window={settings.window}: expected the same, or rows [N, D]"
        )
    values = x.reshape(-1, x.shape[-1]).astype(np.float64)
    said, (whole,) = _without_missing([Recording(name, values)], columns, settings.missing, size)
    said.append("windows were given instead of rows: they are split in their order, although some may share rows")
    words, classes = _classes([Recording(name, x, labels)], name)
    with np.errstate(over="ignore"):
        images = whole.values.reshape(x.shape).astype(np.float32)
    spans = np.stack([np.arange(n), np.zeros(n, int), np.full(n, size)], axis=1).astype(np.int64)
    return Dataset(
        images=images,
        labels=np.searchsorted(np.array(classes), words).astype(np.int64),
        classes=classes,
        normal=_normal(classes),
        parts=None if parts is None else parts.astype(np.int8),
        paths=tuple(f"{name}[{i}]" for i in range(n)),
        low=None,
        high=None,
        name=name,
        notes=tuple(said),
        modality=NAME,
        layout=RowLayout(columns, spans, csv=settings.csv),
    )


def _without_missing(
    recordings: Sequence[Recording], columns: tuple[str, ...], way: str, size: int = 0
) -> tuple[list[str], list[Recording]]:
    """Returns notes on missing values, and the recordings, with these carried forward if `way` is `last`."""
    together = [np.isnan(recording.values).sum(0) for recording in recordings]
    counts = np.sum(together, axis=0)
    if not counts.any():
        return [], list(recordings)
    said = f"missing values: {tables.counted(columns, counts)}"
    if way == "refuse":
        return [f"{said}; they are not replaced (data.missing=refuse)"], list(recordings)
    if way == "mask":
        return [f"{said}; they are replaced by the centre of the sensor (data.missing=mask)"], list(recordings)
    carried = []
    for recording in recordings:
        rows = recording.values
        pieces = np.split(rows, range(size, len(rows), size)) if size else [rows]
        values = np.concatenate([tables.carried(piece) for piece in pieces])
        carried.append(dataclasses.replace(recording, values=values))
    left = sum(int(np.isnan(recording.values).sum()) for recording in carried)
    first = f"; {left} before the first value of a recording stay missing" if left else ""
    return [f"{said}; they are replaced by the previous value (data.missing=last){first}"], carried


def _classes(recordings: Sequence[Recording], name: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Returns the label of each row of all recordings, and the distinct labels, sorted."""
    known = [recording.labels for recording in recordings if recording.labels is not None]
    digits = bool(known) and all(all(word.isdigit() for word in np.unique(words)) for words in known)
    words = []
    for recording in recordings:
        if recording.labels is None and recording.part and known:
            raise UserError(f"{name}: {recording.name} has no labels, others do: expected a column `label`, or folders")
        plain = "0" if digits else "normal"
        words.append(recording.labels if recording.labels is not None else np.full(len(recording.values), plain))
    together = np.concatenate(words)
    return together, tuple(np.unique(together).tolist())


def _normal(classes: tuple[str, ...]) -> frozenset[str] | None:
    """Returns the normal classes according to their names, or None if these do not tell."""
    by_words = normal_by_words(classes)
    if by_words is not None:
        return by_words
    return frozenset(word for word in classes if plain_word(word) in NORMAL_WORDS) or None


def _labels(
    words: np.ndarray, classes: tuple[str, ...], normal: frozenset[str] | None, first: np.ndarray, last: np.ndarray
) -> np.ndarray:
    """Returns the class of each window, int64 [N].

    Args:
      words: Label of each row, [R].
      classes: Sorted names of the classes.
      normal: Normal classes, or None.
      first: First row of each window, [N].
      last: Row after the last of each window, [N].
    """
    indices = np.searchsorted(np.array(classes), words).astype(np.int64)
    bad = np.zeros(len(words), bool) if normal is None else ~np.isin(words, sorted(normal))
    latest = np.maximum.accumulate(np.where(bad, np.arange(len(words)), -1))[last - 1]
    return indices[np.where(latest >= first, latest, last - 1)]


def _words(labels: Any, n: int, name: str) -> np.ndarray | None:
    """Returns labels as words; integers have no decimal point."""
    if labels is None:
        return None
    found = _checked(labels, n, f"{name}: labels")
    if found.dtype.kind == "b" or (found.dtype.kind == "f" and (found == np.rint(found)).all()):
        found = found.astype(np.int64)
    if found.dtype.kind not in "iuUS":
        raise UserError(f"{name}: labels of type {found.dtype}: expected 0 and 1, or words")
    return found.astype(str)


def _checked(values: Any, n: int, what: str) -> np.ndarray:
    """Returns values as an array [n], or raises a UserError that names them if they have another shape."""
    found = np.asarray(values)
    if found.shape != (n,):
        raise UserError(f"{what} of shape {found.shape}: expected {n}, one for each row")
    return found
