"""Cuts large images into overlapping tiles and joins tiles to images.

The functions are pure. Tiles lie on a regular grid and are numbered row by row.
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
    """Positions of the square tiles of an image, in pixels."""

    height: int
    """Height of the image."""
    width: int
    """Width of the image."""
    side: int
    """Side of a tile."""
    tops: tuple[int, ...]
    """Top edge of each row of tiles."""
    lefts: tuple[int, ...]
    """Left edge of each column of tiles."""

    @property
    def count(self) -> int:
        """Returns the number of tiles in an image."""
        return len(self.tops) * len(self.lefts)


def starts(length: int, side: int, step: int) -> tuple[int, ...]:
    """Returns where tiles begin along `length` pixels: every `step` pixels, and the last one flush with the end."""
    return (*range(0, length - side, step), length - side)


def grid(height: int, width: int, side: int, overlap: float) -> Grid:
    """Returns the grid of tiles that covers an image.

    Args:
      height: Height of the image in pixels, at least `side`.
      width: Width of the image in pixels, at least `side`.
      side: Side of the square tiles in pixels.
      overlap: Overlap of neighbours: a fraction of the side if below 1, otherwise pixels, fewer than `side`. It may be
        larger at the bottom and right borders, so that the tiles cover every pixel and stay within the image.
    """
    step = max(side - round(overlap * side if overlap < 1 else overlap), 1)
    return Grid(height, width, side, starts(height, side, step), starts(width, side, step))


def cut(x: Any, where: Grid) -> Any:
    """Cuts images into tiles.

    Args:
      x: Images `[..., height, width, C]`, a NumPy or JAX array.
      where: Grid of n tiles.

    Returns:
      Tiles `[..., n, side, side, C]`, an array of the same library.
    """
    if isinstance(x, np.ndarray):
        xp: Any = np
    else:
        import jax.numpy as xp

    side = where.side
    rows = [x[..., top : top + side, :, :] for top in where.tops]
    return xp.stack([row[..., left : left + side, :] for row in rows for left in where.lefts], axis=-4)


def stitch(tiles: Array, where: Grid) -> Array:
    """Joins tiles to images by averaging where they overlap; a pure function.

    Args:
      tiles: Tiles `[B, n, side, side, C]`.
      where: Grid of n tiles.

    Returns:
      Images `[B, height, width, C]`, float32.
    """
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
    cover = _cover(where.height, where.tops, side)[:, None] * _cover(where.width, where.lefts, side)
    return whole / cover[None, :, :, None]


def _cover(length: int, begins: tuple[int, ...], side: int) -> np.ndarray:
    """Returns the number of tiles that cover each pixel along one side, float32 `[length]`."""
    cover = np.zeros(length, np.float32)
    for begin in begins:
        cover[begin : begin + side] += 1
    return cover


def lazy_tiles(images: Images, where: Grid) -> LazyImages:
    """Returns the tiles of all images, cut when they are read.

    Args:
      images: Images `[N, height, width, C]`.
      where: Grid of n tiles.

    Returns:
      Tiles `[N * n, side, side, C]`; tile k of image i is at i * n + k.
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


# Images that are held in memory at once while tiles are cut from them.
_AT_ONCE = 16


def tile_indices(indices: np.ndarray, where: Grid) -> np.ndarray:
    """Returns the positions in `lazy_tiles` of all tiles of some images: int64 `[n * count]` for indices `[n]`."""
    return (indices[:, None] * where.count + np.arange(where.count)).ravel()
