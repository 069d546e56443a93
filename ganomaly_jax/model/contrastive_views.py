"""Views: random small distortions of an image that leave it what it is, for learning which latents belong together."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

TURN, SCALE, STRETCH, MOVE = 0.3, 0.2, 0.1, 0.12
"""Most that an image is turned (radians), resized and stretched (shares), and moved (share of a side)."""
CONTRAST, BRIGHTNESS = 0.2, 0.1
"""Most that its contrast changes (share) and its brightness (of the range 2)."""


def view(key: Array, x: Array, first: int | Array = 0) -> Array:
    """One view of each image x [B, H, W, C] float in [-1, 1], of the same shape and range. Pure.

    Bilinear, edge pixels being repeated. The draws of image i follow from `key` and first + i, wherever it lies.
    """

    def one(i: Array, image: Array) -> Array:
        draw = jax.random.uniform(jax.random.fold_in(key, i), (7,), image.dtype, -1, 1)
        angle, scale, stretch = TURN * draw[0], 1 + SCALE * draw[1], 1 + STRETCH * draw[2]
        height, width, _ = image.shape
        middle = (height - 1) / 2, (width - 1) / 2
        row = (jnp.arange(height, dtype=image.dtype) - middle[0])[:, None]
        column = (jnp.arange(width, dtype=image.dtype) - middle[1])[None]
        at_row = (jnp.cos(angle) * row + jnp.sin(angle) * column) * scale * stretch + MOVE * height * draw[3]
        at_column = (jnp.cos(angle) * column - jnp.sin(angle) * row) * scale / stretch + MOVE * width * draw[4]
        moved = _sample(image, at_row + middle[0], at_column + middle[1])
        return jnp.clip((moved + 1) * (1 + CONTRAST * draw[5]) - 1 + BRIGHTNESS * draw[6], -1, 1)

    return jax.vmap(one)(first + jnp.arange(len(x)), x)


def _sample(image: Array, row: Array, column: Array) -> Array:
    """The image [H, W, C] at places [H, W] given in pixels, bilinear."""
    height, width, channels = image.shape
    row, column = jnp.clip(row, 0, height - 1), jnp.clip(column, 0, width - 1)
    top, left = jnp.minimum(row.astype(int), height - 2), jnp.minimum(column.astype(int), width - 2)
    down, right = (row - top)[..., None], (column - left)[..., None]
    pixels = image.reshape(-1, channels)

    def take(below: int, beside: int) -> Array:
        return pixels[(top + below) * width + left + beside]

    upper = take(0, 0) * (1 - right) + take(0, 1) * right
    lower = take(1, 0) * (1 - right) + take(1, 1) * right
    return upper * (1 - down) + lower * down
