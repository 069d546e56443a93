"""The heart of a monitor: rows go in, lines of JSON come out. No files, no clocks but for the latency.

A `Watch` holds the last rows in a ring, where sensors, alarms and drift stand, and counts; its memory is constant.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data.rows import splits as row_splits
from ganomaly_jax.data.rows import tables
from ganomaly_jax.scoring import calibration
from ganomaly_jax.scoring.scorer import Scorer
from ganomaly_jax.streaming import alarms, compiled_step, row_parser, sensor_checks
from ganomaly_jax.streaming import drift as streaming_drift

Event = dict[str, Any]

QUIET = 5
"""Windows of the drift tests before one that goes on passing its limit is told of again."""


@dataclasses.dataclass(frozen=True)
class Line:
    """Something that arrived: the bytes of a line, or what is to tell of the source (`event`)."""

    text: bytes = b""
    arrived: float = 0.0
    """`time.perf_counter()`."""
    end: int = 0
    """Bytes of the source up to here."""
    event: Event | None = None
    problem: str = ""
    """Why the line cannot be read at all."""
    path: bool = False
    """Whether `text` is the path of an image."""


@dataclasses.dataclass(frozen=True, eq=False)
class Said:
    """What is said of one row: `events`, then its verdict if it has one."""

    row: int
    events: tuple[Event, ...]
    verdict: Event | None
    standing: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """How far each drift test is on the way to its limit, see `drift.State.standing`."""


@dataclasses.dataclass(frozen=True, eq=False)
class Settings:
    """What does not change while a stream runs."""

    scorer: Scorer
    step: compiled_step.Step
    normal: sensor_checks.Normal
    checks: sensor_checks.Settings
    top: int = 3
    drift_step: int = 0
    """Verdicts from one item of the drift tests to the next; 0: `stride_of_drift`."""


@dataclasses.dataclass(eq=False)
class Watch:
    """Where a stream stands; `take` changes it in place."""

    settings: Settings
    form: row_parser.Form
    health: sensor_checks.Health
    alarm: alarms.State
    ring: np.ndarray
    """[2 T, D] float32: each row twice, T apart, so that the last T are always one piece."""
    carried: np.ndarray
    """[D] last values that were there."""
    drift: streaming_drift.State | None = None
    row: int = 0
    """Rows so far, those that were left out as well."""
    filled: int = 0
    """Rows that went into the ring."""
    items: int = 0
    """Verdicts so far."""
    told: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    """Of each drift test that was told of: how often it passed its limit since, and until which item it is quiet."""


def start(
    settings: Settings,
    alarm: alarms.State,
    drifting: streaming_drift.State | None = None,
    kind: str = "",
    clock: str = "",
) -> Watch:
    """Before the first row."""
    scorer = settings.scorer
    d = len(scorer.feature_names)
    return Watch(
        settings,
        row_parser.Form(scorer.feature_names, kind, clock),
        sensor_checks.start(d),
        alarm,
        np.full((2 * _length(scorer), d), np.nan, np.float32),
        np.full(d, np.nan, np.float32),
        drifting,
    )


def _length(scorer: Scorer) -> int:
    return scorer.input_shape[0] if len(scorer.input_shape) == 2 else 1


def take(watch: Watch, lines: Sequence[Line]) -> list[Said]:
    """Judge what has arrived, any number of lines, scored together; what is said, in their order.

    Raises:
      UserError: a header that has none of the sensors.
    """
    found: list[_Found] = []
    inputs: list[np.ndarray] = []
    for line in lines:
        if line.event is not None:
            found.append(_Found(watch.row, [line.event], line.arrived))
            continue
        if line.path:
            watch.row += 1
            image, why = _image(watch.settings.scorer, line.text)
            inputs += [] if image is None else [image]
            found.append(
                _Found(watch.row, [], line.arrived, None if image is None else len(inputs) - 1, why, line.text)
            )
            continue
        row: row_parser.Row | None
        if line.problem:
            row = row_parser.Row(np.full(len(watch.form.sensors), np.nan), problem=line.problem)
        else:
            before = watch.form.header
            watch.form, row = row_parser.read(watch.form, line.text)
            if row is None:
                if watch.form.header != before:
                    found.append(_Found(watch.row, _of_header(watch), line.arrived))
                continue
        watch.row += 1
        events, x = _enter(watch, row)
        if x is not None:
            inputs.append(x)
        at, why = (None, "") if x is None else (len(inputs) - 1, _why(watch, x))
        found.append(_Found(watch.row, events, line.arrived, at, why))
    judged = watch.settings.step(np.stack(inputs)) if inputs else None
    return [_say(watch, one, judged) for one in found]


@dataclasses.dataclass(frozen=True, eq=False)
class _Found:
    """A row before it is judged."""

    row: int
    events: list[Event]
    arrived: float
    at: int | None = None
    """Its place among what is scored; None: it is not."""
    why: str = ""
    """What makes its verdict invalid."""
    path: bytes = b""
    """Of an image."""


def _why(watch: Watch, x: np.ndarray) -> str:
    """Which sensors of a row or window are not finite; empty: none."""
    if np.isfinite(x).all():
        return ""
    bad = ~np.isfinite(x.reshape(-1, x.shape[-1])).all(0)
    return f"missing or infinite values: {tables.listed([watch.form.sensors[k] for k in np.flatnonzero(bad).tolist()])}"


def _image(scorer: Scorer, path: bytes) -> tuple[np.ndarray | None, str]:
    """One image of the detector's type, or why it cannot be used."""
    x, problems = scorer.read([os.fsdecode(path)])
    return (None, problems[0][1]) if problems else (x[0].astype(scorer.dtype, copy=False), "")


