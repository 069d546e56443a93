"""What latents of normal images look like: neighbours, local density, Mahalanobis distance. Pure JAX once fitted."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

NEIGHBOURS = 5
"""Of which distances are averaged."""
BANK = 10_000
"""At most so many latents of training images are kept to be compared with."""
_SHRINKAGE = 0.1
# A distance of 0 has no gradient.
_LEAST = 1e-12
_ROWS = 1024


def fit(z: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """What the functions below need, from latents z [n, L] float32 of normal images; `seed` draws those that are kept.

    Returns float32 arrays: `mean` [L] and `whitening` [L, L], after which z has a covariance of 1 (shrunk towards its
    mean variance by a tenth, Ledoit and Wolf 2004); `bank` [m, L] of whitened and `directions` [m, L] of unit latents,
    m at most `BANK`; `spacing` and `angular_spacing` [m], the mean distance of each to its neighbours in these.
    """
    mean = z.mean(axis=0, dtype=np.float64)
    covariance = np.cov(z.T.astype(np.float64)).reshape(z.shape[1], z.shape[1])
    ridge = _SHRINKAGE * max(float(np.trace(covariance)) / len(covariance), 1e-12)
    variances, axes = np.linalg.eigh(covariance + ridge * np.eye(len(covariance)))
    whitening = axes / np.sqrt(variances)
    kept = z[np.sort(np.random.default_rng(seed).permutation(len(z))[:BANK])]
    bank = ((kept - mean) @ whitening).astype(np.float32)
    directions = np.asarray(_unit(jnp.asarray(kept)))
    return {
        "mean": mean.astype(np.float32),
        "whitening": whitening.astype(np.float32),
        "bank": bank,
        "directions": directions,
        "spacing": _spacing(bank),
        "angular_spacing": _spacing(directions),
    }


def mahalanobis(fitted: dict[str, Array], z: Array) -> Array:
    """Mahalanobis distance [B] of latents z [B, L] from the mean of the normal ones."""
    return _root(jnp.sum(jnp.square(_whitened(fitted, z)), axis=-1))


def neighbours(fitted: dict[str, Array], z: Array) -> Array:
    """Mean distance [B] of whitened latents z [B, L] to their nearest ones in the bank."""
    return jnp.mean(_nearest(fitted["bank"], _whitened(fitted, z))[0], axis=-1)


def density(fitted: dict[str, Array], z: Array) -> Array:
    """`neighbours`, as a ratio [B] to the same of these nearest ones: the local density ratio.

    A simplified local outlier factor (Schubert et al. 2014): far away means far where normal latents lie close.
    """
    return _ratio(fitted["bank"], fitted["spacing"], _whitened(fitted, z))


def angle(fitted: dict[str, Array], z: Array) -> Array:
    """Mean distance [B] of the directions of latents z [B, L] to the nearest ones, chords on the unit sphere."""
    return jnp.mean(_nearest(fitted["directions"], _unit(z))[0], axis=-1)


def angular_density(fitted: dict[str, Array], z: Array) -> Array:
    """`density` on the unit sphere: `angle` as a ratio [B] to that of the nearest ones."""
    return _ratio(fitted["directions"], fitted["angular_spacing"], _unit(z))


def _whitened(fitted: dict[str, Array], z: Array) -> Array:
    return (z - fitted["mean"]) @ fitted["whitening"]


def _unit(z: Array) -> Array:
    return z * lax.rsqrt(jnp.sum(jnp.square(z), axis=-1, keepdims=True) + _LEAST)


def _root(squares: Array) -> Array:
    return jnp.sqrt(jnp.maximum(squares, _LEAST))


def _nearest(bank: Array, z: Array, count: int = NEIGHBOURS) -> tuple[Array, Array]:
    """Distances [B, k] of z to its nearest in the bank, rising, and which they are."""
    squares = jnp.sum(z * z, axis=-1)[:, None] + jnp.sum(bank * bank, axis=-1) - 2 * z @ bank.T
    least, which = lax.top_k(-squares, min(count, len(bank)))
    return _root(-least), which


def _ratio(bank: Array, spacing: Array, z: Array) -> Array:
    distances, which = _nearest(bank, z)
    return jnp.mean(distances, axis=-1) / jnp.mean(jnp.asarray(spacing)[which], axis=-1)


def _spacing(bank: np.ndarray) -> np.ndarray:
    """The mean distance of each to its nearest ones but itself."""
    near = jax.jit(lambda bank, z: _nearest(bank, z, NEIGHBOURS + 1)[0][:, 1:].mean(axis=-1))
    parts = [np.asarray(near(bank, bank[i : i + _ROWS])) for i in range(0, len(bank), _ROWS)]
    return np.maximum(np.concatenate(parts), np.float32(1e-6))
