"""Metrics of binary classification by scores: AUROC, average precision, partial AUROC, F1 and their curves.

Labels are 0 (normal) and 1 (anomalous); a higher score is more anomalous. `auroc`, `partial_auroc` and
`average_precision` accept a mask, return NaN if a class is missing, and run on JAX arrays or on the host: with JAX
arrays they are pure, work under `jit` and `vmap`, and compute in JAX's default precision; with NumPy arrays or lists
they compute in double precision. The curves and `summary` are for the host and use NumPy.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from ganomaly_jax.core.errors import UserError


def auroc(labels: ArrayLike, scores: ArrayLike, mask: ArrayLike | None = None) -> Any:
    """Calculates the area under the ROC curve.

    It is the probability that an anomalous item scores higher than a normal one, where ties count half.

    Args:
      labels: [N] 0 or 1, integers or bool.
      scores: [N] float, higher is more anomalous; N up to 2**24 in single precision.
      mask: [N] bool, False for padding; None: no padding.

    Returns:
      [] float in 0..1; NaN if a class is missing or an unmasked score is NaN.

    Raises:
      UserError: the arrays do not have the same shape [N], or N is 0.
    """
    if _space(labels, scores, mask) is jnp:
        return _area(_count(labels, scores, mask), 1.0)
    label, score, keep = _checked_shapes(np, labels, scores, mask)
    normal, anomalous = score[keep & (label != 1)], score[keep & (label == 1)]
    if not (len(normal) and len(anomalous)) or np.isnan(normal).any() or np.isnan(anomalous).any():
        return np.float64(np.nan)
    return _share_below(normal, anomalous).mean()


def partial_auroc(labels: ArrayLike, scores: ArrayLike, max_fpr: ArrayLike, mask: ArrayLike | None = None) -> Array:
    """Calculates the standardised partial AUROC up to a false-positive rate: 0.5 is chance, 1 is perfect.

    Args:
      labels: as in `auroc`.
      scores: as in `auroc`.
      max_fpr: [] above 0 up to 1; 1 gives `auroc`.
      mask: as in `auroc`.

    Returns:
      [] float, at most 1; NaN as in `auroc`, or if max_fpr is out of range.

    Raises:
      UserError: as `auroc`.

    References:
      McClish 1989, "Analyzing a portion of the ROC curve".
    """
    counts = _count(labels, scores, mask)
    max_fpr = counts.space.asarray(max_fpr, float)
    return 0.5 * (1 + (_area(counts, max_fpr) - max_fpr / 2) / (1 - max_fpr / 2))


def average_precision(labels: ArrayLike, scores: ArrayLike, mask: ArrayLike | None = None) -> Array:
    """Calculates average precision, the mean of the precision at the scores of the anomalous items.

    Items with tied scores enter together.

    Args:
      labels: as in `auroc`.
      scores: as in `auroc`.
      mask: as in `auroc`.

    Returns:
      [] float in 0..1; NaN as in `auroc`.

    Raises:
      UserError: as `auroc`.
    """
    counts = _count(labels, scores, mask)
    precision = counts.true / counts.space.maximum(counts.true + counts.false, 1)
    return _mean(counts, precision, counts.n_normal > 0)


def placements(labels: ArrayLike, scores: ArrayLike) -> np.ndarray:
    """Calculates the placement of each item among the other class; the mean over either class is the AUROC.

    Args:
      labels: [N] 0 or 1, of both classes.
      scores: [N] float, finite.

    Returns:
      [N] float64 in 0..1: for an anomalous item the share of normal items that score lower, for a normal item the share
      of anomalous items that score higher; ties count half.
    """
    is_anomalous, scores = np.asarray(labels) == 1, np.asarray(scores)
    placed = np.empty(len(scores))
    placed[is_anomalous] = _share_below(scores[~is_anomalous], scores[is_anomalous])
    placed[~is_anomalous] = 1 - _share_below(scores[is_anomalous], scores[~is_anomalous])
    return placed


def _share_below(others: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Returns the share of `others` [n] below each score [m], [m] float64; ties count half."""
    ordered = np.sort(others)
    left, right = (np.searchsorted(ordered, scores, side) for side in ("left", "right"))
    return (left + right) / (2 * len(others))


class _Counts(NamedTuple):
    """Holds the ROC curve as exact counts [N] by descending score, in float because JAX's integers have 32 bits."""

    space: Any
    """numpy or jax.numpy."""
    order: Any
    """[N] int, the indices of the items by descending score."""
    anomalous: Any
    """[N] bool, True for an unmasked anomalous item."""
    before: Any
    """The number of normal items that score strictly higher."""
    false: Any
    """The number of normal items that score at least as high."""
    true: Any
    """The number of anomalous items that score at least as high."""
    n_normal: Any
    """[], the number of normal items; NaN if an unmasked score is NaN."""
    n_anomalous: Any
    """[], the number of anomalous items, likewise."""


