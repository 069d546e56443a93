"""The state of a `Watch` as JSON, so that a monitor which is started again continues where it stopped."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data.rows.dialects import Dialect
from ganomaly_jax.streaming import alarms, drift, row_parser, sensor_checks, stored
from ganomaly_jax.streaming.watch import Watch

_PLAIN = {"separator": ",", "decimal": ".", "thousands": ""}
_SEPARATORS, _DECIMALS, _THOUSANDS = (",", ";", "\t", "|"), ("", ".", ","), ",. '"


def to_dict(watch: Watch) -> dict[str, Any]:
    """Returns the state as a JSON-ready dict."""
    ring = [stored.to_json(one) for one in watch.ring[: len(watch.ring) // 2]]
    return {
        "sensors": watch.format.sensors,
        "shape": watch.settings.scorer.input_shape,
        "form": {
            "kind": watch.format.kind,
            "time": watch.format.time,
            "header": watch.format.header,
            "csv": dataclasses.asdict(watch.format.dialect),
        },
        "health": sensor_checks.to_dict(watch.health),
        "alarm": dataclasses.asdict(watch.alarm),
        "drift": None if watch.drift is None else drift.to_dict(watch.drift),
        "ring": ring,
        "carried": stored.to_json(watch.carried),
        "row": watch.row,
        "filled": watch.filled,
        "items": watch.items,
        "told": watch.told,
    }


def resume(watch: Watch, values: Mapping[str, Any]) -> None:
    """Restores the state from `to_dict`, after JSON.

    Raises:
      UserError: the values are those of another detector, or not those of a state.
    """
    with stored.reading("monitor"):
        shape, sensors = watch.settings.scorer.input_shape, watch.format.sensors
        if stored.texts(values["sensors"]) != sensors or tuple(stored.items(values["shape"])) != shape:
            raise UserError("it belongs to a detector of other sensors or inputs")
        form = values["form"]
        kind, header = form["kind"], stored.texts(form["header"])
        if kind not in ("", *row_parser.FORMATS) or (header and not set(header) & set(sensors)):
            raise ValueError("a format that no row has")
        watch.format = dataclasses.replace(watch.format, kind=kind, header=header, dialect=_dialect(form))
        watch.health = sensor_checks.from_dict(values["health"], len(sensors))
        if not set(watch.health.absent) <= set(sensors):
            raise ValueError("absent sensors that the detector does not have")
        watch.alarm = alarms.from_dict(values["alarm"], watch.alarm)
        if watch.drift is not None and values["drift"] is not None:
            before = drift.from_dict(values["drift"])
            if _same_tests(before, watch.drift):
                watch.drift = before
        ring = _float32(stored.matrix(values["ring"], (len(watch.ring) // 2, watch.ring.shape[1])))
        watch.ring[:] = np.concatenate([ring, ring])
        watch.carried = _float32(stored.numbers(values["carried"], len(sensors)))
        watch.row, watch.filled, watch.items = (stored.count(values[name]) for name in ("row", "filled", "items"))
        if max(watch.filled, watch.items, watch.alarm.since, *(row for row, _ in watch.alarm.recent)) > watch.row:
            raise ValueError("more verdicts than rows")
        watch.told = {test: _told(values["told"][test]) for test in drift.TESTS if test in values["told"]}


def _dialect(form: Mapping[str, Any]) -> Dialect:
    """Restores the format of CSV. A state of version 0.2.0 has none: its lines are separated by commas."""
    held = Dialect(*(stored.text(form.get("csv", _PLAIN)[name]) for name in _PLAIN))
    separators = _SEPARATORS if form["header"] else ("", *_SEPARATORS)
    if held.separator not in separators or held.decimal not in _DECIMALS or set(held.thousands) - set(_THOUSANDS):
        raise ValueError("a way of writing CSV that there is not")
    return held


def _float32(values: np.ndarray) -> np.ndarray:
    """Returns numbers as float32; raises a ValueError if they do not fit."""
    if (np.abs(values) > np.finfo(np.float32).max).any():
        raise ValueError("a number beyond float32")
    return values.astype(np.float32)


def _same_tests(one: drift.State, other: drift.State) -> bool:
    """Returns True if two states are of the same tests, regardless of the items seen."""
    fixed = ("settings", "reference", "limits", "between", "features", "bandwidth")
    return all(getattr(one, name) == getattr(other, name) for name in fixed)


def _told(values: Any) -> tuple[int, int]:
    """Restores how often a test passed its limit, and until when it is quiet."""
    passed, until = values
    return stored.count(passed), stored.count(until)
