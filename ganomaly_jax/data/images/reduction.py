"""Large pictures averaged down piece by piece, so that no second copy in full size exists."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

# What a picture of extreme proportions is brought down to, whatever becomes of its short side.
MOST_PIXELS, LONGEST = 8_000_000, 2**16
# Pixels a side that are read at once.
_PIECE = 512


def step(size: tuple[int, int], side: int) -> int:
    """Returns the factor by which a picture of size (width, height) is reduced on both sides.

    Its shorter side stays `side` pixels or more, unless the picture would be larger than `MOST_PIXELS` or `LONGEST`.
    """
    least = math.ceil(math.sqrt(size[0] * size[1] / MOST_PIXELS)), -(-max(size) // LONGEST)
    return max(min(size) // side, *least)


def reduced(image: Any, step: int, pixels: Callable[[Any], np.ndarray]) -> np.ndarray:
    """Averages a loaded Pillow image over blocks of about step x step pixels, at least one block per side.

    `pixels` makes `[h, w, c]` of an image; the result is of its type, integers are rounded.
    """
    across, down = (np.linspace(0, side, max(side // step, 1) + 1).round().astype(int) for side in image.size)
    at_once = max(_PIECE // step, 1)

    def piece(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        part = pixels(image.crop((int(x[0]), int(y[0]), int(x[-1]), int(y[-1]))))
        sums = np.add.reduceat(part, y[:-1] - y[0], axis=0, dtype=np.float64)
        means = np.add.reduceat(sums, x[:-1] - x[0], axis=1) / np.diff(y)[:, None, None] / np.diff(x)[:, None]
        return (means if part.dtype.kind == "f" else np.rint(means)).astype(part.dtype)

    def parts(edges: np.ndarray) -> list[np.ndarray]:
        return [edges[first : first + at_once + 1] for first in range(0, len(edges) - 1, at_once)]

    return np.concatenate([np.concatenate([piece(x, y) for x in parts(across)], axis=1) for y in parts(down)])
