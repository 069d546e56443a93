"""What is wrong with sensors and rows before any score: silent, stuck, another unit, missing, out of order, twice.

Constant memory: some arrays of a value a sensor, the last `SPAN` rows and the hashes of the last `HASHES`.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ganomaly_jax.core.errors import UserError
from ganomaly_jax.streaming.row_parser import Row

SPAN = 20
"""Rows one after the other that are far outside before a unit, or a range, is told of."""
HASHES = 256
_WIDER = 0.5
# By which part of its width the range seen in calibration is widened on either side.
_LEAST_FACTOR = 1.5
_JUMP = 0.5
# Parts of the range's width that a sensor moves by from one row to the next at most.
_FAR = ("", "sensor_range", "sensor_unit")
_UNITS = {
    1000.0: "1000, as of kilo to one",
    0.001: "0.001, as of one to kilo",
    60.0: "60, as of minutes to seconds",
    1 / 60: "1/60, as of seconds to minutes",
    3.6: "3.6, as of m/s to km/h",
    1 / 3.6: "1/3.6, as of km/h to m/s",
    100.0: "100, as of a share to per cent",
    0.01: "0.01, as of per cent to a share",
}
_DEGREES = (
    ("degrees Celsius to Fahrenheit", lambda v: (v - 32) / 1.8),
    ("degrees Fahrenheit to Celsius", lambda v: v * 1.8 + 32),
    ("degrees Celsius to kelvin", lambda v: v - 273.15),
    ("kelvin to degrees Celsius", lambda v: v + 273.15),
)

Event = dict[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Normal:
    """What each of D sensors does while all is well."""

    low: np.ndarray
    """[D], the least value."""
    high: np.ndarray
    runs: np.ndarray
    """[D], rows that it stayed at one value at most; 0: not known, -1: it never moved."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Rows after which something is told of; 0 leaves it out."""

    silent: int = 5
    stuck: int = 30
    """And at least three times as long as the sensor stayed at one value in the calibration rows."""


@dataclasses.dataclass(eq=False)
class Health:
    """Where the checks stand; `check` changes it in place."""

    missing: np.ndarray
    """[D] rows without a value, one after the other."""
    same: np.ndarray
    """[D] rows with the last value, one after the other."""
    last: np.ndarray
    """[D] last value that was there."""
    far: np.ndarray
    """[D] values far outside, one after the other."""
    told: np.ndarray
    """[D] what was told of that: 0 nothing, otherwise an index into `_FAR`."""
    before: np.ndarray
    """[D] the last value that was not."""
    recent: np.ndarray
    """[SPAN, D], a ring."""
    at: int = 0
    absent: tuple[str, ...] = ()
    clock: float | None = None
    """The latest time."""
    hashes: collections.deque[str] = dataclasses.field(default_factory=lambda: collections.deque(maxlen=HASHES))
    unreadable_time: bool = False


def start(size: int) -> Health:
    """Before the first row."""
    zeros = np.zeros(size, np.int64)
    nothing = np.full(size, np.nan)
    return Health(
        zeros, zeros.copy(), nothing, zeros.copy(), zeros.copy(), nothing.copy(), np.full((SPAN, size), np.nan)
    )


def check(
    health: Health, columns: Sequence[str], normal: Normal, settings: Settings, row: Row
) -> tuple[list[Event], str]:
    """What is to tell of one more row, and what it is: empty, `duplicated` or `late`."""
    if row.problem:
        return [{"event": "row_unreadable", "reason": row.problem}], ""
    events: list[Event] = []
    kind = _in_time(health, row, events)
    if kind:
        return events, kind
    if row.absent != health.absent:
        new = [name for name in row.absent if name not in health.absent]
        back = [name for name in health.absent if name not in row.absent]
        events += [{"event": "column_missing", "sensor": name, "state": "begins"} for name in new]
        events += [{"event": "column_missing", "sensor": name, "state": "ends"} for name in back]
        health.absent = row.absent
    events += [{"event": "value_unreadable", "sensor": name, "value": word} for name, word in row.words]
    _values(health, columns, normal, settings, row, events)
    return events, kind


