"""Plots of an evaluation and a training: ROC, precision-recall, histogram, losses and training health."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ganomaly_jax.core import number_format
from ganomaly_jax.core.atomic_files import replacing
from ganomaly_jax.report import figures
from ganomaly_jax.report.figures import BLUE, CLASS_NAMES, INK, RED, remove, save_figure
from ganomaly_jax.runs import diagnostics
from ganomaly_jax.runs.history import read

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The palette of Okabe and Ito, which is safe for colour-blind readers.
LOSSES = {
    "adversarial": "#56b4e9",
    "contextual": "#009e73",
    "encoder": "#cc79a7",
    "generator": "#000000",
    "discriminator": "#d55e00",
    "reconstruction": "#0072b2",
}

# Inches; narrow, so that the text of a plot is legible on a phone.
_WIDE = 5.6

Curve = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Scored:
    """Holds a scored test set and its curves, as computed by `evaluation.curves`."""

    labels: np.ndarray
    """[N] bool, True is anomalous."""
    scores: np.ndarray
    """[N] float64, finite."""
    threshold: float | None
    """A score above it is anomalous; None if there is no threshold."""
    summary: Mapping[str, float | int | None]
    """`auroc`, `average_precision`, `f1`, `false_positive_rate`, `true_positive_rate`, `n_normal`, `n_anomalous`."""
    roc: Curve | None
    """False-positive rates, true-positive rates and thresholds, [K] each; None with one class only."""
    precision_recall: Curve | None
    """Precision [K + 1], recall [K + 1] and thresholds [K]; None with one class only."""


def curves(scored: Scored, directory: Path) -> list[Path]:
    """Draws `roc`, `precision_recall` and `histogram`, each as .png and .csv, after removing those of an earlier call.

    With one class only the histogram is drawn, and nothing at all without scores.

    Args:
      scored: the test set with its curves.
      directory: an existing folder.

    Returns:
      The paths of the pictures.

    Raises:
      MissingError: matplotlib is not installed.
      UserError: a file cannot be written.
    """
    for name in ("roc", "precision_recall", "histogram"):
        for kind in ("png", "csv"):
            remove(directory / f"{name}.{kind}")
    if not len(scored.scores):
        return []
    found = scored.summary
    title = f"{found['n_normal']} normal, {found['n_anomalous']} anomalous"
    if scored.roc is None or scored.precision_recall is None:
        return [_histogram(scored, title, directory / "histogram.png")]
    title = f"AUROC {found['auroc']:.3f}\n{title}"
    return [
        _roc(scored.roc, found, title, directory / "roc.png"),
        _precision_recall(scored.precision_recall, found, title, directory / "precision_recall.png"),
        _histogram(scored, title, directory / "histogram.png"),
    ]


def _roc(curve: Curve, found: Mapping[str, Any], title: str, path: Path) -> Path:
    fpr, tpr, thresholds = curve
    _write_csv(path, ("false_positive_rate", "true_positive_rate", "score_at_least"), (fpr, tpr, thresholds))
    figure, ax = _plot(title, "false-positive rate", "true-positive rate", square=True)
    ax.plot([0, 1], [0, 1], color="0.6", linestyle=":", label="chance")
    ax.plot(fpr, tpr, color=BLUE, linewidth=2)
    _operating_point(ax, found["false_positive_rate"], found["true_positive_rate"])
    return save_figure(figure, path)


def _precision_recall(curve: Curve, found: Mapping[str, Any], title: str, path: Path) -> Path:
    precision, recall, thresholds = curve
    _write_csv(path, ("precision", "recall", "score_at_least"), (precision, recall, np.append(thresholds, np.inf)))
    title = f"average precision {found['average_precision']:.3f}, {title}"
    figure, ax = _plot(title, "recall", "precision", square=True)
    n_normal, n_anomalous = found["n_normal"], found["n_anomalous"]
    ax.axhline(n_anomalous / (n_normal + n_anomalous), color="0.6", linestyle=":", label="chance")
    ax.step(recall, precision, where="post", color=BLUE, linewidth=2)
    if found["f1"]:
        recall_there = found["true_positive_rate"]
        true, false = recall_there * n_anomalous, found["false_positive_rate"] * n_normal
        _operating_point(ax, recall_there, true / (true + false))
    else:
        _operating_point(ax, None, None)
    return save_figure(figure, path)


def _operating_point(ax: Axes, x: float | None, y: float | None) -> None:
    if x is not None and y is not None:
        ax.plot([x], [y], "o", color=RED, markersize=9, label="at the threshold", clip_on=False, zorder=5)
    _legend(ax, 2)


def _legend(ax: Axes, columns: int) -> None:
    """Places the legend below the axes, where it covers nothing."""
    figure = ax.get_figure()
    assert figure is not None
    figure.legend(frameon=False, fontsize=11, ncols=columns, loc="outside lower center")


def _histogram(scored: Scored, title: str, path: Path) -> Path:
    labels, scores, threshold = scored.labels, scored.scores, scored.threshold
    low, high = scores.min(), scores.max()
    line = threshold if threshold is not None and np.isfinite(threshold) else None
    # Anomalies often score far above normal items, which a linear axis would squeeze into one bin.
    ends = np.quantile(scores, [0.02, 0.98])
    logarithmic = bool(low > 0 and ends[1] > 20 * ends[0] and (line is None or line > 0))
    if high - low <= 1e-6 * max(abs(low), abs(high)):
        margin = max(0.05 * abs(low), 1e-6)
        low, high, logarithmic = low - margin, high + margin, False
    edges = np.geomspace(low, high, 41) if logarithmic else np.linspace(low, high, 41)
    counts = [np.histogram(scores[labels == label], edges)[0] for label in (0, 1)]
    _write_csv(path, ("score_from", "score_to", "normal", "anomalous"), (edges[:-1], edges[1:], *counts))
    figure, ax = _plot(title, "score" + " (log scale)" * logarithmic, "share of the class")
    for count, name, colour in zip(counts, CLASS_NAMES.values(), (BLUE, RED), strict=True):
        if count.sum():
            share = count / count.sum()
            ax.stairs(share, edges, fill=True, color=colour, alpha=0.35)
            ax.stairs(share, edges, color=colour, linewidth=1.5, label=f"{name} ({count.sum()})")
    if line is not None:
        ax.axvline(line, color=INK, linestyle="--", linewidth=1.5, label=f"threshold {number_format.number(line)}")
    if logarithmic:
        ax.set_xscale("log")
    ax.set_ylim(bottom=0)
    _legend(ax, 2)
    return save_figure(figure, path)


def losses(history: Path, png: Path) -> Path | None:
    """Plots the losses over the steps, on a logarithmic scale.

    Args:
      history: the path of `history.jsonl`. Incomplete lines of an interrupted run are skipped; of two lines for one
        step the later one is used.
      png: the path of the picture.

    Returns:
      `png`, or None if the history is missing or holds nothing to plot.

    Raises:
      MissingError: matplotlib is not installed.
      UserError: a file cannot be written.
    """
    remove(png)
    records = {record["step"]: record for record in read(history) if not LOSSES.keys().isdisjoint(record)}
    steps = np.array(sorted(records))
    values = {name: np.array([_float(records[step].get(name)) for step in steps]) for name in LOSSES}
    drawable = {
        name: (steps[good], value[good])
        for name, value in values.items()
        if (good := (value > 0) & (value < np.inf)).any()
    }
    if not drawable:
        return None
    figure, ax = _plot("", "step", "loss (log scale)")
    ax.set_yscale("log")
    for name, (at, value) in drawable.items():
        if len(at) <= 100:
            ax.plot(at, value, color=LOSSES[name], linewidth=1.5, marker="o" if len(at) == 1 else None, label=name)
            continue
        # Losses of single batches are noisy: they are drawn faintly, with the medians of 60 parts on top.
        ax.plot(at, value, color=LOSSES[name], linewidth=0.6, alpha=0.25)
        parts = np.array_split(np.arange(len(at)), 60)
        medians = [np.median(value[part]) for part in parts]
        ax.plot([at[part].mean() for part in parts], medians, color=LOSSES[name], linewidth=2, label=name)
    _legend(ax, 3)
    return save_figure(figure, png)


def health(history: Path, png: Path) -> Path | None:
    """Plots the measures of training health over the steps, one row for each.

    Args:
      history: as in `losses`.
      png: the path of the picture.

    Returns:
      `png`, or None if the history is missing or holds nothing to plot.

    Raises:
      MissingError: matplotlib is not installed.
      UserError: a file cannot be written.
    """
    remove(png)
    found = diagnostics.curves(read(history))
    if not found:
        return None
    figure = figures.new_figure(_WIDE, 0.6 + 1.2 * len(found))
    rows = figure.subplots(len(found), sharex=True, squeeze=False)[:, 0]
    for ax, (name, (steps, values)) in zip(rows, found.items(), strict=True):
        ax.plot(steps, values, color=BLUE, linewidth=1.5, marker="o", markersize=3)
        ax.set_ylabel(diagnostics.CURVES[name], fontsize=9.5)
        ax.set_ylim(0, 1.05 if name == diagnostics.ACCURACY else 1.1 * max(values) or 1)
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(color="0.92")
        ax.locator_params(axis="y", nbins=4)
    rows[-1].locator_params(axis="x", integer=True, nbins=6)
    rows[-1].set_xlabel("step", fontsize=11)
    figure.align_ylabels()
    return save_figure(figure, png)


def _plot(title: str, horizontal: str, vertical: str, square: bool = False) -> tuple[Figure, Axes]:
    """Returns a figure and its axes in the style of all plots."""
    figure = figures.new_figure(*((4.8, 4.6) if square else (_WIDE, 4.0)))
    ax = figure.add_subplot()
    ax.set_title(title, fontsize=11)
    ax.set_xlabel(horizontal, fontsize=11)
    ax.set_ylabel(vertical, fontsize=11)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(color="0.92")
    ax.set_axisbelow(True)
    if square:
        ax.set(xlim=(0, 1), ylim=(0, 1.02))
    return figure, ax


def _float(value: Any) -> float:
    """Converts a number to float, and anything else to NaN."""
    return float(value) if isinstance(value, int | float) else float("nan")


def _write_csv(path: Path, header: Sequence[str], columns: Sequence[np.ndarray]) -> None:
    with replacing(path.with_suffix(".csv")) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(zip(*(column.tolist() for column in columns), strict=True))