def _space(*arrays: Any) -> Any:
    """Returns jax.numpy if one of the arrays is a JAX array, otherwise numpy."""
    return jnp if any(isinstance(array, Array) for array in arrays) else np


def _checked_shapes(xp: Any, labels: Any, scores: Any, mask: Any) -> tuple[Any, Any, Any]:
    """Returns labels, scores (float) and mask (bool) as arrays of the same shape [N]."""
    label, score = xp.asarray(labels), xp.asarray(scores)
    if xp is jnp or score.dtype.kind != "f":
        score = score.astype(float)
    keep = xp.ones(label.shape, bool) if mask is None else xp.asarray(mask, bool)
    if not (label.ndim == 1 and label.size and label.shape == score.shape == keep.shape):
        raise UserError(
            f"labels {label.shape}, scores {score.shape}, mask {keep.shape}: expected three of one shape [N], N > 0"
        )
    return label, score, keep


def _count(labels: ArrayLike, scores: ArrayLike, mask: ArrayLike | None) -> _Counts:
    """Counts the normal and anomalous items above and at each score."""
    xp = _space(labels, scores, mask)
    label, score, keep = _checked_shapes(xp, labels, scores, mask)
    # Masked items may sort anywhere, since they are not counted.
    order = xp.argsort(-score)
    key, anomalous, normal = -score[order], (keep & (label == 1))[order], (keep & (label != 1))[order]
    first, last = (xp.searchsorted(key, key, side) for side in ("left", "right"))
    true, false = (xp.concatenate([xp.zeros(1, int), xp.cumsum(part)]) for part in (anomalous, normal))
    poison = xp.where(xp.any(keep & xp.isnan(score)), xp.nan, 0.0)
    # Counts up to 2**24 are exact in float32.
    before, false_at, true_at = (xp.asarray(count, float) for count in (false[first], false[last], true[last]))
    n_normal, n_anomalous = false[-1] + poison, true[-1] + poison
    return _Counts(xp, order, anomalous, before, false_at, true_at, n_normal, n_anomalous)


def _area(counts: _Counts, max_fpr: Any) -> Any:
    """Computes the area under the ROC curve from 0 to `max_fpr`, divided by `max_fpr`."""
    xp = counts.space
    # Each anomalous item raises the curve by one step, along a ramp over the normal items that it ties with.
    end, tied = max_fpr * counts.n_normal, counts.false - counts.before
    along = xp.clip(end - counts.before, 0, tied)
    area = xp.maximum(end - counts.false, 0) + along * along / (2 * xp.maximum(tied, 1))
    return _mean(counts, area / xp.where(end > 0, end, 1), (end > 0) & (max_fpr <= 1))


def _mean(counts: _Counts, fraction: Any, defined: Any) -> Any:
    """Computes the mean of fractions [N] in 0..1 over the anomalous items; NaN if there are none or not `defined`.

    The error of a float32 sum would grow with N. In single precision, multiples of 2**-24 are therefore summed as
    integers, split into three digits of 8 bits so that no sum overflows uint32.
    """
    xp, n = counts.space, counts.n_anomalous
    some = xp.maximum(n, 1)
    if fraction.dtype == np.float64:
        mean = xp.sum(xp.where(counts.anomalous, fraction, 0)) / some
    else:
        fixed = xp.where(counts.anomalous & defined, xp.round(fraction * 2.0**24), 0).astype(xp.uint32)
        digits = [xp.sum((fixed >> shift) & 255, dtype=xp.uint32) for shift in (8, 0)]
        mean = (xp.sum(fixed >> 16, dtype=xp.uint32) / some) * 2.0**-8
        mean += (digits[0] / some) * 2.0**-16 + (digits[1] / some) * 2.0**-24
    return xp.where(defined & (n > 0), mean, xp.nan)


