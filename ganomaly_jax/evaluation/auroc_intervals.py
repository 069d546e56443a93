"""The uncertainty of AUROC: bootstrap intervals, and DeLong's test of two scores on the same items. NumPy, on the host.

Labels are 0 (normal) and 1 (anomalous); a higher score is more anomalous. Both account for the sampling of the test
items, but not for the variation between trainings.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from jax.typing import ArrayLike

from ganomaly_jax.core.errors import UserError
from ganomaly_jax.evaluation import metrics

RESAMPLES = 2000
# Numbers in one block of resamples, some tens of megabytes.
_BLOCK = 4_000_000


@dataclasses.dataclass(frozen=True)
class Interval:
    """Holds a figure and the ends of its confidence interval."""

    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Paired:
    """Holds the comparison of two scores on the same items, first minus second."""

    difference: Interval
    """The difference of the AUROCs, with the normal interval from its standard error."""
    p_value: float
    """The two-sided p-value of the hypothesis that they are equal."""


def auroc_interval(
    labels: ArrayLike, scores: ArrayLike, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Returns the AUROC with the percentile interval of a stratified bootstrap.

    Each resample draws the normal and the anomalous items separately, with replacement. The same seed gives the same
    interval. If the classes do not overlap, the interval has no width, however few items there are.

    Args:
      labels: [N] 0 or 1.
      scores: [N] float, finite.
      level: the confidence level, above 0 and below 1.
      resamples: the number of resamples.
      seed: the seed of the resampling.

    Raises:
      UserError: labels other than 0 and 1, scores that are not finite, different lengths, one class only; a level or a
        number of resamples out of range.

    References:
      Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapters 13 and 16.
    """
    is_anomalous, scores = _both(labels, scores)
    _check(level, resamples)
    value = float(metrics.auroc(is_anomalous, scores))
    # Equal scores share a place; a resample is the number of times that each place was drawn.
    _, place = np.unique(scores, return_inverse=True)
    places = int(place.max()) + 1
    normal, anomalous = place[~is_anomalous], place[is_anomalous]
    random = np.random.default_rng(seed)
    found = np.empty(resamples)
    block = max(1, _BLOCK // max(len(scores), places))
    for begin in range(0, resamples, block):
        count = min(block, resamples - begin)
        rows = np.arange(count)[:, None] * places
        drawn = []
        for group in (normal, anomalous):
            at = group[random.integers(0, len(group), (count, len(group)))] + rows
            drawn.append(np.bincount(at.ravel(), minlength=count * places).reshape(count, places).astype(float))
        below = np.cumsum(drawn[0], axis=1) - drawn[0] / 2
        found[begin : begin + count] = (below * drawn[1]).sum(axis=1) / (len(normal) * len(anomalous))
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))


def paired(labels: ArrayLike, first: ArrayLike, second: ArrayLike, level: float = 0.95) -> Paired:
    """Tests whether two scores of the same items differ in AUROC: DeLong's test, computed from midranks.

    The test uses a normal approximation, which is rough with fewer than about ten items of a class.

    Args:
      labels: [N] 0 or 1.
      first: [N] float, finite.
      second: [N] float, finite, of the same items in the same order.
      level: the confidence level of the interval, above 0 and below 1.

    Returns:
      The difference of the AUROCs, first minus second, with its interval, and the two-sided p-value.

    Raises:
      UserError: as in `auroc_interval`, or a class has a single item.

    References:
      DeLong, DeLong and Clarke-Pearson 1988, Biometrics 44, 837-845; Sun and Xu 2014, IEEE Signal Processing Letters
      21, 1389-1393.
    """
    from scipy import special

    is_anomalous, first = _both(labels, first)
    second = _both(labels, second)[1]
    _check(level, 1)
    n_anomalous = int(is_anomalous.sum())
    if min(n_anomalous, len(is_anomalous) - n_anomalous) < 2:
        raise UserError("one class has a single item: expected at least two of each to test a difference")
    differences = metrics.placements(is_anomalous, first) - metrics.placements(is_anomalous, second)
    of_normal, of_anomalous = differences[~is_anomalous], differences[is_anomalous]
    difference = float(of_anomalous.mean())
    variance = of_normal.var(ddof=1) / len(of_normal) + of_anomalous.var(ddof=1) / len(of_anomalous)
    error = math.sqrt(float(variance))
    if error < 1e-12:  # both scores rank the items alike, or separate the classes without overlap
        p_value = 1.0 if abs(difference) < 1e-12 else 0.0
    else:
        p_value = float(2 * special.ndtr(-abs(difference) / error))
    half = float(special.ndtri((1 + level) / 2)) * error
    return Paired(Interval(difference, difference - half, difference + half), p_value)


def _both(labels: ArrayLike, scores: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    is_anomalous, values = metrics.checked(labels, scores)
    metrics.both_classes(is_anomalous)
    return is_anomalous, values


def _check(level: float, resamples: int) -> None:
    if not 0 < level < 1:
        raise UserError(f"level={level}: expected a number between 0 and 1, such as 0.95")
    if resamples < 1:
        raise UserError(f"resamples={resamples}: expected at least 1, and a few thousand for a useful interval")
