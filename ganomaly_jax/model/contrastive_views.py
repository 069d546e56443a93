"""Random views of images for contrastive learning: small distortions that keep the content."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

MAX_ROTATION, MAX_SCALE, MAX_STRETCH, MAX_SHIFT = 0.3, 0.2, 0.1, 0.12
"""Largest rotation (radians), change of size and of aspect (relative), and shift (relative to the side)."""
MAX_CONTRAST, MAX_BRIGHTNESS = 0.2, 0.1
"""Largest change of contrast (relative) and of brightness (of the range [-1, 1])."""


def random_view(key: Array, x: Array, first: int | Array = 0) -> Array:
    """Returns one random view of each image. Pure.

    Bilinear interpolation; edge pixels are repeated beyond the border.

    Args:
      key: PRNG key.
      x: images [B, H, W, C] in [-1, 1].
      first: index of the first image in the global batch; the view of image i depends on `key` and first + i only.

    Returns:
      Images [B, H, W, C] in [-1, 1].
    """

    def of_item(i: Array, image: Array) -> Array:
        draw = jax.random.uniform(jax.random.fold_in(key, i), (7,), image.dtype, -1, 1)
        angle, scale, stretch = MAX_ROTATION * draw[0], 1 + MAX_SCALE * draw[1], 1 + MAX_STRETCH * draw[2]
        height, width, _ = image.shape
        center = (height - 1) / 2, (width - 1) / 2
        row = (jnp.arange(height, dtype=image.dtype) - center[0])[:, None]
        column = (jnp.arange(width, dtype=image.dtype) - center[1])[None]
        at_row = (jnp.cos(angle) * row + jnp.sin(angle) * column) * scale * stretch + MAX_SHIFT * height * draw[3]
        at_column = (jnp.cos(angle) * column - jnp.sin(angle) * row) * scale / stretch + MAX_SHIFT * width * draw[4]
        moved = _sample(image, at_row + center[0], at_column + center[1])
        return jnp.clip((moved + 1) * (1 + MAX_CONTRAST * draw[5]) - 1 + MAX_BRIGHTNESS * draw[6], -1, 1)

    return jax.vmap(of_item)(first + jnp.arange(len(x)), x)


def _sample(image: Array, row: Array, column: Array) -> Array:
    """Samples an image [H, W, C] bilinearly at coordinates [H, W], given in pixels."""
    height, width, channels = image.shape
    row, column = jnp.clip(row, 0, height - 1), jnp.clip(column, 0, width - 1)
    top, left = jnp.minimum(row.astype(int), height - 2), jnp.minimum(column.astype(int), width - 2)
    row_weight, column_weight = (row - top)[..., None], (column - left)[..., None]
    pixels = image.reshape(-1, channels)

    def take(down: int, right: int) -> Array:
        return pixels[(top + down) * width + left + right]

    upper = take(0, 0) * (1 - column_weight) + take(0, 1) * column_weight
    lower = take(1, 0) * (1 - column_weight) + take(1, 1) * column_weight
    return upper * (1 - row_weight) + lower * row_weight
