"""The page of auroc.py: the tables, what others published, and the picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.accuracy.auroc_data import KINDS, Kind
from benchmarks.accuracy.auroc_model import COLUMNS
from benchmarks.common import command
from benchmarks.common.controls import CONTROLS
from ganomaly_jax.core import atomic_files

PUBLISHED = Path(__file__).with_name("published.json")
_UNVERIFIED = "unverified"
Values = dict[str, dict[int, float]]
"""{row: {seed: AUROC}}."""


def published(kind: Kind) -> list[dict[str, Any]]:
    """Returns what others report on this data set by this metric, with its reliability, in terms of our rows."""
    if not kind.published:
        return []
    ours = {theirs: name for name, theirs in kind.aliases}
    found = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    return [one | {"row": ours.get(one["class"], one["class"])} for one in found if one["dataset"] == kind.published]


def values(report: Mapping[str, Any], configuration: str | None, column: str, score: str) -> Values:
    """Returns the AUROCs of a configuration, or with None those of the control `score`."""
    found: Values = {}
    for part in report["parts"]:
        for row, held in part["rows"].items():
            each = held["controls"] if configuration is None else held["columns"].get(column, {})
            if configuration in (None, part["configuration"]) and score in each:
                found.setdefault(row, {})[part["seed"]] = each[score]
    return found


def rows_of(report: Mapping[str, Any]) -> list[str]:
    """Returns all rows, in the order of the parts."""
    return list(dict.fromkeys(row for part in report["parts"] for row in part["rows"]))


def mean_over_rows(found: Values, rows: Sequence[str]) -> dict[int, float]:
    """Returns {seed: mean over the rows} for the seeds that have all of them."""
    seeds = sorted({seed for row in rows for seed in found.get(row, {})})
    whole = [seed for seed in seeds if all(seed in found.get(row, {}) for row in rows)]
    return {seed: float(np.mean([found[row][seed] for row in rows])) for seed in whole}


def spread(found: Mapping[int, float] | None) -> str:
    """Formats mean and standard deviation over seeds."""
    if not found:
        return "-"
    each = list(found.values())
    return f"{np.mean(each):.3f}" + (f" ± {np.std(each, ddof=1):.3f}" if len(each) > 1 else "")


def scores_of(report: Mapping[str, Any], column: str = "running") -> list[tuple[str, str]]:
    """Lists the (configuration, score) that have this column, in the order in which they were measured."""
    parts = sorted(report["parts"], key=lambda part: list(report["configurations"]).index(part["configuration"]))
    pairs = [
        (p["configuration"], s) for p in parts for held in p["rows"].values() for s in held["columns"].get(column, {})
    ]
    return list(dict.fromkeys(pairs))


def _table(report: Mapping[str, Any], first: str, columns: Mapping[str, Values]) -> list[str]:
    """Returns a table row for each row of the set, and their mean where it is meaningful."""
    rows, averaged = rows_of(report), KINDS[report["dataset"]].averaged
    lines = command.table(" | ".join([first, *columns]))
    lines += [f"| {' | '.join([row, *(spread(found.get(row)) for found in columns.values())])} |" for row in rows]
    if averaged and len(rows) > 1:
        means = [spread(mean_over_rows(found, rows)) for found in columns.values()]
        lines.append(f"| **mean of {len(rows)}** | {' | '.join(means)} |")
    return lines


def _honest(report: Mapping[str, Any]) -> list[str]:
    columns = {f"{name}, {score}": values(report, name, "running", score) for name, score in scores_of(report)}
    columns |= {control: values(report, None, "", control) for control in CONTROLS}
    return _table(report, "row", columns)


def _ways(report: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, score in scores_of(report):
        columns = {column: values(report, name, column, score) for column in COLUMNS}
        if any(columns[column] for column in COLUMNS if column != "running"):
            lines += ["", f"### {name}, {score} score", "", *_table(report, "row", columns)]
    return lines


def _against(report: Mapping[str, Any]) -> list[str]:
    lines = command.table(f"configuration | {' | '.join(CONTROLS)}")
    for name in dict.fromkeys(name for name, _ in scores_of(report)):
        cells = []
        held = [row for part in report["parts"] if part["configuration"] == name for row in part["rows"].values()]
        for control in CONTROLS:
            tests = [row["against"][control] for row in held if control in row.get("against", {})]
            sure = [test["difference"] > 0 for test in tests if test["p_value"] < 0.05]
            cells.append(f"{sum(sure)} better, {len(sure) - sum(sure)} worse, {len(tests) - len(sure)} neither")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _pairs(report: Mapping[str, Any]) -> list[str]:
    """Compares every other configuration with the first, over what both measured."""
    first, *others = scores_of(report) or [("", "")]
    base = values(report, first[0], "running", first[1])
    lines = []
    for name, score in others:
        each = values(report, name, "running", score)
        changes = [each[row][seed] - base[row][seed] for row in each for seed in each[row] if seed in base.get(row, {})]
        if changes:
            error = f"{np.std(changes, ddof=1) / len(changes) ** 0.5:.4f}" if len(changes) > 1 else "not known"
            lines.append(
                f"- {name}, {score}, minus {', '.join(first)}: {np.mean(changes):+.4f}, standard error {error}, "
                f"over {len(changes)} pairs of the same row and seed"
            )
    return ["Column `running`, compared pair by pair:", "", *lines, ""] if lines else []


def _others(report: Mapping[str, Any]) -> list[str]:
    """Lists published figures; those of GANomaly beside ours `as_shipped`, the only comparable ones."""
    if not report["published"]:
        return ["No published figure is known for this data set under this protocol.", ""]
    column = "as_shipped_shuffled" if report["dataset"] == "mnist" else "as_shipped"
    name = "original_scaling" if ("original_scaling", "squared") in scores_of(report) else "paper"
    ours, rows = values(report, name, column, "squared"), rows_of(report)
    lines = [
        f"Beside them ours in the column `{column}` of `{name}`, squared score: what the authors' code does with this "
        "set. Nothing honest is comparable with them. A figure that is marked as unverified was not read in the paper.",
        "",
        *command.table("row | method | published | its trust | read in | ours"),
    ]
    whole = len(rows) == 10
    for one in sorted(report["published"], key=lambda one: (one["method"] != "GANomaly", one["method"], one["row"])):
        mean = one["row"].startswith("mean")
        mine = spread(mean_over_rows(ours, rows) if mean and whole else ours.get(one["row"]))
        beside = mine if one["method"].startswith("GANomaly") else "-"
        where = f"{one['source']}; {one['paper']}, {one['table']}"
        lines.append(f"| {one['row']} | {one['method']} | {one['value']:.3f} | {one['trust']} | {where} | {beside} |")
    other = {one["protocol"] for one in report["published"]}
    return [*lines, "", f"Their protocol: {'; '.join(sorted(other))}.", ""]


def _settings(report: Mapping[str, Any]) -> list[str]:
    """Describes each configuration, and where it is smaller than the paper's."""
    paper, kind = report["paper"], KINDS[report["dataset"]]
    shared = report["parts"][0]["protocol"]
    lines, reduced = [], []
    for name, words in report["configurations"].items():
        held = [part for part in report["parts"] if part["configuration"] == name]
        if held:
            settings = held[0]["settings"]
            listed = ", ".join(f"{key} {value}" for key, value in settings.items())
            minutes = sum(part["seconds"] for part in held) / 60
            lines.append(f"- `{name}`: {words}; {listed}; {len(held)} trainings, {minutes:.0f} minutes in all")
            reduced += [
                f"{name}: {key} {settings[key]} (the paper {paper[key]})"
                for key in ("epochs", "features", "latent", "batch")
                if key in settings and settings[key] != paper[key]
            ]
    if shared["side"] != paper["side"]:
        reduced.append(f"{shared['side']} pixels a side (the paper {paper['side']})")
    if shared["limit"]:
        reduced.append(f"trained on at most {shared['limit']:,} images")
    if shared["test_limit"]:
        reduced.append(f"tested on at most {shared['test_limit']:,} normal images and as many of each anomalous class")
    seeds = sorted({part["seed"] for part in report["parts"]})
    lines += ["", f"Split: {kind.split}. Seeds {', '.join(map(str, seeds))}."]
    if reduced:
        lines += ["", f"**Reduced, the same for all columns: {'; '.join(reduced)}.**"]
    stopped = [part for part in report["parts"] if "diverged" in part]
    lines += [
        f"- {p['configuration']}, {p['job']}, seed {p['seed']} diverged in epoch {p['diverged']}: in no figure"
        for p in stopped
    ]
    return [*lines, ""]


