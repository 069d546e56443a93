"""Metrics by group with intervals, to see whether a detector is as good for every line, site, sex or machine."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ganomaly_jax.core import number_format, text_table
from ganomaly_jax.evaluation import auroc_intervals
from ganomaly_jax.scoring import calibration
from ganomaly_jax.scoring.scorer import Scorer

_RESAMPLES = 1000
_WORDS = {
    "false_positive_rate": "false-positive rate",
    "true_positive_rate": "true-positive rate",
    "auroc": "AUROC",
}


def figures(scorer: Scorer, scores: np.ndarray, labels: np.ndarray, names: np.ndarray, seed: int) -> dict[str, Any]:
    """Computes the metrics of each group, for metrics.json.

    Args:
      scorer: the detector, whose groups may have thresholds of their own.
      scores: [n] float, finite.
      labels: [n], 0 normal and 1 anomalous.
      names: [n] the groups, as returned by `scoring.groups.of_images`.
      seed: the seed of the bootstrap.

    Returns:
      `rows`: a dict for each group with `group`, `n_normal`, `n_anomalous`, `threshold`, and `false_positive_rate`,
      `true_positive_rate` and `auroc`, each [value, low, high] with its 95 % interval (Wilson's; for AUROC a stratified
      bootstrap) or None if undefined. `gaps`: a sentence for each metric about its largest difference. `unnamed`: the
      number of images without a group.
    """
    rows = []
    for name in sorted(set(names.tolist()) - {""}):
        at = names == name
        threshold = calibration.of_group(scorer.calibration, name, scorer.config.evaluate).threshold
        normal, anomalous = scores[at & (labels == 0)], scores[at & (labels == 1)]
        rows.append(
            {
                "group": name,
                "n_normal": len(normal),
                "n_anomalous": len(anomalous),
                "threshold": threshold,
                "false_positive_rate": wilson(int((normal > threshold).sum()), len(normal)),
                "true_positive_rate": wilson(int((anomalous > threshold).sum()), len(anomalous)),
                "auroc": auroc(normal, anomalous, seed),
            }
        )
    return {"rows": rows, "gaps": gaps(rows), "unnamed": int((names == "").sum())}


def wilson(k: int, n: int) -> list[float] | None:
    """Returns [k / n, low, high] with the ends of Wilson's 95 % score interval (1927); None if n is 0."""
    from scipy import stats

    if n == 0:
        return None
    interval = stats.binomtest(k, n).proportion_ci(0.95, method="wilson")
    return [k / n, float(interval.low), float(interval.high)]


def auroc(normal: np.ndarray, anomalous: np.ndarray, seed: int) -> list[float] | None:
    """Returns [AUROC, low, high] with the ends of its 95 % bootstrap interval; None without both classes."""
    if not (len(normal) and len(anomalous)):
        return None
    labels = np.repeat([0, 1], [len(normal), len(anomalous)])
    scores = np.concatenate([normal, anomalous])
    interval = auroc_intervals.auroc_interval(labels, scores, resamples=_RESAMPLES, seed=seed)
    return list(dataclasses.astuple(interval))


def gaps(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Describes for each metric which groups have the largest and smallest value, and whether chance may explain it."""
    sentences = []
    for key, words in _WORDS.items():
        known = [row for row in rows if row[key] is not None]
        if len(known) < 2:
            continue
        most, least = max(known, key=lambda row: row[key][0]), min(known, key=lambda row: row[key][0])
        if most[key][0] == least[key][0]:
            sentences.append(f"The {words} is the same in all {len(known)} groups.")
            continue
        apart = most[key][1] > least[key][2]
        verdict = "do not overlap: chance is unlikely to explain this" if apart else "overlap: chance may explain this"
        sentences.append(
            f"The {words} is highest in {most['group']}, {shown(key, most[key])}, and lowest in "
            f"{least['group']}, {shown(key, least[key])}, of {len(known)} groups. Their 95 % intervals {verdict}."
        )
    return sentences


def shown(key: str, figure: Sequence[float] | None) -> str:
    """Formats a value and its interval, rates in per cent."""
    if key == "auroc":
        return number_format.interval(figure, ".3f")
    return number_format.interval(figure, ".1f", 100, " %")


def lines(by_group: Mapping[str, Any]) -> list[str]:
    """Formats the result of `figures` as lines for the terminal: a table and sentences."""
    header = ("group", "normal", "anomalous", "threshold", *_WORDS.values())
    return [*text_table.lines([header, *cells(by_group)]), *by_group["gaps"], *unnamed(by_group)]


def cells(by_group: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Formats the rows of the table of groups as text."""
    return [
        (
            row["group"],
            str(row["n_normal"]),
            str(row["n_anomalous"]),
            f"{row['threshold']:.6g}",
            *(shown(key, row[key]) for key in _WORDS),
        )
        for row in by_group["rows"]
    ]


def unnamed(by_group: Mapping[str, Any]) -> list[str]:
    """Returns a sentence about images without a group; empty if there are none."""
    count = by_group["unnamed"]
    return [f"{count} images are in no group and are left out of this table."] if count else []
