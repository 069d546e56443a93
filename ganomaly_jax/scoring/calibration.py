"""Calibration of scores: conformal p-values and a threshold from the scores of normal items not used in training.

Above all calibration scores the p-value is 1 / (n + 1) whatever the score; scores are never clipped, so they still
rank the items there.
"""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from jax import Array

from ganomaly_jax.core import config
from ganomaly_jax.core.errors import UserError

NORMAL, REVIEW, ANOMALOUS, INVALID = "normal", "review", "anomalous", "invalid"
# The tail distribution is fitted to this highest share of the scores, if at least _LEAST_TAIL of them differ.
_TAIL, _LEAST_TAIL = 0.1, 10


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Holds a threshold and how it was set."""

    threshold: float
    """An item is anomalous if its score is above it."""
    rate: float
    """The share of new normal items that it flags at most, on average over calibration sets of this size; an
    extrapolation if set by `tail`."""
    source: str
    """How the threshold was set, in a sentence."""
    review: float | None = None
    """Scores above it and not above `threshold` are for review; None: there is no review band."""
    groups: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    """The sorted calibration scores of each group that has a threshold of its own; see `of_group`."""


def by(scores: np.ndarray, settings: config.Evaluate, items: str = "images") -> Calibration:
    """Sets threshold and review band from calibration scores, by the rule `settings.threshold_by`.

    Args:
      scores: [n] float, the scores of normal items not used in training.
      settings: the rule and its parameters.
      items: what the scored items are called in sentences.

    Returns:
      The calibration.

    Raises:
      UserError: there are no scores, one is not finite, too few differ to fit a tail, or the review band would begin
        above the threshold.
    """
    if settings.threshold_by == "rate":
        result = calibrate(scores, settings.false_positive_rate, items)
    elif settings.threshold_by == "quantile":
        result = _by_quantile(scores, settings.quantile, items)
    elif settings.threshold_by == "tail":
        result = by_tail(scores, settings.false_positive_rate, items)
    else:
        result = _by_value(scores, settings.threshold, items)
    if not settings.review:
        return result
    band = calibrate(scores, settings.review, items)
    if band.threshold >= result.threshold:
        raise UserError(
            f"the review band for p-values up to {settings.review:.2%} would begin at a score of {band.threshold:.6g}, "
            f"but scores above {result.threshold:.6g} are anomalous already: expected a higher review rate than "
            f"that of the threshold ({result.rate:.2%}), or 0 for no review band"
        )
    source = f"{result.source}; for review above {band.threshold:.6g}, {band.rate:.2%} of the normal {items}"
    return dataclasses.replace(result, source=source, review=band.threshold)


def of_group(overall: Calibration, name: str, settings: config.Evaluate) -> Calibration:
    """Returns the calibration of a group by its own scores, or the overall calibration if the group has none.

    Args:
      overall: the calibration of all items, with the scores of groups.
      name: the name of the group.
      settings: the rule by which the threshold is set, as in `by`.

    Raises:
      UserError: as in `by`.
    """
    return by(np.asarray(overall.groups[name]), settings) if name in overall.groups else overall


def calibrate(scores: np.ndarray, false_positive_rate: float, items: str = "images") -> Calibration:
    """Sets the threshold for a false-positive rate by split conformal prediction.

    If n calibration scores and a new normal score are exchangeable, the new one exceeds the k-th smallest of them with
    probability at most (n + 1 - k) / (n + 1). The smallest rate that can be promised is therefore 1 / (n + 1), with
    the largest calibration score as the threshold.

    Args:
      scores: [n] float, the scores of normal items not used in training.
      false_positive_rate: the requested rate, above 0 and below 1.
      items: what the scored items are called in sentences.

    Returns:
      The calibration; its rate is the largest multiple of 1 / (n + 1) up to the requested rate, and at least that step.

    Raises:
      UserError: there are no scores, or one is not finite.
    """
    ordered = _ordered(scores, items)
    n = len(ordered)
    smallest = 1 / (n + 1)
    # The tolerance keeps (n + 1)(1 - rate) = 99.00000000000001 from becoming 100.
    k = min(math.ceil((n + 1) * (1 - false_positive_rate) - 1e-9), n)
    rate = (n + 1 - k) / (n + 1)
    if false_positive_rate < smallest:
        source = (
            f"the largest score of {n} calibration {items}: {n} can promise a false-positive rate of {smallest:.2%} at "
            f"best, {false_positive_rate:.2%} was requested (this needs {math.ceil(1 / false_positive_rate) - 1} "
            f"{items})"
        )
    else:
        source = (
            f"a false-positive rate of {false_positive_rate:.2%} on {n} calibration {items}, normal and not used in "
            f"training (the smallest rate that {n} can promise is {smallest:.2%})"
        )
    return Calibration(float(ordered[k - 1]), rate, source)


def allowed(rate: float, n: int, size: int) -> float:
    """Returns the largest share of flagged normal items that is consistent with the promised rate.

    This is the promised rate plus three standard deviations of the share, which varies with both the counted and the
    calibration items, plus one item.

    Args:
      rate: the false-positive rate that the threshold promises.
      n: the number of normal items counted, at least 1.
      size: the number of calibration items that the threshold was set on.
    """
    return rate + 3 * math.sqrt(rate * (1 - rate) * (1 / n + 1 / size)) + 1 / n


def _ordered(scores: np.ndarray, items: str) -> np.ndarray:
    n = len(scores)
    if n == 0:
        raise UserError(
            f"no calibration {items}: a threshold needs at least one; set data.calibration to a share above 0"
        )
    if not np.isfinite(scores).all():
        raise UserError(f"{(~np.isfinite(scores)).sum()} of {n} calibration scores are not finite; expected all finite")
    return np.sort(scores)


def _by_quantile(scores: np.ndarray, quantile: float, items: str) -> Calibration:
    """Sets the threshold to the smallest calibration score that at least a share `quantile` of them does not exceed."""
    ordered = _ordered(scores, items)
    n = len(ordered)
    k = max(math.ceil(quantile * n - 1e-9), 1)
    rate = (n + 1 - k) / (n + 1)
    source = f"the {quantile:.4g} quantile of {n} calibration scores: it flags {rate:.2%} of normal {items} at most"
    return Calibration(float(ordered[k - 1]), rate, source)


def _by_value(scores: np.ndarray, threshold: float, items: str) -> Calibration:
    ordered = _ordered(scores, items)
    above, n = int((ordered > threshold).sum()), len(ordered)
    source = f"set by the user; {above} of {n} calibration {items} score above it"
    return Calibration(float(threshold), (above + 1) / (n + 1), source)


def by_tail(scores: np.ndarray, false_positive_rate: float, items: str = "images") -> Calibration:
    """Extrapolates a threshold beyond the calibration scores by extreme-value theory (peaks over threshold).

    For a large u, the excesses of scores over u follow a generalised Pareto distribution (Pickands 1975). With u the
    90 % quantile of the calibration scores, the threshold is u + sigma / xi * ((rate * n / excesses) ** -xi - 1). As an
    extrapolation it is not guaranteed by any finite sample.

    Args:
      scores: [n] float, the scores of normal items not used in training.
      false_positive_rate: the requested rate, below the share of scores above u.
      items: what the scored items are called in sentences.

    Raises:
      UserError: there are fewer than 10 different scores above u, or the rate is not below the share above u.

    References:
      Siffer et al. 2017, "Anomaly Detection in Streams with Extreme Value Theory", equation 1.
    """
    ordered = _ordered(scores, items).astype(np.float64)
    n = len(ordered)
    m = int(n * _TAIL)
    begin = ordered[-m - 1] if 0 < m < n else ordered[-1]
    excesses = ordered[ordered > begin] - begin
    different = len(np.unique(excesses))
    if different < _LEAST_TAIL:
        raise UserError(
            f"{n} calibration {items} have {different} different scores in their highest tenth, too few to fit a tail "
            f"(at least {_LEAST_TAIL}): expected at least {_LEAST_TAIL * 10} {items}, or another rule for the threshold"
        )
    share = len(excesses) / n
    if false_positive_rate >= share:
        raise UserError(
            f"a tail rate of {false_positive_rate:.2%} is not within the highest {share:.0%} of the scores, which the "
            "tail is fitted to: expected a smaller rate, or the threshold set by false-positive rate"
        )
    xi, sigma = fit_pareto(excesses)
    times = share / false_positive_rate
    beyond = sigma * (math.log(times) if abs(xi) < 1e-9 else math.expm1(xi * math.log(times)) / xi)
    source = (
        f"a false-positive rate of {false_positive_rate:.3%} by a generalised Pareto tail (shape {xi:.3f}, scale "
        f"{sigma:.4g}) over the highest {len(excesses)} of {n} calibration scores: an extrapolation"
        + (f", since {n} {items} can promise {1 / (n + 1):.2%} at best" if false_positive_rate < 1 / (n + 1) else "")
    )
    return Calibration(float(begin + beyond), false_positive_rate, source)


def fit_pareto(excesses: np.ndarray) -> tuple[float, float]:
    """Fits a generalised Pareto distribution to positive excesses.

    The estimate is a mean over a grid, weighted by the likelihood. It exists also where the likelihood has no maximum
    (scipy.stats.genpareto.fit searches for that maximum).

    Args:
      excesses: [n] float above 0, n at least 10.

    Returns:
      The shape xi and the scale sigma.

    References:
      Zhang and Stephens 2009, "A New and Efficient Estimation Method for the Generalized Pareto Distribution",
      Technometrics 51.
    """
    x = np.sort(np.asarray(excesses, np.float64))
    n = len(x)
    points = 30 + int(math.sqrt(n))
    grid = 1 / x[-1] + (1 - np.sqrt(points / (np.arange(1, points + 1) - 0.5))) / (3 * x[int(n / 4 + 0.5) - 1])
    shapes = np.log1p(-grid[:, None] * x).mean(axis=1)
    likelihood = n * (np.log(-grid / shapes) - shapes - 1)
    weights = np.exp(likelihood - likelihood.max())
    theta = float((grid * weights).sum() / weights.sum())
    xi = float(np.log1p(-theta * x).mean())
    return xi, -xi / theta


def p_values(calibration_scores: Array, scores: Array) -> Array:
    """Computes conformal p-values, (1 + number of calibration scores >= score) / (n + 1). Pure.

    Args:
      calibration_scores: [n] float, sorted, smallest first.
      scores: [B] float; NaN gives NaN.

    Returns:
      [B] float32 in [1 / (n + 1), 1].
    """
    n = calibration_scores.shape[0]
    at_least = n - jnp.searchsorted(calibration_scores, scores, side="left")
    return jnp.where(jnp.isnan(scores), jnp.nan, (1.0 + at_least) / (n + 1))


def verdicts(scores: np.ndarray, threshold: float, review: float | None = None) -> list[str]:
    """Returns the verdict of each score.

    Args:
      scores: [n] float.
      threshold: scores above it are `anomalous`.
      review: scores above it and not above `threshold` are for `review`; None: there is no review band.

    Returns:
      n words: `anomalous`, `review`, `normal`, or `invalid` for a score that is not finite.
    """
    lower = threshold if review is None else review

    def verdict(score: float) -> str:
        if not math.isfinite(score):
            return INVALID
        return ANOMALOUS if score > threshold else REVIEW if score > lower else NORMAL

    return [verdict(score) for score in scores.tolist()]
