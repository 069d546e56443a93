"""Summary of a stream in constant memory, for the live view and the plot: binned scores, drift and events."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from ganomaly_jax.streaming import stored
from ganomaly_jax.streaming.watch import RowOutput

MAX_BINS = 1024
"""Bins at most; when all are full, neighbours are merged."""
MAX_EVENTS = 500
"""Number of last events that are kept."""


@dataclasses.dataclass(eq=False)
class Bin:
    """Some consecutive verdicts.

    Attributes:
      first: first row.
      last: last row.
      highest: highest score; NaN if all are invalid.
      total: sum of the scores.
      count: number of scores in `total`.
      anomalous: number of anomalous verdicts.
      drift: highest progress of each drift test.
      time: time of the last row as text; empty if unknown.
    """

    first: int
    last: int
    highest: float
    total: float
    count: int
    anomalous: int
    drift: dict[str, float]
    time: str = ""


@dataclasses.dataclass(eq=False)
class Summary:
    """Summary of a stream.

    Attributes:
      bins: bins of `width` verdicts; the last may have fewer.
      width: verdicts per bin.
      filled: verdicts in the last bin.
      events: the last events.
      last: the last verdict.
      verdicts: number of verdicts.
      anomalous: number of anomalous verdicts.
      invalid: number of invalid verdicts.
      alarm: row at which the current alarm started; 0 for none.
    """

    bins: list[Bin] = dataclasses.field(default_factory=list)
    width: int = 1
    filled: int = 0
    events: collections.deque[dict[str, Any]] = dataclasses.field(
        default_factory=lambda: collections.deque(maxlen=MAX_EVENTS)
    )
    last: dict[str, Any] | None = None
    verdicts: int = 0
    anomalous: int = 0
    invalid: int = 0
    alarm: int = 0


def add(summary: Summary, output: RowOutput) -> None:
    """Adds the output of one row."""
    for event in output.events:
        summary.events.append(event)
        if event["event"] == "alarm":
            summary.alarm = event["since"] if event["state"] == "begins" else 0
    verdict = output.verdict
    if verdict is None:
        return
    summary.last, score = verdict, verdict["score"]
    bad = verdict["verdict"] == "anomalous"
    summary.verdicts += 1
    summary.anomalous += bad
    summary.invalid += score is None
    new = Bin(output.row, output.row, math.nan, 0.0, 0, int(bad), dict(output.drift_progress), _time(verdict))
    if score is not None:
        new.highest, new.total, new.count = score, score, 1
    if summary.bins and summary.filled < summary.width:
        summary.bins[-1] = _merge(summary.bins[-1], new)
        summary.filled += 1
        return
    if len(summary.bins) == MAX_BINS:
        summary.bins = [_merge(*summary.bins[i : i + 2]) for i in range(0, MAX_BINS, 2)]
        summary.width *= 2
    summary.bins.append(new)
    summary.filled = 1


def _merge(first: Bin, second: Bin) -> Bin:
    """Merges two neighbouring bins."""
    scores = [value for value in (first.highest, second.highest) if not math.isnan(value)]
    names = {**first.drift, **second.drift}
    drift = {name: max(first.drift.get(name, 0.0), second.drift.get(name, 0.0)) for name in names}
    return Bin(
        first.first,
        second.last,
        max(scores, default=math.nan),
        first.total + second.total,
        first.count + second.count,
        first.anomalous + second.anomalous,
        drift,
        second.time or first.time,
    )


def _time(verdict: Mapping[str, Any]) -> str:
    """Returns the time of a verdict as text."""
    time = verdict.get("time", "")
    return time if isinstance(time, str) else f"{time:.15g}"


def to_dict(summary: Summary) -> dict[str, Any]:
    """Returns the summary as a JSON-ready dict."""
    bins = [dataclasses.asdict(one) | ({} if one.count else {"highest": None}) for one in summary.bins]
    plain = {name: getattr(summary, name) for name in _NUMBERS}
    return {"bins": bins, "events": list(summary.events), "last": summary.last} | plain


_NUMBERS = ("width", "filled", "verdicts", "anomalous", "invalid", "alarm")


def from_dict(values: Mapping[str, Any]) -> Summary:
    """Restores a summary from `to_dict`, after JSON.

    Raises:
      UserError: the values are not those of a summary.
    """
    with stored.reading("summary"):
        bins = [_bin(one) for one in stored.items(values["bins"], MAX_BINS)]
        events = [_event(one) for one in stored.items(values["events"], MAX_EVENTS)]
        last = None if values["last"] is None else _verdict(values["last"])
        held = {name: stored.count(values[name], least=name == "width") for name in _NUMBERS}
        return Summary(bins, events=collections.deque(events, MAX_EVENTS), last=last, **held)


def _bin(values: Any) -> Bin:
    """Restores a bin."""
    held = {name: stored.count(values[name]) for name in ("first", "last", "count", "anomalous")}
    if (values["highest"] is None) != (held["count"] == 0):
        raise ValueError("a bin whose highest score and number of scores do not fit together")
    highest = math.nan if values["highest"] is None else stored.number(values["highest"])
    drift = {stored.text(test): stored.number(value) for test, value in stored.fields(values["drift"]).items()}
    return Bin(
        highest=highest,
        total=stored.number(values["total"]),
        drift=drift,
        time=stored.text(values.get("time", "")),
        **held,
    )


def _event(values: Any) -> dict[str, Any]:
    """Returns an event after checking the values that the live view and the plot use."""
    stored.count(values["row"])
    if stored.text(values["event"]) == "alarm":
        stored.count(values["since"])
        if values["state"] not in ("begins", "ends"):
            raise ValueError("an alarm that neither begins nor ends")
    return stored.fields(values)


def _verdict(values: Any) -> dict[str, Any]:
    """Returns a verdict after checking the values that the live view uses."""
    stored.count(values["row"])
    stored.text(values["verdict"])
    if values["score"] is not None:
        for one in (values["score"], values["p_value"], values.get("latency_ms", 0)):
            stored.number(one)
    for name, value in stored.items(values.get("top", [])):
        stored.text(name)
        stored.number(value)
    return stored.fields(values)
