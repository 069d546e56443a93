"""Deciding whether an updated detector may replace the old one, by comparing both on the same held-out items."""

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

# By how much a new detector may be worse, in AUROC and in the share of the anomalies that it finds.
MARGIN = 0.05
# The scores have shifted if the p-value is below this.
SHIFTED = 0.01
# With fewer items of a class than this, intervals are rough.
_FEW = 10
SIDES = ("old", "recalibrated", "new")
GROUPS = ("old", "new")


def compare(old: Scorer, new: Scorer, dataset: Dataset, origins: np.ndarray) -> dict[str, Any]:
    """Compares both detectors on the calibration and test parts of a mixture of old and new data.

    AUROC is computed on all held-out items. Items above a threshold are counted in the test part, which no threshold
    was set on, or in the calibration part if the test part has no normal items. `recalibrated` is the old detector with
    a threshold set on the calibration items of the new one, which needs no training.

    Args:
      old: the detector in use.
      new: the updated detector.
      dataset: the mixture, with its `parts`, in the form that both detectors accept.
      origins: [N] int, 0 for an old item and 1 for a new one.

    Returns:
      `thresholds`, by detector; `flagged`, the normal items above the threshold by origin and detector, and `found`,
      the anomalies above it by detector, each {count, of}; `counted_in`, the part where normal items are counted;
      `promised`, the rate of the new threshold, and `calibration`, the number of items it was set on; `found_change`,
      the difference in the share of found anomalies; `auroc` on the old test set and on all items with the paired
      difference, None without anomalies; `shift` of the old detector's scores on new normal items; `beyond`, how often
      it scores a new normal item higher than an anomaly; `left_out`, the number of items without a score.
    """
    held_out = np.flatnonzero(dataset.parts != 0)
    scores = {side: scorer(lazy.select(dataset.images, held_out)) for side, scorer in (("old", old), ("new", new))}
    valid = np.isfinite(scores["old"]) & np.isfinite(scores["new"])
    held_out, scores = held_out[valid], {side: values[valid] for side, values in scores.items()}
    scores["recalibrated"] = scores["old"]
    assert dataset.normal is not None and dataset.parts is not None
    labels = np.array([dataset.classes[label] not in dataset.normal for label in dataset.labels[held_out]], np.int64)
    origin, test = origins[held_out], dataset.parts[held_out] == 1
    calibrated = dataset.parts[held_out] == datasets.CALIBRATION
    recalibrated = calibration.by(scores["old"][calibrated], new.config.evaluate, new.words.items)
    thresholds = {"old": old.threshold, "recalibrated": recalibrated.threshold, "new": new.threshold}
    above = {side: scores[side] > thresholds[side] for side in SIDES}
    flagged, counted_in = {}, {}
    for k, group in enumerate(GROUPS):
        chosen = (labels == 0) & (origin == k) & test
        counted_in[group] = "test" if chosen.any() else "calibration"
        chosen = chosen if chosen.any() else (labels == 0) & (origin == k)
        flagged[group] = {side: _count(above[side][chosen]) for side in SIDES}
    anomalous = labels == 1
    change = _change(above["old"][anomalous], above["new"][anomalous]) if anomalous.any() else None
    statistic, p_value = two_sample.kolmogorov_smirnov(
        np.asarray(old.variables["calibration"]), scores["old"][(labels == 0) & (origin == 1)]
    )
    return {
        "thresholds": thresholds,
        "promised": new.calibration.rate,
        "calibration": len(new.variables["calibration"]),
        "flagged": flagged,
        "counted_in": counted_in,
        "found": {side: _count(above[side][anomalous]) for side in SIDES},
        "found_change": change and dataclasses.asdict(change),
        "auroc": {"old": _ranking(labels, scores, origin == 0), "all": _ranking(labels, scores, origin >= 0)},
        "shift": {"statistic": statistic, "p_value": p_value},
        "beyond": _beyond(scores["old"], anomalous, (labels == 0) & (origin == 1)),
        "left_out": int((~valid).sum()),
    }


