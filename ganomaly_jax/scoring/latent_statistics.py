"""Statistics of the latents and residuals of normal items: Mahalanobis distance, nearest neighbours, local density.

They are fitted in NumPy on the host; once fitted, the scores are pure JAX.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ganomaly_jax.scoring import principal_components

NEIGHBOURS = 5
"""The number of nearest neighbours whose distances are averaged."""
BANK = 10_000
"""The largest number of training latents kept for comparison."""
_SHRINKAGE = 0.1
_RIDGES = 10.0 ** np.arange(-6, 1.5, 0.5)
_FOLDS = 5
ALIKE = 20
"""The number of training items nearest in z that an item's residual is compared with."""
_FLOOR = 1e-6
# Keeps distances above 0, where the square root has no gradient.
_LEAST = 1e-12
_ROWS = 1024


def fit(z: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Fits the statistics of normal latents that the functions below use.

    Args:
      z: latents [n, L] float32 of normal items.
      seed: draws the latents that are kept.

    Returns:
      float32 arrays: `mean` [L] and `whitening` [L, L], which brings z to unit covariance, regularised by a tenth of
      the mean variance; the whitened latents `bank` [m, L] and the latents of unit length `directions` [m, L], m at
      most `BANK`; `spacing` and `angular_spacing` [m], the mean distance of each of these to its neighbours.
    """
    mean, variances, axes = principal_components.fit(z)
    whitening = axes / np.sqrt(variances + _SHRINKAGE * max(float(variances.mean()), 1e-12))
    bank = ((z[_drawn(len(z), seed)] - mean) @ whitening).astype(np.float32)
    units = directions(z, seed)
    return {
        "mean": mean.astype(np.float32),
        "whitening": whitening.astype(np.float32),
        "bank": bank,
        "directions": units,
        "spacing": spacing(bank),
        "angular_spacing": spacing(units),
    }


def directions(z: np.ndarray, seed: int) -> np.ndarray:
    """Returns the vectors [m, L] of unit length that `angle` compares with, m at most `BANK` of z [n, L]."""
    return np.asarray(_unit(jnp.asarray(z[_drawn(len(z), seed)])))


def _drawn(n: int, seed: int) -> np.ndarray:
    return np.sort(np.random.default_rng(seed).permutation(n)[:BANK])


def fit_residual(residual: np.ndarray) -> dict[str, np.ndarray]:
    """Fits the statistics that `mahalanobis` uses to the residuals x - x_hat of normal items.

    Each value is divided by its standard deviation, then the residuals are whitened. Residuals of correlated sensors
    are correlated, and small in the very directions that are most informative. The covariance is therefore not
    regularised by a fixed share as in `fit`, but by the ridge that maximises the likelihood of held-out residuals in a
    cross-validation over five consecutive parts.

    Args:
      residual: x - x_hat of normal items, flat [n, D] float32, n at least 4.

    Returns:
      float32 arrays `mean` [D] and `whitening` [D, D].
    """
    rows = residual.astype(np.float64)
    mean, spread = rows.mean(axis=0), np.maximum(rows.std(axis=0), _LEAST)
    rows = (rows - mean) / spread
    ridge = _RIDGES[np.argmax(np.sum([_likelihoods(rows, part) for part in _parts(len(rows))], axis=0))]
    _, variances, axes = principal_components.fit(rows)
    whitening = axes / np.sqrt(variances + ridge) / spread[:, None]
    return {"mean": mean.astype(np.float32), "whitening": whitening.astype(np.float32)}


def fit_squares(residual: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Returns the squared residuals that `local` needs, of the items whose latents `fit` keeps.

    Args:
      residual: [n, D] float32 of the items whose latents were fitted.
      seed: the seed that the latents were fitted with.

    Returns:
      float32 `squares` [m, D], none below a millionth of the mean of its column, so that nothing is divided by 0.
    """
    squares = residual[_drawn(len(residual), seed)] ** 2
    return {"squares": np.maximum(squares, np.maximum(_FLOOR * squares.mean(axis=0), np.float32(_LEAST)))}


def _parts(n: int) -> list[np.ndarray]:
    return np.array_split(np.arange(n), min(_FOLDS, n // 2))


def _likelihoods(rows: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Computes log-likelihoods of the rows of one part under normal distributions of all others, one per ridge."""
    others = np.delete(rows, part, axis=0)
    mean, variances, axes = principal_components.fit(others)
    squares = ((rows[part] - mean) @ axes) ** 2
    widths = variances + _RIDGES[:, None]
    return -0.5 * (len(part) * np.log(widths).sum(axis=1) + (squares.sum(axis=0) / widths).sum(axis=1))


def mahalanobis(fitted: dict[str, Array], z: Array) -> Array:
    """Computes the Mahalanobis distance [B] of latents or residuals z [B, L] from the mean of normal items."""
    return _root(jnp.sum(jnp.square(_whitened(fitted, z)), axis=-1))


def neighbours(fitted: dict[str, Array], z: Array) -> Array:
    """Computes the mean distance [B] of latents z [B, L], once whitened, to their nearest neighbours in the bank."""
    return jnp.mean(_nearest(fitted["bank"], _whitened(fitted, z))[0], axis=-1)


def density(fitted: dict[str, Array], z: Array) -> Array:
    """Computes the local density ratio [B]: the mean distance to the neighbours over the same mean of these.

    This is a simplified local outlier factor: distances count relative to how close normal latents lie there.

    References:
      Schubert et al. 2014, "Local outlier detection reconsidered".
    """
    return _ratio(fitted["bank"], fitted["spacing"], _whitened(fitted, z))


def local(latent: dict[str, Array], fitted: dict[str, Array], z: Array, residual: Array) -> Array:
    """Computes the mean squared residual [B], each value relative to its mean over the `ALIKE` nearest items in z.

    It is about 1 for a normal item in every operating state, even if the residuals of the states differ in size.

    Args:
      latent: the statistics of latents, as returned by `fit`.
      fitted: the squared residuals, as returned by `fit_squares`.
      z: latents [B, L] float32.
      residual: x - x_hat, flat [B, D] float32.
    """
    which = _nearest(latent["bank"], _whitened(latent, z), ALIKE)[1]
    expected = jnp.mean(jnp.asarray(fitted["squares"])[which], axis=1)
    return jnp.mean(jnp.square(residual) / expected, axis=-1)


def angle(fitted: dict[str, Array], z: Array) -> Array:
    """Computes the mean chord length [B] from the directions of latents z [B, L] to the nearest in `directions`."""
    return jnp.mean(_nearest(fitted["directions"], _unit(z))[0], axis=-1)


def angular_density(fitted: dict[str, Array], z: Array) -> Array:
    """Computes `density` [B] on the unit sphere: `angle` over the mean angular spacing of the nearest directions."""
    return _ratio(fitted["directions"], fitted["angular_spacing"], _unit(z))


def _whitened(fitted: dict[str, Array], z: Array) -> Array:
    return (z - fitted["mean"]) @ fitted["whitening"]


def _unit(z: Array) -> Array:
    return z * lax.rsqrt(jnp.sum(jnp.square(z), axis=-1, keepdims=True) + _LEAST)


def _root(squares: Array) -> Array:
    return jnp.sqrt(jnp.maximum(squares, _LEAST))


def _nearest(bank: Array, z: Array, count: int = NEIGHBOURS) -> tuple[Array, Array]:
    """Returns the distances [B, k] of z to its nearest neighbours in the bank, ascending, and their indices [B, k]."""
    squares = jnp.sum(z * z, axis=-1)[:, None] + jnp.sum(bank * bank, axis=-1) - 2 * z @ bank.T
    least, which = lax.top_k(-squares, min(count, len(bank)))
    return _root(-least), which


def _ratio(bank: Array, spacing: Array, z: Array) -> Array:
    distances, which = _nearest(bank, z)
    return jnp.mean(distances, axis=-1) / jnp.mean(jnp.asarray(spacing)[which], axis=-1)


def spacing(bank: np.ndarray) -> np.ndarray:
    """Computes the mean distance [m] of each row of the bank [m, L] to its nearest neighbours, itself excluded."""
    near = jax.jit(lambda bank, z: _nearest(bank, z, NEIGHBOURS + 1)[0][:, 1:].mean(axis=-1))
    parts = [np.asarray(near(bank, bank[i : i + _ROWS])) for i in range(0, len(bank), _ROWS)]
    return np.maximum(np.concatenate(parts), np.float32(1e-6))
