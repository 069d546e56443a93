"""Combining several scores by their rarity among normal items, which puts them on one scale. NumPy, on the host."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

_LEAST = 1e-300


def rarity(reference: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Computes the rarity of scores among those of normal items, (1 + number of reference scores >= score) / (n + 1).

    Above the largest reference score, where conformal p-values are all 1 / (n + 1), it is extrapolated: it falls off
    exponentially at the scale of the mean excess of the highest tenth, so that combinations still rank the items there.

    Args:
      reference: [n] scores of normal items.
      scores: [B] scores; NaN gives NaN.

    Returns:
      [B] float64 above 0 and at most 1.
    """
    ordered, n = np.sort(reference), len(reference)
    ranks = (1.0 + n - np.searchsorted(ordered, scores, side="left")) / (n + 1)
    top = ordered[-max(n // 10, 2) :]
    scale = max(float((top - top[0]).mean()), 1e-9 * max(1.0, abs(float(ordered[-1]))))
    with np.errstate(under="ignore"):
        beyond = np.exp(-np.maximum(scores - ordered[-1], 0) / scale)
    return np.where(np.isnan(scores), np.nan, np.maximum(ranks * beyond, _LEAST))


def rarity_of_reference(reference: np.ndarray) -> np.ndarray:
    """Computes the `rarity` [n] of each reference score among the others, also on the scale of 1 / (n + 1)."""
    ordered, n = np.sort(reference), len(reference)
    ranks = (n - np.searchsorted(ordered, reference, side="left").astype(float)) / (n + 1)
    if n > 2:  # only the highest score lies above all others
        ranks[np.argmax(reference)] = rarity(ordered[:-1], ordered[-1:])[0] * n / (n + 1)
    return ranks


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
"""Functions that combine the rarities [k, B] of k scores into one score [B]: one minus their mean, the negative
logarithm of the smallest, and Stouffer's sum of normal quantiles over sqrt(k). The k scores are not independent, so
none of these is a p-value; each is calibrated on calibration items like any other score."""
