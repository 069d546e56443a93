"""The compiled program from raw pixels to score and p-value, and the batches that it takes. Pure functions."""

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

# A batch is padded to the smallest of these that holds it, and a larger one is cut into the largest: so many programs
# are compiled at most, whatever sizes come.
BUCKETS = (1, 8, 64, 256)


def scored(
    detector: Adapter,
    parts: tuple[str, ...],
    pixels: tuple[str, Any, Any],
    variables: dict[str, Any],
    x: Array,
) -> dict[str, Array]:
    """Computes `score` and `p_value` [B] of raw images, see `Scorer.outputs`. Pure."""
    taken = detector.preprocessing.unit(pixels, x)
    score = detector.score(lambda network, own: scores.score(network, parts, variables, own), taken)
    score = jnp.where(preprocess.all_finite(x), score, jnp.nan)
    return {"score": score, "p_value": calibration.p_values(variables["calibration"], score)}


# Functions of the module, so that scorers of one kind, such as the members of a run, share what is compiled.
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
    """Computes x and x_hat [B, H, W, C] in [-1, 1] and their residual map [B, H, W] of raw images. Pure."""
    scaled = detector.preprocessing.unit(pixels, x)
    return scaled, *detector.explained(variables["detector"], scaled)


def groups(blocks: Iterable[np.ndarray], most: int) -> Iterator[list[np.ndarray]]:
    """Blocks in their order: up to `most` together where they fill the largest bucket and are of one type, or alone."""
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
    """Returns the positions of a group's images in its padded batches."""
    return np.concatenate([i * BUCKETS[-1] + np.arange(len(x)) for i, x in enumerate(group)])


def bucket(n: int) -> int:
    """Returns the padded size of a batch of n images, n at most the largest of `BUCKETS`."""
    return next((size for size in BUCKETS if size >= n), n)


def pad(x: np.ndarray, size: int) -> np.ndarray:
    """Pads x [n, ...] to `size` by repeating its last item; scores do not depend on their neighbours."""
    return np.concatenate([x, np.repeat(x[-1:], size - len(x), axis=0)]) if len(x) < size else x


def blocks(detector: Adapter, pixels: tuple[str, Any, Any], images: Images) -> Iterator[np.ndarray]:
    """Yields raw images, or inputs of the network, as batches in [-1, 1], of one size except for the last."""
    for begin in range(0, len(images), BUCKETS[-1]):
        raw = jnp.asarray(images[begin : begin + BUCKETS[-1]])
        yield np.asarray(detector.preprocessing.unit(pixels, raw))