def decide(figures: dict[str, Any], margin: float, words: Words = IMAGES) -> list[str]:
    """Decides whether the new detector may replace the old one.

    It may if it is not worse. With labelled anomalies this means that the lower end of the 95 % interval of the
    difference in AUROC (new minus old, paired, by DeLong) is above -`margin`, on the old test set and on all held-out
    items, and that the share of anomalies it finds has not clearly fallen by more than `margin` (the upper end of the
    bootstrap interval of the difference is at least -`margin`). In all cases, among the old and among the new normal
    items, it flags no more than the old detector does, or no more than is consistent with the promised rate.

    Args:
      figures: the result of `compare`.
      margin: by how much it may be worse.
      words: the modality's words for the items.

    Returns:
      The reasons against the new detector, a sentence each; empty if it may replace the old one.
    """
    reasons, items = [], words.items
    for name, where in (("old", "on the old test set"), ("all", f"on all held-out {items}")):
        ranking = figures["auroc"][name]
        if ranking is not None and ranking["difference"]["low"] <= -margin:
            low = ranking["difference"]["low"]
            reasons.append(
                f"{where} the AUROC changes from {ranking['old']['value']:.3f} to {ranking['new']['value']:.3f}: the "
                f"difference may be {low:+.3f}, below the margin of {-margin:+.3f}"
            )
    change = figures["found_change"]
    if change is not None and change["high"] < -margin:
        of = figures["found"]["old"]["of"]
        reasons.append(
            f"at its threshold it finds {figures['found']['new']['count']} of {of} anomalies where the old one finds "
            f"{figures['found']['old']['count']}: a loss of more than {margin:.1%} beyond chance"
        )
    for group in GROUPS:
        old, new = (figures["flagged"][group][side] for side in ("old", "new"))
        if new["count"] > old["count"] and new["count"] / new["of"] > _allowed(figures, new["of"]):
            reasons.append(
                f"it flags {new['count']} of {new['of']} held-out {group} normal {items} where the old one flags "
                f"{old['count']}; the promised rate is {figures['promised']:.1%}"
            )
    return reasons


def describe(figures: dict[str, Any], workdir: str, source: str, words: Words = IMAGES) -> list[str]:
    """Describes the comparison in lines for the terminal: a table, notes, and advice.

    Args:
      figures: the result of `compare`.
      workdir: the run's folder, named in the advice.
      source: the new data, named in the advice.
      words: the modality's words for the items.
    """
    items = words.items
    rows: list[tuple[str, ...]] = [
        ("detector", "threshold", "flags old normals", "flags new normals", "finds anomalies")
    ]
    for side, title in zip(SIDES, ("old, as it is", "old, recalibrated", "new"), strict=True):
        counts = [figures["flagged"][group][side] for group in GROUPS] + [figures["found"][side]]
        cells = [f"{cell['count']} of {cell['of']}" if cell["of"] else "none labelled" for cell in counts]
        rows.append((title, f"{figures['thresholds'][side]:.6g}", *cells))
    lines = [f"compared on the same {items}, which neither detector was trained on:", *text_table.lines(rows)]
    for name, where in (("old", "old test set"), ("all", f"all held-out {items}")):
        ranking = figures["auroc"][name]
        if ranking is not None:
            old, new, difference = ranking["old"], ranking["new"], ranking["difference"]
            lines.append(
                f"AUROC, {where} ({ranking['normal']} normal, {ranking['anomalous']} anomalous): old "
                f"{old['value']:.4f}, new {new['value']:.4f}, difference {difference['value']:+.4f}, "
                f"95 % interval {difference['low']:+.4f} to {difference['high']:+.4f} (DeLong's, paired)"
            )
            if min(ranking["normal"], ranking["anomalous"]) < _FEW:
                lines.append(f"note: with fewer than {_FEW} {items} of a class the interval is rough")
    if not figures["found"]["new"]["of"]:
        lines.append(
            f"note: no anomalies are labelled, so only the shares of flagged normal {items} are compared; whether the "
            "new detector finds anomalies as well as the old one is unknown"
        )
    for group in GROUPS:
        if figures["counted_in"][group] == "calibration":
            lines.append(
                f"note: for lack of others, the {group} normal {items} are counted in the calibration part, which the "
                "threshold was set on"
            )
    if figures["left_out"]:
        lines.append(f"note: {figures['left_out']} {items} with {words.not_finite} are left out")
    return lines + _advice(figures, workdir, source, items)


def _advice(figures: dict[str, Any], workdir: str, source: str, items: str) -> list[str]:
    """Returns a warning if new normal items look anomalous, and advice if the scores have shifted."""
    old, recalibrated = (figures["flagged"]["new"][side] for side in ("old", "recalibrated"))
    shift = figures["shift"]
    warnings = []
    if figures["beyond"] is not None and figures["beyond"] > 0.5:
        warnings.append(
            f"note: the old detector scores the new normal {items} higher than the labelled anomalies: look at some of "
            "them, because the new detector takes them for normal"
        )
    shifted = shift["p_value"] < SHIFTED and old["count"] / old["of"] > _allowed(figures, old["of"])
    ranking = figures["auroc"]["all"]
    if not shifted:
        return warnings
    sentence = (
        f"the old detector scores new normal {items} differently from old ones (Kolmogorov-Smirnov distance "
        f"{shift['statistic']:.2f}, p value {shift['p_value']:.2g})"
    )
    same = ranking is not None and ranking["difference"]["low"] <= 0 <= ranking["difference"]["high"]
    if same and recalibrated["count"] / recalibrated["of"] <= _allowed(figures, recalibrated["of"]):
        return [
            *warnings,
            f"{sentence}, but its AUROC does not differ from the new one's: only the level of the scores has changed, "
            f"so `ganomaly recalibrate --workdir {workdir} --data {source}` is enough and needs no training",
        ]
    return [*warnings, sentence]


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
    """Returns both AUROCs with 95 % bootstrap intervals and the paired difference; None if a class has under two."""
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