def roc_curve(labels: ArrayLike, scores: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the ROC curve, one point for each distinct score.

    Args:
      labels: [N] 0 or 1.
      scores: [N] float, finite.

    Returns:
      False-positive rates, true-positive rates and thresholds, [K] float64 each, from (0, 0) at an infinite threshold
      to (1, 1); a point gives the rates of "score >= threshold".

    Raises:
      UserError: labels other than 0 and 1, scores that are not finite, different lengths, or one class only.
    """
    labels, scores = checked(labels, scores)
    n_normal, n_anomalous = both_classes(labels)
    false, true, thresholds = _curve(labels, scores)
    return np.append(0, false) / n_normal, np.append(0, true) / n_anomalous, np.append(np.inf, thresholds)


def precision_recall_curve(labels: ArrayLike, scores: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the precision-recall curve, one point for each distinct score.

    Args:
      labels: as in `roc_curve`.
      scores: as in `roc_curve`.

    Returns:
      Precision [K + 1], recall [K + 1] and thresholds [K], ascending, all float64; a point gives the values of "score
      >= threshold", and the last, (1, 0), has no threshold.

    Raises:
      UserError: as `roc_curve`.
    """
    labels, scores = checked(labels, scores)
    _, n_anomalous = both_classes(labels)
    false, true, thresholds = _curve(labels, scores)
    return np.append((true / (true + false))[::-1], 1), np.append(true[::-1] / n_anomalous, 0), thresholds[::-1]


def summary(labels: ArrayLike, scores: ArrayLike, threshold: float | None) -> dict[str, float | int | None]:
    """Calculates all metrics of a test set, as plain numbers for JSON; None if one is undefined, never NaN.

    Args:
      labels: [N] 0 or 1.
      scores: [N] float, finite.
      threshold: a score above it is anomalous; it must not be chosen on these items. None: there is no threshold.

    Returns:
      `auroc`, `average_precision`, `partial_auroc_05` (standardised, up to a false-positive rate of 5 %), `f1`,
      `false_positive_rate`, `true_positive_rate`, `n_normal` and `n_anomalous`. With one class only, just the rate of
      that class is defined.

    Raises:
      UserError: labels other than 0 and 1, scores that are not finite, different lengths, or a threshold of NaN.
    """
    labels, scores = checked(labels, scores)
    if threshold is not None and np.isnan(threshold):
        raise UserError(f"threshold={threshold!r}: expected a number, or None for no threshold")
    n_anomalous = int(labels.sum())
    n_normal = len(labels) - n_anomalous
    result: dict[str, float | int | None] = dict.fromkeys(
        ("auroc", "average_precision", "partial_auroc_05", "f1", "false_positive_rate", "true_positive_rate")
    )
    result |= {"n_normal": n_normal, "n_anomalous": n_anomalous}
    if n_normal and n_anomalous:
        result["auroc"] = float(auroc(labels, scores))
        result["average_precision"] = float(average_precision(labels, scores))
        result["partial_auroc_05"] = float(partial_auroc(labels, scores, 0.05))
    if threshold is not None:
        flagged = scores > threshold
        true, false = int((flagged & labels).sum()), int((flagged & ~labels).sum())
        if n_normal:
            result["false_positive_rate"] = false / n_normal
        if n_anomalous:
            result["true_positive_rate"] = true / n_anomalous
        if n_normal and n_anomalous:
            result["f1"] = 2 * true / (true + false + n_anomalous)
    return result


def checked(labels: ArrayLike, scores: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Validates labels and scores and returns them as [N] bool and [N] float64.

    Raises:
      UserError: labels other than 0 and 1, scores that are not finite, or different lengths.
    """
    labels, scores = np.asarray(labels), np.asarray(scores, np.float64)
    if labels.ndim != 1 or labels.shape != scores.shape:
        raise UserError(f"labels {labels.shape} and scores {scores.shape}: expected two of the same length [N]")
    if not np.isin(labels, (0, 1)).all():
        other = labels[~np.isin(labels, (0, 1))][0]
        raise UserError(f"label {other!r}: expected 0 (normal) or 1 (anomalous); leave out items without a label")
    if not np.isfinite(scores).all():
        raise UserError(
            f"{np.sum(~np.isfinite(scores))} of {len(scores)} scores are NaN or infinite: "
            "leave these items out of the metrics and count them as invalid"
        )
    return labels.astype(bool), scores


def both_classes(labels: np.ndarray) -> tuple[int, int]:
    """Returns the numbers of normal and anomalous items among labels [N] bool.

    Raises:
      UserError: a class is missing.
    """
    n_anomalous = int(labels.sum())
    n_normal = len(labels) - n_anomalous
    if not (n_normal and n_anomalous):
        raise UserError(f"{n_normal} normal and {n_anomalous} anomalous items: expected both classes")
    return n_normal, n_anomalous


def _curve(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the numbers of normal and anomalous items at or above each distinct score, and the scores, descending."""
    counts = _count(labels, scores, None)
    falling = scores[counts.order]
    last = np.append(np.flatnonzero(np.diff(falling)), len(falling) - 1)
    return counts.false[last], counts.true[last], falling[last]
