"""The compiled program from raw items to score and p-value, and the batches that it runs on. Pure functions."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ganomaly_jax.data.images import preprocess
from ganomaly_jax.data.lazy import Images
from ganomaly_jax.parallel import sharding
from ganomaly_jax.scoring import calibration, scores
from ganomaly_jax.scoring.adapters import Adapter

# A batch is padded to the smallest of these sizes that holds it, and a larger one is cut into blocks of the largest, so
# that at most this many programs are compiled whatever the batch sizes.
BUCKETS = (1, 8, 64, 256)


def scored(
    detector: Adapter,
    parts: tuple[str, ...],
    pixels: tuple[str, Any, Any],
    variables: dict[str, Any],
    x: Array,
) -> dict[str, Array]:
    """Computes `score` and `p_value` [B] of raw items, see `Scorer.outputs`. Pure.

    Args:
      detector: the adapter.
      parts: the names of the parts of the score.
      pixels: (dtype, low, high) of the training items.
      variables: `detector`, `statistics` and `calibration`, as in `Scorer.variables`.
      x: raw items [B, ...].

    Returns:
      `score` and `p_value`, [B] float32, NaN for an item with a value that is not finite.
    """
    unit = detector.preprocessing.unit(pixels, x)
    score = detector.score(lambda network, inputs: scores.score(network, parts, variables, inputs), unit)
    score = jnp.where(preprocess.all_finite(x), score, jnp.nan)
    return {"score": score, "p_value": calibration.p_values(variables["calibration"], score)}


# Jitted at module level, so that scorers of one kind, such as the members of a sweep, share compiled programs.
compiled = jax.jit(scored, static_argnums=(0, 1, 2))


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def compiled_side_by_side(
    mesh: Any,
    detector: Adapter,
    parts: tuple[str, ...],
    pixels: tuple[str, Any, Any],
    variables: dict[str, Any],
    x: Array,
) -> dict[str, Array]:
    """Computes `scored` on each device of the mesh for its shard of x [devices * B, ...]."""
    return sharding.row_parallel(functools.partial(scored, detector, parts, pixels), mesh)(variables, x)


@functools.partial(jax.jit, static_argnums=(0, 1))
def explained(
    detector: Adapter, pixels: tuple[str, Any, Any], variables: dict[str, Any], x: Array
) -> tuple[Array, Array, Array]:
    """Computes inputs, reconstructions and residual maps of raw items. Pure.

    Args:
      detector: the adapter.
      pixels: (dtype, low, high) of the training items.
      variables: as in `scored`.
      x: raw items [B, ...].

    Returns:
      x and x_hat [B, ...] float32 in [-1, 1], and the maps as returned by `Adapter.explained`.
    """
    scaled = detector.preprocessing.unit(pixels, x)
    return scaled, *detector.explained(variables["detector"], scaled)


def groups(blocks: Iterable[np.ndarray], most: int) -> Iterator[list[np.ndarray]]:
    """Groups blocks for several devices, keeping their order.

    Args:
      blocks: raw items [n, ...], n at most the largest of `BUCKETS`.
      most: the largest number of blocks per group.

    Yields:
      Up to `most` blocks of one dtype that fill the largest bucket, or a single block.
    """
    group: list[np.ndarray] = []
    for x in blocks:
        full = bucket(len(x)) == BUCKETS[-1]
        if group and not (full and x.dtype == group[0].dtype):
            yield group
            group = []
        group.append(x)
        if len(group) == most or not full:
            yield group
            group = []
    if group:
        yield group


def rows(group: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the positions of a group's items in its concatenated padded batches."""
    return np.concatenate([i * BUCKETS[-1] + np.arange(len(x)) for i, x in enumerate(group)])


def bucket(n: int) -> int:
    """Returns the smallest of `BUCKETS` that holds n items; n itself if none does."""
    return next((size for size in BUCKETS if size >= n), n)


def pad(x: np.ndarray, size: int) -> np.ndarray:
    """Pads x [n, ...] to `size` by repeating its last item, which changes no score of the others."""
    return np.concatenate([x, np.repeat(x[-1:], size - len(x), axis=0)]) if len(x) < size else x


def blocks(detector: Adapter, pixels: tuple[str, Any, Any], images: Images) -> Iterator[np.ndarray]:
    """Yields raw items, or inputs of the network, as float32 batches in [-1, 1], all of one size but the last."""
    for begin in range(0, len(images), BUCKETS[-1]):
        raw = jnp.asarray(images[begin : begin + BUCKETS[-1]])
        yield np.asarray(detector.preprocessing.unit(pixels, raw))
