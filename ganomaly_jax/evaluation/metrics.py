"""How well scores separate two classes: AUROC, average precision, partial AUROC, F1.

Labels are 0 (normal) and 1 (anomalous); a higher score is more anomalous. `auroc`, `partial_auroc` and
`average_precision` are one code for two uses. With JAX arrays they are pure, run under `jit` and `vmap`, and compute in
JAX's own precision; with NumPy arrays or lists they compute on the host in double precision. They take a mask, and
return NaN where a class is missing. The curves and `summary` are for the host: NumPy, and None for what is not defined.
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

    It is the probability that an anomalous item scores higher than a normal one, ties counted half.

    Args:
      labels: [N] 0 or 1, integers or bool.
      scores: [N] float, higher is more anomalous. In JAX's single precision N up to 2**24.
      mask: [N] bool, False where an item is padding; None takes all.

    Returns:
      [] float in 0..1; NaN where a class is missing or a score that counts is NaN.

    Raises:
      UserError: not arrays of one shape [N], or N is 0.
    """
    if _space(labels, scores, mask) is jnp:
        return _area(_count(labels, scores, mask), 1.0)
    label, score, keep = _checked_shapes(np, labels, scores, mask)
    normal, anomalous = score[keep & (label != 1)], score[keep & (label == 1)]
    if not (len(normal) and len(anomalous)) or np.isnan(normal).any() or np.isnan(anomalous).any():
        return np.float64(np.nan)
    return _share_below(normal, anomalous).mean()


def partial_auroc(labels: ArrayLike, scores: ArrayLike, max_fpr: ArrayLike, mask: ArrayLike | None = None) -> Array:
    """Calculates the area under the ROC curve up to a false-positive rate, standardised: 0.5 is chance, 1 is perfect.

    Args:
      labels: as in `auroc`.
      scores: as in `auroc`.
      max_fpr: [] above 0 up to 1; 1 gives `auroc`.
      mask: as in `auroc`.

    Returns:
      [] float, at most 1; NaN as in `auroc`, or where max_fpr is out of range.

    Raises:
      UserError: as `auroc`.

    References:
      McClish 1989, "Analyzing a portion of the ROC curve".
    """
    counts = _count(labels, scores, mask)
    max_fpr = counts.space.asarray(max_fpr, float)
    return 0.5 * (1 + (_area(counts, max_fpr) - max_fpr / 2) / (1 - max_fpr / 2))


def average_precision(labels: ArrayLike, scores: ArrayLike, mask: ArrayLike | None = None) -> Array:
    """Calculates the mean over the anomalous items of the precision at their score; tied items enter together.

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
    """Returns where each item stands among those of the other class; the mean over either class is the AUROC.

    Args:
      labels: [N] 0 or 1, of both classes.
      scores: [N] float, finite.

    Returns:
      [N] float64 in 0..1: of an anomalous item the share of normal ones that score lower, of a normal item the share of
      anomalous ones that score higher; ties half.
    """
    is_anomalous, scores = np.asarray(labels) == 1, np.asarray(scores)
    placed = np.empty(len(scores))
    placed[is_anomalous] = _share_below(scores[~is_anomalous], scores[is_anomalous])
    placed[~is_anomalous] = 1 - _share_below(scores[is_anomalous], scores[~is_anomalous])
    return placed


def _share_below(others: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Returns the share of `others` [n] that each score [m] is above, float64 [m]; ties count half."""
    ordered = np.sort(others)
    left, right = (np.searchsorted(ordered, scores, side) for side in ("left", "right"))
    return (left + right) / (2 * len(others))


class _Counts(NamedTuple):
    """Holds the ROC curve as exact counts [N], by falling score; float, since JAX's integers have 32 bits."""

    space: Any
    """numpy or jax.numpy."""
    order: Any
    """[N] int, the items by falling score."""
    anomalous: Any
    """[N] bool, whether the item is an anomalous one that counts."""
    before: Any
    """Normal items that score strictly higher."""
    false: Any
    """Normal items that score at least as high."""
    true: Any
    """Anomalous items that score at least as high."""
    n_normal: Any
    """[]; NaN where a score that counts is NaN."""
    n_anomalous: Any
    """[]; likewise."""


def _space(*arrays: Any) -> Any:
    """Returns jax.numpy if one of the arrays is of JAX, otherwise numpy."""
    return jnp if any(isinstance(array, Array) for array in arrays) else np


