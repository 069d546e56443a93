"""What all members of a run come to: a table by class and seed, metrics.json and report.html of the whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ganomaly_jax.core import atomic_files, text_table
from ganomaly_jax.evaluation.evaluate import Evaluation
from ganomaly_jax.report import html
from ganomaly_jax.runs import layout, run_folder
from ganomaly_jax.runs.sweep import Member

_FIGURES = ("auroc", "average_precision", "false_positive_rate", "true_positive_rate")


def summarise(team: Sequence[Member], found: Mapping[str, Evaluation | None]) -> dict[str, Any]:
    """The figures of all members.

    Returns:
      `members`: a dict a member (name, abnormal, seed, auroc, average_precision, false_positive_rate,
      true_positive_rate; None where it diverged or a figure is not defined). `per_class`: {class: AUROC `mean` over
      its seeds, `spread` (sample standard deviation, None for one seed), `seeds`}. `auroc`: the mean over classes;
      `spread`: of that mean over the seeds that every class has, None for fewer than two. `diverged`: names.
    """
    rows: list[dict[str, Any]] = []
    for one in team:
        values = (found[one.name] or Evaluation({}, None, [])).metrics
        rows.append(
            {"name": one.name, "abnormal": one.abnormal, "seed": one.seed} | {k: values.get(k) for k in _FIGURES}
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
        "diverged": [name for name, one in found.items() if one is None],
        "protocol": next((one.metrics["protocol"].split(";")[0] for one in found.values() if one), ""),
    }


def _mean_and_spread(values: Sequence[float]) -> dict[str, Any]:
    return {
        "mean": float(np.mean(values)) if values else None,
        "spread": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        "seeds": len(values),
    }


def lines(summary: Mapping[str, Any]) -> list[str]:
    """The table for a terminal: a row a class, a column a seed, mean and spread."""
    seeds = sorted({row["seed"] for row in summary["members"]})
    rows = [("abnormal", *(f"seed {seed}" for seed in seeds), "mean", "spread")]
    for name, figures in summary["per_class"].items():
        own = {row["seed"]: row["auroc"] for row in summary["members"] if row["abnormal"] == name}
        each = (_shown(own.get(seed)) for seed in seeds)
        rows.append((name or "as labelled", *each, _shown(figures["mean"]), _shown(figures["spread"])))
    if len(summary["per_class"]) > 1:
        rows.append(("mean", *[""] * len(seeds), _shown(summary["auroc"]), _shown(summary["spread"])))
    return text_table.lines(rows, right=range(1, len(rows[0])))


def write(workdir: Path, summary: Mapping[str, Any]) -> Path:
    """metrics.json and report.html in the folder of the whole; the page's path.

    Raises:
      UserError: they cannot be written.
    """
    run_folder.write_json(workdir / layout.METRICS, dict(summary))
    title = f"{len(summary['members'])} members: AUROC {html.number(summary['auroc'])}"
    if summary["spread"] is not None:
        title += f" ± {summary['spread']:.3f}"
    groups: dict[str, list[float]] = {name or "as labelled": [] for name in summary["per_class"]}
    for row in summary["members"]:
        if row["auroc"] is not None:
            groups[row["abnormal"] or "as labelled"].append(row["auroc"])
    header = ("member", "AUROC", "average precision", "false-positive rate", "true-positive rate")
    cells = [
        (
            html.link(f"{layout.MEMBERS}/{row['name']}/{layout.REPORT}", row["name"]),
            *(
                html.text("diverged" if row["name"] in summary["diverged"] else html.number(row[key]))
                for key in _FIGURES
            ),
        )
        for row in summary["members"]
    ]
    parts = [
        html.warnings({"warnings": [f"{name} diverged and is in no figure." for name in summary["diverged"]]}),
        html.section(
            "AUROC by abnormal class",
            html.paragraph(
                "A dot is one seed, the bar is their mean; 1 is perfect, 0.5 (dashed) is chance. Protocol: "
                f"{summary['protocol'].split(':')[0] or 'not known'}; running statistics, last step."
            ),
            html.dots(groups),
        ),
        html.section("Members", html.raw_table(cells, header)),
    ]
    path = workdir / layout.REPORT
    atomic_files.write_text(path, html.page(title, parts))
    return path


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