def markdown(report: Mapping[str, Any], picture: str = "") -> str:
    """Formats the report as a page; `picture` is the name of the file to show."""
    kind = KINDS[report["dataset"]]
    widths = [
        row["interval"][1] - row["interval"][0]
        for part in report["parts"]
        for row in part["rows"].values()
        if "interval" in row
    ]
    lines = [
        *command.opening(report, f"AUROC on {kind.title}", packages=("jax", "flax", "optax", "numpy")),
        f"A row is: {kind.about}. A cell is the mean over the seeds ± their standard deviation.",
        "",
        *_settings(report),
        *([f"![AUROC of each row]({picture})", ""] if picture else []),
        "## Honest: running statistics, last epoch",
        "",
        *_honest(report),
        "",
        *[f"- {name}: {words}" for name, words in CONTROLS.items()],
        "",
    ]
    if widths:
        lines += [
            f"One AUROC is known to about ±{np.median(widths) / 2:.3f} from its test images alone: half the median "
            "95 % bootstrap interval.",
            "",
            "Against the controls on the same images, DeLong's test, p below .05, every row and "
            "seed one test, the first score of each configuration:",
            "",
            *_against(report),
            "",
        ]
    lines += [*_pairs(report), "## The same models, judged in other ways", ""]
    lines += [f"- `{name}`: {words}" for name, words in COLUMNS.items()] + _ways(report)
    lines += ["", "## Published", "", *_others(report)]
    return "\n".join(lines)


