"""Splits rows of sensors in time, fits the scaling of each sensor, and prepares the input of a detector. NumPy only."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from ganomaly_jax.core import config
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.core.printable import listed
from ganomaly_jax.data import lazy
from ganomaly_jax.data.datasets import Dataset
from ganomaly_jax.data.lazy import Images, LazyImages
from ganomaly_jax.data.modality import InputSpec, Scaling
from ganomaly_jax.data.rows import layout, tables
from ganomaly_jax.data.rows.layout import NAME
from ganomaly_jax.data.splits import Split, normal_classes

# Pairs of quantiles, and the standard deviations of a normal distribution that lie between them. The first pair that
# differs gives a sensor's spread; the last is for sensors that are almost constant.
_SPREADS = ((0.25, 0.75, 1.349), (0.05, 0.95, 3.290), (0.005, 0.995, 5.152), (0.0, 1.0, 2.0))


def check(settings: config.Config) -> None:
    """Checks that no options are set that only images support.

    Raises:
      UserError: Some are; the message names them.
    """
    image_options = {
        "train.shift": settings.train.shift,
        "train.flip": settings.train.flip,
        "loss.contrast": settings.loss.contrast,
        "model.exposure": settings.model.exposure,
    }
    named = [name for name, value in image_options.items() if value]
    if named:
        raise UserError(f"{', '.join(named)}: for images only, but the data are rows of sensors; leave it out")


def split(dataset: Dataset, settings: config.Data) -> Split:
    """Splits rows or windows into training, calibration and test sets, consecutive in time.

    If the source has a training and a test part and `settings.abnormal` is empty, the test part is tested on; otherwise
    the last fraction `settings.test` of the normal items, and all anomalous ones. The last fraction
    `settings.calibration` of the training part is set aside for calibration. Windows of different sets are at least a
    window's length apart; those in between are not used.

    Args:
      dataset: Data set of rows.
      settings: Abnormal class, fractions and limit of training items.

    Raises:
      UserError: There are no or too few normal rows, or some have missing or infinite values.
    """
    spans = layout.of(dataset).spans
    normal = normal_classes(dataset, settings.abnormal)
    is_normal = np.isin(dataset.labels, [i for i, name in enumerate(dataset.classes) if name in normal])
    parts = np.zeros(len(is_normal), np.int8) if dataset.parts is None else dataset.parts
    in_time = np.argsort(parts, kind="stable")
    normals, anomalous = in_time[is_normal[in_time]], np.flatnonzero(~is_normal)
    if settings.abnormal or not (parts == 1).any():
        cut = int(len(normals) * (1 - settings.test))
        train, test = normals[:cut], np.sort(np.concatenate([normals[cut:], anomalous]))
        protocol = "in time: the first normal rows trained on, the last tested on, with all anomalous ones"
    else:
        train = np.flatnonzero(is_normal & (parts == 0))
        test = np.sort(np.concatenate([np.flatnonzero(parts == 1), np.flatnonzero(~is_normal & (parts == 0))]))
        protocol = "own labels, own split, calibration in time"
    count = int(len(train) * settings.calibration)
    if settings.calibration > 0 and len(train) > 1:
        count = max(count, 1)
    kept, calibration = np.split(train, [len(train) - count])
    gap = dataset.images.shape[1] if dataset.images.ndim == 3 else 0
    calibration = _apart(spans, calibration, test, gap)
    kept = _apart(spans, kept, np.concatenate([test, calibration]), gap)[: settings.limit or None]
    if len(kept) < 2 or (count and not len(calibration)):
        raise UserError(
            f"{dataset.name}: of {len(normals)} normal rows or windows, {len(kept)} would be trained on and "
            f"{len(calibration)} calibrated with, after removing those close to another set: expected more rows, a "
            "shorter data.window, or another share for data.test and data.calibration"
        )
    _refuse_missing(dataset, np.concatenate([kept, calibration]), settings)
    left = len(train) - len(kept) - len(calibration) if not settings.limit else 0
    notes = (f"{left} normal windows lie between the sets or next to anomalous ones and are not used",) if left else ()
    return Split(kept, calibration, test, (~is_normal[test]).astype(np.int64), protocol, notes)


def scaled(dataset: Dataset, own: Split, settings: config.Config) -> tuple[Dataset, Scaling, tuple[str, ...]]:
    """Fits the scaling of each sensor on the training rows.

    The centre of (low, high) is the median. Half the range is the standard deviation of a normal distribution with the
    same quartiles or, where these are equal, with the same outer quantiles. A sensor that is constant in training keeps
    its unit.

    Returns:
      The data set, with missing values replaced by the centre if `data.missing` is `mask`; (low, high), D values each;
      and notes for the user, a sentence each.
    """
    images = dataset.images
    stride = 1 if images.ndim == 2 else max(images.shape[1] // settings.data.stride, 1)
    # Windows that hardly overlap contain each row about once.
    rows = np.asarray(images[own.train[::stride]], np.float64).reshape(-1, images.shape[-1])
    seen = np.isfinite(rows).any(0)
    centre, spread = np.zeros(rows.shape[1]), np.zeros(rows.shape[1])
    if seen.any():
        wanted = sorted({0.5, *(q for pair in _SPREADS for q in pair[:2])})
        quantiles = dict(zip(wanted, np.nanquantile(rows[:, seen], wanted, axis=0), strict=True))
        centre[seen] = quantiles[0.5]
        for below, above, deviations in reversed(_SPREADS):
            found = (quantiles[above] - quantiles[below]) / deviations
            spread[seen] = np.where(found > 0, found, spread[seen])
    # In float32, as in the compiled program: values that it cannot distinguish are constant.
    low, high = (centre - spread).astype(np.float32), (centre + spread).astype(np.float32)
    constant = ~(low < high)
    low[constant], high[constant] = (centre[constant] + by for by in (-1, 1))
    notes = []
    if constant.any():
        names = [name for name, still in zip(dataset.feature_names, constant, strict=True) if still]
        notes.append(
            f"note: {len(names)} of {len(dataset.feature_names)} sensors are constant in training and keep their unit: "
            f"{listed(names)}"
        )
    size = int(np.prod(images.shape[1:]))
    if settings.model.latent_size >= size:
        notes.append(
            f"note: the latent size of {settings.model.latent_size} is not smaller than the {size} input values, so "
            "that anomalies may be reconstructed perfectly; try a quarter of them, "
            f"--config.model.latent_size={max(size // 4, 1)}"
        )
    if settings.data.missing == "mask":
        dataset = dataclasses.replace(dataset, images=masked(images, centre_of(low, high)), digest="")
    return dataset, (tuple(low.tolist()), tuple(high.tolist())), tuple(notes)


def resolved(settings: config.Data, dataset: Dataset) -> config.Data:
    """Returns the settings, completed from the data.

    Raises:
      UserError: `data.channels` is not the number of sensors.
    """
    window = dataset.images.shape[1] if dataset.images.ndim == 3 else 0
    if settings.channels not in (0, dataset.images.shape[-1]):
        raise UserError(
            f"data.channels={settings.channels}: {dataset.name} has {dataset.images.shape[-1]} sensors; leave the key "
            "out"
        )
    csv, channels = layout.of(dataset).csv, dataset.images.shape[-1]
    return dataclasses.replace(settings, kind=NAME, window=window, channels=channels, csv=csv, height=0, width=0)


def as_input(given: Any, spec: InputSpec) -> np.ndarray:
    """Converts rows or windows to the input of a detector.

    Args:
      given: Rows or windows `[n, *spec.shape]`; for windows also rows `[N, D]` in the order of time, which are cut as
        in training (`data.window` rows, every `data.stride`); or a pandas data frame, whose columns are used by name.
      spec: Input of the detector; missing values are treated as its settings say.

    Returns:
      Rows or windows `[n, *spec.shape]`, float32, n at least 1.

    Raises:
      UserError: Shape or type is another, there are no rows, or a column is missing.
    """
    shape, settings, low, high = spec.shape, spec.data, spec.low, spec.high
    table = tables.as_table(given, "the data frame", spec.feature_names, stated=spec.data.csv)
    x = np.asarray(given if table is None else table.values)
    whole = x.ndim == 2 and len(shape) == 2
    if x.dtype.kind not in "biuf" or not x.size or x.shape[-1] != shape[-1] or not (whole or x.shape[1:] == shape):
        wanted = ", ".join(map(str, shape))
        also = f", or rows [N, {shape[-1]}] to cut them from" if len(shape) == 2 else ""
        raise UserError(f"{x.dtype} of shape {x.shape}: expected numbers [B, {wanted}]{also}, B at least 1")
    with np.errstate(over="ignore"):
        x = x.astype(np.float32)
    if settings.missing == "last" and np.isnan(x).any():
        x = tables.carried(x) if x.ndim == 2 else np.stack([tables.carried(window) for window in x])
    if settings.missing == "mask":
        x = filled(x, centre_of(low, high))
    if not whole:
        return x
    first = np.arange(0, len(x) - shape[0] + 1, settings.stride)
    if not len(first):
        raise UserError(f"{len(x)} rows: expected at least {shape[0]}, the rows of a window")
    return x[first[:, None] + np.arange(shape[0])]


def centre_of(low: Any, high: Any) -> np.ndarray:
    """Returns the centre between low and high, the values [D] float32 that become 0."""
    return ((np.asarray(low, np.float64) + np.asarray(high, np.float64)) / 2).astype(np.float32)


def filled(x: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Replaces the missing values of x [..., D] by the sensors' centres [D]."""
    return np.where(np.isnan(x), centre, x)


