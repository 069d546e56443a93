"""What a monitor has seen, drawn onto a figure that is given: scores, drift and events over the rows."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from ganomaly_jax.report import figures, image_grids

# `course.Course`, of which only the values are read here.
Course = Any
# Of matplotlib, which is imported in report.py alone.
Figure = Any
Axes = Any

_SCORE, _ANOMALOUS, _THRESHOLD = "#1e1e1e", "#c8442b", "0.45"
_TESTS = {"ks": "#0072b2", "mmd": "#009e73", "cusum": "#cc79a7"}
_KINDS = 8


def height(found: Course) -> float:
    """Inches."""
    kinds = len(_kinds(found))
    return 3.0 + (1.8 if _tests(found) else 0) + (0.5 + 0.22 * kinds if kinds else 0)


def draw(figure: Figure, found: Course, threshold: float, title: str) -> None:
    """Scores with the threshold, how far the drift tests are on their way, and when what was told."""
    tests, kinds = _tests(found), _kinds(found)
    heights = [3.0, *([1.6] if tests else []), *([0.3 + 0.22 * len(kinds)] if kinds else [])]
    axes = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    below = list(axes[1:])
    _scores(axes[0], found, threshold)
    axes[0].set_title(title, fontsize=11, loc="left", parse_math=False)
    if tests:
        _drift(below.pop(0), found, tests)
    if kinds:
        _events(below.pop(0), found, kinds)
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=8)
    axes[-1].set_xlabel("row", fontsize=9)


def _scores(ax: Axes, found: Course, threshold: float) -> None:
    at = np.array([(one.first + one.last) / 2 for one in found.bins])
    highest = np.array([one.highest for one in found.bins])
    bad = np.array([one.anomalous > 0 for one in found.bins], bool)
    finite = highest[np.isfinite(highest)]
    more = found.width > 1
    ax.plot(at, highest, color=_SCORE, linewidth=0.9, label=f"highest of {found.width} verdicts" if more else "score")
    if more:
        mean = [one.total / one.count if one.count else math.nan for one in found.bins]
        ax.plot(at, mean, color="0.6", linewidth=0.9, label="their mean")
    if bad.any():
        ax.plot(at[bad], highest[bad], ".", color=_ANOMALOUS, markersize=3, label="anomalous")
    ax.axhline(threshold, color=_THRESHOLD, linestyle="--", linewidth=1, label="threshold")
    if len(finite) and finite.min() > 0 and threshold > 0 and max(finite.max(), threshold) > 20 * np.median(finite):
        ax.set_yscale("log")
    for first, last in _alarms(found):
        ax.axvspan(first, last, color=_ANOMALOUS, alpha=0.12, linewidth=0)
    ax.set_ylabel("score", fontsize=9)
    ax.legend(frameon=False, fontsize=8, ncols=4, loc="lower right", bbox_to_anchor=(1, 1))


def _drift(ax: Axes, found: Course, tests: list[str]) -> None:
    at = [(one.first + one.last) / 2 for one in found.bins]
    for test in tests:
        share = [one.drift.get(test, math.nan) for one in found.bins]
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
    most = max((value for one in found.bins for value in one.drift.values()), default=1.0)
    if most > 3:  # linear up to the limit, logarithmic beyond it
        ax.set_yscale("symlog", linthresh=1)
        marks = [0, 0.5, *(10.0**i for i in range(math.ceil(math.log10(most)) + 1))]
        ax.set_yticks(marks, [f"{mark:g}" for mark in marks], minor=False)
        ax.set_yticks([], minor=True)
    ax.set_ylim(bottom=0)
    ax.legend(frameon=False, fontsize=8, ncols=3, loc="lower right", bbox_to_anchor=(1, 0.97))


def _events(ax: Axes, found: Course, kinds: list[str]) -> None:
    for place, kind in enumerate(kinds):
        rows = [event["row"] for event in found.events if _name(event) == kind]
        ax.plot(rows, [place] * len(rows), "|", color=_ANOMALOUS if kind == "alarm" else _SCORE, markersize=8)
    ax.set_yticks(range(len(kinds)), [_short(kind) for kind in kinds], fontsize=8, parse_math=False)
    ax.set_ylim(len(kinds) - 0.4, -0.6)
    ax.grid(axis="y", color="0.92")


def _tests(found: Course) -> list[str]:
    return [test for test in _TESTS if any(test in one.drift for one in found.bins)]


def _kinds(found: Course) -> list[str]:
    """Kinds of events, the most frequent first, those of drift by their tests, those of sensors by their names."""
    names = [_name(event) for event in found.events]
    return sorted(dict.fromkeys(names), key=lambda name: (name != "alarm", -names.count(name)))[:_KINDS]


def _name(event: dict[str, Any]) -> str:
    more = event.get("sensor") or event.get("test") or ""
    return f"{event['event'].replace('_', ' ')} {more}".strip()


def _alarms(found: Course) -> list[tuple[int, int]]:
    """(first, last) row of each alarm among the events kept."""
    spans, begun = [], 0
    for event in found.events:
        if event["event"] == "alarm" and event["state"] == "begins":
            begun = event["since"]
        elif event["event"] == "alarm" and begun:
            spans.append((begun, event["row"]))
            begun = 0
    if begun and found.bins:
        spans.append((begun, found.bins[-1].last))
    return spans


def _short(name: str, most: int = 34) -> str:
    name = "".join(character if character.isprintable() else "?" for character in name)
    return name if len(name) <= most else f"{name[: most - 3]}..."


def watched(found: Any, threshold: float, title: str, path: Path) -> Path:
    """A PNG of what a monitor has seen: scores, drift, events; `found` is a `summary.Course`.

    Raises:
      MissingError: no matplotlib.
      UserError: the file cannot be written.
    """
    figure = figures.new_figure(9.0, height(found))
    draw(figure, found, threshold, image_grids.one_line(title))
    return figures.save_figure(figure, path)