_SHADES = ("#2166ac", "#92c5de", "#e0823d", "#f6c9a0", "#5aae61", "#9970ab", "#c2a5cf", "#b2182b")


def picture(report: Mapping[str, Any], path: Path) -> str:
    """Draws a bar per score and row, with controls and published figures; the file name, "" without matplotlib.

    Raises:
      UserError: it cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return ""
    rows = rows_of(report)
    if not rows:
        return ""
    first: dict[str, str] = {}
    for name, score in scores_of(report):
        first.setdefault(name, score)
    # All ways of judging the first configuration, and the honest one of the others.
    main = next(iter(first), "paper")
    judged = {column: values(report, main, column, first.get(main, "squared")) for column in COLUMNS}
    each = {f"{main}, {column}": found for column, found in judged.items() if found}
    each |= {
        f"{name}, running": values(report, name, "running", score) for name, score in first.items() if name != main
    }
    best = {name: values(report, None, "", name) for name in CONTROLS}
    places = [*rows, "mean"] if KINDS[report["dataset"]].averaged and len(rows) > 1 else rows
    every = {**each, **best}
    for found in every.values():
        if places != rows:
            found["mean"] = mean_over_rows(found, rows)
    figure = Figure(figsize=(max(7.5, 1.05 * len(places) + 1.5), 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    at = np.arange(len(places))
    shades = dict(zip([f"{main}, {column}" for column in COLUMNS], _SHADES, strict=False))
    shades |= dict(zip([name for name in each if name not in shades], _SHADES[len(COLUMNS) :], strict=False))
    width = 0.8 / max(len(each), 1)
    for k, (column, found) in enumerate(each.items()):
        means = [np.mean(list(found[place].values())) if found.get(place) else np.nan for place in places]
        errors = [np.std(list(found[p].values()), ddof=1) if len(found.get(p, {})) > 1 else 0 for p in places]
        axes.bar(
            at + (k - (len(each) - 1) / 2) * width,
            means,
            width,
            yerr=errors,
            error_kw={"linewidth": 0.8},
            color=shades[column],
            label=column,
        )
    for marker, (name, found) in zip("_x+", best.items(), strict=True):
        means = [np.mean(list(found[place].values())) if found.get(place) else np.nan for place in places]
        axes.scatter(at, means, marker=marker, s=70, color="#1e1e1e", linewidths=1.6, zorder=3, label=name)
    _draw_published(axes, report, places)
    axes.axhline(0.5, color="#777777", linewidth=0.8, linestyle="--")
    axes.set_xticks(at, places, rotation=30 if max(map(len, places)) > 6 else 0)
    axes.set_xlim(-0.6, len(places) - 0.4)
    axes.set_ylim(0, 1)
    axes.set_ylabel("AUROC")
    axes.spines[["top", "right"]].set_visible(False)
    scored = [f"{name}: {score}" for name, score in first.items()]
    title = "\n".join([f"{KINDS[report['dataset']].title}: mean over seeds, bars of one deviation", *scored])
    figure.suptitle(title, fontsize=10)
    handles, names = axes.get_legend_handles_labels()
    order = sorted(range(len(names)), key=lambda i: names[i] not in each)
    figure.legend(
        [handles[i] for i in order],
        [names[i] for i in order],
        loc="outside lower center",
        ncols=4,
        frameon=False,
        fontsize=9,
    )
    with atomic_files.replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    return path.name


def _draw_published(axes: Any, report: Mapping[str, Any], places: Sequence[str]) -> None:
    """Draws GANomaly's figures of the tables; hollow if they are unverified."""
    for unverified in (False, True):
        points = [
            (places.index(place), one["value"])
            for one in report["published"]
            for place in ["mean" if one["row"] == "mean of 10" else one["row"]]
            if one["method"] == "GANomaly"
            and place in places
            and (place != "mean" or len(places) == 11)
            and one["trust"].startswith(_UNVERIFIED) == unverified
        ]
        if points:
            axes.scatter(
                *zip(*points, strict=True),
                marker="D",
                s=40,
                facecolors="none" if unverified else "#b2182b",
                edgecolors="#b2182b",
                zorder=4,
                label="published GANomaly" + (" (unverified)" if unverified else ""),
            )
