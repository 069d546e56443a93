"""The report of a run: `report.html`, a single file with embedded pictures, and the folder `pictures/`.

It is built from plain arrays and the files of the run's folder. This module collects the contents of the template
`report.html`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ganomaly_jax.core import config
from ganomaly_jax.core.atomic_files import replacing
from ganomaly_jax.core.config_values import flatten, to_dict
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.core.number_format import decimal, interval, number, percent
from ganomaly_jax.report import curve_plots, figures, html
from ganomaly_jax.report.curve_plots import Scored
from ganomaly_jax.report.html import picture, show, table
from ganomaly_jax.runs import layout

KINDS = ("false positive", "false negative", "anomalous", "normal")
_EPOCHS = 6  # of the training's pictures, the first and the last among them


def write(
    workdir: Path, cases: Sequence[figures.Case], scored: Scored, residual_max: float, out: Path | None = None
) -> Path:
    """Writes all pictures into `out/pictures/` and the page `out/report.html`.

    The page is self-contained and has no scripts. It is built from `config.json`, `env.json`, `history.jsonl` and
    `pictures/epoch_*.png` of the run, and from `metrics.json` and `pictures/examples.png` in `out`; it says which of
    these are missing or unreadable.

    Args:
      workdir: the run's folder, which exists.
      cases: the items to show, worst first.
      scored: the test set with its curves.
      residual_max: the residual at the end of the colour scale of all pictures.
      out: the folder of the evaluation, which exists; None: that of the run.

    Returns:
      The path of the page.

    Raises:
      MissingError: matplotlib or jinja2 is not installed; nothing was written.
      UserError: a case has an unknown kind, or a file cannot be written.
    """
    out = workdir if out is None else out
    figures.require_matplotlib()
    html.environment(html.REPORTS)
    folder = out / layout.PICTURES
    shown = _draw_cases(folder, cases, residual_max)
    curves = curve_plots.curves(scored, folder)
    plots = [
        (curve_plots.losses(workdir / layout.HISTORY, folder / "losses.png"), "Training losses"),
        (
            curve_plots.health(workdir / layout.HISTORY, folder / "health.png"),
            "Training health, measured on normal items",
        ),
    ]
    (settings, config_problem), (environment, environment_problem), (found, metrics_problem) = (
        _read(path) for path in (workdir / layout.CONFIG, workdir / layout.ENVIRONMENT, out / layout.METRICS)
    )
    flat, items = flatten(settings), str(found.get("items", "images"))
    page = html.render(
        html.REPORTS,
        "report.html",
        title=_title(flat, workdir),
        warnings=_warnings(found),
        metrics_problem=metrics_problem,
        tiles=_tiles(found, items),
        facts=_facts(found),
        classes=_classes(found),
        baselines=_baselines(found),
        groups=_groups(found, items),
        curves=[picture(path, size="plot" if path.stem == "histogram" else "half") for path in curves],
        curves_note=_curves_note(curves),
        examples=picture(folder / "examples.png") if (folder / "examples.png").exists() else None,
        cases=list(_cases(shown, scored, residual_max, items)),
        training=_training(plots, workdir / layout.PICTURES),
        config_problem=config_problem,
        changed=_changed(flat),
        settings=table(("setting", "value"), ((key, show(value)) for key, value in flat.items())),
        environment_problem=environment_problem,
        environment=table(("name", "value"), ((key, show(value)) for key, value in flatten(environment).items())),
    )
    path = out / layout.REPORT
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def _draw_cases(
    folder: Path, cases: Sequence[figures.Case], residual_max: float
) -> dict[str, list[tuple[Path, figures.Case]]]:
    """Draws a picture of each case into the folder, after removing those of an earlier call; returns them by kind."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}; choose another folder") from error
    for kind in KINDS:
        for old in folder.glob(f"{kind.replace(' ', '_')}_[0-9]*.png"):
            figures.remove(old)
    shown: dict[str, list[tuple[Path, figures.Case]]] = {kind: [] for kind in KINDS}
    for case in cases:
        if case.kind not in shown:
            raise UserError(f"case of kind {case.kind!r}: expected one of {', '.join(KINDS)}")
        path = folder / f"{case.kind.replace(' ', '_')}_{len(shown[case.kind]) + 1:02d}.png"
        figures.case_picture(case, residual_max, path)
        shown[case.kind].append((path, case))
    return shown


