"""Corruption of the training inputs of a denoising autoencoder: Gaussian noise and hidden patches."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

PATCHES = 8
"""Number of patches along the shorter side."""


def corrupt(key: Array, x: Array, noise: float, mask: float, first: int | Array = 0) -> Array:
    """Hides patches of the inputs and adds Gaussian noise. Pure.

    A patch of an image [H, W, C] is a square across all channels, of a window [T, D] a stretch of one sensor, each an
    eighth of the shorter side long; of a row [D] it is one value.

    Args:
      key: PRNG key.
      x: inputs [B, ...], floating point.
      noise: standard deviation of the noise, which may leave [-1, 1].
      mask: probability that a patch is hidden, that is replaced by the mean of its input (per channel; 0 for rows).
      first: index of the first input in the global batch; the draws of input i depend on `key` and first + i only.

    Returns:
      Corrupted inputs, of the shape of x.
    """
    *sides, channels = x.shape[1:]
    length = max(min(sides) // PATCHES, 1) if sides else 1
    grid = (*(-(-side // length) for side in sides), 1 if len(sides) == 2 else channels)

    def of_item(i: Array, item: Array) -> Array:
        mask_key, noise_key = jax.random.split(jax.random.fold_in(key, i))
        if mask:
            hidden = jax.random.bernoulli(mask_key, mask, grid)
            for axis, side in enumerate(sides):
                hidden = jnp.repeat(hidden, length, axis)[(slice(None),) * axis + (slice(side),)]
            mean = jnp.mean(item, tuple(range(len(sides))), keepdims=True) if sides else jnp.zeros_like(item)
            item = jnp.where(hidden, mean, item)
        return item + noise * jax.random.normal(noise_key, item.shape, item.dtype) if noise else item

    return jax.vmap(of_item)(first + jnp.arange(len(x)), x)
