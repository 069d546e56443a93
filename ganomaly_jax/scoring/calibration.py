"""What a score means: conformal p-values and a threshold, from the scores of normal images that were not trained on.

Scores and p-values are never cut: above all calibration scores the p-value is 1 / (n + 1) for every score, and the
score itself still orders what lies there.
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
# The tail is fitted to this share of the scores, the highest; to fewer than _LEAST_TAIL no distribution is fitted.
_TAIL, _LEAST_TAIL = 0.1, 10


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Holds a threshold and where it comes from.

    An image is anomalous when its score is above `threshold`. `rate` is the share of fresh normal images that this
    flags at most, on average over calibration parts of this size (by `tail`: an extrapolation); `source` says all of
    it in a sentence.
    """

    threshold: float
    rate: float
    source: str
    review: float | None = None
    """Scores above it and not above `threshold` are for review; None: there is no such band."""
    groups: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    """The calibration scores of each group, rising, where groups have thresholds of their own; see `of_group`."""


def by(scores: np.ndarray, settings: config.Evaluate, items: str = "images") -> Calibration:
    """Computes threshold and review band from calibration scores [n], as `settings.threshold_by` requests.

    Args:
      scores: [n] of normal items that were not trained on.
      settings: how the threshold is set.
      items: what the scored items are called.

    Raises:
      UserError: no scores, one that is not finite, too few for a tail, a review band that lies within what is
        anomalous already.
    """
    if settings.threshold_by == "rate":
        found = calibrate(scores, settings.false_positive_rate, items)
    elif settings.threshold_by == "quantile":
        found = _by_quantile(scores, settings.quantile, items)
    elif settings.threshold_by == "tail":
        found = by_tail(scores, settings.false_positive_rate, items)
    else:
        found = _given(scores, settings.threshold, items)
    if not settings.review:
        return found
    band = calibrate(scores, settings.review, items)
    if band.threshold >= found.threshold:
        raise UserError(
            f"a review band up to p-values of {settings.review:.2%} begins at a score of {band.threshold:.6g}, and "
            f"above {found.threshold:.6g} an item is anomalous: expected a higher review rate (that of the "
            "threshold is "
            f"{found.rate:.2%}), or 0 for no band"
        )
    source = f"{found.source}; for review above {band.threshold:.6g}, {band.rate:.2%} of the normal {items}"
    return dataclasses.replace(found, source=source, review=band.threshold)


def of_group(found: Calibration, name: str, settings: config.Evaluate) -> Calibration:
    """Returns the calibration of one group by its own scores; that of all items if the group has none.

    Raises:
      UserError: as `by`.
    """
    return by(np.asarray(found.groups[name]), settings) if name in found.groups else found