def _read(path: Path) -> tuple[dict[str, Any], str]:
    """Reads the object in a JSON file; if that fails, returns no values and a sentence that says why."""
    try:
        values = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}, f"{path.name} is missing."
    except (OSError, ValueError, RecursionError):
        return {}, f"{path.name} cannot be read."
    return (values, "") if isinstance(values, dict) else ({}, f"{path.name} does not hold an object.")


def _title(flat: Mapping[str, Any], workdir: Path) -> str:
    """Returns the heading, with the folder's name if the configuration holds no source."""
    detector = config.DETECTORS.get(str(flat.get("model.detector")), "GANomaly")
    name = f"{detector} on {flat.get('data.source') or workdir.resolve().name}"
    return f"{name}, abnormal: {flat['data.abnormal']}" if flat.get("data.abnormal") else name


def _warnings(found: Mapping[str, Any]) -> list[Any]:
    lines = found.get("warnings") or []
    return lines if isinstance(lines, list) else [lines]


def _tiles(found: Mapping[str, Any], items: str) -> list[dict[str, str]]:
    """Returns the main metrics of metrics.json, each with its name and a hint on how to read it."""
    tiles = [
        ("AUROC", decimal(found.get("auroc")), "1 is perfect, 0.5 is chance"),
        (
            "average precision",
            decimal(found.get("average_precision")),
            "1 is perfect, chance is the share of anomalies",
        ),
        ("threshold", number(found.get("threshold")), "scores above it are anomalous"),
        ("false-positive rate", percent(found.get("false_positive_rate")), f"normal {items} above the threshold"),
        ("true-positive rate", percent(found.get("true_positive_rate")), f"anomalous {items} above the threshold"),
    ]
    if found.get("n_masks"):
        tiles += [
            ("pixel AUROC", decimal(found.get("pixel_auroc")), f"of the residual maps, on {found['n_masks']} masks"),
            ("AUPRO", decimal(found.get("aupro_30")), "overlap by region up to 30 % false positives, chance is 0.15"),
        ]
    counts = [f"{number(found[key])} {key[2:]}" for key in ("n_normal", "n_anomalous") if found.get(key) is not None]
    invalid = f"; {number(found['n_invalid'])} more could not be scored" if found.get("n_invalid") else ""
    tiles.append((items, ", ".join(counts) or "unknown", f"in the test set{invalid}"))
    return [{"name": name, "value": value, "hint": hint} for name, value, hint in tiles]


def _facts(found: Mapping[str, Any]) -> list[dict[str, str]]:
    named = (("Threshold", "threshold_source"), ("Protocol", "protocol"), ("Seed", "seed"))
    return [{"name": name, "text": show(found[key])} for name, key in named if found.get(key) is not None]


def _classes(found: Mapping[str, Any]) -> html.Table:
    held = found.get("per_class")
    rows = [(str(name), decimal(value)) for name, value in held.items()] if isinstance(held, dict) else []
    return table(("anomalous class", "AUROC"), rows)


