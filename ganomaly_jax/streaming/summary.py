"""The course of a stream in constant memory, for the live view and the picture: bins of scores, drift and events."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from ganomaly_jax.streaming.watch import Said

MOST = 1024
"""Bins; when all are full, two neighbours become one each."""
EVENTS = 500
"""Events kept, the last ones."""


@dataclasses.dataclass(eq=False)
class Bin:
    """Some verdicts one after the other."""

    first: int
    """Row."""
    last: int
    highest: float
    """Score; NaN where all are invalid."""
    total: float
    count: int
    """Of scores in `total`."""
    anomalous: int
    drift: dict[str, float]
    """The furthest that each test was on the way to its limit."""


@dataclasses.dataclass(eq=False)
class Course:
    """`bins` of `width` verdicts each, the last one maybe of fewer; `events` as they were told."""

    bins: list[Bin] = dataclasses.field(default_factory=list)
    width: int = 1
    filled: int = 0
    """Verdicts in the last bin."""
    events: collections.deque[dict[str, Any]] = dataclasses.field(
        default_factory=lambda: collections.deque(maxlen=EVENTS)
    )
    last: dict[str, Any] | None = None
    """The last verdict."""
    verdicts: int = 0
    anomalous: int = 0
    invalid: int = 0
    alarm: int = 0
    """Row since which an alarm is on, 0: none is."""


def add(course: Course, said: Said) -> None:
    """One row more."""
    for event in said.events:
        course.events.append(event)
        if event["event"] == "alarm":
            course.alarm = event["since"] if event["state"] == "begins" else 0
    verdict = said.verdict
    if verdict is None:
        return
    course.last, score = verdict, verdict["score"]
    bad = verdict["verdict"] == "anomalous"
    course.verdicts += 1
    course.anomalous += bad
    course.invalid += score is None
    one = Bin(said.row, said.row, math.nan, 0.0, 0, int(bad), dict(said.standing))
    if score is not None:
        one.highest, one.total, one.count = score, score, 1
    if course.bins and course.filled < course.width:
        course.bins[-1] = _together(course.bins[-1], one)
        course.filled += 1
        return
    if len(course.bins) == MOST:
        course.bins = [_together(*course.bins[i : i + 2]) for i in range(0, MOST, 2)]
        course.width *= 2
    course.bins.append(one)
    course.filled = 1


def _together(one: Bin, other: Bin) -> Bin:
    scores = [value for value in (one.highest, other.highest) if not math.isnan(value)]
    names = {**one.drift, **other.drift}
    drift = {name: max(one.drift.get(name, 0.0), other.drift.get(name, 0.0)) for name in names}
    return Bin(
        one.first,
        other.last,
        max(scores, default=math.nan),
        one.total + other.total,
        one.count + other.count,
        one.anomalous + other.anomalous,
        drift,
    )


def to_dict(course: Course) -> dict[str, Any]:
    """A value of JSON."""
    bins = [dataclasses.asdict(one) | ({} if one.count else {"highest": None}) for one in course.bins]
    plain = {name: getattr(course, name) for name in _NUMBERS}
    return {"bins": bins, "events": list(course.events), "last": course.last} | plain


_NUMBERS = ("width", "filled", "verdicts", "anomalous", "invalid", "alarm")


def from_dict(values: Mapping[str, Any]) -> Course:
    """The inverse of `to_dict`, after JSON; an empty one where it is something else: nothing depends on it."""
    made = Course()
    try:
        made.bins = [
            Bin(**(one | {"highest": math.nan if one["highest"] is None else one["highest"]})) for one in values["bins"]
        ]
        made.events.extend(dict(one) for one in values["events"])
        made.last = values["last"]
        for name in _NUMBERS:
            setattr(made, name, int(values[name]))
    except (TypeError, ValueError, KeyError):
        return Course()
    return made