def _of_header(watch: Watch) -> list[Event]:
    absent = tuple(name for name in watch.form.sensors if name not in watch.form.header)
    events = [
        {"event": "column_missing", "sensor": name, "state": "begins"}
        for name in absent
        if name not in watch.health.absent
    ]
    watch.health.absent = tuple(dict.fromkeys((*watch.health.absent, *absent)))
    return events


def _enter(watch: Watch, row: row_parser.Row) -> tuple[list[Event], np.ndarray | None]:
    """Check a row and put it into the ring: what is to tell, and what is to be scored, if anything."""
    settings = watch.settings
    scorer = settings.scorer
    events, kind = sensor_checks.check(watch.health, scorer.feature_names, settings.normal, settings.checks, row)
    window = len(scorer.input_shape) == 2
    # A late row has no place in a window, but can be judged by itself.
    if kind == "duplicated" or (kind == "late" and window):
        return events, None
    with np.errstate(over="ignore"):
        x = row.values.astype(np.float32)
    way = scorer.config.data.missing
    if way == "last":
        x = np.where(np.isnan(x), watch.carried, x)
        watch.carried = x
    elif way == "mask":
        x = row_splits.filled(x, row_splits.centre_of(scorer.low, scorer.high))
    if not window:
        return events, x
    length = _length(scorer)
    at = watch.filled % length
    watch.ring[at] = watch.ring[at + length] = x
    watch.filled += 1
    if watch.filled < length or (watch.filled - length) % scorer.config.data.stride:
        return events, None
    return events, watch.ring[at + 1 : at + 1 + length].copy()


def _say(watch: Watch, one: _Found, judged: compiled_step.Judged | None) -> Said:
    verdict, events = None, one.events
    if one.at is not None or one.path:
        verdict = _verdict(watch, one, judged)
        watch.items += 1
        watch.alarm, change = alarms.update(watch.alarm, one.row, verdict["verdict"] == calibration.ANOMALOUS)
        if change is not None:
            events.append(_of_alarm(watch, change, verdict))
        if one.at is not None and judged is not None:
            latent = None if judged.latents is None else judged.latents[one.at]
            events += _drifting(watch, float(judged.scores[one.at]), latent)
        verdict["latency_ms"] = round((time.perf_counter() - one.arrived) * 1e3, 3)
    named = tuple({"event": event.pop("event"), "row": one.row} | event for event in events)
    return Said(one.row, named, verdict, {} if watch.drift is None else watch.drift.standing)


def _verdict(watch: Watch, one: _Found, judged: compiled_step.Judged | None) -> Event:
    settings, at = watch.settings, one.at
    scorer = settings.scorer
    found: Event = {"row": one.row} | ({"path": os.fsdecode(one.path)} if one.path else {})
    found |= {"score": None, "p_value": None, "verdict": calibration.INVALID, "top": []}
    if at is None or judged is None or not math.isfinite(judged.scores[at]):
        return found | {"reason": one.why or "the score is not finite"}
    score = float(judged.scores[at])
    (word,) = calibration.verdicts(judged.scores[at : at + 1], scorer.threshold, scorer.calibration.review)
    found |= {"score": score, "p_value": float(judged.p_values[at]), "verdict": word}
    if judged.values is not None:
        values = judged.values[at].astype(np.float64)
        order = np.argsort(-values, kind="stable")[: settings.top].tolist()
        top = [[scorer.feature_names[k], float(values[k])] for k in order]
        others = float(values.sum()) - sum(value for _, value in top)
        found |= {"top": top, "others": others, "base": settings.step.base}
        found["error"] = score - settings.step.base - float(values.sum())
    return found


