"""Large images as overlapping tiles: where they lie, cutting and putting together. Pure; cutting is for NumPy and JAX.

Tiles are named by row and column of a regular grid, and numbered row by row.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from ganomaly_jax.data.lazy import Images, LazyImages

if TYPE_CHECKING:
    from jax import Array


@dataclasses.dataclass(frozen=True)
class Grid:
    """Square tiles of an image of height x width: the tops and lefts of their rows and columns, in pixels."""

    height: int
    width: int
    side: int
    tops: tuple[int, ...]
    lefts: tuple[int, ...]

    @property
    def count(self) -> int:
        """Tiles of one image."""
        return len(self.tops) * len(self.lefts)


def starts(length: int, side: int, step: int) -> tuple[int, ...]:
    """Returns the starts of tiles along `length` pixels, every `step`, the last flush with the end."""
    return (*range(0, length - side, step), length - side)


def grid(height: int, width: int, side: int, overlap: float) -> Grid:
    """Returns the tiles of an image of height x width, each of at least `side`.

    `overlap` of neighbours: below 1 a share of the side, otherwise pixels, less than the side; next to the lower and
    right border it may be more, so that every pixel lies in a tile and none beyond the image.
    """
    step = max(side - round(overlap * side if overlap < 1 else overlap), 1)
    return Grid(height, width, side, starts(height, side, step), starts(width, side, step))


def cut(x: Any, where: Grid) -> Any:
    """Cuts images `[..., height, width, C]` into tiles `[..., n, side, side, C]`, with NumPy or JAX as they are."""
    if isinstance(x, np.ndarray):
        xp: Any = np
    else:
        import jax.numpy as xp

    side = where.side
    rows = [x[..., top : top + side, :, :] for top in where.tops]
    return xp.stack([row[..., left : left + side, :] for row in rows for left in where.lefts], axis=-4)


def stitch(tiles: Array, where: Grid) -> Array:
    """Images `[B, height, width, C]` float32 of tiles `[B, n, side, side, C]`, their mean where they overlap. Pure."""
    import jax.numpy as jnp

    side, (batch, *_, channels) = where.side, tiles.shape
    rows, columns = len(where.tops), len(where.lefts)
    tiles = tiles.astype(jnp.float32).reshape(batch, rows, columns, side, side, channels)
    across = jnp.zeros((batch, rows, side, where.width, channels), jnp.float32)
    for k, left in enumerate(where.lefts):
        across = across.at[..., left : left + side, :].add(tiles[:, :, k])
    whole = jnp.zeros((batch, where.height, where.width, channels), jnp.float32)
    for k, top in enumerate(where.tops):
        whole = whole.at[:, top : top + side].add(across[:, k])
    times = _times(where.height, where.tops, side)[:, None] * _times(where.width, where.lefts, side)
    return whole / times[None, :, :, None]


def _times(length: int, begins: tuple[int, ...], side: int) -> np.ndarray:
    """Returns the number of tiles that cover each pixel along one side, float32 `[length]`."""
    times = np.zeros(length, np.float32)
    for begin in begins:
        times[begin : begin + side] += 1
    return times


def items(images: Images, where: Grid) -> LazyImages:
    """Returns all tiles of images `[N, height, width, C]` as a data set, cut when read.

    Tile k of image i is at i * n + k.
    """
    side, count = where.side, where.count

    def read(indices: np.ndarray) -> np.ndarray:
        numbers, tiles = np.divmod(indices, count)
        tops, lefts = np.array(where.tops)[tiles // len(where.lefts)], np.array(where.lefts)[tiles % len(where.lefts)]
        whole, which = np.unique(numbers, return_inverse=True)
        found = np.empty((len(indices), side, side, images.shape[3]), images.dtype)
        for block in range(0, len(whole), _AT_ONCE):
            pixels = images[whole[block : block + _AT_ONCE]]
            for i in np.flatnonzero((which >= block) & (which < block + _AT_ONCE)):
                found[i] = pixels[which[i] - block][tops[i] : tops[i] + side, lefts[i] : lefts[i] + side]
        return found

    keep = images.keep if isinstance(images, LazyImages) else True
    return LazyImages(read, (len(images) * count, side, side, images.shape[3]), np.dtype(images.dtype), keep)


# Images that are held at once while tiles of them are cut.
_AT_ONCE = 16


def of_images(indices: np.ndarray, where: Grid) -> np.ndarray:
    """Returns the positions in `items` of all tiles of the images at `indices` [n]: int64 [n * count]."""
    return (indices[:, None] * where.count + np.arange(where.count)).ravel()
