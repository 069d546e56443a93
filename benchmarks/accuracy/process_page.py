"""The page of process.py: the table of methods, that of faults, what others published, and the picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import command


def spread(values: list[float | None], form: str = ".3f") -> str:
    """Formats the mean of several seeds with their standard deviation; - if one has none."""
    known = [value for value in values if value is not None]
    if len(known) < len(values) or not known:
        return "-"
    several = f" ± {np.std(known, ddof=1):{form}}" if len(known) > 1 else ""
    return f"{np.mean(known):{form}}{several}"


def markdown(report: Mapping[str, Any], picture: str = "") -> str:
    """Formats the report as a page; `picture` is the name of the file to show."""
    found, settings = report["found"], report["settings"]
    words = list(next(iter(found.values())))
    seeds = ", ".join(map(str, settings["seeds"]))
    lines = [
        *command.opening(report, "Tennessee Eastman process", packages=("jax", "flax", "optax", "numpy")),
        "Trained on the normal run of 500 rows of 52 sensors (3 minutes each). The threshold of each method is the "
        "tenth highest of its scores on the normal test run, a false-alarm rate of 1 % there by construction; the "
        "false alarms in the table are those in the first 160 rows of the 21 faulty runs, before the fault, which "
        "nothing was set by. Detected: share of the 800 rows with the fault that lie above the threshold. AUROC: "
        "these rows against the rows before the faults. Delay: rows until six one after the other lie above the "
        "threshold, median over the faults that are detected so.",
        "",
        f"Networks: {settings['steps']} steps, latent of a quarter of the sensors, otherwise the defaults; seeds "
        f"{seeds}, mean ± standard deviation. `smoothed`: a running mean of the scores, weight 0.1 on the newest; the "
        "threshold is set on the smoothed scores. `3 rows`: each row beside the two before it, as in the dynamic PCA. "
        "`Mahalanobis`: T2 of all components. `residual Mahalanobis`: the residual of x_hat by its own covariance on "
        "the rows trained on, with the ridge under which rows left out are most likely (`evaluate.score="
        "residual_mahalanobis`). Combined is how rare each score is on the normal test run: `Stouffer's sum`, or `the "
        "highest`.",
        "",
        *([f"![Share of rows detected, each fault and method]({picture})", ""] if picture else []),
    ]
    for word in words:
        lines += [f"## Scores: {word}", ""]
        lines += command.table("method | detected, 21 faults | without 3, 9, 15 | false alarms before | AUROC | delay")
        for name, ways in found.items():
            own = [one["means"] for one in ways[word].values()]
            cells = [
                spread([one["detected"] for one in own]),
                spread([one["detected_easy"] for one in own]),
                spread([one["false_alarms"] for one in own]),
                spread([one["auroc"] for one in own]),
                spread([one["delay_easy"] for one in own], ".0f"),
            ]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines.append("")
    lines += [
        "## As others report it",
        "",
        "Means over the faults of the detection rates in that table, at the same threshold, not smoothed.",
        "",
        *command.table("method | detected, 21 faults | without 3, 9, 15 | from | trust"),
    ]
    for name, one in report["published"].items():
        lines.append(
            f"| {name} | {one['detected']:.3f} | {one['detected_easy']:.3f} | {one['paper']} | {one['trust']} |"
        )
    lines += ["", "## Each fault", ""]
    for word in words:
        faults = list(next(iter(next(iter(found.values()))[word].values()))["faults"])
        lines += [f"Detected, {word}, mean over the seeds:", "", *command.table(" | ".join(["method", *faults]))]
        for name, ways in found.items():
            own = ways[word].values()
            cells = [f"{np.mean([one['faults'][fault]['detected'] for one in own]):.2f}" for fault in faults]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def picture(report: Mapping[str, Any], path: Path) -> str:
    """Draws a heat map, faults by methods, smoothed; returns the file name, "" without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return ""
    found = report["found"]
    word = list(next(iter(found.values())))[-1]
    faults = list(next(iter(next(iter(found.values()))[word].values()))["faults"])
    values = np.array(
        [
            [np.mean([one["faults"][fault]["detected"] for one in ways[word].values()]) for fault in faults]
            for ways in found.values()
        ]
    )
    figure = Figure(figsize=(11, 0.42 * len(values) + 1.6), layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.subplots()
    ax.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    ax.set_xticks(range(len(faults)), faults)
    ax.set_yticks(range(len(values)), [f"{name}  {row.mean():.2f}" for name, row in zip(found, values, strict=True)])
    ax.set_xlabel("fault")
    ax.set_title("Share of faulty rows detected, smoothed scores; means beside the names", fontsize=10)
    for (i, j), value in np.ndenumerate(values):
        ax.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=7, color="white" if value > 0.6 else "black")
    ax.tick_params(length=0)
    for side in ax.spines.values():
        side.set_visible(False)
    figure.savefig(path, dpi=130)
    return path.name
