"""The sections of a run's `report.html`: what was drawn, with a sentence where something is missing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ganomaly_jax.core import config
from ganomaly_jax.report import html

HALF, WIDE = "30rem", "46rem"


def title(flat: Mapping[str, Any], workdir: Path) -> str:
    """The heading of the page, from a flat configuration; the folder's name where that holds no source."""
    detector = config.DETECTORS.get(str(flat.get("model.detector")), "GANomaly")
    name = f"{detector} on {flat.get('data.source') or workdir.resolve().name}"
    return f"{name}, abnormal: {flat['data.abnormal']}" if flat.get("data.abnormal") else name


def curves(drawn: Sequence[Path]) -> str:
    """What `report.curves` drew, the two square ones beside each other."""
    if not drawn:
        return html.section("Curves", html.paragraph("There are no scores to draw."))
    pictures = [html.image(path, width=WIDE if path.stem == "histogram" else HALF) for path in drawn]
    if len(drawn) == 1:
        pictures.append(html.paragraph("ROC and precision-recall curves are not defined without both classes."))
    return html.section("Curves", *pictures)


def groups(found: Mapping[str, Any]) -> str:
    """The table by group of metrics.json; nothing where there is none."""
    held = found.get("groups")
    if not isinstance(held, dict) or not held.get("rows"):
        return ""

    def shown(figure: Sequence[float] | None, factor: float, form: str) -> str:
        if figure is None:
            return "not defined"
        value, low, high = (format(factor * number, form) for number in figure)
        return f"{value} ({low} to {high})"

    rows = [
        (
            str(row["group"]),
            str(row["n_normal"]),
            str(row["n_anomalous"]),
            html.number(row["threshold"]),
            shown(row["false_positive_rate"], 100, ".1f"),
            shown(row["true_positive_rate"], 100, ".1f"),
            shown(row["auroc"], 1, ".3f"),
        )
        for row in held["rows"]
    ]
    header = ("group", "normal", "anomalous", "threshold", "false-positive rate, %", "true-positive rate, %", "AUROC")
    count = held.get("unnamed")
    return html.section(
        "By group",
        html.table(rows, header),
        *(html.paragraph(sentence) for sentence in held.get("gaps", ())),
        html.paragraph("In brackets: 95 % intervals, of Wilson for rates, by bootstrap for AUROC."),
        html.paragraph(f"{count} images are in no group, and in no row of this table.") if count else "",
    )


def partners(found: Mapping[str, Any]) -> str:
    """The tables of detector, partners and combinations of metrics.json; nothing where there are none."""
    held = found.get("partners")
    if not isinstance(held, dict) or not held:
        return ""

    def shown(values: Sequence[float] | None, form: str) -> str:
        return "" if values is None else "{} ({} to {})".format(*(format(value, form) for value in values))

    def rows(of: Mapping[str, Any]) -> list[tuple[str, ...]]:
        return [
            (
                str(name).replace("_", " "),
                "not defined" if row["auroc"] is None else shown((row["auroc"], *row["interval"]), ".3f"),
                html.number(row["average_precision"]),
                html.percent(row["false_positive_rate"]),
                html.percent(row["true_positive_rate"]),
                shown(row.get("difference"), "+.3f"),
            )
            for name, row in of.items()
        ]

    header = ("score", "AUROC", "average precision", "false-positive rate", "true-positive rate", "AUROC - detector's")
    combined = found.get("combinations")
    return html.section(
        "Beside statistical detectors",
        html.table(rows(held), header),
        html.table(rows(combined), ("combination", *header[1:])) if combined else "",
        *(html.paragraph(sentence) for sentence in found.get("partners_notes", ())),
        html.paragraph("In brackets: 95 % intervals, of AUROC by bootstrap, of differences by DeLong."),
    )


def cases(
    shown: Mapping[str, Sequence[tuple[Path, str]]],
    labels: np.ndarray,
    scores: np.ndarray,
    threshold: float | None,
    residual_max: float,
    items: str = "images",
) -> Iterable[str]:
    """A section for each kind of case; for the two kinds of mistake also where there is none.

    Args:
      shown: for each kind its pictures with the names of the images, worst first.
      labels: [N] bool, True is anomalous.
      scores: [N] float64, finite.
      threshold: a score above it is anomalous; None where there is none.
      residual_max: the end of the colour scale of all pictures.
      items: what they are of: images, rows or windows.
    """
    flagged = scores > (np.inf if threshold is None else threshold)
    mistakes = {
        "false positive": ("Worst false positives", ~labels, flagged, f"normal {items} are flagged"),
        "false negative": ("Worst false negatives", labels, ~flagged, f"anomalous {items} are missed"),
    }
    for kind, pictures in shown.items():
        heading, sentence = f"{kind.capitalize()} {items}", ""
        if kind in mistakes:
            heading, of, wrong, words = mistakes[kind]
            sentence = f"{np.sum(of & wrong)} of {np.sum(of)} {words}."
            if threshold is None:
                sentence = "There is no threshold, so nothing is flagged or missed."
        elif not pictures:
            continue
        if pictures:
            scale = f"; all residuals are on one scale, 0 to {html.number(residual_max)}" if items == "images" else ""
            sentence += f" {len(pictures)} shown{scale}."
        images = (html.image(path, name) for path, name in pictures)
        yield html.section(heading, html.paragraph(sentence.strip()), *images)


def training(history: Path | None, folder: Path, health: Path | None = None) -> str:
    """The pictures of losses and health, the first and last `epoch_*.png` of the folder, and at most four between."""
    parts = [
        html.image(history, width=WIDE) if history else html.paragraph("history.jsonl is missing or holds no losses.")
    ]
    if health:
        parts.append(html.image(health, "Its health, at normal images", width=WIDE))
    found = {int(n[1]): path for path in folder.glob("epoch_*.png") if (n := re.match(r"epoch_(\d+)", path.name))}
    epochs = sorted(found)
    for i in sorted(set(np.linspace(0, len(epochs) - 1, min(6, len(epochs))).round().astype(int).tolist())):
        parts.append(html.image(found[epochs[i]], f"Inputs and reconstructions, epoch {epochs[i]}"))
    if not epochs:
        parts.append(html.paragraph("There are no pictures from the training."))
    return html.section("Training", *parts)
