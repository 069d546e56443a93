"""What any detector has to beat: three scores without a network, fitted on the same normal images."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ganomaly_jax.scoring import principal_components

CONTROLS = {
    "complexity": "mean absolute difference of neighbouring pixels: no fit at all",
    "pixel PCA": "squared residual outside the first 64 principal components of the training images",
    "raw neighbours": "mean distance to the 5 nearest training images in these 64 components",
}
COMPONENTS, NEIGHBOURS = 64, 5
# Principal components are found from at most so many training images, drawn by the seed.
_FITTED = 10_000
_BLOCK = 512


def scores(images: np.ndarray, train: np.ndarray, test: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Computes {control: [n] float64} of images[test], fitted on images[train].

    Args:
      images: [N, H, W, C] of any number type.
      train, test: indices into them; at least 2 to train on.
    """
    drawn = np.sort(np.random.default_rng((seed, 4)).permutation(train)[:_FITTED])
    mean, _, axes = principal_components.fit(_flat(images, drawn), COMPONENTS, 1e-6)
    mean, axes = mean.astype(np.float32), axes.astype(np.float32)
    near, _ = _projected(images, train, mean, axes)
    at, residual = _projected(images, test, mean, axes)
    return {
        "complexity": np.concatenate([complexity(images[part]) for part in _parts(test)]),
        "pixel PCA": residual,
        "raw neighbours": neighbours(near, at, NEIGHBOURS),
    }


def complexity(images: np.ndarray) -> np.ndarray:
    """Computes mean |difference| of horizontally plus vertically adjacent pixels: [n, H, W, C] -> [n] float64."""
    pixels = images.astype(np.float32)
    across, down = (np.abs(np.diff(pixels, axis=axis)).mean(axis=(1, 2, 3), dtype=np.float64) for axis in (2, 1))
    return across + down


def neighbours(train: np.ndarray, test: np.ndarray, count: int) -> np.ndarray:
    """Computes the mean distance [n] float64 of test [n, k] to the `count` nearest of train [m, k] (all if fewer)."""
    near = jnp.asarray(train)
    count = min(count, len(train))
    # Blocks of one size, so that they are one program.
    padded = np.concatenate([test, np.zeros((-len(test) % _BLOCK, test.shape[1]), test.dtype)])
    found = [np.asarray(_nearest(near, padded[i : i + _BLOCK], count)) for i in range(0, len(padded), _BLOCK)]
    return np.concatenate(found)[: len(test)].astype(np.float64)


@functools.partial(jax.jit, static_argnums=2)
def _nearest(train: Array, test: Array, count: int) -> Array:
    product = jnp.dot(test, train.T, precision=jax.lax.Precision.HIGHEST)
    squared = jnp.sum(test**2, 1)[:, None] + jnp.sum(train**2, 1)[None, :] - 2 * product
    nearest = -jax.lax.top_k(-squared, count)[0]
    return jnp.mean(jnp.sqrt(jnp.maximum(nearest, 0)), axis=1)


def _projected(
    images: np.ndarray, indices: np.ndarray, mean: np.ndarray, axes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns coordinates [n, k] float32 along the components and the squared residual [n] float64 outside them."""
    at, residual = [], []
    for part in _parts(indices):
        centred = _flat(images, part) - mean
        at.append(centred @ axes)
        residual.append(np.square(centred - at[-1] @ axes.T).sum(axis=1, dtype=np.float64))
    return np.concatenate(at), np.concatenate(residual)


def _parts(indices: np.ndarray) -> list[np.ndarray]:
    return [indices[i : i + 2048] for i in range(0, len(indices), 2048)]


def _flat(images: np.ndarray, indices: np.ndarray) -> np.ndarray:
    return images[indices].reshape(len(indices), -1).astype(np.float32) / 255
