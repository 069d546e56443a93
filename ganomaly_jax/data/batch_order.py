"""The order in which a training visits its images; it depends on (seed, epoch) only."""

from __future__ import annotations

import functools

import numpy as np

from ganomaly_jax.core.errors import UserError

# Random streams besides that of the split, which is (seed, 1). A trailing zero would not make another stream.
_PLACES, _EPOCHS = (1, 1), 2


def columns(seed: int, n: int, batch_size: int) -> np.ndarray:
    """Returns the images that each position of a batch draws from.

    Each position keeps its images for the whole run, so that a device or a process needs only those of its own
    positions, and the order does not depend on the number of devices or processes. If n is not a multiple of the batch
    size, some images fill up the last column.

    Args:
      seed: Seed of the run.
      n: Number of training images.
      batch_size: Images in a batch.

    Returns:
      Indices of images, int64 `[batch_size, ceil(n / batch_size)]`.

    Raises:
      UserError: There are fewer images than in one batch.
    """
    if n < batch_size:
        raise UserError(f"{n} training images are fewer than one batch of {batch_size}: reduce train.batch_size")
    order = np.random.default_rng((seed, *_PLACES)).permutation(n)
    return np.resize(order, -(-n // batch_size) * batch_size).reshape(-1, batch_size).T


def batch_rows(seed: int, n: int, batch_size: int, start_step: int, count: int) -> np.ndarray:
    """Returns the index into its `columns` that each position of a batch takes in some steps.

    The indices depend on seed and epoch only. An epoch has n // batch_size steps and takes no image twice; images that
    do not fill a batch are left out, different ones in every epoch.

    Args:
      seed: Seed of the run.
      n: Number of training images.
      batch_size: Images in a batch.
      start_step: First step, counted from 0 over the whole run.
      count: Number of steps.

    Returns:
      Indices, int32 `[count, batch_size]`.
    """
    if not count:
        return np.empty((0, batch_size), np.int32)
    steps = n // batch_size
    epochs = range(start_step // steps, (start_step + count - 1) // steps + 1)
    begin = start_step - epochs[0] * steps
    return np.concatenate([_epoch_rows(seed, n, batch_size, epoch) for epoch in epochs])[begin : begin + count]


@functools.lru_cache(2)  # an epoch takes many calls, and drawing its order takes as long as some steps
def _epoch_rows(seed: int, n: int, batch_size: int, epoch: int) -> np.ndarray:
    """Returns `batch_rows` of all steps of an epoch."""
    steps, longest = n // batch_size, -(-n // batch_size)
    keys = np.random.default_rng((seed, _EPOCHS, epoch)).random((longest, batch_size))
    if longest > steps:
        keys[-1, n - steps * batch_size :] = np.inf  # these images only fill up the last column
    return keys.argsort(axis=0, kind="stable")[:steps].astype(np.int32)


def batch_indices(seed: int, n: int, batch_size: int, start_step: int, count: int) -> np.ndarray:
    """Returns the training images of some steps, int32 `[count, batch_size]`; arguments as `batch_rows`.

    Raises:
      UserError: There are fewer images than in one batch.
    """
    places = columns(seed, n, batch_size)
    rows = batch_rows(seed, n, batch_size, start_step, count)
    return places[np.arange(batch_size), rows].astype(np.int32)
