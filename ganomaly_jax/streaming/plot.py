"""Figure of what a monitor has seen: scores, drift and events over the rows."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from ganomaly_jax.core.printable import printable
from ganomaly_jax.report import figures, image_grids, time_axis

# `course.Summary`, of which only the values are read here.
Summary = Any
# Of matplotlib, which is imported in report.py alone.
Figure = Any
Axes = Any

_SCORE, _ANOMALOUS, _THRESHOLD = "#1e1e1e", "#c8442b", "0.45"
_TESTS = {"ks": "#0072b2", "mmd": "#009e73", "cusum": "#cc79a7"}
_KINDS = 8


def figure_height(summary: Summary) -> float:
    """Returns the height of the figure in inches."""
    kinds = len(_kinds(summary))
    return 3.0 + (1.8 if _tests(summary) else 0) + (0.5 + 0.22 * kinds if kinds else 0)


def draw(figure: Figure, summary: Summary, threshold: float, title: str) -> None:
    """Draws the scores with the threshold, the drift tests relative to their limits, and the events."""
    tests, kinds = _tests(summary), _kinds(summary)
    heights = [3.0, *([1.6] if tests else []), *([0.3 + 0.22 * len(kinds)] if kinds else [])]
    axes = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    below = list(axes[1:])
    _scores(axes[0], summary, threshold)
    axes[0].set_title(title, fontsize=11, loc="left", parse_math=False)
    if tests:
        _drift(below.pop(0), summary, tests)
    if kinds:
        _events(below.pop(0), summary, kinds)
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=8)
    time_axis.label(axes[-1], [one.last for one in summary.bins], [one.time for one in summary.bins])


def _scores(ax: Axes, summary: Summary, threshold: float) -> None:
    """Draws the scores and the alarms."""
    at = np.array([(one.first + one.last) / 2 for one in summary.bins])
    highest = np.array([one.highest for one in summary.bins])
    bad = np.array([one.anomalous > 0 for one in summary.bins], bool)
    finite = highest[np.isfinite(highest)]
    more = summary.width > 1
    ax.plot(at, highest, color=_SCORE, linewidth=0.9, label=f"highest of {summary.width} verdicts" if more else "score")
    if more:
        mean = [one.total / one.count if one.count else math.nan for one in summary.bins]
        ax.plot(at, mean, color="0.6", linewidth=0.9, label="mean")
    if bad.any():
        ax.plot(at[bad], highest[bad], ".", color=_ANOMALOUS, markersize=3, label="anomalous")
    ax.axhline(threshold, color=_THRESHOLD, linestyle="--", linewidth=1, label="threshold")
    if len(finite) and finite.min() > 0 and threshold > 0 and max(finite.max(), threshold) > 20 * np.median(finite):
        ax.set_yscale("log")
    for first, last in _alarms(summary):
        ax.axvspan(first, last, color=_ANOMALOUS, alpha=0.12, linewidth=0)
    ax.set_ylabel("score", fontsize=9)
    ax.legend(frameon=False, fontsize=8, ncols=4, loc="lower right", bbox_to_anchor=(1, 1))


def _drift(ax: Axes, summary: Summary, tests: list[str]) -> None:
    """Draws the drift tests relative to their limits."""
    at = [(one.first + one.last) / 2 for one in summary.bins]
    for test in tests:
        share = [one.drift.get(test, math.nan) for one in summary.bins]
        ax.plot(
            at,
            share,
            color=_TESTS.get(test, "0.3"),
            linewidth=0.7 if test == "cusum" else 1.2,
            label=test,
            drawstyle="steps-post",
        )
    ax.axhline(1, color=_THRESHOLD, linestyle="--", linewidth=1)
    ax.set_ylabel("drift / limit", fontsize=9)
    most = max((value for one in summary.bins for value in one.drift.values()), default=1.0)
    if most > 3:  # linear up to the limit, logarithmic beyond
        ax.set_yscale("symlog", linthresh=1)
        marks = [0, 0.5, *(10.0**i for i in range(math.ceil(math.log10(most)) + 1))]
        ax.set_yticks(marks, [f"{mark:g}" for mark in marks], minor=False)
        ax.set_yticks([], minor=True)
    ax.set_ylim(bottom=0)
    ax.legend(frameon=False, fontsize=8, ncols=3, loc="lower right", bbox_to_anchor=(1, 0.97))


def _events(ax: Axes, summary: Summary, kinds: list[str]) -> None:
    """Draws a mark per event, one line per kind."""
    for place, kind in enumerate(kinds):
        rows = [event["row"] for event in summary.events if _name(event) == kind]
        ax.plot(rows, [place] * len(rows), "|", color=_ANOMALOUS if kind == "alarm" else _SCORE, markersize=8)
    ax.set_yticks(range(len(kinds)), [printable(kind, 34) for kind in kinds], fontsize=8, parse_math=False)
    ax.set_ylim(len(kinds) - 0.4, -0.6)
    ax.grid(axis="y", color="0.92")


def _tests(summary: Summary) -> list[str]:
    """Returns the drift tests that ran."""
    return [test for test in _TESTS if any(test in one.drift for one in summary.bins)]


def _kinds(summary: Summary) -> list[str]:
    """Returns the kinds of events, alarms first, then the most frequent, at most `_KINDS`."""
    names = [_name(event) for event in summary.events]
    return sorted(dict.fromkeys(names), key=lambda name: (name != "alarm", -names.count(name)))[:_KINDS]


def _name(event: dict[str, Any]) -> str:
    """Returns the kind of an event, with its sensor or test."""
    more = event.get("sensor") or event.get("test") or ""
    return f"{event['event'].replace('_', ' ')} {more}".strip()


def _alarms(summary: Summary) -> list[tuple[int, int]]:
    """Returns (first, last) row of each alarm among the events kept."""
    spans, begun = [], 0
    for event in summary.events:
        if event["event"] == "alarm" and event["state"] == "begins":
            begun = event["since"]
        elif event["event"] == "alarm" and begun:
            spans.append((begun, event["row"]))
            begun = 0
    if begun and summary.bins:
        spans.append((begun, summary.bins[-1].last))
    return spans


def save_plot(summary: Any, threshold: float, title: str, path: Path) -> Path:
    """Saves a PNG of what a monitor has seen.

    Args:
      summary: a `summary.Summary`.
      threshold: the detector's threshold.
      title: title of the figure.
      path: file to write.

    Raises:
      MissingError: matplotlib is not installed.
      UserError: the file cannot be written.
    """
    figure = figures.new_figure(9.0, figure_height(summary))
    draw(figure, summary, threshold, image_grids.one_line(title))
    return figures.save_figure(figure, path)
