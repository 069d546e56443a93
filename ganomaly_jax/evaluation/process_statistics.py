"""The statistics T2 and Q of process monitoring, on the principal components of normal items. NumPy, on the host."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ganomaly_jax.core.errors import UserError
from ganomaly_jax.scoring import principal_components


def flat(x: np.ndarray) -> np.ndarray:
    """Returns items [n, H, W, C], [n, T, D] or [n, D] as rows [n, D] float64."""
    return np.asarray(x, np.float64).reshape(len(x), -1)


def fit(x: np.ndarray, seed: int = 0, components: float = 0.9, scale: bool | None = None) -> dict[str, np.ndarray]:
    """Fits the principal components of normal items.

    Args:
      x: [n, ...] float, n at least 2.
      seed: unused, part of the interface of a baseline.
      components: below 1, the share of variance to explain with the fewest components, at least one fewer than there
        are variables so that Q is not empty; from 1, the number of components, limited by the rank.
      scale: divide each variable by its standard deviation first; None: all items but images [n, H, W, C], whose
        pixels share one unit.

    Returns:
      float64 arrays: `mean` and `spread` [D] (1 if not scaled or constant), `axes` [D, k] and `variances` [k].

    Raises:
      UserError: there are fewer than two items, or `components` is not above 0.
    """
    if len(x) < 2 or not components > 0:
        raise UserError(
            f"PCA of {len(x)} items with components={components}: expected at least two items, and components above 0"
        )
    rows = flat(x)
    spread = np.ones(rows.shape[1])
    if scale if scale is not None else x.ndim != 4:
        deviations = rows.std(axis=0, ddof=1)
        spread = np.where(deviations > 0, deviations, 1.0)
    mean, variances, axes = principal_components.fit(rows / spread, least=1e-12)
    if components < 1:
        shares = np.cumsum(variances) / max(variances.sum(), 1e-300)
        count = min(int(np.searchsorted(shares, components - 1e-12)) + 1, max(rows.shape[1] - 1, 1), len(variances))
    else:
        count = min(int(components), len(variances))
    return {
        "mean": mean * spread,
        "spread": spread,
        "axes": axes[:, :count],
        "variances": np.maximum(variances[:count], 1e-12),
    }


def hotelling(fitted: Mapping[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """Computes Hotelling's T2 [B] of items x [B, ...], the squared Mahalanobis distance within the components."""
    scores = _centred(fitted, x) @ fitted["axes"]
    return (scores**2 / fitted["variances"]).sum(axis=1)


def squared_error(fitted: Mapping[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """Computes Q [B], the squared prediction error (SPE) of items x [B, ...], not explained by the components."""
    rows = _centred(fitted, x)
    return ((rows - rows @ fitted["axes"] @ fitted["axes"].T) ** 2).sum(axis=1)


def _centred(fitted: Mapping[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    return (flat(x) - fitted["mean"]) / fitted["spread"]
