"""The page of ablation.py: each change beside the base, paired over set and seed, and the picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.accuracy.ablation_variants import BASE, LATENT, PLAIN, VARIANTS
from benchmarks.common import command
from benchmarks.common.controls import CONTROLS
from ganomaly_jax.core import atomic_files

MAIN = "squared"
CLEAR = 2.0
"""Standard errors beyond which a difference is called one."""


class Row(NamedTuple):
    """A line of the table: a score of a variant, beside a score of the base."""

    group: str
    words: str
    variant: str
    score: str
    against: str = MAIN


_TRAINING, _SCORE, _CONTROL = "another training, squared score", "another score", "no network"
ROWS = (
    *(Row(_TRAINING, one.words, name, MAIN) for name, one in VARIANTS.items() if name != BASE),
    Row(_TRAINING, "no averaging: weights of the last step", BASE, "last weights"),
    Row(_TRAINING, "ensemble of three trainings", BASE, "ensemble"),
    Row(_SCORE, "pixel", BASE, "pixel"),
    *(Row(_SCORE, name, BASE, name) for name in LATENT),
    Row(_SCORE, "residual_mahalanobis", BASE, "residual_mahalanobis"),
    Row(_SCORE, "squared over complexity", BASE, "squared / complexity"),
    Row(_SCORE, "pixel over complexity, against pixel", BASE, "pixel / complexity", "pixel"),
    Row(_SCORE, "embedding_angle (contrast)", "contrast", "embedding_angle"),
    Row(_SCORE, "loss of the rotation head", "rotation", "rotation"),
    *(Row(_CONTROL, name, BASE, name) for name in ("patches_medium", "patches_whole", "components")),
    *(Row(_CONTROL, f"control: {name}", BASE, name) for name in CONTROLS),
)
Values = dict[tuple[str, int], float]
"""{(set, seed): AUROC}."""


class Compared(NamedTuple):
    """A row's figures."""

    own: Values
    differences: Values
    mean: float
    error: float
    """Standard error of the mean difference over the pairs; NaN for one pair."""
    verdict: str


def values(report: Mapping[str, Any], variant: str, score: str) -> Values:
    """Returns all measured values of one score of one variant."""
    return {
        (part["job"], part["seed"]): part["auroc"][score]
        for part in report["parts"]
        if part["configuration"] == variant and score in part["auroc"]
    }


def over_sets(found: Values) -> dict[str, float]:
    """Returns {set: mean over its seeds}."""
    sets = dict.fromkeys(name for name, _ in found)
    return {name: float(np.mean([value for (job, _), value in found.items() if job == name])) for name in sets}


def compared(report: Mapping[str, Any], row: Row) -> Compared | None:
    """Compares the row with the base on the same sets and seeds; None if nothing of it was measured."""
    base, own = values(report, BASE, row.against), values(report, row.variant, row.score)
    differences = {key: own[key] - base[key] for key in own if key in base}
    if not differences:
        return None
    each = np.array(list(differences.values()))
    mean = float(np.mean(list(over_sets(differences).values())))
    error = float(each.std(ddof=1) / math.sqrt(len(each))) if len(each) > 1 else math.nan
    clear = abs(mean) > CLEAR * error
    return Compared(own, differences, mean, error, ("helps" if mean > 0 else "hurts") if clear else "no evidence")


def _sets(report: Mapping[str, Any]) -> list[str]:
    return [name for name in report["sets"] if any(part["job"] == name for part in report["parts"])]


def _cells(found: Values, sets: Sequence[str]) -> list[str]:
    means = over_sets(found)
    return [f"{means[name]:.3f}" if name in means else "-" for name in sets]


def _average(found: Values) -> str:
    return f"{np.mean(list(over_sets(found).values())):.3f}"


def _rows(report: Mapping[str, Any]) -> list[str]:
    sets = _sets(report)
    base = values(report, BASE, MAIN)
    lines = command.table(" | ".join(["change", "mean", "difference", "better on", "in words", *sets]))
    whole = len(base)
    if base:
        lines.append("| " + " | ".join([f"**base**, {MAIN}", _average(base), "", "", "", *_cells(base, sets)]) + " |")
    for group in (_TRAINING, _SCORE, _CONTROL):
        lines.append("| " + " | ".join([f"*{group}*", *[""] * (4 + len(sets))]) + " |")
        for row in ROWS:
            found = compared(report, row) if row.group == group else None
            if found is None:
                continue
            short = "" if len(found.differences) == whole else f" ({len(found.differences)} of {whole} pairs)"
            each = over_sets(found.differences)
            better = f"{sum(value > 0 for value in each.values())} of {len(each)}"
            difference = f"{found.mean:+.3f} ± {found.error:.3f}{short}"
            cells = [row.words, _average(found.own), difference, better, found.verdict, *_cells(found.own, sets)]
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def _every_score(report: Mapping[str, Any]) -> list[str]:
    names = (*PLAIN, *LATENT)
    lines = command.table(" | ".join(["training", *names]))
    for name, one in VARIANTS.items():
        found = [values(report, name, score) for score in names]
        if all(found):
            lines.append("| " + " | ".join([one.words, *map(_average, found)]) + " |")
    return lines


