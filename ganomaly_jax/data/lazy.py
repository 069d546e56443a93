"""Images that are read on demand and used like an array."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ganomaly_jax.core import memory

# With `data.stream` auto, images are read on demand if they would take more than this fraction of the free memory: on a
# CPU they are held twice, and computations need memory as well.
SHARE = 0.25
# Size of the blocks in which a whole data set is read.
BLOCK_BYTES = 2**24


@dataclasses.dataclass(frozen=True, eq=False)
class LazyImages:
    """Images [N, H, W, C] that are read when indexed with an integer, a slice or an array of integers."""

    read: Callable[[np.ndarray], np.ndarray]
    """Function that reads images [n, H, W, C] for indices int64 [n] from 0 to N - 1; several threads may call it."""
    shape: tuple[int, ...]
    """(N, H, W, C)."""
    dtype: np.dtype
    """Type of the pixels."""
    keep: bool = False
    """Whether reading is slow: images that are needed repeatedly are then kept in memory if they fit."""

    @property
    def nbytes(self) -> int:
        """Returns the size of all images in bytes."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    @property
    def ndim(self) -> int:
        """Returns the number of dimensions."""
        return len(self.shape)

    def __len__(self) -> int:
        """Returns the number of images."""
        return self.shape[0]

    def __getitem__(self, key: Any) -> np.ndarray:
        """Reads images.

        Raises:
          IndexError: An index is out of range.
        """
        chosen = self._indices(key)
        return self.read(np.atleast_1d(chosen))[0] if chosen.ndim == 0 else self.read(chosen)

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        """Refuses to convert all images to an array by accident."""
        raise TypeError("these images are not in memory: use images[:] to read all of them")

    def take(self, key: Any) -> LazyImages:
        """Returns some of the images, still to be read on demand."""
        chosen = self._indices(key)
        return LazyImages(
            lambda indices: self.read(chosen[indices]), (len(chosen), *self.shape[1:]), self.dtype, self.keep
        )

    def _indices(self, key: Any) -> np.ndarray:
        """Returns the non-negative indices that a key stands for."""
        if isinstance(key, slice):
            return np.arange(*key.indices(len(self)))
        chosen = np.asarray(key, np.int64)
        if chosen.size and not (-len(self) <= chosen.min() and chosen.max() < len(self)):
            raise IndexError(f"indices from {chosen.min()} to {chosen.max()}: there are {len(self)} images")
        return np.where(chosen < 0, chosen + len(self), chosen)


Images = np.ndarray | LazyImages
"""Images in memory or read on demand."""


def select(images: Images, indices: np.ndarray) -> Images:
    """Returns `images[indices]`; lazy images are not read."""
    return images.take(indices) if isinstance(images, LazyImages) else images[indices]


def blocks(images: Images, indices: np.ndarray | None = None) -> Iterator[np.ndarray]:
    """Yields the images at `indices` [n], all by default, in blocks of at most 16 MiB (at least one image each)."""
    order = np.arange(len(images)) if indices is None else indices
    size = max(BLOCK_BYTES // max(images.nbytes // max(len(images), 1), 1), 1)
    for i in range(0, len(order), size):
        yield images[order[i : i + size]]


def wanted(stream: str, nbytes: int) -> bool:
    """Returns whether images are read on demand.

    Args:
      stream: `data.stream`: auto, always or never.
      nbytes: Size of all images in bytes.
    """
    if stream != "auto":
        return stream == "always"
    free = memory.free_memory()
    return free is not None and nbytes > SHARE * free
