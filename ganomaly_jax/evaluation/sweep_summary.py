"""The results of a sweep: a table by class and seed, and its metrics.json and report.html."""

from __future__ import annotations

import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ganomaly_jax.core import atomic_files, number_format, text_table
from ganomaly_jax.evaluation.evaluate import Evaluation
from ganomaly_jax.report import html
from ganomaly_jax.runs import layout, run_folder
from ganomaly_jax.runs.sweep import Member

_FIGURES = ("auroc", "average_precision", "false_positive_rate", "true_positive_rate")
_LONGEST = 16  # characters of a class name that fit beside its dots


def summarise(members: Sequence[Member], evaluations: Mapping[str, Evaluation | None]) -> dict[str, Any]:
    """Summarises the metrics of all members of a sweep.

    Args:
      members: the members.
      evaluations: the evaluation of each, by name; None for a member that diverged.

    Returns:
      `members`: a dict for each member (name, abnormal, seed, auroc, average_precision, false_positive_rate,
      true_positive_rate; None if it diverged or a metric is undefined). `per_class`: for each class the `mean` of the
      AUROC over its seeds, the `spread` (sample standard deviation, None for one seed) and the number of `seeds`.
      `auroc`: the mean over classes. `spread`: the standard deviation of that mean over the seeds that all classes
      share, None for fewer than two. `diverged`: the names of members that diverged. `protocol`: a sentence.
    """
    rows: list[dict[str, Any]] = []
    for member in members:
        evaluation = evaluations[member.name]
        values = {} if evaluation is None else evaluation.metrics
        rows.append(
            {"name": member.name, "abnormal": member.abnormal, "seed": member.seed}
            | {k: values.get(k) for k in _FIGURES}
        )
    by_class: dict[str, dict[int, float]] = {}
    for row in rows:
        good = by_class.setdefault(row["abnormal"], {})
        if row["auroc"] is not None:
            good[row["seed"]] = row["auroc"]
    shared = set.intersection(*(set(good) for good in by_class.values()))
    complete = all(by_class.values())
    over_classes = [float(np.mean([good[seed] for good in by_class.values()])) for seed in sorted(shared)]
    return {
        "members": rows,
        "per_class": {name: _mean_and_spread(list(good.values())) for name, good in by_class.items()},
        "auroc": float(np.mean([np.mean(list(good.values())) for good in by_class.values()])) if complete else None,
        "spread": _mean_and_spread(over_classes)["spread"],
        "diverged": [name for name, evaluation in evaluations.items() if evaluation is None],
        "protocol": next((e.metrics["protocol"].split(";")[0] for e in evaluations.values() if e), ""),
    }


def _mean_and_spread(values: Sequence[float]) -> dict[str, Any]:
    return {
        "mean": float(np.mean(values)) if values else None,
        "spread": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        "seeds": len(values),
    }


def lines(summary: Mapping[str, Any]) -> list[str]:
    """Formats the AUROCs as a table for the terminal: a row for each class, a column for each seed, mean and spread."""
    seeds = sorted({row["seed"] for row in summary["members"]})
    rows = [("abnormal", *(f"seed {seed}" for seed in seeds), "mean", "spread")]
    for name, figures in summary["per_class"].items():
        by_seed = {row["seed"]: row["auroc"] for row in summary["members"] if row["abnormal"] == name}
        cells = (_shown(by_seed.get(seed)) for seed in seeds)
        rows.append((name or "as labelled", *cells, _shown(figures["mean"]), _shown(figures["spread"])))
    if len(summary["per_class"]) > 1:
        rows.append(("mean", *[""] * len(seeds), _shown(summary["auroc"]), _shown(summary["spread"])))
    return text_table.lines(rows, right=range(1, len(rows[0])))


def write(workdir: Path, summary: Mapping[str, Any]) -> Path:
    """Writes metrics.json and report.html of a sweep into its folder.

    Args:
      workdir: the folder of the sweep.
      summary: the result of `summarise`.

    Returns:
      The path of the page.

    Raises:
      MissingError: jinja2 is not installed; metrics.json is still written.
      UserError: a file cannot be written.
    """
    run_folder.write_json(workdir / layout.METRICS, dict(summary))
    title = f"{len(summary['members'])} members: AUROC {_shown(summary['auroc'], 3)}"
    if summary["spread"] is not None:
        title += f" ± {summary['spread']:.3f}"
    page = html.render(
        html.REPORTS,
        "sweep.html",
        title=title,
        warnings=[f"{name} diverged and is left out of all metrics." for name in summary["diverged"]],
        plot=_plot(summary),
        protocol=summary["protocol"].split(":")[0] or "unknown",
        header=("member", "AUROC", "average precision", "false-positive rate", "true-positive rate"),
        members=[
            {
                "name": row["name"],
                "address": urllib.parse.quote(f"{layout.MEMBERS}/{row['name']}/{layout.REPORT}"),
                "cells": ["diverged", "", "", ""] if row["name"] in summary["diverged"] else _cells(row),
            }
            for row in summary["members"]
        ],
    )
    path = workdir / layout.REPORT
    atomic_files.write_text(path, page)
    return path


def _cells(row: Mapping[str, Any]) -> list[str]:
    form = {"auroc": number_format.decimal, "average_precision": number_format.decimal}
    return [form.get(key, number_format.percent)(row[key]) for key in _FIGURES]


def _plot(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the positions in the plot: a row for each class, a dot for each AUROC, a bar at the mean."""
    left, right, step, top = 130.0, 410.0, 26, 24
    bottom = top + step * len(summary["per_class"])

    def x(value: float) -> float:
        return round(left + (right - left) * value, 1)

    rows = []
    for place, (name, figures) in enumerate(summary["per_class"].items()):
        y, shown, mean = top + step * (place + 0.5), name or "as labelled", figures["mean"]
        values = [row["auroc"] for row in summary["members"] if row["abnormal"] == name and row["auroc"] is not None]
        rows.append(
            {
                "name": shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST - 1]}…",
                "y": y,
                "baseline": y + 5,
                "dots": [x(value) for value in values],
                "mean": "" if mean is None else f"{mean:.3f}",
                "mean_x": 0.0 if mean is None else x(mean),
            }
        )
    ticks = [
        {
            "x": x(at),
            "label": f"{at:g}",
            "colour": "#888" if at == 0.5 else "#ddd",
            "dashes": "4 3" if at == 0.5 else "",
        }
        for at in (0, 0.25, 0.5, 0.75, 1)
    ]
    return {"width": 470, "height": bottom + 6, "top": top, "bottom": bottom, "ticks": ticks, "rows": rows}


def _shown(value: float | None, digits: int = 4) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
