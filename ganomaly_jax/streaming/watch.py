"""The core of a monitor: rows in, verdicts and events out. No files, and no clock except for the latency.

A `Watch` holds the last rows in a ring and the states of sensors, alarms and drift; its memory is constant.
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

from ganomaly_jax.core.printable import listed
from ganomaly_jax.data.rows import dialects
from ganomaly_jax.data.rows import splits as row_splits
from ganomaly_jax.scoring import calibration
from ganomaly_jax.scoring.scorer import Scorer
from ganomaly_jax.streaming import alarms, compiled_step, row_parser, sensor_checks
from ganomaly_jax.streaming import drift as streaming_drift

Event = dict[str, Any]

QUIET = 5
"""Windows of the drift tests during which a test that keeps passing its limit is not reported again."""


@dataclasses.dataclass(frozen=True)
class Line:
    """Something that arrived from the source.

    Attributes:
      text: bytes of the line.
      arrived: `time.perf_counter()` at arrival.
      end: bytes of the source up to the end of this line.
      event: event of the source itself, instead of a line.
      problem: why the line cannot be read at all.
      path: whether `text` is the path of an image.
    """

    text: bytes = b""
    arrived: float = 0.0
    end: int = 0
    event: Event | None = None
    problem: str = ""
    path: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class RowOutput:
    """Events and verdict of one row.

    Attributes:
      row: number of the row.
      events: its events.
      verdict: its verdict, or None.
      drift_progress: progress of each drift test towards its limit, see `drift.State.progress`.
    """

    row: int
    events: tuple[Event, ...]
    verdict: Event | None
    drift_progress: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)
class Settings:
    """Settings that stay constant while a stream runs.

    Attributes:
      scorer: the detector.
      step: its compiled step.
      normal: normal behaviour of the sensors.
      checks: settings of the sensor checks.
      top: sensors listed in a verdict.
      drift_step: verdicts from one item of the drift tests to the next; 0 for `drift_stride`.
    """

    scorer: Scorer
    step: compiled_step.Step
    normal: sensor_checks.NormalRanges
    checks: sensor_checks.Settings
    top: int = 3
    drift_step: int = 0


@dataclasses.dataclass(eq=False)
class Watch:
    """State of a stream, which `process` modifies in place.

    Attributes:
      settings: what does not change.
      format: format of the lines.
      health: state of the sensor checks.
      alarm: state of the alarms.
      ring: [2 T, D] float32, each row twice, T apart, so that the last T are always contiguous.
      carried: [D], last value of each sensor.
      drift: state of the drift tests, or None.
      row: rows so far, including those that were left out.
      filled: rows that went into the ring.
      items: verdicts so far.
      told: by drift test, how often it passed its limit since it was last reported, and the item until which it is
        quiet.
    """

    settings: Settings
    format: row_parser.Format
    health: sensor_checks.Health
    alarm: alarms.State
    ring: np.ndarray
    carried: np.ndarray
    drift: streaming_drift.State | None = None
    row: int = 0
    filled: int = 0
    items: int = 0
    told: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)


def start(
    settings: Settings,
    alarm: alarms.State,
    drifting: streaming_drift.State | None = None,
    kind: str = "",
    clock: str = "",
    csv: str = "",
) -> Watch:
    """Returns the state before the first row; `csv` is the format of the lines, by default that of `data.csv`."""
    scorer = settings.scorer
    d = len(scorer.feature_names)
    return Watch(
        settings,
        row_parser.Format(scorer.feature_names, kind, clock, stated=dialects.of_words(csv or scorer.config.data.csv)),
        sensor_checks.start(d),
        alarm,
        np.full((2 * _length(scorer), d), np.nan, np.float32),
        np.full(d, np.nan, np.float32),
        drifting,
    )


def _length(scorer: Scorer) -> int:
    """Returns the number of rows in a window, 1 for single rows."""
    return scorer.input_shape[0] if len(scorer.input_shape) == 2 else 1


def process(watch: Watch, lines: Sequence[Line]) -> list[RowOutput]:
    """Processes what has arrived, scoring it together.

    Args:
      watch: the state, modified in place.
      lines: any number of lines.

    Returns:
      The outputs of the rows, in order.

    Raises:
      UserError: a header names none of the sensors.
    """
    found: list[_PendingRow] = []
    inputs: list[np.ndarray] = []
    for line in lines:
        if line.event is not None:
            found.append(_PendingRow(watch.row, [line.event], line.arrived))
            continue
        if line.path:
            watch.row += 1
            image, why = _image(watch.settings.scorer, line.text)
            inputs += [] if image is None else [image]
            found.append(
                _PendingRow(watch.row, [], line.arrived, None if image is None else len(inputs) - 1, why, line.text)
            )
            continue
        row: row_parser.Row | None
        if line.problem:
            row = row_parser.Row(np.full(len(watch.format.sensors), np.nan), problem=line.problem)
        else:
            before = watch.format.header
            watch.format, row = row_parser.parse(watch.format, line.text)
            if row is None:
                if watch.format.header != before:
                    found.append(_PendingRow(watch.row, _header_events(watch), line.arrived))
                continue
        watch.row += 1
        events, x = _add_row(watch, row)
        if x is not None:
            inputs.append(x)
        at, why = (None, "") if x is None else (len(inputs) - 1, _invalid_reason(watch, x))
        found.append(_PendingRow(watch.row, events, line.arrived, at, why, time=row.shown))
    scored = watch.settings.step(np.stack(inputs)) if inputs else None
    return [_output(watch, one, scored) for one in found]


@dataclasses.dataclass(frozen=True, eq=False)
class _PendingRow:
    """A row before it is scored.

    Attributes:
      row: number of the row.
      events: its events so far.
      arrived: time of arrival.
      at: position among the inputs that are scored; None if it is not scored.
      why: why its verdict is invalid.
      path: path of an image.
      time: its time, if it is known.
    """

    row: int
    events: list[Event]
    arrived: float
    at: int | None = None
    why: str = ""
    path: bytes = b""
    time: str | float | None = None

    @property
    def place(self) -> Event:
        """Returns the number of the row, and its time if it is known."""
        return {"row": self.row} | ({} if self.time is None else {"time": self.time})


def _invalid_reason(watch: Watch, x: np.ndarray) -> str:
    """Returns which sensors of a row or window are not finite; empty for none."""
    if np.isfinite(x).all():
        return ""
    bad = ~np.isfinite(x.reshape(-1, x.shape[-1])).all(0)
    return f"missing or infinite values: {listed([watch.format.sensors[k] for k in np.flatnonzero(bad).tolist()])}"


def _image(scorer: Scorer, path: bytes) -> tuple[np.ndarray | None, str]:
    """Returns an image in the detector's dtype, or why it cannot be used."""
    x, problems = scorer.read([os.fsdecode(path)])
    return (None, problems[0][1]) if problems else (x[0].astype(scorer.dtype, copy=False), "")