def calibrate(scores: np.ndarray, false_positive_rate: float, items: str = "images") -> Calibration:
    """Computes the threshold for a false-positive rate, from the scores [n] of n calibration images.

    With n exchangeable normal scores, a fresh one lies above the k-th smallest with probability (n + 1 - k) / (n + 1)
    (split conformal prediction), so the smallest rate that can be promised is 1 / (n + 1), by the largest score.

    Raises:
      UserError: no scores, or one that is not finite.
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
            f"best, {false_positive_rate:.2%} was asked (that needs {math.ceil(1 / false_positive_rate) - 1} {items})"
        )
    else:
        source = (
            f"a false-positive rate of {false_positive_rate:.2%} on {n} calibration {items}, normal ones that were not "
            f"trained on (the smallest rate that {n} can promise is {smallest:.2%})"
        )
    return Calibration(float(ordered[k - 1]), rate, source)


def allowed(rate: float, n: int, size: int) -> float:
    """Returns the largest share of n normal items that a threshold flags without breaking its promise.

    Three standard deviations of a share of n above the promised one, the threshold being itself drawn, and one item.

    Args:
      rate: the false-positive rate that the threshold promises.
      n: normal items counted, at least 1.
      size: calibration items that the threshold was set on.
    """
    return rate + 3 * math.sqrt(rate * (1 - rate) * (1 / n + 1 / size)) + 1 / n


def _ordered(scores: np.ndarray, items: str) -> np.ndarray:
    n = len(scores)
    if n == 0:
        raise UserError(
            f"no calibration {items}: a threshold needs at least one; give data.calibration a share above 0"
        )
    if not np.isfinite(scores).all():
        raise UserError(f"{(~np.isfinite(scores)).sum()} of {n} calibration scores are not finite; expected all finite")
    return np.sort(scores)


def _by_quantile(scores: np.ndarray, quantile: float, items: str) -> Calibration:
    """Returns the smallest calibration score that at least this share of them does not exceed."""
    ordered = _ordered(scores, items)
    n = len(ordered)
    k = max(math.ceil(quantile * n - 1e-9), 1)
    rate = (n + 1 - k) / (n + 1)
    source = f"the {quantile:.4g} quantile of {n} calibration scores: it flags {rate:.2%} of normal {items} at most"
    return Calibration(float(ordered[k - 1]), rate, source)


def _given(scores: np.ndarray, threshold: float, items: str) -> Calibration:
    ordered = _ordered(scores, items)
    above, n = int((ordered > threshold).sum()), len(ordered)
    source = f"given; {above} of {n} calibration {items} lie above it"
    return Calibration(float(threshold), (above + 1) / (n + 1), source)


def by_tail(scores: np.ndarray, false_positive_rate: float, items: str = "images") -> Calibration:
    """Extrapolates a threshold beyond the calibration scores by extreme-value theory (peaks over threshold).

    What scores [n] exceed their 90 % quantile u by follows a generalised Pareto distribution for large u (Pickands
    1975); the threshold is its quantile, u + sigma / xi * ((rate * n / excesses) ** -xi - 1), as in Siffer et al. 2017,
    "Anomaly Detection in Streams with Extreme Value Theory", equation 1. This extrapolates: no finite sample
    promises it.

    Raises:
      UserError: fewer than 10 different scores above u, or a rate that lies below u (there calibrated ranks serve).
    """
    ordered = _ordered(scores, items).astype(np.float64)
    n = len(ordered)
    m = int(n * _TAIL)
    begin = ordered[-m - 1] if 0 < m < n else ordered[-1]
    excesses = ordered[ordered > begin] - begin
    different = len(np.unique(excesses))
    if different < _LEAST_TAIL:
        raise UserError(
            f"{n} calibration {items} have {different} different scores in their highest tenth: a tail is fitted to "
            f"{_LEAST_TAIL} at least; expected {_LEAST_TAIL * 10} {items} or more, or another way to set the threshold"
        )
    share = len(excesses) / n
    if false_positive_rate >= share:
        raise UserError(
            f"a tail rate of {false_positive_rate:.2%} lies below the highest {share:.0%} that the tail is fitted to: "
            "expected less, or the threshold by false-positive rate"
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
    """Fits a generalised Pareto distribution to positive excesses [n], n >= 10; returns (shape xi, scale sigma).

    The estimate is a mean over a grid, weighted by the likelihood, which for some samples has no maximum of its own
    (scipy.stats.genpareto.fit looks for that maximum).

    Args:
      excesses: [n] above 0, n at least 10.

    Returns:
      Shape xi and scale sigma.

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
    """Computes conformal p-values [B] in [1 / (n + 1), 1]: (1 + calibration scores >= score) / (n + 1). Pure.

    Args:
      calibration_scores: [n], sorted, smallest first.
      scores: [B]; NaN gives NaN.

    Returns:
      [B] float32 in [1 / (n + 1), 1].
    """
    n = calibration_scores.shape[0]
    at_least = n - jnp.searchsorted(calibration_scores, scores, side="left")
    return jnp.where(jnp.isnan(scores), jnp.nan, (1.0 + at_least) / (n + 1))


def verdicts(scores: np.ndarray, threshold: float, review: float | None = None) -> list[str]:
    """Returns the verdicts of scores.

    These are `anomalous` above the threshold, `review` above a lower one if there is one, `invalid` if the score is not
    finite, and `normal` otherwise.

    It is `anomalous` above the threshold, `review` above a lower one if there is one, `invalid` for a score that is not
    finite, otherwise `normal`.
    """
    lower = threshold if review is None else review

    def verdict(score: float) -> str:
        if not math.isfinite(score):
            return INVALID
        return ANOMALOUS if score > threshold else REVIEW if score > lower else NORMAL

    return [verdict(score) for score in scores.tolist()]
