"""Averages large images down piece by piece, so that no second copy at full size is needed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

# Limits that an elongated image is reduced to, however short its shorter side becomes.
MAX_PIXELS, MAX_SIDE = 8_000_000, 2**16
# Side, in pixels, of the pieces that are averaged one after another.
_PIECE = 512


def reduction_factor(size: tuple[int, int], side: int) -> int:
    """Returns the factor by which both sides of an image are reduced.

    Args:
      size: (width, height) of the image in pixels.
      side: Pixels that the shorter side keeps at least, unless the reduced image would exceed `MAX_PIXELS` or
        `MAX_SIDE`.
    """
    least = math.ceil(math.sqrt(size[0] * size[1] / MAX_PIXELS)), -(-max(size) // MAX_SIDE)
    return max(min(size) // side, *least)


def average_blocks(image: Any, factor: int, pixels: Callable[[Any], np.ndarray]) -> np.ndarray:
    """Averages a loaded Pillow image over blocks of about factor x factor pixels.

    Args:
      image: Image of size (width, height).
      factor: Reduction of both sides; each side keeps at least one block.
      pixels: Converts a Pillow image to an array `[h, w, c]`.

    Returns:
      The means `[height // factor, width // factor, c]`, of the type that `pixels` returns; integers are rounded.
    """
    across, down = (np.linspace(0, side, max(side // factor, 1) + 1).round().astype(int) for side in image.size)
    at_once = max(_PIECE // factor, 1)

    def piece(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        part = pixels(image.crop((int(x[0]), int(y[0]), int(x[-1]), int(y[-1]))))
        sums = np.add.reduceat(part, y[:-1] - y[0], axis=0, dtype=np.float64)
        means = np.add.reduceat(sums, x[:-1] - x[0], axis=1) / np.diff(y)[:, None, None] / np.diff(x)[:, None]
        return (means if part.dtype.kind == "f" else np.rint(means)).astype(part.dtype)

    def parts(edges: np.ndarray) -> list[np.ndarray]:
        return [edges[first : first + at_once + 1] for first in range(0, len(edges) - 1, at_once)]

    return np.concatenate([np.concatenate([piece(x, y) for x in parts(across)], axis=1) for y in parts(down)])