def _header_events(watch: Watch) -> list[Event]:
    """Returns the events of a new header."""
    absent = tuple(name for name in watch.format.sensors if name not in watch.format.header)
    events = [
        {"event": "column_missing", "sensor": name, "state": "begins"}
        for name in absent
        if name not in watch.health.absent
    ]
    watch.health.absent = tuple(dict.fromkeys((*watch.health.absent, *absent)))
    return events


def _add_row(watch: Watch, row: row_parser.Row) -> tuple[list[Event], np.ndarray | None]:
    """Checks a row and adds it to the ring; returns its events, and the input to score, if any."""
    settings = watch.settings
    scorer = settings.scorer
    events, kind = sensor_checks.check(watch.health, scorer.feature_names, settings.normal, settings.checks, row)
    window = len(scorer.input_shape) == 2
    # A late row has no place in a window, but can be scored by itself.
    if kind == "duplicated" or (kind == "late" and window):
        return events, None
    with np.errstate(over="ignore"):
        x = row.values.astype(np.float32)
    policy = scorer.config.data.missing
    if policy == "last":
        x = np.where(np.isnan(x), watch.carried, x)
        watch.carried = x
    elif policy == "mask":
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


def _output(watch: Watch, one: _PendingRow, scored: compiled_step.StepOutput | None) -> RowOutput:
    """Returns the output of a row after scoring, and updates alarms and drift."""
    verdict, events = None, one.events
    if one.at is not None or one.path:
        verdict = _verdict(watch, one, scored)
        watch.items += 1
        watch.alarm, change = alarms.update(watch.alarm, one.row, verdict["verdict"] == calibration.ANOMALOUS)
        if change is not None:
            events.append(_alarm_event(watch, change, verdict))
        if one.at is not None and scored is not None:
            latent = None if scored.latents is None else scored.latents[one.at]
            events += _drift_events(watch, float(scored.scores[one.at]), latent)
        verdict["latency_ms"] = round((time.perf_counter() - one.arrived) * 1e3, 3)
    named = tuple(_json_value({"event": event.pop("event")} | one.place | event) for event in events)
    return RowOutput(one.row, named, _json_value(verdict), {} if watch.drift is None else watch.drift.progress)


