"""Plots of sensors and their reconstructions, drawn on a given figure.

Values are inputs of the network: standard deviations from the centre of each sensor.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from ganomaly_jax.core.printable import printable
from ganomaly_jax.report import time_axis

# Types of matplotlib, which is imported in figures.py alone.
Figure = Any
Axes = Any

MOST = 6
"""The largest number of sensors plotted, those with the largest difference."""
_MOST_BARS = 12
_X, _X_HAT, _ANOMALOUS, _GREY = "#1e1e1e", "#2166ac", "#c8442b", "0.45"


@dataclasses.dataclass(frozen=True, eq=False)
class Series:
    """Holds consecutive rows or windows of one recording, with their scores."""

    name: str
    at: np.ndarray
    """[n] int, the number of the last row of each item."""
    x: np.ndarray
    """[n, D] float, the values of that row."""
    x_hat: np.ndarray
    """[n, D] float, its reconstruction."""
    scores: np.ndarray
    """[n] float, the scores of the items."""
    labels: np.ndarray
    """[n] int, 0 normal and 1 anomalous."""
    times: Sequence[str] = ()
    """[n] the time of that row as text; empty if unknown."""


def most_different(x: np.ndarray, x_hat: np.ndarray, most: int = MOST) -> np.ndarray:
    """Returns the indices of the sensors of [..., D] with the largest mean difference, in descending order."""
    difference = np.abs(x - x_hat).reshape(-1, x.shape[-1])
    return np.argsort(-np.nan_to_num(difference).mean(0), kind="stable")[:most]


def height(x: np.ndarray) -> float:
    """Returns the inches that `case` needs for a row [D] or a window [T, D]."""
    if x.ndim == 1:
        return 1.3 + 0.28 * min(len(x), _MOST_BARS)
    return 1.2 + 1.5 * -(-min(x.shape[1], MOST) // 3)


def case(figure: Figure, x: np.ndarray, x_hat: np.ndarray, columns: Sequence[str]) -> None:
    """Draws the sensors that differ most: a window [T, D] as lines, a row [D] as bars."""
    if x.ndim == 1:
        chosen = most_different(x, x_hat, _MOST_BARS)[::-1]
        ax = figure.add_subplot()
        at = np.arange(len(chosen))
        ax.hlines(at, x_hat[chosen], x[chosen], color="0.75", linewidth=3)
        ax.plot(x[chosen], at, "o", color=_X, label="input")
        ax.plot(x_hat[chosen], at, "o", color=_X_HAT, mfc="white", label="reconstruction")
        ax.set_yticks(at, [printable(columns[k], 26) for k in chosen.tolist()], parse_math=False)
        ax.set_xlabel("standard deviations from the centre", fontsize=9)
        ax.set_ylim(-0.6, len(chosen) - 0.4)
        _plain(ax)
        ax.grid(color="0.92")
        ax.legend(frameon=False, fontsize=9, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1))
        return
    chosen = most_different(x, x_hat)
    axes = figure.subplots(-(-len(chosen) // 3), 3, sharex=True, squeeze=False).ravel()
    for ax, k in zip(axes, chosen.tolist(), strict=False):
        ax.plot(x[:, k], color=_X, linewidth=1.5, label="input")
        ax.plot(x_hat[:, k], color=_X_HAT, linewidth=1.5, linestyle="--", label="reconstruction")
        ax.set_title(printable(columns[k], 26), fontsize=10, parse_math=False)
        _plain(ax)
    for ax in axes[len(chosen) :]:
        ax.set_axis_off()
    for ax in axes[max(len(chosen) - 3, 0) : len(chosen)]:
        ax.set_xlabel("row of the window", fontsize=9)
        ax.locator_params(axis="x", integer=True, nbins=6)
        ax.tick_params(labelbottom=True)
    # Beside the axes, because the title is above and the verdict below.
    figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, fontsize=9, loc="outside right upper")


def timeline(figure: Figure, series: Sequence[Series], columns: Sequence[str], threshold: float) -> None:
    """Draws scores over time, shaded where labelled anomalous, and below them the sensors that differ most.

    Args:
      figure: the figure to draw on.
      series: the recordings, one column each.
      columns: the names of the D sensors.
      threshold: the threshold of the score.
    """
    rows = 1 + min(len(columns), 3)
    grid = figure.subplots(rows, len(series), squeeze=False, sharex="col")
    scores = np.concatenate([recording.scores[np.isfinite(recording.scores)] for recording in series])
    positive = len(scores) > 0 and scores.min() > 0 and threshold > 0
    logarithmic = bool(positive and scores.max() > 20 * np.median(scores))
    for place, one in enumerate(series):
        axes = grid[:, place]
        bad = one.labels == 1
        chosen = most_different(
            one.x[bad] if bad.any() else one.x, one.x_hat[bad] if bad.any() else one.x_hat, rows - 1
        )
        axes[0].plot(one.at, one.scores, color=_X, linewidth=0.9)
        axes[0].axhline(threshold, color=_GREY, linestyle="--", linewidth=1)
        axes[0].set_title(printable(one.name, 40), fontsize=10, parse_math=False)
        if logarithmic:
            axes[0].set_yscale("log")
        for ax, k in zip(axes[1:], chosen.tolist(), strict=True):
            ax.plot(one.at, one.x[:, k], color=_X, linewidth=0.9, label="input")
            ax.plot(one.at, one.x_hat[:, k], color=_X_HAT, linewidth=0.9, label="reconstruction")
            ax.set_title(printable(columns[k], 40), fontsize=9, loc="left", parse_math=False)
        for ax in axes:
            for first, last in _runs(one.at, bad):
                ax.axvspan(first, last, color=_ANOMALOUS, alpha=0.12, linewidth=0)
            _plain(ax)
        time_axis.label(axes[-1], one.at, one.times or [""] * len(one.at))
    grid[0, 0].set_ylabel("score" + " (log)" * logarithmic, fontsize=9)
    if rows > 1:
        grid[1, 0].legend(frameon=False, fontsize=8, ncols=2, loc="lower right", bbox_to_anchor=(1, 0.97))


def _runs(at: np.ndarray, bad: np.ndarray) -> list[tuple[float, float]]:
    """Returns (first, last) of each unbroken stretch that is labelled anomalous."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], bad.astype(int), [0]])))
    return [(float(at[a]), float(at[b - 1])) for a, b in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)]


def _plain(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=8)
