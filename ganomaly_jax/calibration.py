"""What a score means: conformal p-values and a threshold, from the scores of normal images that were not trained on."""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from jax import Array

from ganomaly_jax.errors import UserError

NORMAL, ANOMALOUS, INVALID = "normal", "anomalous", "invalid"


@dataclasses.dataclass(frozen=True)
class Calibration:
    """A threshold and where it comes from.

    An image is anomalous when its score is above `threshold`. `rate` is the share of fresh normal images that this
    flags at most, on average over calibration parts of this size; `source` says all of it in a sentence.
    """

    threshold: float
    rate: float
    source: str


def calibrate(scores: np.ndarray, false_positive_rate: float) -> Calibration:
    """The threshold for a false-positive rate, from the scores [n] of n calibration images.

    With n exchangeable normal scores, a fresh one lies above the k-th smallest with probability (n + 1 - k) / (n + 1)
    (split conformal prediction), so the smallest rate that can be promised is 1 / (n + 1), by the largest score.

    Raises:
      UserError: no scores, or one that is not finite.
    """
    n = len(scores)
    if n == 0:
        raise UserError("no calibration images: a threshold needs at least one; give data.calibration a share above 0")
    if not np.isfinite(scores).all():
        raise UserError(f"{(~np.isfinite(scores)).sum()} of {n} calibration scores are not finite; wanted all finite")
    ordered = np.sort(scores)
    smallest = 1 / (n + 1)
    # The tolerance keeps (n + 1)(1 - rate) = 99.00000000000001 from becoming 100.
    k = min(math.ceil((n + 1) * (1 - false_positive_rate) - 1e-9), n)
    rate = (n + 1 - k) / (n + 1)
    if false_positive_rate < smallest:
        source = (
            f"the largest score of {n} calibration images: {n} can promise a false-positive rate of {smallest:.2%} at "
            f"best, {false_positive_rate:.2%} was asked (that needs {math.ceil(1 / false_positive_rate) - 1} images)"
        )
    else:
        source = (
            f"a false-positive rate of {false_positive_rate:.2%} on {n} calibration images, normal ones that were not "
            f"trained on (the smallest rate that {n} can promise is {smallest:.2%})"
        )
    return Calibration(float(ordered[k - 1]), rate, source)


def p_values(calibration_scores: Array, scores: Array) -> Array:
    """Conformal p-values [B] float32 in [1 / (n + 1), 1]: (1 + calibration scores >= score) / (n + 1). Pure.

    `calibration_scores` [n] are sorted, smallest first. NaN scores give NaN.
    """
    n = calibration_scores.shape[0]
    at_least = n - jnp.searchsorted(calibration_scores, scores, side="left")
    return jnp.where(jnp.isnan(scores), jnp.nan, (1.0 + at_least) / (n + 1))


def verdicts(scores: np.ndarray, threshold: float) -> list[str]:
    """`anomalous` above the threshold, `invalid` for a score that is not finite, otherwise `normal`."""
    return [
        INVALID if not math.isfinite(score) else ANOMALOUS if score > threshold else NORMAL for score in scores.tolist()
    ]