def _of_alarm(watch: Watch, change: alarms.Change, verdict: Event) -> Event:
    event: Event = {"event": "alarm", "state": "begins" if change.begins else "ends", "since": change.since}
    event |= {"anomalous": change.count, "of": watch.alarm.n}
    return (
        event | {name: verdict[name] for name in ("score", "p_value", "top", "path") if name in verdict}
        if change.begins
        else event
    )


def stride_of_drift(scorer: Scorer) -> int:
    """Verdicts from one item of the drift tests to the next: windows that share no row."""
    return -(-_length(scorer) // scorer.config.data.stride) if len(scorer.input_shape) == 2 else 1


def _drifting(watch: Watch, score: float, latent: np.ndarray | None) -> list[Event]:
    every = watch.settings.drift_step or stride_of_drift(watch.settings.scorer)
    if watch.drift is None or (watch.items - 1) % every:
        return []
    usable = latent is not None and bool(np.isfinite(latent).all())
    watch.drift, report = streaming_drift.update(watch.drift, score, latent if usable else None)
    found = []
    for one in () if report is None else report.alarms:
        passed, until = watch.told.get(one.test, (0, 0))
        if watch.drift.seen < until:
            watch.told[one.test] = (passed + 1, until)
            continue
        watch.told[one.test] = (0, watch.drift.seen + QUIET * watch.drift.settings.window)
        rows_between = one.between * every * watch.settings.scorer.config.data.stride
        found.append(
            {
                "event": "drift",
                "test": one.test,
                "statistic": one.statistic,
                "limit": one.limit,
                "items": [one.since, watch.drift.seen - 1],
                "between": one.between,
                "between_rows": rows_between,
                "passed_since": passed,
                "words": one.words,
            }
        )
    return found


def text(said: Said) -> str:
    """Its lines, each with its end; empty where nothing is said."""
    spoken = (*said.events, *([] if said.verdict is None else [said.verdict]))
    return "".join(json.dumps(_plain(one), ensure_ascii=False, allow_nan=False) + "\n" for one in spoken)


def _plain(value: Any) -> Any:
    """Numbers that JSON does not have as null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _plain(own) for name, own in value.items()}
    return [_plain(own) for own in value] if isinstance(value, (list, tuple)) else value


def to_dict(watch: Watch) -> dict[str, Any]:
    """Where it stands, a value of JSON."""
    ring = [sensor_checks.plain(one) for one in watch.ring[: len(watch.ring) // 2]]
    return {
        "sensors": watch.form.sensors,
        "shape": watch.settings.scorer.input_shape,
        "form": {"kind": watch.form.kind, "time": watch.form.time, "header": watch.form.header},
        "health": sensor_checks.to_dict(watch.health),
        "alarm": dataclasses.asdict(watch.alarm),
        "drift": None if watch.drift is None else streaming_drift.to_dict(watch.drift),
        "ring": ring,
        "carried": sensor_checks.plain(watch.carried),
        "row": watch.row,
        "filled": watch.filled,
        "items": watch.items,
        "told": watch.told,
    }


def resume(watch: Watch, values: Mapping[str, Any]) -> None:
    """Go on where `to_dict` (after JSON) left off.

    Raises:
      UserError: a state of another detector, or none.
    """
    try:
        same = tuple(values["sensors"]) == watch.form.sensors
        if not same or tuple(values["shape"]) != watch.settings.scorer.input_shape:
            raise UserError("the state is that of another detector, with other sensors; start with another --state")
        form = values["form"]
        watch.form = dataclasses.replace(watch.form, kind=str(form["kind"]), header=tuple(map(str, form["header"])))
        watch.health = sensor_checks.from_dict(values["health"], len(watch.form.sensors))
        watch.alarm = alarms.from_dict(values["alarm"], watch.alarm)
        if watch.drift is not None and values["drift"] is not None:
            before = streaming_drift.from_dict(values["drift"])
            if before.settings == watch.drift.settings and before.reference == watch.drift.reference:
                watch.drift = before
        ring = np.stack([sensor_checks.array(one) for one in values["ring"]]).astype(np.float32)
        if ring.shape != (len(watch.ring) // 2, watch.ring.shape[1]):
            raise ValueError("another window")
        watch.ring[:] = np.concatenate([ring, ring])
        watch.carried = sensor_checks.array(values["carried"]).astype(np.float32)
        watch.row, watch.filled, watch.items = (int(values[name]) for name in ("row", "filled", "items"))
        watch.told = {str(test): (int(one[0]), int(one[1])) for test, one in values["told"].items()}
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"no state of a monitor ({type(error).__name__}: {error}); start with another --state"
        ) from None
