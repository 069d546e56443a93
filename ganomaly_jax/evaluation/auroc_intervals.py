"""How sure an AUROC is: bootstrap intervals, and DeLong's test of two scores on the same images. NumPy, on the host.

Labels are 0 (normal) and 1 (anomalous); a higher score is more anomalous. What is resampled are the test images: that
another training would have given other weights is in neither figure.
"""

from __future__ import annotations

import dataclasses
import math
from statistics import NormalDist

import numpy as np
from jax.typing import ArrayLike

from ganomaly_jax.core.errors import UserError
from ganomaly_jax.evaluation.metrics import checked

RESAMPLES = 2000
# Numbers that one block of resamples may hold: some tens of megabytes.
_BLOCK = 4_000_000


@dataclasses.dataclass(frozen=True)
class Interval:
    """A figure and the ends of its confidence interval."""

    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Paired:
    """Two scores on the same images: first minus second."""

    difference: Interval
    """Of the AUROCs, with the normal interval of its standard error."""
    p_value: float
    """Two-sided, of no difference."""


def auroc(labels: ArrayLike, scores: ArrayLike) -> float:
    """AUROC in double precision, ties half.

    Args:
      labels: [N] 0 or 1.
      scores: [N] float, finite.

    Raises:
      UserError: labels other than 0 and 1, scores that are not finite, different lengths, or one class only.
    """
    return float(_placements(*_both(labels, scores))[1].mean())


def auroc_interval(
    labels: ArrayLike, scores: ArrayLike, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """AUROC with the percentile interval of a stratified bootstrap.

    Each resample draws as many normal and as many anomalous images, with replacement, as there are (Efron and
    Tibshirani 1993, chapters 13 and 16). The same seed gives the same interval. Where the classes do not overlap the
    interval has no width, however few images there are.

    Args:
      labels, scores: as in `auroc`.
      level: the share of intervals that would hold the true value, above 0 and below 1.
      resamples: how many are drawn.

    Raises:
      UserError: as `auroc`; a level or a number of resamples that cannot be.
    """
    is_anomalous, scores = _both(labels, scores)
    _check(level, resamples)
    value = float(_placements(is_anomalous, scores)[1].mean())
    # Equal scores are one place; a resample is how often each image was drawn, added up place by place.
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
    """Whether two scores of the same images differ in AUROC: the test of DeLong.

    DeLong, DeLong and Clarke-Pearson 1988 (Biometrics 44, 837-845), computed from midranks (Sun and Xu 2014, IEEE
    Signal Processing Letters 21, 1389-1393). It rests on the normal distribution: with fewer than some ten images of a
    class it is rough.

    Args:
      labels: [N] 0 or 1.
      first, second: [N] float, finite, of the same images in the same order.
      level: of the difference's interval.

    Raises:
      UserError: as `auroc`, a class with a single image, or a level that cannot be.
    """
    is_anomalous, first = _both(labels, first)
    second = _both(labels, second)[1]
    _check(level, 1)
    n_anomalous = int(is_anomalous.sum())
    if min(n_anomalous, len(is_anomalous) - n_anomalous) < 2:
        raise UserError("one class has a single image: wanted at least two of each to test a difference")
    (normal_1, anomalous_1), (normal_2, anomalous_2) = (_placements(is_anomalous, s) for s in (first, second))
    of_normal, of_anomalous = normal_1 - normal_2, anomalous_1 - anomalous_2
    difference = float(of_anomalous.mean())
    variance = of_normal.var(ddof=1) / len(of_normal) + of_anomalous.var(ddof=1) / len(of_anomalous)
    error = math.sqrt(float(variance))
    if error < 1e-12:  # the same order throughout, or classes that do not overlap in either
        p_value = 1.0 if abs(difference) < 1e-12 else 0.0
    else:
        p_value = math.erfc(abs(difference) / error / math.sqrt(2))
    half = NormalDist().inv_cdf((1 + level) / 2) * error
    return Paired(Interval(difference, difference - half, difference + half), p_value)


def _placements(is_anomalous: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The share of anomalous images above each normal one, and of normal ones below each anomalous one; ties half."""
    normal, anomalous = scores[~is_anomalous], scores[is_anomalous]

    def below(values: np.ndarray, others: np.ndarray) -> np.ndarray:
        others = np.sort(others)
        return (np.searchsorted(others, values, "left") + np.searchsorted(others, values, "right")) / (2 * len(others))

    return 1 - below(normal, anomalous), below(anomalous, normal)


def _both(labels: ArrayLike, scores: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    is_anomalous, values = checked(labels, scores)
    n_anomalous = int(is_anomalous.sum())
    if n_anomalous in (0, len(is_anomalous)):
        raise UserError(
            f"{len(is_anomalous) - n_anomalous} normal and {n_anomalous} anomalous images: AUROC needs both classes"
        )
    return is_anomalous, values


def _check(level: float, resamples: int) -> None:
    if not 0 < level < 1:
        raise UserError(f"level={level}: wanted a share between 0 and 1, such as 0.95")
    if resamples < 1:
        raise UserError(f"resamples={resamples}: wanted at least 1, and some thousand for an interval")