def _checked_shapes(xp: Any, labels: Any, scores: Any, mask: Any) -> tuple[Any, Any, Any]:
    """Returns labels, scores (float) and mask (bool) as arrays [N]."""
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
    """Counts what the ROC curve is made of, for each item."""
    xp = _space(labels, scores, mask)
    label, score, keep = _checked_shapes(xp, labels, scores, mask)
    # What is masked may sort anywhere: it counts for nothing.
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
    """Computes the area under the ROC curve from 0 to `max_fpr`, as a share of `max_fpr`."""
    xp = counts.space
    # Each anomalous item lifts the curve by one step: along a ramp over the normal items it ties with, full after.
    end, tied = max_fpr * counts.n_normal, counts.false - counts.before
    along = xp.clip(end - counts.before, 0, tied)
    area = xp.maximum(end - counts.false, 0) + along * along / (2 * xp.maximum(tied, 1))
    return _mean(counts, area / xp.where(end > 0, end, 1), (end > 0) & (max_fpr <= 1))


def _mean(counts: _Counts, fraction: Any, defined: Any) -> Any:
    """Computes the mean of fractions [N] in 0..1 over the anomalous items; NaN without any, or if it is not `defined`.

    Differs from a float32 sum, whose error grows with N: fractions of 2**24 are summed as integers, in three digits of
    8 bits so that no sum passes uint32.
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
      false-positive rates, true-positive rates, thresholds: [K] float64 each, from (0, 0) at an infinite threshold to
      (1, 1); a point is what "score >= threshold" gives.

    Raises:
      UserError: labels other than 0 and 1, scores that are not finite, different lengths, or one class only.
    """
    labels, scores = checked(labels, scores)
    n_normal, n_anomalous = both_classes(labels)
    false, true, thresholds = _curve(labels, scores)
    return np.append(0, false) / n_normal, np.append(0, true) / n_anomalous, np.append(np.inf, thresholds)


def precision_recall_curve(labels: ArrayLike, scores: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns precision and recall, one point for each distinct score.

    Args:
      labels: as in `roc_curve`.
      scores: as in `roc_curve`.

    Returns:
      precision [K + 1], recall [K + 1], thresholds [K] rising, float64; a point is what "score >= threshold" gives,
      and the last, (1, 0), has no threshold.

    Raises:
      UserError: as `roc_curve`.
    """
    labels, scores = checked(labels, scores)
    _, n_anomalous = both_classes(labels)
    false, true, thresholds = _curve(labels, scores)
    return np.append((true / (true + false))[::-1], 1), np.append(true[::-1] / n_anomalous, 0), thresholds[::-1]


def summary(labels: ArrayLike, scores: ArrayLike, threshold: float | None) -> dict[str, float | int | None]:
    """Returns all figures of a test set, ready for JSON: plain numbers, None where one is not defined, never NaN.

    Args:
      labels: [N] 0 or 1.
      scores: [N] float, finite.
      threshold: a score above it is called anomalous; chosen elsewhere, not on these items. None: no verdicts.

    Returns:
      `auroc`, `average_precision`, `partial_auroc_05` (up to a false-positive rate of 5 %, standardised), `f1`,
      `false_positive_rate`, `true_positive_rate`, `n_normal`, `n_anomalous`. With one class only, the rate of that
      class is all that is defined.

    Raises:
      UserError: labels other than 0 and 1, scores that are not finite, different lengths, a threshold of NaN.
    """
    labels, scores = checked(labels, scores)
    if threshold is not None and np.isnan(threshold):
        raise UserError(f"threshold={threshold!r}: expected a number, or None where there is none")
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
    """Returns labels as [N] bool and scores as [N] float64.

    Raises:
      UserError: labels other than 0 and 1, scores that are not finite, different lengths.
    """
    labels, scores = np.asarray(labels), np.asarray(scores, np.float64)
    if labels.ndim != 1 or labels.shape != scores.shape:
        raise UserError(f"labels {labels.shape} and scores {scores.shape}: expected two of the same length [N]")
    if not np.isin(labels, (0, 1)).all():
        other = labels[~np.isin(labels, (0, 1))][0]
        raise UserError(f"label {other!r}: expected 0 (normal) or 1 (anomalous); leave items without a label out")
    if not np.isfinite(scores).all():
        raise UserError(
            f"{np.sum(~np.isfinite(scores))} of {len(scores)} scores are NaN or infinite: "
            "leave these items out of the metrics and count them as invalid"
        )
    return labels.astype(bool), scores


def both_classes(labels: np.ndarray) -> tuple[int, int]:
    """Returns how many of the labels [N] bool are normal and how many anomalous.

    Raises:
      UserError: there are none of a class.
    """
    n_anomalous = int(labels.sum())
    n_normal = len(labels) - n_anomalous
    if not (n_normal and n_anomalous):
        raise UserError(f"{n_normal} normal and {n_anomalous} anomalous items: expected both classes")
    return n_normal, n_anomalous


def _curve(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the numbers of normal and anomalous items at or above each distinct score, and these, descending."""
    counts = _count(labels, scores, None)
    falling = scores[counts.order]
    last = np.append(np.flatnonzero(np.diff(falling)), len(falling) - 1)
    return counts.false[last], counts.true[last], falling[last]
