"""Is it as good for everyone? Figures and thresholds by group: line, site, sex, machine, whatever a file says."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from ganomaly_jax import calibration, metrics, scorer
from ganomaly_jax.errors import UserError
from ganomaly_jax.scorer import Judgement, Scorer

_RESAMPLES = 1000
_Z = 1.959963984540054  # of the normal distribution: 95 % lie between -z and z
_WORDS = {
    "false_positive_rate": "false-positive rate",
    "true_positive_rate": "true-positive rate",
    "auroc": "AUROC",
}

Given = str | os.PathLike[str] | Sequence[str]
"""A CSV file of `path,group`, or the group of each image in order; an empty name stands for no group."""


def of_images(given: Given, paths: Sequence[str], root: str = "") -> np.ndarray:
    """The group of each image, [n] words, empty where none is named.

    Args:
      given: a file whose rows name images by absolute path, or relative to the file, to `root` or to where the command
        runs; or one name an image.
      paths: [n] as `Dataset.paths`.
      root: the folder of the data set.

    Raises:
      UserError: a file that is no such table or names none of the images, another number of names.
    """
    if not isinstance(given, (str, os.PathLike)):
        names = np.array([str(name) for name in given], object)
        if len(names) != len(paths):
            raise UserError(f"{len(names)} groups for {len(paths)} images: wanted one an image")
        return names
    rows = _read(Path(given))
    known: dict[str, str] = {}
    for base in ("", os.path.dirname(given), root):
        for path, group in rows.items():
            known.setdefault(os.path.abspath(os.path.join(base, path)), group)
    names = np.array([rows.get(path) or known.get(os.path.abspath(path), "") for path in paths], object)
    if not any(names):
        raise UserError(
            f"{given} names none of the {len(paths)} images, such as {paths[0] if len(paths) else ''}: its first is "
            f"{next(iter(rows))}; wanted their paths, absolute or relative to the file or the data"
        )
    return names


def _read(path: Path) -> dict[str, str]:
    """{path: group} of a CSV file with a header."""
    try:
        if not path.is_file():
            raise UserError(f"--groups {path}: wanted a CSV file with the columns path and group")
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            if not {"path", "group"} <= set(reader.fieldnames or ()):
                held = ", ".join(reader.fieldnames or ()) or "nothing"
                raise UserError(f"{path} has the columns {held}: wanted path and group in its first line")
            rows: dict[str, str] = {}
            for row in reader:
                name, group = (row["path"] or "").strip(), (row["group"] or "").strip()
                if name and rows.setdefault(name, group) != group:
                    raise UserError(f"{path}: {name} is in {rows[name]!r} and in {group!r}; wanted one group an image")
    except (OSError, UnicodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if not rows:
        raise UserError(f"{path} has no rows: wanted a path and a group in each")
    return rows


def calibrated(scores: np.ndarray, names: np.ndarray) -> dict[str, list[float]]:
    """The calibration scores of each group, rising; images of no group are left out."""
    return {name: np.sort(scores[names == name]).tolist() for name in sorted(set(names.tolist()) - {""})}


def judge_by(judge: Scorer, judged: Judgement, names: np.ndarray) -> Judgement:
    """p-values and verdicts by the calibration scores of each image's own group, where the detector has them.

    Conformal prediction within each group (Vovk, Lindsay, Nouretdinov and Gammerman 2003, "Mondrian Confidence
    Machine"), so that the promised rate holds in each. Scores stay; images of other groups are judged as by all.
    """
    p_values, verdicts = judged.p_values.copy(), list(judged.verdicts)
    for name in set(names.tolist()) & judge.calibration.groups.keys():
        at = np.flatnonzero(names == name)
        own = calibration.of_group(judge.calibration, name, judge.config.evaluate)
        reference = jnp.asarray(judge.calibration.groups[name], jnp.float32)
        p_values[at] = np.asarray(calibration.p_values(reference, jnp.asarray(judged.scores[at])))
        for i, verdict in zip(at, calibration.verdicts(judged.scores[at], own.threshold, own.review), strict=True):
            verdicts[i] = verdict
    return scorer.Judgement(judged.scores, p_values, verdicts)


def figures(judge: Scorer, scores: np.ndarray, labels: np.ndarray, names: np.ndarray, seed: int) -> dict[str, Any]:
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
        own = calibration.of_group(judge.calibration, name, judge.config.evaluate)
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
    table = [header, *cells(found)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    drawn = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in table]
    return [*drawn, *found["gaps"], *unnamed(found)]


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
