"""Where an image differs from its reconstruction: maps on several scales (pure JAX), and connected regions (NumPy)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

# Sides in pixels of the squares that differences are averaged over.
SCALES = (1, 2, 4)
# A map's threshold lies above this share of the pixels of the calibration images.
SHARE = 0.995
# Colours run from the threshold to so many times it, and below it there is none: a normal image looks blank.
END = 2.0
# A region counts from this share of the pixels on, and from _LEAST pixels.
_SHARE_OF_IMAGE, _LEAST = 0.001, 4


@dataclasses.dataclass(frozen=True)
class Region:
    """Describes a connected region of a map above its threshold, in pixels of the network's input."""

    left: int
    top: int
    width: int
    height: int
    peak: float
    """The largest value of the map in it."""


def residual_map(x: Array, x_hat: Array) -> Array:
    """Computes how far x is from x_hat, as mean over channels and `SCALES`: [B, H, W] float32 in 0..2. Pure.

    On each scale the difference is averaged over squares before its size is taken, so that noise and edges that are a
    little off cancel, and what is missing or added over an area stays. Scale 1 alone is |x - x_hat|.

    Args:
      x: [B, H, W, C] in [-1, 1].
      x_hat: as x, its reconstruction.

    Returns:
      [B, H, W] float32 in 0..2.
    """
    batch, height, width, channels = x.shape
    difference = x.astype(jnp.float32) - x_hat.astype(jnp.float32)
    total = jnp.zeros((batch, height, width), jnp.float32)
    for side in SCALES:
        squares = difference.reshape(batch, height // side, side, width // side, side, channels).mean((2, 4))
        size = jnp.abs(squares).mean(-1)
        total += jax.image.resize(size, (batch, height, width), "bilinear") if side > 1 else size
    return total / len(SCALES)


def threshold(values: np.ndarray) -> float:
    """Computes the threshold of maps from those [n, H, W] of normal images: `SHARE` of their pixels are below."""
    return float(max(np.quantile(values, SHARE), 1e-3))


def regions(values: np.ndarray, threshold: float) -> list[Region]:
    """Finds regions (connected by sides and corners) of a map [H, W] above its threshold, highest peak first.

    Those of fewer than 4 pixels, or of less than 0.1 % of the image, are left out.
    """
    from scipy import ndimage

    marked, _ = ndimage.label(values > threshold, np.ones((3, 3), int))
    found = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(marked), 1):
        inside = marked[rows, columns] == number
        if inside.sum() >= max(_LEAST, _SHARE_OF_IMAGE * values.size):
            left, top = columns.start, rows.start
            peak = float(values[rows, columns][inside].max())
            found.append(Region(left, top, columns.stop - left, rows.stop - top, peak))
    return sorted(found, key=lambda region: -region.peak)