def markdown(report: Mapping[str, Any], picture: str = "") -> str:
    """Formats the report as a page; `picture` is the name of the file to show."""
    shared = report["parts"][0]["protocol"]
    seeds = sorted({part["seed"] for part in report["parts"]})
    pairs = len(values(report, BASE, MAIN))
    minutes = sum(part["seconds"] for part in report["parts"]) / 60
    limits = [
        f"at most {shared[word]:,} {what}" if shared[word] else f"all {what}"
        for word, what in (("limit", "training images"), ("test_limit", "normal and as many anomalous test images"))
    ]
    diverged = [part for part in report["parts"] if part["losses"] is None]
    lines = [
        *command.opening(report, "Ablation", packages=("jax", "flax", "optax", "numpy")),
        f"**Small: {shared['side']}x{shared['side']} pixels, {shared['features']} features, latent "
        f"{shared['latent']}, {shared['steps']} steps of {shared['batch']}, {' and '.join(limits)}, the same for all "
        f"rows.** Seeds {', '.join(map(str, seeds))} (split, weights, batches); {len(report['parts'])} parts, "
        f"{minutes:.0f} minutes in all.",
        "",
        "A cell is the mean AUROC over the seeds, `mean` that over the sets. `difference` is that from the base on the "
        f"same set and seed, with its standard error over the {pairs} pairs of set and seed; *helps* and *hurts* are "
        f"beyond {CLEAR:g} standard errors, which about one row in twenty is by chance, and say nothing about other "
        "sets: look at the columns. All that is fitted or standardised is fitted on normal training images.",
        "",
        *([f"![Difference of each change from the base]({picture})", ""] if picture else []),
        *_rows(report),
        "",
        "Patches are a score of the package, but see no network: the same for every training, so they stand among the "
        "controls.",
        "",
        *[f"- {name}: {words}" for name, words in CONTROLS.items()],
        *[f"- {p['configuration']}, {p['job']}, seed {p['seed']} diverged: in no figure" for p in diverged],
        "",
        "## Every training by every score, mean over the sets",
        "",
        *_every_score(report),
        "",
    ]
    return "\n".join(lines)


def picture(report: Mapping[str, Any], path: Path) -> str:
    """Draws each row's difference, standard error and sets; returns the file name, "" without matplotlib.

    Raises:
      UserError: it cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return ""
    found = [(row, one) for row in ROWS if (one := compared(report, row)) is not None]
    if not found:
        return ""
    sets = _sets(report)
    figure = Figure(figsize=(9.5, 0.3 * len(found) + 1.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    shades = {_TRAINING: "#2166ac", _SCORE: "#e0823d", _CONTROL: "#999999"}
    # A gap between the groups.
    groups = list(shades)
    at = [i + 0.6 * groups.index(row.group) for i, (row, _) in enumerate(found)]
    for group, shade in shades.items():
        here = [i for i, (row, _) in enumerate(found) if row.group == group]
        axes.barh(
            [at[i] for i in here],
            [found[i][1].mean for i in here],
            xerr=[np.nan_to_num(found[i][1].error) for i in here],
            height=0.66,
            color=shade,
            alpha=0.75,
            error_kw={"linewidth": 1.2, "capsize": 2.5, "ecolor": "#111111"},
            label=group,
        )
    markers = dict(zip(sets, "osD^vPX*<>", strict=False))
    for name in sets:
        points = [(over_sets(one.differences).get(name), y) for y, (_, one) in zip(at, found, strict=True)]
        kept = np.array([(x, y) for x, y in points if x is not None]).T
        hollow = {"s": 15, "facecolors": "none", "edgecolors": "#333333", "linewidths": 0.7}
        axes.scatter(*kept, marker=markers[name], zorder=3, label=name, **hollow)
    axes.axvline(0, color="#333333", linewidth=0.8)
    axes.set_yticks(at, [row.words for row, _ in found], fontsize=9)
    axes.invert_yaxis()
    axes.set_ylim(at[-1] + 0.7, -0.7)
    axes.set_xlabel("difference of AUROC from the base; bars: mean and one standard error, marks: each set")
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.legend(loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    with atomic_files.replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    return path.name