def masked(images: Images, centre: np.ndarray) -> Images:
    """Applies `filled` to rows or windows; lazily if they are read on demand."""
    if isinstance(images, LazyImages):
        return dataclasses.replace(images, read=lambda indices: filled(images.read(indices), centre))
    return filled(images, centre)


def _refuse_missing(dataset: Dataset, chosen: np.ndarray, settings: config.Data) -> None:
    """Raises a UserError if the items at `chosen` [n] have infinite values, or missing values that are not masked."""
    counts, infinite, first = np.zeros(len(dataset.feature_names), int), 0, -1
    begin = 0
    for block in lazy.blocks(dataset.images, chosen):
        bad = np.isinf(block) if settings.missing == "mask" else ~np.isfinite(block)
        rows = bad.reshape(len(block), -1).any(1)
        if rows.any() and first < 0:
            first = int(chosen[begin + rows.argmax()])
        counts += bad.reshape(-1, block.shape[-1]).sum(0)
        infinite += int(np.isinf(block).sum())
        begin += len(block)
    if first >= 0:
        what = "infinite" if infinite == counts.sum() else "missing or infinite"
        names = [dataset.feature_names[k] for k in np.flatnonzero(counts).tolist()]
        raise UserError(
            f"{what} values of {listed(names)} in the training or calibration rows, the first in "
            f"{dataset.paths[first]}. In all of {dataset.name}: {'; '.join(dataset.notes) or 'no missing values'}. "
            "--config.data.missing=last repeats the last value, --config.data.missing=mask ignores missing values, and "
            "--config.data.columns=-NAME leaves a column out"
        )


def _apart(spans: np.ndarray, chosen: np.ndarray, others: np.ndarray, gap: int) -> np.ndarray:
    """Returns the items of `chosen` [n] that are at least `gap` rows away from all items of `others` [m]."""
    if not len(chosen) or not len(others):
        return chosen
    # Recordings are placed one after another on a line, too far apart to touch.
    longest = np.zeros(int(spans[:, 0].max()) + 1, np.int64)
    np.maximum.at(longest, spans[:, 0], spans[:, 2])
    starts = np.concatenate([[0], np.cumsum(longest + 2 * gap + 1)])
    size = starts[-1] + 1
    # Changes in the number of other items that cover a row: +1 where one begins, -1 where it ends.
    edges = np.zeros(size + gap + 1, np.int64)
    own = starts[spans[others, 0]]
    np.add.at(edges, np.maximum(own + spans[others, 1] - gap, 0), 1)
    np.add.at(edges, own + spans[others, 2] + gap, -1)
    covered = np.concatenate([[0], np.cumsum(np.cumsum(edges) > 0)])
    first, last = (starts[spans[chosen, 0]] + spans[chosen, k] for k in (1, 2))
    return chosen[covered[last] == covered[first]]
