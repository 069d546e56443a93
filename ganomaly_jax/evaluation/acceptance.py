"""Whether a new detector may take the place of an old one: both on the same images, which neither was trained on."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from ganomaly_jax.core import text_table
from ganomaly_jax.data import datasets, lazy
from ganomaly_jax.data.datasets import Dataset
from ganomaly_jax.data.words import IMAGES, Words
from ganomaly_jax.evaluation import auroc_intervals, metrics, two_sample
from ganomaly_jax.evaluation.auroc_intervals import RESAMPLES, Interval
from ganomaly_jax.scoring import calibration
from ganomaly_jax.scoring.scorer import Scorer

# How much worse a new detector may be: in AUROC, and in the share of the anomalies that it finds.
MARGIN = 0.05
# Below this p-value scores are said to have shifted.
SHIFTED = 0.01
# With fewer than this, intervals are rough.
_FEW = 10
SIDES = ("old", "recalibrated", "new")
GROUPS = ("old", "new")


def compare(old: Scorer, new: Scorer, dataset: Dataset, origins: np.ndarray) -> dict[str, Any]:
    """Compares both detectors on the calibration and test parts of a mixture, in numbers.

    The ranking is that of all held-out images. What lies above a threshold is counted in the test part, which no
    threshold was set on, and where a test part has no normal images in the calibration part. `recalibrated` is the old
    detector with a threshold by the calibration images of the new one: what could be had without training.

    Args:
      dataset: with `parts` of the mixture; its images as both take them.
      origins: [N] 0 for an old, 1 for a new image.

    Returns:
      thresholds, `flagged` normal images of each origin and `found` anomalies by detector, each {count, of}; `auroc`
      of the old test set and of all with the paired difference, None without anomalies; `shift` of the old scores;
      `beyond`, how often the old detector scores a new normal image higher than an anomaly.
    """
    held = np.flatnonzero(dataset.parts != 0)
    scores = {side: scorer(lazy.select(dataset.images, held)) for side, scorer in (("old", old), ("new", new))}
    valid = np.isfinite(scores["old"]) & np.isfinite(scores["new"])
    held, scores = held[valid], {side: found[valid] for side, found in scores.items()}
    scores["recalibrated"] = scores["old"]
    assert dataset.normal is not None and dataset.parts is not None
    labels = np.array([dataset.classes[label] not in dataset.normal for label in dataset.labels[held]], np.int64)
    origin, test = origins[held], dataset.parts[held] == 1
    calibrated = dataset.parts[held] == datasets.CALIBRATION
    again = calibration.by(scores["old"][calibrated], new.config.evaluate, new.words.items)
    thresholds = {"old": old.threshold, "recalibrated": again.threshold, "new": new.threshold}
    above = {side: scores[side] > thresholds[side] for side in SIDES}
    flagged, counted_in = {}, {}
    for k, group in enumerate(GROUPS):
        chosen = (labels == 0) & (origin == k) & test
        counted_in[group] = "test" if chosen.any() else "calibration"
        chosen = chosen if chosen.any() else (labels == 0) & (origin == k)
        flagged[group] = {side: _count(above[side][chosen]) for side in SIDES}
    odd = labels == 1
    change = _change(above["old"][odd], above["new"][odd]) if odd.any() else None
    statistic, p_value = two_sample.kolmogorov_smirnov(
        np.asarray(old.variables["calibration"]), scores["old"][(labels == 0) & (origin == 1)]
    )
    return {
        "thresholds": thresholds,
        "promised": new.calibration.rate,
        "calibration": len(new.variables["calibration"]),
        "flagged": flagged,
        "counted_in": counted_in,
        "found": {side: _count(above[side][odd]) for side in SIDES},
        "found_change": change and dataclasses.asdict(change),
        "auroc": {"old": _ranking(labels, scores, origin == 0), "all": _ranking(labels, scores, origin >= 0)},
        "shift": {"statistic": statistic, "p_value": p_value},
        "beyond": _beyond(scores["old"], odd, (labels == 0) & (origin == 1)),
        "left_out": int((~valid).sum()),
    }


def decide(figures: dict[str, Any], margin: float, words: Words = IMAGES) -> list[str]:
    """Returns the reasons why the new detector may not replace the old one, as sentences; empty if it is not worse.

    Not worse means, with labelled anomalies: the lower end of the 95 % interval of the difference in AUROC (new minus
    old, DeLong's, paired) is above -`margin`, on the old test set and on all held-out images; and the share of the
    anomalies above its own threshold has not clearly fallen by more than `margin` (the upper end of the bootstrap
    interval of the difference is at least -`margin`). In any case: of the old and of the new normal images, each,
    it flags no more than the old detector, or no more than its threshold promises, chance allowed for.
    """
    said, items = [], words.items
    for name, where in (("old", "on the old test set"), ("all", f"on all held-out {items}")):
        found = figures["auroc"][name]
        if found is not None and found["difference"]["low"] <= -margin:
            low = found["difference"]["low"]
            said.append(
                f"{where} the AUROC goes from {found['old']['value']:.3f} to {found['new']['value']:.3f}: the "
                f"difference may be {low:+.3f}, below the margin of {-margin:+.3f}"
            )
    change = figures["found_change"]
    if change is not None and change["high"] < -margin:
        of = figures["found"]["old"]["of"]
        said.append(
            f"at its threshold it finds {figures['found']['new']['count']} of {of} anomalies where the old one finds "
            f"{figures['found']['old']['count']}: a loss of more than {margin:.1%} beyond chance"
        )
    for group in GROUPS:
        old, new = (figures["flagged"][group][side] for side in ("old", "new"))
        if new["count"] > old["count"] and new["count"] / new["of"] > _allowed(figures, new["of"]):
            said.append(
                f"it flags {new['count']} of {new['of']} held-out {group} normal {items} where the old one flags "
                f"{old['count']}, and {figures['promised']:.1%} is promised"
            )
    return said


def describe(figures: dict[str, Any], workdir: str, source: str, words: Words = IMAGES) -> list[str]:
    """Describes the comparison: a table, then sentences with what to do."""
    items = words.items
    rows: list[tuple[str, ...]] = [
        ("detector", "threshold", "flags old normals", "flags new normals", "finds anomalies")
    ]
    for side, title in zip(SIDES, ("old, as it is", "old, recalibrated", "new"), strict=True):
        counts = [figures["flagged"][group][side] for group in GROUPS] + [figures["found"][side]]
        cells = [f"{one['count']} of {one['of']}" if one["of"] else "none labelled" for one in counts]
        rows.append((title, f"{figures['thresholds'][side]:.6g}", *cells))
    lines = [f"compared on the same {items}, which neither was trained on:", *text_table.lines(rows)]
    for name, where in (("old", "old test set"), ("all", f"all held-out {items}")):
        found = figures["auroc"][name]
        if found is not None:
            difference = found["difference"]
            lines.append(
                f"AUROC, {where} ({found['normal']} normal, {found['anomalous']} anomalous): old "
                f"{found['old']['value']:.4f}, new {found['new']['value']:.4f}, difference {difference['value']:+.4f}, "
                f"95 % interval {difference['low']:+.4f} to {difference['high']:+.4f} (DeLong's, paired)"
            )
            if min(found["normal"], found["anomalous"]) < _FEW:
                lines.append(f"note: with fewer than {_FEW} {items} of a class the interval is rough")
    if not figures["found"]["new"]["of"]:
        lines.append(
            f"note: no anomalies are labelled, so that only the share of flagged normal {items} was compared; whether "
            "the new one finds anomalies as well as the old one is not known"
        )
    for group in GROUPS:
        if figures["counted_in"][group] == "calibration":
            lines.append(
                f"note: the {group} normal {items} counted are those that the threshold was set on: there are no others"
            )
    if figures["left_out"]:
        lines.append(f"note: {figures['left_out']} {items} with {words.not_finite} are left out")
    return lines + _advice(figures, workdir, source, items)


def _advice(figures: dict[str, Any], workdir: str, source: str, items: str) -> list[str]:
    """Returns the advice to recalibrate if only the level of the scores has changed."""
    old, again = (figures["flagged"]["new"][side] for side in ("old", "recalibrated"))
    shift = figures["shift"]
    warned = []
    if figures["beyond"] is not None and figures["beyond"] > 0.5:
        warned.append(
            f"note: for the old detector the new normal {items} are further from normal than the labelled anomalies "
            "are: look at some of them, they are what is taken for normal from now on"
        )
    moved = shift["p_value"] < SHIFTED and old["count"] / old["of"] > _allowed(figures, old["of"])
    ranking = figures["auroc"]["all"]
    if not moved:
        return warned
    shown = (
        f"the old scores of the new normal {items} are not those of the old ones (Kolmogorov-Smirnov distance "
        f"{shift['statistic']:.2f}, p value {shift['p_value']:.2g})"
    )
    same = ranking is not None and ranking["difference"]["low"] <= 0 <= ranking["difference"]["high"]
    if same and again["count"] / again["of"] <= _allowed(figures, again["of"]):
        return [
            *warned,
            f"{shown}, but the ranking is the same as after training: only the level has moved, and "
            f"`ganomaly recalibrate --workdir {workdir} --data {source}` would do without new weights",
        ]
    return [*warned, shown]


def _allowed(figures: dict[str, Any], n: int) -> float:
    return calibration.allowed(figures["promised"], n, figures["calibration"])


def _beyond(scores: np.ndarray, anomalous: np.ndarray, normal: np.ndarray) -> float | None:
    """Returns how often a normal item scores higher than an anomaly, ties counting half; None without both kinds."""
    if not anomalous.any() or not normal.any():
        return None
    chosen = anomalous | normal
    return float(metrics.auroc(normal[chosen], scores[chosen]))


def _count(flags: np.ndarray) -> dict[str, int]:
    return {"count": int(flags.sum()), "of": len(flags)}


def _ranking(labels: np.ndarray, scores: dict[str, np.ndarray], chosen: np.ndarray) -> dict[str, Any] | None:
    """Returns both AUROCs with 95 % bootstrap intervals and the paired difference; None with too few of a class."""
    labels = labels[chosen]
    anomalous = int(labels.sum())
    if min(anomalous, len(labels) - anomalous) < 2:
        return None
    old, new = scores["old"][chosen], scores["new"][chosen]
    both = auroc_intervals.paired(labels, new, old)
    return {
        "old": dataclasses.asdict(auroc_intervals.auroc_interval(labels, old)),
        "new": dataclasses.asdict(auroc_intervals.auroc_interval(labels, new)),
        "difference": dataclasses.asdict(both.difference),
        "p_value": both.p_value,
        "normal": len(labels) - anomalous,
        "anomalous": anomalous,
    }


def _change(old: np.ndarray, new: np.ndarray) -> Interval:
    """Returns the difference in the share of flags [n], new minus old, with a 95 % percentile bootstrap interval."""
    n = len(old)
    kinds = np.array([(~old & new).sum(), (old & ~new).sum(), (old == new).sum()]) / n
    drawn = np.random.default_rng(0).multinomial(n, kinds, RESAMPLES)
    low, high = np.quantile((drawn[:, 0] - drawn[:, 1]) / n, [0.025, 0.975])
    return Interval(float(kinds[0] - kinds[1]), float(low), float(high))