def _baselines(found: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the tables that compare the detector with baselines; None if there are none."""
    held = found.get("baselines")
    if not isinstance(held, dict) or not held:
        return None

    def rows(of: Mapping[str, Any]) -> list[tuple[str, ...]]:
        return [
            (
                str(name).replace("_", " "),
                interval((row["auroc"], *row["interval"]) if row["auroc"] is not None else None, ".3f"),
                decimal(row["average_precision"]),
                percent(row["false_positive_rate"]),
                percent(row["true_positive_rate"]),
                interval(row["difference"], "+.3f") if row.get("difference") else "",
            )
            for name, row in of.items()
        ]

    header = ("AUROC", "average precision", "false-positive rate", "true-positive rate", "AUROC minus the detector's")
    tables = [table(("score", *header), rows(held))]
    if found.get("combinations"):
        tables.append(table(("combination", *header), rows(found["combinations"])))
    return {"tables": tables, "notes": list(found.get("baselines_notes", ()))}


def _groups(found: Mapping[str, Any], items: str) -> dict[str, Any] | None:
    """Returns the table of metrics by group; None if there is none."""
    held = found.get("groups")
    if not isinstance(held, dict) or not held.get("rows"):
        return None
    rows = [
        (
            str(row["group"]),
            str(row["n_normal"]),
            str(row["n_anomalous"]),
            number(row["threshold"]),
            interval(row["false_positive_rate"], ".1f", 100),
            interval(row["true_positive_rate"], ".1f", 100),
            interval(row["auroc"], ".3f"),
        )
        for row in held["rows"]
    ]
    header = ("group", "normal", "anomalous", "threshold", "false-positive rate, %", "true-positive rate, %", "AUROC")
    notes = list(held.get("gaps", ()))
    if held.get("unnamed"):
        notes.append(f"{held['unnamed']} {items} are in no group and are left out of this table.")
    return {"table": table(header, rows), "notes": notes}


def _curves_note(drawn: Sequence[Path]) -> str:
    if not drawn:
        return "There are no scores to plot."
    one_class = len(drawn) == 1
    return "ROC and precision-recall curves are not defined for a single class." if one_class else ""


def _cases(
    shown: Mapping[str, Sequence[tuple[Path, figures.Case]]], scored: Scored, residual_max: float, items: str
) -> Iterable[dict[str, Any]]:
    """Yields a section for each kind of case that occurs, and always for false positives and false negatives."""
    anomalous, threshold = scored.labels, scored.threshold
    flagged = scored.scores > (np.inf if threshold is None else threshold)
    mistakes = {
        "false positive": ("Worst false positives", ~anomalous, flagged, f"normal {items} are flagged"),
        "false negative": ("Worst false negatives", anomalous, ~flagged, f"anomalous {items} are missed"),
    }
    for kind, pictures in shown.items():
        heading, text = f"{kind.capitalize()} {items}", ""
        if kind in mistakes:
            heading, of, wrong, words = mistakes[kind]
            text = f"{np.sum(of & wrong)} of {np.sum(of)} {words}."
            if threshold is None:
                text = "There is no threshold, so nothing is flagged or missed."
        elif not pictures:
            continue
        if pictures:
            scale = f"; all residuals share one scale, 0 to {number(residual_max)}" if items == "images" else ""
            text += f" {len(pictures)} shown{scale}."
        drawn = [picture(path, f"{case.name}: {figures.decision(case)}", "wide") for path, case in pictures]
        yield {"heading": heading, "text": text.strip(), "pictures": drawn}


def _training(plots: Sequence[tuple[Path | None, str]], folder: Path) -> dict[str, Any]:
    """Returns the plots of the training, at most `_EPOCHS` of its pictures, and notes on what is missing."""
    found = {int(n[1]): path for path in folder.glob("epoch_*.png") if (n := re.match(r"epoch_(\d+)", path.name))}
    epochs = sorted(found)
    chosen = sorted(set(np.linspace(0, len(epochs) - 1, min(_EPOCHS, len(epochs))).round().astype(int).tolist()))
    notes = [] if plots[0][0] else ["history.jsonl is missing or holds no losses."]
    if not epochs:
        notes.append("No pictures were saved during training.")
    return {
        "plots": [picture(path, caption, "plot") for path, caption in plots if path],
        "epochs": [picture(found[epochs[i]], f"Inputs and reconstructions, epoch {epochs[i]}") for i in chosen],
        "notes": notes,
    }


def _changed(flat: Mapping[str, Any]) -> html.Table:
    """Returns the settings of a flat configuration that differ from their defaults."""
    defaults = flatten(to_dict(config.Config()))
    rows = [
        (key, show(value), show(defaults.get(key)) or "(empty)")
        for key, value in flat.items()
        if value != defaults.get(key)
    ]
    return table(("setting", "value", "default"), rows)