def _verdict(watch: Watch, one: _PendingRow, scored: compiled_step.StepOutput | None) -> Event:
    """Returns the verdict of a row, JSON-ready."""
    settings, at = watch.settings, one.at
    scorer = settings.scorer
    found: Event = one.place | ({"path": os.fsdecode(one.path)} if one.path else {})
    found |= {"score": None, "p_value": None, "verdict": calibration.INVALID, "top": []}
    if at is None or scored is None or not math.isfinite(scored.scores[at]):
        return found | {"reason": one.why or "the score is not finite"}
    score = float(scored.scores[at])
    (word,) = calibration.verdicts(scored.scores[at : at + 1], scorer.threshold, scorer.calibration.review)
    found |= {"score": score, "p_value": float(scored.p_values[at]), "verdict": word}
    if scored.values is not None:
        values = scored.values[at].astype(np.float64)
        order = np.argsort(-values, kind="stable")[: settings.top].tolist()
        top = [[scorer.feature_names[k], float(values[k])] for k in order]
        others = float(values.sum()) - sum(value for _, value in top)
        found |= {"top": top, "others": others, "base": settings.step.base}
        found["error"] = score - settings.step.base - float(values.sum())
    return found


def _alarm_event(watch: Watch, change: alarms.Transition, verdict: Event) -> Event:
    """Returns the event of an alarm that starts or ends."""
    event: Event = {"event": "alarm", "state": "begins" if change.begins else "ends", "since": change.since}
    event |= {"anomalous": change.count, "of": watch.alarm.n}
    return (
        event | {name: verdict[name] for name in ("score", "p_value", "top", "path") if name in verdict}
        if change.begins
        else event
    )


def drift_stride(scorer: Scorer) -> int:
    """Returns the number of verdicts from one item of the drift tests to the next, such that windows share no row."""
    return -(-_length(scorer) // scorer.config.data.stride) if len(scorer.input_shape) == 2 else 1


def _drift_events(watch: Watch, score: float, latent: np.ndarray | None) -> list[Event]:
    """Updates the drift tests and returns their events."""
    every = watch.settings.drift_step or drift_stride(watch.settings.scorer)
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


def to_lines(output: RowOutput) -> str:
    """Returns the events and the verdict of a row as lines of JSON; empty if there are none."""
    spoken = (*output.events, *([] if output.verdict is None else [output.verdict]))
    lines = "".join(json.dumps(one, ensure_ascii=False, allow_nan=False) + "\n" for one in spoken)
    # Names of files need not be text; a lone surrogate becomes the escape that JSON has for it.
    return lines.encode("utf-8", "backslashreplace").decode()


def _json_value(value: Any) -> Any:
    """Replaces numbers that JSON does not have by null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _json_value(own) for name, own in value.items()}
    return [_json_value(own) for own in value] if isinstance(value, (list, tuple)) else value
