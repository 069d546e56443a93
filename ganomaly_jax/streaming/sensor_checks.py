"""Checks of sensors and rows before scoring: silent, stuck, another unit, missing, late or duplicated.

Constant memory: a few arrays with a value per sensor, the last `RING_ROWS` rows and the last `HASHES` hashes of rows.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ganomaly_jax.streaming import stored
from ganomaly_jax.streaming.row_parser import Row

RING_ROWS = 20
"""Consecutive rows far outside the range before a change of range or unit is reported."""
HASHES = 256
CLOCK_ROWS = 20
"""Consecutive late rows, in order among themselves, after which the clock counts as set back."""
_RANGE_MARGIN = 0.5
# Fraction of its width by which the normal range is extended on either side.
_MIN_FACTOR = 1.5
_MAX_STEP = 0.5
# Largest step of a sensor between rows, relative to the width of its range.
_RANGE_EVENTS = ("", "sensor_range", "sensor_unit")
_UNITS = {
    1000.0: "1000, as from kilo to one",
    0.001: "0.001, as from one to kilo",
    60.0: "60, as from minutes to seconds",
    1 / 60: "1/60, as from seconds to minutes",
    3.6: "3.6, as from m/s to km/h",
    1 / 3.6: "1/3.6, as from km/h to m/s",
    100.0: "100, as from a fraction to per cent",
    0.01: "0.01, as from per cent to a fraction",
}
_TEMPERATURE_UNITS = (
    ("degrees Celsius to Fahrenheit", lambda v: (v - 32) / 1.8),
    ("degrees Fahrenheit to Celsius", lambda v: v * 1.8 + 32),
    ("degrees Celsius to kelvin", lambda v: v - 273.15),
    ("kelvin to degrees Celsius", lambda v: v + 273.15),
)

Event = dict[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class NormalRanges:
    """Normal behaviour of D sensors.

    Attributes:
      low: [D], smallest normal value.
      high: [D], largest normal value.
      runs: [D], largest number of rows with the same value; 0 if unknown, -1 if the sensor never changed.
    """

    low: np.ndarray
    high: np.ndarray
    runs: np.ndarray


@dataclasses.dataclass(frozen=True)
class Settings:
    """Numbers of rows after which a problem is reported; 0 disables a check.

    Attributes:
      silent: rows without a value.
      stuck: rows with the same value, and at least three times as many as in the calibration rows.
    """

    silent: int = 5
    stuck: int = 30


@dataclasses.dataclass(eq=False)
class Health:
    """State of the checks, which `check` modifies in place.

    Attributes:
      missing: [D], consecutive rows without a value.
      same: [D], consecutive rows with the last value.
      last: [D], last value.
      far: [D], consecutive values far outside the range.
      told: [D], what was reported about them: 0 for nothing, else an index into `_RANGE_EVENTS`.
      before: [D], last value within the range.
      recent: [RING_ROWS, D], ring of the last rows.
      at: rows in the ring so far; the next one goes to `at % RING_ROWS`.
      absent: sensors without a column.
      clock: latest time.
      hashes: hashes of the last rows.
      unreadable_time: whether an unreadable time was reported.
      late: consecutive late rows that are in order among themselves.
      late_clock: time of the last of them.
    """

    missing: np.ndarray
    same: np.ndarray
    last: np.ndarray
    far: np.ndarray
    told: np.ndarray
    before: np.ndarray
    recent: np.ndarray
    at: int = 0
    absent: tuple[str, ...] = ()
    clock: float | None = None
    hashes: collections.deque[str] = dataclasses.field(default_factory=lambda: collections.deque(maxlen=HASHES))
    unreadable_time: bool = False
    late: int = 0
    late_clock: float = 0.0


def start(size: int) -> Health:
    """Returns the state before the first row, for `size` sensors."""
    zeros = np.zeros(size, np.int64)
    nothing = np.full(size, np.nan)
    return Health(
        zeros, zeros.copy(), nothing, zeros.copy(), zeros.copy(), nothing.copy(), np.full((RING_ROWS, size), np.nan)
    )


def check(
    health: Health, columns: Sequence[str], normal: NormalRanges, settings: Settings, row: Row
) -> tuple[list[Event], str]:
    """Checks one more row.

    Args:
      health: the state, modified in place.
      columns: names of the sensors.
      normal: their normal behaviour.
      settings: the settings.
      row: the row.

    Returns:
      Events to report, and the kind of row: empty, `duplicated` or `late`.
    """
    if row.problem:
        return [{"event": "row_unreadable", "reason": row.problem}], ""
    events: list[Event] = []
    kind = _check_time(health, row, events)
    if kind:
        return events, kind
    if row.absent != health.absent:
        new = [name for name in row.absent if name not in health.absent]
        back = [name for name in health.absent if name not in row.absent]
        events += [{"event": "column_missing", "sensor": name, "state": "begins"} for name in new]
        events += [{"event": "column_missing", "sensor": name, "state": "ends"} for name in back]
        health.absent = row.absent
    events += [{"event": "value_unreadable", "sensor": name, "value": word} for name, word in row.unreadable]
    _check_values(health, columns, normal, settings, row, events)
    return events, kind


def _check_time(health: Health, row: Row, events: list[Event]) -> str:
    """Checks for duplicated and late rows; returns the kind of row."""
    if row.time is None:
        if row.time_text and not health.unreadable_time:
            events.append({"event": "time_unreadable", "value": row.time_text})
            health.unreadable_time = True
        return ""
    digest = hashlib.blake2b(row.values.tobytes() + repr(row.time).encode(), digest_size=8).hexdigest()
    if digest in health.hashes:
        events.append({"event": "row_duplicated", "time": row.time_text})
        return "duplicated"
    health.hashes.append(digest)
    if health.clock is not None and row.time < health.clock:
        behind = health.clock - row.time
        health.late = health.late + 1 if health.late and row.time >= health.late_clock else 1
        health.late_clock = row.time
        if health.late < CLOCK_ROWS:
            events.append({"event": "row_out_of_order", "time": row.time_text, "behind": behind})
            return "late"
        events.append({"event": "clock_set_back", "time": row.time_text, "behind": behind})
    health.clock, health.late = row.time, 0
    return ""


def _check_values(
    health: Health, columns: Sequence[str], normal: NormalRanges, settings: Settings, row: Row, events: list[Event]
) -> None:
    """Checks for silent and stuck sensors, then ranges."""
    x = row.values
    gone = np.isnan(x)
    if settings.silent:
        for k in np.flatnonzero(~gone & (health.missing >= settings.silent)).tolist():
            events.append(_event("sensor_silent", columns[k], "ends", rows=int(health.missing[k])))
    health.missing = np.where(gone, health.missing + 1, 0)
    if settings.silent:
        for k in np.flatnonzero(health.missing == settings.silent).tolist():
            if columns[k] not in health.absent:
                events.append(_event("sensor_silent", columns[k], "begins", rows=settings.silent))
    if settings.stuck:
        limit = np.maximum(settings.stuck, 3 * normal.runs)
        still = x == health.last
        watched = normal.runs >= 0
        for k in np.flatnonzero(~gone & ~still & (health.same >= limit) & watched).tolist():
            events.append(_event("sensor_stuck", columns[k], "ends", rows=int(health.same[k])))
        health.same = np.where(gone, health.same, np.where(still, health.same + 1, 1))
        for k in np.flatnonzero(~gone & (health.same == limit) & watched).tolist():
            events.append(_event("sensor_stuck", columns[k], "begins", value=float(x[k]), rows=int(limit[k])))
    health.last = np.where(gone, health.last, x)
    _check_ranges(health, columns, normal, x, gone, events)


def _check_ranges(
    health: Health, columns: Sequence[str], normal: NormalRanges, x: np.ndarray, gone: np.ndarray, events: list[Event]
) -> None:
    """Checks for values far outside the normal range."""
    width = normal.high - normal.low
    inside = (x >= normal.low - _RANGE_MARGIN * width) & (x <= normal.high + _RANGE_MARGIN * width)
    # A sensor that has a value in every second row only is judged by those in the ring.
    health.recent[health.at % RING_ROWS] = x
    health.at += 1
    for k in np.flatnonzero(inside & (health.told > 0)).tolist():
        events.append(_event(_RANGE_EVENTS[health.told[k]], columns[k], "ends", value=float(x[k])))
    health.told[inside] = 0
    health.before = np.where(inside, x, health.before)
    health.far = np.where(inside | gone, 0, health.far + 1)
    for k in np.flatnonzero((health.far >= RING_ROWS) & (health.told == 0)).tolist():
        found = np.roll(health.recent[:, k], -health.at)
        found = found[np.isfinite(found)]
        event, more = explain_out_of_range(found, float(health.before[k]), float(normal.low[k]), float(normal.high[k]))
        health.told[k] = _RANGE_EVENTS.index(event)
        events.append(
            _event(event, columns[k], "begins", value=float(x[k]), seen=[float(normal.low[k]), float(normal.high[k])])
            | more
        )


def explain_out_of_range(found: np.ndarray, before: float, low: float, high: float) -> tuple[str, Event]:
    """Decides whether values far outside the range look like another unit.

    A change of unit makes values jump; converted back, the first continues where the sensor was, and all lie within the
    range, no wider than it. If the range contains 0, no factor can be determined.

    Args:
      found: consecutive values [n].
      before: last value within the range; NaN if unknown.
      low: lower end of the range.
      high: upper end of the range.

    Returns:
      `sensor_unit` or `sensor_range`, and the details of a unit.
    """
    width, middle = high - low, (low + high) / 2

    def goes_on(turned: np.ndarray) -> bool:
        inside = low - _RANGE_MARGIN * width <= turned.min() and turned.max() <= high + _RANGE_MARGIN * width
        return bool(inside and (np.isnan(before) or abs(turned[0] - before) <= _MAX_STEP * width))

    if not len(found) or not np.isfinite(found).all() or not width > 0:
        return "sensor_range", {}
    for name, back in _TEMPERATURE_UNITS:
        if goes_on(back(found)):
            return "sensor_unit", {"words": f"as if converted from {name}"}
    if low * high <= 0:
        return "sensor_range", {}
    start = middle if np.isnan(before) else before
    factor = float(found[0]) / start if start else 0.0
    if factor <= 0 or 1 / _MIN_FACTOR < factor < _MIN_FACTOR:
        return "sensor_range", {}
    near = min(_UNITS, key=lambda known: abs(np.log(factor / known)))
    if goes_on(found / near):
        return "sensor_unit", {"factor": near, "words": f"as if multiplied by {_UNITS[near]}"}
    factor = float(np.median(found)) / middle
    # No wider than the scaled range, and within it after conversion.
    if np.ptp(found) <= factor * width and goes_on(found / factor):
        return "sensor_unit", {"factor": factor, "words": f"as if multiplied by {factor:.4g}"}
    return "sensor_range", {}


def _event(event: str, sensor: str, state: str, **more: Any) -> Event:
    """Returns an event of one sensor."""
    return {"event": event, "sensor": sensor, "state": state, **more}


_COUNTS = {"missing": stored.MOST, "same": stored.MOST, "far": stored.MOST, "told": len(_RANGE_EVENTS) - 1}
# The largest possible value of each array of counts.


def to_dict(health: Health) -> dict[str, Any]:
    """Returns the state as a JSON-ready dict, values that are not finite as null."""
    held: dict[str, Any] = {name: stored.to_json(getattr(health, name)) for name in (*_COUNTS, "last", "before")}
    held["recent"] = [stored.to_json(one) for one in health.recent]
    held |= {"at": health.at % RING_ROWS, "absent": health.absent, "clock": health.clock, "hashes": list(health.hashes)}
    return held | {"unreadable_time": health.unreadable_time, "late": health.late, "late_clock": health.late_clock}


def from_dict(values: Mapping[str, Any], size: int) -> Health:
    """Restores a state of `size` sensors from `to_dict`, after JSON.

    Raises:
      UserError: the values are not those of a state, or of another number of sensors.
    """
    with stored.reading("sensors"):
        made = start(size)
        for name, most in _COUNTS.items():
            setattr(made, name, stored.counts(values[name], size, most=most))
        made.last, made.before = (stored.numbers(values[name], size) for name in ("last", "before"))
        made.recent = stored.matrix(values["recent"], (RING_ROWS, size))
        made.at, made.absent = stored.count(values["at"]), stored.texts(values["absent"])
        made.clock = None if values["clock"] is None else stored.number(values["clock"])
        made.hashes.extend(stored.texts(values["hashes"]))
        made.unreadable_time = stored.flag(values["unreadable_time"])
        # States of version 0.2.0 do not have these two.
        made.late, made.late_clock = stored.count(values.get("late", 0)), stored.number(values.get("late_clock", 0.0))
    return made


def longest_runs(x: np.ndarray) -> np.ndarray:
    """Returns the longest run of equal values of each column of x [N, D]: [D] int64, -1 for constant columns."""
    runs, best = np.ones(x.shape[1], np.int64), np.ones(x.shape[1], np.int64)
    for before, after in itertools.pairwise(x):
        runs = np.where(before == after, runs + 1, 1)
        best = np.maximum(best, runs)
    return np.where(best >= len(x), -1, best)
