"""The order in which a training walks its images, from (seed, epoch) alone."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np

from ganomaly_jax.core.errors import UserError

if TYPE_CHECKING:
    pass


# Streams of random numbers beside that of the split, which is (seed, 1); a trailing zero would make no other one.
_PLACES, _EPOCHS = (1, 1), 2


def columns(seed: int, n: int, batch_size: int) -> np.ndarray:
    """Returns int64 `[batch_size, ceil(n / batch_size)]`: the images, of n, from which each position of a batch draws.

    Drawn once a run. A place keeps its images, so that a device or a process needs only those of its own places, and
    the order of a training depends on neither their number. Where n is no multiple, the last of a row fills it up.

    Raises:
      UserError: fewer images than one batch.
    """
    if n < batch_size:
        raise UserError(f"{n} training images are fewer than one batch of {batch_size}: lower train.batch_size")
    order = np.random.default_rng((seed, *_PLACES)).permutation(n)
    return np.resize(order, -(-n // batch_size) * batch_size).reshape(-1, batch_size).T


def batch_rows(seed: int, n: int, batch_size: int, start_step: int, count: int) -> np.ndarray:
    """Returns int32 `[count, batch_size]`: the index into its `columns` of each position in these steps.

    It follows from seed and epoch alone. An epoch has n // batch_size steps and takes no image twice; what does not
    fill a batch is another part in every epoch.
    """
    if not count:
        return np.empty((0, batch_size), np.int32)
    steps = n // batch_size
    epochs = range(start_step // steps, (start_step + count - 1) // steps + 1)
    begin = start_step - epochs[0] * steps
    return np.concatenate([_epoch_rows(seed, n, batch_size, epoch) for epoch in epochs])[begin : begin + count]


@functools.lru_cache(2)  # many calls lie in one epoch, and drawing its order takes as long as some steps
def _epoch_rows(seed: int, n: int, batch_size: int, epoch: int) -> np.ndarray:
    steps, longest = n // batch_size, -(-n // batch_size)
    keys = np.random.default_rng((seed, _EPOCHS, epoch)).random((longest, batch_size))
    if longest > steps:
        keys[-1, n - steps * batch_size :] = np.inf  # these only fill up
    return keys.argsort(axis=0, kind="stable")[:steps].astype(np.int32)


def batch_indices(seed: int, n: int, batch_size: int, start_step: int, count: int) -> np.ndarray:
    """Returns int32 `[count, batch_size]`: the training images, of n, of steps start_step to start_step + count - 1.

    Raises:
      UserError: fewer images than one batch.
    """
    places = columns(seed, n, batch_size)
    rows = batch_rows(seed, n, batch_size, start_step, count)
    return places[np.arange(batch_size), rows].astype(np.int32)
