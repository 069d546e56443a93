"""Residual maps of images and their reconstructions on several scales (pure JAX), and connected regions (NumPy)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

# Sides in pixels of the squares that differences are averaged over.
SCALES = (1, 2, 4)
# The share of the pixels of the calibration images that lie below the threshold of the maps.
SHARE = 0.995
# The colour scale runs from the threshold to this multiple of it; below there is no colour: normal images look blank.
END = 2.0
# Smaller regions, as a share of the image's pixels and in pixels, are left out.
_SHARE_OF_IMAGE, _LEAST = 0.001, 4


@dataclasses.dataclass(frozen=True)
class Region:
    """Describes a connected region of a map above its threshold, in pixels of the network's input."""

    left: int
    top: int
    width: int
    height: int
    peak: float
    """The largest value of the map in the region."""


def residual_map(x: Array, x_hat: Array) -> Array:
    """Computes the residual map of images, the mean over `SCALES` and over channels. Pure.

    On each scale the difference is averaged over squares before its absolute value is taken, so that noise and slightly
    shifted edges cancel, whereas something missing or added over an area remains. Scale 1 alone gives |x - x_hat|.

    Args:
      x: images [B, H, W, C] float in [-1, 1].
      x_hat: their reconstructions, shaped as x.

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
    """Returns the threshold of residual maps, below which a share `SHARE` of the pixels of normal images lies.

    Args:
      values: [n, H, W] float, the residual maps of normal images.
    """
    return float(max(np.quantile(values, SHARE), 1e-3))


def regions(values: np.ndarray, threshold: float) -> list[Region]:
    """Finds the connected regions of a map above its threshold.

    Pixels are connected by sides and corners. Regions of fewer than 4 pixels, or of less than 0.1 % of the image, are
    left out.

    Args:
      values: [H, W] float, a residual map.
      threshold: the threshold of the map.

    Returns:
      The regions, highest peak first.
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
