"""Corruption: what a denoising autoencoder has to undo, noise and patches that are hidden."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

PATCHES = 8
"""Hidden patches that would lie side by side along the shorter side."""


def corrupt(key: Array, x: Array, noise: float, mask: float, first: int | Array = 0) -> Array:
    """x [B, ...] float in [-1, 1] with parts hidden and noise over all of it, of the same shape. Pure.

    Each patch is hidden with probability `mask`: it becomes the mean of its own input (of each channel; 0 where an
    input is a vector). Of images [H, W, C] a patch is a square of all channels, of windows [T, D] a stretch of one
    sensor, an eighth of the shorter side each; of vectors [D] one entry. `noise` is the standard deviation of the
    Gaussian noise, which may leave [-1, 1]. The draws of input i follow from `key` and first + i, wherever it lies.
    """
    *sides, channels = x.shape[1:]
    length = max(min(sides) // PATCHES, 1) if sides else 1
    grid = (*(-(-side // length) for side in sides), 1 if len(sides) == 2 else channels)

    def one(i: Array, item: Array) -> Array:
        hiding, noising = jax.random.split(jax.random.fold_in(key, i))
        if mask:
            hidden = jax.random.bernoulli(hiding, mask, grid)
            for axis, side in enumerate(sides):
                hidden = jnp.repeat(hidden, length, axis)[(slice(None),) * axis + (slice(side),)]
            mean = jnp.mean(item, tuple(range(len(sides))), keepdims=True) if sides else jnp.zeros_like(item)
            item = jnp.where(hidden, mean, item)
        return item + noise * jax.random.normal(noising, item.shape, item.dtype) if noise else item

    return jax.vmap(one)(first + jnp.arange(len(x)), x)
