"""How well scores separate two classes: AUROC, average precision, partial AUROC, F1.

Labels are 0 (normal) and 1 (anomalous); a higher score is more anomalous. The first four functions are pure JAX, run
under `jit` and `vmap`, take a mask, and give nan where a class is missing. The rest is for the host: NumPy in double
precision, and None for what is not defined.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from ganomaly_jax.core.errors import UserError


@jax.jit
def auroc(labels: ArrayLike, scores: ArrayLike, mask: ArrayLike | None = None) -> Array:
    """Area under the ROC curve: the chance that an anomalous item scores higher than a normal one, ties half.

    Args:
      labels: [N] 0 or 1, integers or bool.
      scores: [N] float, higher is more anomalous. N up to 2**24.
      mask: [N] bool, False where an item is padding; None takes all.

    Returns:
      [] float32 in 0..1; nan where a class is missing or a score that counts is NaN.
    """
    return _area(_count(labels, scores, mask), 1.0)


@jax.jit
def partial_auroc(labels: ArrayLike, scores: ArrayLike, max_fpr: ArrayLike, mask: ArrayLike | None = None) -> Array:
    """Area under the ROC curve up to a false-positive rate, standardised (McClish 1989): 0.5 is chance, 1 is perfect.

    Args:
      max_fpr: [] above 0 up to 1; 1 gives `auroc`.
      labels, scores, mask: as in `auroc`.

    Returns:
      [] float32, at most 1; nan as in `auroc`, or where max_fpr is out of range.
    """
    max_fpr = jnp.asarray(max_fpr, float)
    return 0.5 * (1 + (_area(_count(labels, scores, mask), max_fpr) - max_fpr / 2) / (1 - max_fpr / 2))


@jax.jit
def average_precision(labels: ArrayLike, scores: ArrayLike, mask: ArrayLike | None = None) -> Array:
    """Mean over the anomalous items of the precision at their score; tied items enter together.

    Arguments and result as in `auroc`.
    """
    anomalous, _, false, true, n_normal, n_anomalous = _count(labels, scores, mask)
    return _mean(true / jnp.maximum(true + false, 1), anomalous, n_anomalous) + _undefined(n_normal)


@jax.jit
def best_f1(labels: ArrayLike, scores: ArrayLike, mask: ArrayLike | None = None) -> Array:
    """The highest F1 that any threshold reaches.

    The threshold is chosen on the very items it is judged by, so this is an optimistic figure: no threshold that is
    fixed beforehand reaches it on new data. `summary` gives the F1 at a given threshold.

    Arguments and result as in `auroc`.
    """
    _, _, false, true, n_normal, n_anomalous = _count(labels, scores, mask)
    return jnp.max(2 * true / jnp.maximum(true + false + n_anomalous, 1)) + _undefined(n_normal * n_anomalous)


def _count(labels: ArrayLike, scores: ArrayLike, mask: ArrayLike | None) -> tuple[Array, ...]:
    """The ROC curve as exact counts, by falling score.

    Returns:
      anomalous: [N] bool, whether the item is an anomalous one that counts.
      before: [N] float32, normal items that score strictly higher.
      false, true: [N] float32, normal and anomalous items that score at least as high: the ends of the tie.
      n_normal, n_anomalous: [] float32, how many there are; nan where a score that counts is NaN.
    """
    labels, scores = jnp.asarray(labels), jnp.asarray(scores, float)
    keep = jnp.ones(labels.shape, bool) if mask is None else jnp.asarray(mask, bool)
    if not (labels.ndim == 1 and labels.size and labels.shape == scores.shape == keep.shape):
        raise UserError(
            f"labels {labels.shape}, scores {scores.shape}, mask {keep.shape}: wanted three of one shape [N], N > 0"
        )
    anomalous = keep & (labels == 1)
    # What is masked may sort anywhere: it counts for nothing.
    key, anomalous, normal = jax.lax.sort((-scores, anomalous, keep & (labels != 1)), num_keys=1)
    first, last = (jnp.searchsorted(key, key, side) for side in ("left", "right"))
    true, false = (jnp.concatenate([jnp.zeros(1, int), jnp.cumsum(part)]) for part in (anomalous, normal))
    poison = jnp.where(jnp.any(keep & jnp.isnan(scores)), jnp.nan, 0.0)
    # Counts up to 2**24 are exact in float32.
    before, false_at, true_at = (jnp.asarray(count, float) for count in (false[first], false[last], true[last]))
    return anomalous, before, false_at, true_at, false[-1] + poison, true[-1] + poison


def _area(counts: tuple[Array, ...], max_fpr: Array | float) -> Array:
    """Area under the ROC curve from 0 to `max_fpr`, as a share of `max_fpr`."""
    anomalous, before, false, _, n_normal, n_anomalous = counts
    # Each anomalous item lifts the curve by one step: along a ramp over the normal items it ties with, full after.
    end, tied = max_fpr * n_normal, false - before
    along = jnp.clip(end - before, 0, tied)
    area = jnp.maximum(end - false, 0) + along * along / (2 * jnp.maximum(tied, 1))
    return _mean(area / end, anomalous, n_anomalous) + _undefined(jnp.where(max_fpr <= 1, end, 0))


def _mean(fraction: Array, where: Array, n: Array) -> Array:
    """Mean of fractions in 0..1 over n items, to 1e-7; nan where n is 0.

    Differs from a float32 sum, whose error grows with N: fractions of 2**24 are summed as integers, in three digits
    of 8 bits so that no sum passes uint32.
    """
    fixed = jnp.where(where, jnp.round(fraction * 2.0**24), 0).astype(jnp.uint32)
    top = jnp.sum(fixed >> 16, dtype=jnp.uint32)
    middle = jnp.sum((fixed >> 8) & 255, dtype=jnp.uint32)
    low = jnp.sum(fixed & 255, dtype=jnp.uint32)
    return (top / n) * 2.0**-8 + (middle / n) * 2.0**-16 + (low / n) * 2.0**-24


def _undefined(n: Array) -> Array:
    """nan where n is not above 0 (NaN included), else 0."""
    return jnp.where(n > 0, 0.0, jnp.nan)


def roc_curve(labels: ArrayLike, scores: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The ROC curve, one point for each distinct score.

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
    n_normal, n_anomalous = _both_classes(labels)
    false, true, thresholds = _curve(labels, scores)
    return np.append(0, false) / n_normal, np.append(0, true) / n_anomalous, np.append(np.inf, thresholds)


def precision_recall_curve(labels: ArrayLike, scores: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision and recall, one point for each distinct score.

    Args and errors as in `roc_curve`.

    Returns:
      precision [K + 1], recall [K + 1], thresholds [K] rising, float64; a point is what "score >= threshold" gives,
      and the last, (1, 0), has no threshold.
    """
    labels, scores = checked(labels, scores)
    _, n_anomalous = _both_classes(labels)
    false, true, thresholds = _curve(labels, scores)
    return np.append((true / (true + false))[::-1], 1), np.append(true[::-1] / n_anomalous, 0), thresholds[::-1]


