"""Images that are read when they are asked for, in the place of an array; and how much memory there is for arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ganomaly_jax.core import memory

# `auto` reads images on demand where all of them would take a larger share of the free memory: on a CPU they lie there
# twice, and what is computed with them needs room as well.
SHARE = 0.25
# What is read at once where the whole set has to be looked through.
BLOCK_BYTES = 2**24


@dataclasses.dataclass(frozen=True, eq=False)
class LazyImages:
    """Images [N, H, W, C] that lie elsewhere: an integer, a slice or an array of integers reads what it names."""

    read: Callable[[np.ndarray], np.ndarray]
    """int64 [n] from 0 to N - 1 -> [n, H, W, C]; called by several threads at once."""
    shape: tuple[int, ...]
    dtype: np.dtype
    keep: bool = False
    """To read them is slow: what is needed again and again is read once and kept, where there is room."""

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> np.ndarray:
        """Raises IndexError beyond the end, and what `read` raises."""
        chosen = self._indices(key)
        return self.read(np.atleast_1d(chosen))[0] if chosen.ndim == 0 else self.read(chosen)

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise TypeError("these images are not in memory: take [:] where all of them shall be")

    def take(self, key: Any) -> LazyImages:
        """Returns some of them, still unread."""
        chosen = self._indices(key)
        return LazyImages(
            lambda indices: self.read(chosen[indices]), (len(chosen), *self.shape[1:]), self.dtype, self.keep
        )

    def _indices(self, key: Any) -> np.ndarray:
        if isinstance(key, slice):
            return np.arange(*key.indices(len(self)))
        chosen = np.asarray(key, np.int64)
        if chosen.size and not (-len(self) <= chosen.min() and chosen.max() < len(self)):
            raise IndexError(f"image {chosen.min()} or {chosen.max()} of {len(self)}")
        return np.where(chosen < 0, chosen + len(self), chosen)


Images = np.ndarray | LazyImages


def select(images: Images, indices: np.ndarray) -> Images:
    """Returns `images[indices]`; lazy images stay unread."""
    return images.take(indices) if isinstance(images, LazyImages) else images[indices]


def blocks(images: Images, indices: np.ndarray | None = None) -> Iterator[np.ndarray]:
    """Yields the images at `indices` [n], all by default, a block of some MiB at a time."""
    order = np.arange(len(images)) if indices is None else indices
    size = max(BLOCK_BYTES // max(images.nbytes // max(len(images), 1), 1), 1)
    for i in range(0, len(order), size):
        yield images[order[i : i + size]]


def wanted(stream: str, nbytes: int) -> bool:
    """Returns True if images of that size are read on demand, by `data.stream`: auto, always or never."""
    if stream != "auto":
        return stream == "always"
    free = memory.free_memory()
    return free is not None and nbytes > SHARE * free
