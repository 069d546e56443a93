"""Is a detector as good for every group? Figures by line, site, sex, machine, with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ganomaly_jax.core import text_table
from ganomaly_jax.evaluation import metrics
from ganomaly_jax.scoring import calibration
from ganomaly_jax.scoring.scorer import Scorer

_RESAMPLES = 1000
_Z = 1.959963984540054  # of the normal distribution: 95 % lie between -z and z
_WORDS = {
    "false_positive_rate": "false-positive rate",
    "true_positive_rate": "true-positive rate",
    "auroc": "AUROC",
}


def figures(scorer: Scorer, scores: np.ndarray, labels: np.ndarray, names: np.ndarray, seed: int) -> dict[str, Any]:
    """What metrics.json says by group.

    Args:
      scores: [n] finite.
      labels: [n], 0 normal and 1 anomalous.
      names: [n], as `of_images`.
      seed: of the bootstrap.

    Returns:
      `rows`: a dict a group: `group`, `n_normal`, `n_anomalous`, `threshold`, and `false_positive_rate`,
      `true_positive_rate`, `auroc`, each [value, low, high] with its 95 % interval (Wilson; for AUROC a bootstrap
      within both classes), None where not defined. `gaps`: the largest difference of each figure, a sentence each.
      `unnamed`: images of no group.
    """
    rows = []
    for name in sorted(set(names.tolist()) - {""}):
        at = names == name
        own = calibration.of_group(scorer.calibration, name, scorer.config.evaluate)
        normal, anomalous = scores[at & (labels == 0)], scores[at & (labels == 1)]
        rows.append(
            {
                "group": name,
                "n_normal": len(normal),
                "n_anomalous": len(anomalous),
                "threshold": own.threshold,
                "false_positive_rate": wilson(int((normal > own.threshold).sum()), len(normal)),
                "true_positive_rate": wilson(int((anomalous > own.threshold).sum()), len(anomalous)),
                "auroc": auroc_interval(normal, anomalous, seed),
            }
        )
    return {"rows": rows, "gaps": gaps(rows), "unnamed": int((names == "").sum())}


def wilson(k: int, n: int) -> list[float] | None:
    """[k / n, low, high]: the 95 % score interval of Wilson 1927; None where n is 0."""
    if n == 0:
        return None
    share, z2 = k / n, _Z * _Z
    centre, half = share + z2 / (2 * n), _Z * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    # At its ends the interval holds the share itself, which rounding may put outside.
    return [
        share,
        max(min((centre - half) / (1 + z2 / n), share), 0.0),
        min(max((centre + half) / (1 + z2 / n), share), 1.0),
    ]


def auroc_interval(normal: np.ndarray, anomalous: np.ndarray, seed: int) -> list[float] | None:
    """[AUROC, low, high]: the 95 % percentile interval of 1,000 resamples of each class; None without both classes."""
    if not (len(normal) and len(anomalous)):
        return None
    labels = np.repeat([0, 1], [len(normal), len(anomalous)])
    value = metrics.summary(labels, np.concatenate([normal, anomalous]), None)["auroc"]
    # By distinct score, so that a resample is two rows of counts.
    distinct, index = np.unique(np.concatenate([normal, anomalous]), return_inverse=True)
    random = np.random.default_rng([seed, 3])
    found = np.empty(_RESAMPLES)
    for i in range(_RESAMPLES):
        below, above = (
            np.bincount(random.choice(part, len(part)), minlength=len(distinct)).astype(float)
            for part in (index[: len(normal)], index[len(normal) :])
        )
        found[i] = (above * (np.cumsum(below) - below / 2)).sum()
    low, high = np.quantile(found / (len(normal) * len(anomalous)), [0.025, 0.975])
    return [float(value or 0.0), float(low), float(high)]


def gaps(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """For each figure the groups that it is largest and smallest in, and whether chance may explain that."""
    said = []
    for key, words in _WORDS.items():
        known = [row for row in rows if row[key] is not None]
        if len(known) < 2:
            continue
        most, least = max(known, key=lambda row: row[key][0]), min(known, key=lambda row: row[key][0])
        if most[key][0] == least[key][0]:
            said.append(f"The {words} is the same in all {len(known)} groups.")
            continue
        apart = most[key][1] > least[key][2]
        verdict = "they lie apart: more than chance" if apart else "they overlap, so that chance may explain it"
        said.append(
            f"The {words} is {shown(key, most[key])} in {most['group']} and {shown(key, least[key])} in "
            f"{least['group']}, the worst gap of {len(known)} groups. Intervals of 95 %: {verdict}."
        )
    return said


def shown(key: str, figure: Sequence[float] | None) -> str:
    """A value and its interval, rates in per cent."""
    if figure is None:
        return "not defined"
    if key == "auroc":
        return "{:.3f} ({:.3f} to {:.3f})".format(*figure)
    return "{:.1f} % ({:.1f} to {:.1f} %)".format(*(100 * value for value in figure))


def lines(found: Mapping[str, Any]) -> list[str]:
    """The table for a terminal, and the gaps."""
    header = ("group", "normal", "anomalous", "threshold", *_WORDS.values())
    return [*text_table.lines([header, *cells(found)]), *found["gaps"], *unnamed(found)]


def cells(found: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The rows of the table as text."""
    return [
        (
            row["group"],
            str(row["n_normal"]),
            str(row["n_anomalous"]),
            f"{row['threshold']:.6g}",
            *(shown(key, row[key]) for key in _WORDS),
        )
        for row in found["rows"]
    ]


def unnamed(found: Mapping[str, Any]) -> list[str]:
    """A sentence where images are in no group."""
    count = found["unnamed"]
    return [f"{count} images are in no group, and in no row of this table."] if count else []
