"""The state of a `Watch` as JSON, so that a monitor which is started again continues where it stopped."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data.rows.dialects import Dialect
from ganomaly_jax.streaming import alarms, drift, sensor_checks
from ganomaly_jax.streaming.watch import Watch

_PLAIN = {"separator": ",", "decimal": ".", "thousands": ""}


def to_dict(watch: Watch) -> dict[str, Any]:
    """Returns the state as a JSON-ready dict."""
    ring = [sensor_checks.to_json(one) for one in watch.ring[: len(watch.ring) // 2]]
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
        "carried": sensor_checks.to_json(watch.carried),
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
    try:
        same = tuple(values["sensors"]) == watch.format.sensors
        if not same or tuple(values["shape"]) != watch.settings.scorer.input_shape:
            raise UserError("the state belongs to a detector of other sensors; choose another --state")
        fmt = values["form"]
        # A state of an earlier version has no dialect: its lines were separated by commas.
        dialect = Dialect(*(str(fmt.get("csv", _PLAIN)[name]) for name in _PLAIN))
        watch.format = dataclasses.replace(
            watch.format, kind=str(fmt["kind"]), header=tuple(map(str, fmt["header"])), dialect=dialect
        )
        watch.health = sensor_checks.from_dict(values["health"], len(watch.format.sensors))
        watch.alarm = alarms.from_dict(values["alarm"], watch.alarm)
        if watch.drift is not None and values["drift"] is not None:
            before = drift.from_dict(values["drift"])
            if before.settings == watch.drift.settings and before.reference == watch.drift.reference:
                watch.drift = before
        ring = np.stack([sensor_checks.from_json(one) for one in values["ring"]]).astype(np.float32)
        if ring.shape != (len(watch.ring) // 2, watch.ring.shape[1]):
            raise ValueError("another window")
        watch.ring[:] = np.concatenate([ring, ring])
        watch.carried = sensor_checks.from_json(values["carried"]).astype(np.float32)
        watch.row, watch.filled, watch.items = (int(values[name]) for name in ("row", "filled", "items"))
        watch.told = {str(test): (int(one[0]), int(one[1])) for test, one in values["told"].items()}
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"the stored state of the monitor is invalid ({type(error).__name__}: {error}); choose another --state"
        ) from None