def _in_time(health: Health, row: Row, events: list[Event]) -> str:
    if row.time is None:
        if row.said and not health.unreadable_time:
            events.append({"event": "time_unreadable", "value": row.said})
            health.unreadable_time = True
        return ""
    digest = hashlib.blake2b(row.values.tobytes() + repr(row.time).encode(), digest_size=8).hexdigest()
    if digest in health.hashes:
        events.append({"event": "row_duplicated", "time": row.said})
        return "duplicated"
    health.hashes.append(digest)
    if health.clock is not None and row.time < health.clock:
        events.append({"event": "row_out_of_order", "time": row.said, "behind": health.clock - row.time})
        return "late"
    health.clock = row.time
    return ""


def _values(
    health: Health, columns: Sequence[str], normal: Normal, settings: Settings, row: Row, events: list[Event]
) -> None:
    x = row.values
    gone = np.isnan(x)
    if settings.silent:
        for k in np.flatnonzero(~gone & (health.missing >= settings.silent)).tolist():
            events.append(_told("sensor_silent", columns[k], "ends", rows=int(health.missing[k])))
    health.missing = np.where(gone, health.missing + 1, 0)
    if settings.silent:
        for k in np.flatnonzero(health.missing == settings.silent).tolist():
            if columns[k] not in health.absent:
                events.append(_told("sensor_silent", columns[k], "begins", rows=settings.silent))
    if settings.stuck:
        limit = np.maximum(settings.stuck, 3 * normal.runs)
        still = x == health.last
        watched = normal.runs >= 0
        for k in np.flatnonzero(~gone & ~still & (health.same >= limit) & watched).tolist():
            events.append(_told("sensor_stuck", columns[k], "ends", rows=int(health.same[k])))
        health.same = np.where(gone, health.same, np.where(still, health.same + 1, 1))
        for k in np.flatnonzero(~gone & (health.same == limit) & watched).tolist():
            events.append(_told("sensor_stuck", columns[k], "begins", value=float(x[k]), rows=int(limit[k])))
    health.last = np.where(gone, health.last, x)
    _ranges(health, columns, normal, x, gone, events)


def _ranges(
    health: Health, columns: Sequence[str], normal: Normal, x: np.ndarray, gone: np.ndarray, events: list[Event]
) -> None:
    width = normal.high - normal.low
    inside = (x >= normal.low - _WIDER * width) & (x <= normal.high + _WIDER * width)
    # A ring of each sensor's own values: one that comes in every second row has its last SPAN there as well.
    health.recent[health.at % SPAN] = x
    health.at += 1
    for k in np.flatnonzero(inside & (health.told > 0)).tolist():
        events.append(_told(_FAR[health.told[k]], columns[k], "ends", value=float(x[k])))
    health.told[inside] = 0
    health.before = np.where(inside, x, health.before)
    health.far = np.where(inside | gone, 0, health.far + 1)
    for k in np.flatnonzero((health.far >= SPAN) & (health.told == 0)).tolist():
        found = np.roll(health.recent[:, k], -health.at)
        found = found[np.isfinite(found)]
        event, more = explained(found, float(health.before[k]), float(normal.low[k]), float(normal.high[k]))
        health.told[k] = _FAR.index(event)
        events.append(
            _told(event, columns[k], "begins", value=float(x[k]), seen=[float(normal.low[k]), float(normal.high[k])])
            | more
        )


