"""Several scores on one scale and as one, by how rare they are among normal items. NumPy, on the host."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

_LEAST = 1e-300


def rarity(reference: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Computes how rare scores [B] are among normal ones: (1 + number of the reference [n] that is as high) / (n + 1).

    Above all of the reference it falls on exponentially, by the mean excess of the highest tenth, so that what lies
    there keeps its order in a combination: an extrapolation, where the conformal p-value stays 1 / (n + 1).

    Args:
      reference: [n] scores of normal items.
      scores: [B] scores; NaN gives NaN.

    Returns:
      [B] float64 above 0 and at most 1.
    """
    ordered, n = np.sort(reference), len(reference)
    found = (1.0 + n - np.searchsorted(ordered, scores, side="left")) / (n + 1)
    top = ordered[-max(n // 10, 2) :]
    scale = max(float((top - top[0]).mean()), 1e-9 * max(1.0, abs(float(ordered[-1]))))
    with np.errstate(under="ignore"):
        beyond = np.exp(-np.maximum(scores - ordered[-1], 0) / scale)
    return np.where(np.isnan(scores), np.nan, np.maximum(found * beyond, _LEAST))


def rarity_of_reference(reference: np.ndarray) -> np.ndarray:
    """Computes the `rarity` [n] of each reference score among the others, divided by n + 1 as well."""
    ordered, n = np.sort(reference), len(reference)
    found = (n - np.searchsorted(ordered, reference, side="left").astype(float)) / (n + 1)
    if n > 2:  # the highest alone lies beyond the others
        found[np.argmax(reference)] = rarity(ordered[:-1], ordered[-1:])[0] * n / (n + 1)
    return found


def _stouffer(rare: np.ndarray) -> np.ndarray:
    from scipy import special

    inside = np.clip(rare, _LEAST, 1 - 1e-9)
    inside = np.where(np.isnan(inside), 0.5, inside)
    normal = -special.ndtri(inside)
    return np.where(np.isnan(rare).any(axis=0), np.nan, normal.sum(axis=0) / math.sqrt(len(rare)))


COMBINE: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean": lambda rare: 1 - rare.mean(axis=0),
    "maximum": lambda rare: -np.log10(rare.min(axis=0)),
    "stouffer": _stouffer,
}
"""Of rarities [k, B] of k scores to one score [B]: mean of the quantiles, the highest of them (as the logarithm of what
is left to 1), and Stouffer's sum of normal quantiles over sqrt(k). The scores are not independent, so none of these is
a p-value; what it means is again said by its values on calibration items."""