def summary(labels: ArrayLike, scores: ArrayLike, threshold: float | None) -> dict[str, float | int | None]:
    """All figures of a test set, ready for JSON: plain numbers, None where one is not defined, never NaN.

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
        raise UserError(f"threshold={threshold!r}: wanted a number, or None where there is none")
    n_anomalous = int(labels.sum())
    n_normal = len(labels) - n_anomalous
    result: dict[str, float | int | None] = dict.fromkeys(
        ("auroc", "average_precision", "partial_auroc_05", "f1", "false_positive_rate", "true_positive_rate")
    )
    result |= {"n_normal": n_normal, "n_anomalous": n_anomalous}
    if n_normal and n_anomalous:
        fpr, tpr, _ = roc_curve(labels, scores)
        precision, recall, _ = precision_recall_curve(labels, scores)
        result["auroc"] = float(np.trapezoid(tpr, fpr))
        result["average_precision"] = float(-np.sum(np.diff(recall) * precision[:-1]))
        inside = fpr <= 0.05
        area = np.trapezoid(np.append(tpr[inside], np.interp(0.05, fpr, tpr)), np.append(fpr[inside], 0.05))
        result["partial_auroc_05"] = float(0.5 * (1 + (area / 0.05 - 0.025) / 0.975))
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
    """Labels as [N] bool and scores as [N] float64.

    Raises:
      UserError: labels other than 0 and 1, scores that are not finite, different lengths.
    """
    labels, scores = np.asarray(labels), np.asarray(scores, np.float64)
    if labels.ndim != 1 or labels.shape != scores.shape:
        raise UserError(f"labels {labels.shape} and scores {scores.shape}: wanted two of the same length [N]")
    if not np.isin(labels, (0, 1)).all():
        other = labels[~np.isin(labels, (0, 1))][0]
        raise UserError(f"label {other!r}: wanted 0 (normal) or 1 (anomalous); leave items without a label out")
    if not np.isfinite(scores).all():
        raise UserError(
            f"{np.sum(~np.isfinite(scores))} of {len(scores)} scores are NaN or infinite: "
            "leave these items out of the metrics and count them as invalid"
        )
    return labels.astype(bool), scores


def _both_classes(labels: np.ndarray) -> tuple[int, int]:
    n_anomalous = int(labels.sum())
    n_normal = len(labels) - n_anomalous
    if not (n_normal and n_anomalous):
        raise UserError(
            f"{n_normal} normal and {n_anomalous} anomalous items: a curve is not defined without both classes"
        )
    return n_normal, n_anomalous


def _curve(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Normal and anomalous items with at least each distinct score, and these scores, falling: [K] each."""
    order = np.argsort(-scores, kind="stable")
    labels, scores = labels[order], scores[order]
    last = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)
    true = np.cumsum(labels)[last]
    return last + 1 - true, true, scores[last]