def explained(found: np.ndarray, before: float, low: float, high: float) -> tuple[str, Event]:
    """Of values [n] far outside low..high: whether they are as if of another unit, and which; else only out of range.

    In another unit they jump, and turned back the first of them goes on where the sensor was (`before`, NaN: not
    known); all of them then lie as close together as the range is wide, within it. Where the range holds 0, no factor
    can be told.
    """
    width, middle = high - low, (low + high) / 2

    def goes_on(turned: np.ndarray) -> bool:
        inside = low - _WIDER * width <= turned.min() and turned.max() <= high + _WIDER * width
        return bool(inside and (np.isnan(before) or abs(turned[0] - before) <= _JUMP * width))

    if not len(found) or not np.isfinite(found).all() or not width > 0:
        return "sensor_range", {}
    for name, back in _DEGREES:
        if goes_on(back(found)):
            return "sensor_unit", {"words": f"as if turned from {name}"}
    if low * high <= 0:
        return "sensor_range", {}
    start = middle if np.isnan(before) else before
    factor = float(found[0]) / start if start else 0.0
    if factor <= 0 or 1 / _LEAST_FACTOR < factor < _LEAST_FACTOR:
        return "sensor_range", {}
    near = min(_UNITS, key=lambda known: abs(np.log(factor / known)))
    if goes_on(found / near):
        return "sensor_unit", {"factor": near, "words": f"as if multiplied by {_UNITS[near]}"}
    factor = float(np.median(found)) / middle
    # As close together as the range is wide, and away from what a factor of 1 gives.
    if np.ptp(found) <= factor * width and goes_on(found / factor):
        return "sensor_unit", {"factor": factor, "words": f"as if multiplied by {factor:.4g}"}
    return "sensor_range", {}


def _told(event: str, sensor: str, state: str, **more: Any) -> Event:
    return {"event": event, "sensor": sensor, "state": state, **more}


_ARRAYS: dict[str, Any] = {"missing": np.int64, "same": np.int64, "last": np.float64, "far": np.int64, "told": np.int64}
_ARRAYS["before"] = np.float64


def to_dict(health: Health) -> dict[str, Any]:
    """A value of JSON, NaN as null."""
    held: dict[str, Any] = {name: plain(getattr(health, name)) for name in _ARRAYS}
    held["recent"] = [plain(one) for one in health.recent]
    held |= {"at": health.at % SPAN, "absent": health.absent, "clock": health.clock, "hashes": list(health.hashes)}
    return held | {"unreadable_time": health.unreadable_time}


def from_dict(values: Mapping[str, Any], size: int) -> Health:
    """The inverse of `to_dict`, after JSON.

    Raises:
      UserError: something else, or of another number of sensors.
    """
    try:
        made = start(size)
        for name, kind in _ARRAYS.items():
            setattr(made, name, array(values[name]).astype(kind))
        made.recent = np.stack([array(one) for one in values["recent"]])
        made.at, made.absent = int(values["at"]), tuple(map(str, values["absent"]))
        made.clock = None if values["clock"] is None else float(values["clock"])
        made.hashes.extend(map(str, values["hashes"]))
        made.unreadable_time = bool(values["unreadable_time"])
        if made.recent.shape != (SPAN, size) or any(getattr(made, name).shape != (size,) for name in _ARRAYS):
            raise ValueError("another number of sensors")
    except (TypeError, ValueError, KeyError) as error:
        raise UserError(f"no state of sensors ({error})") from None
    return made


def plain(values: np.ndarray) -> list[Any]:
    """Numbers as JSON has them, NaN as null."""
    return [None if value != value else value for value in values.tolist()]


def array(values: Sequence[Any]) -> np.ndarray:
    """The inverse of `plain`, float64."""
    return np.array([np.nan if value is None else value for value in values], np.float64)


def longest_runs(x: np.ndarray) -> np.ndarray:
    """[D] int64, the most rows of [N, D] one after the other with one value; -1 where there is only one."""
    runs, best = np.ones(x.shape[1], np.int64), np.ones(x.shape[1], np.int64)
    for before, after in itertools.pairwise(x):
        runs = np.where(before == after, runs + 1, 1)
        best = np.maximum(best, runs)
    return np.where(best >= len(x), -1, best)
