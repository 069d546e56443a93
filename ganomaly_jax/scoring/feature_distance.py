"""Distances of an image's features from those of training images. JAX, pure once fitted.

As in PatchCore, vectors of neighbouring positions are averaged, maps of several strides are joined, and each vector is
compared with the nearest one in a bank of vectors of training images, chosen to cover them all.

Differs from PatchCore: the maps are scaled to the same total variance before they are joined, the score is the mean
over positions instead of the maximum, and at most about 8 positions along a side are compared.

References:
  Roth et al. 2022, "Towards total recall in industrial anomaly detection" (arXiv 2106.08265).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ganomaly_jax.model import extractors
from ganomaly_jax.scoring import latent_statistics, patch_distance

_PLACES = 8
# Images computed at a time: more do not fit into a processor's cache.
_AT_ONCE = 16
_LEAST = 1e-12

Maps = tuple[Array, ...]


def maps(name: str, variables: Any, x: Array) -> tuple[Maps, Array]:
    """Computes the feature maps of images, smoothed and of one size, and the mean vector of the last one. Pure.

    Args:
      name: the extractor, one of `features.names`.
      variables: its variables.
      x: images [B, H, W, C] float32 in [-1, 1].

    Returns:
      Maps [B, h, w, F], all but the last one of the extractor's unless it has only one, and the mean [B, F'] of its
      last map.
    """
    found = _computed(extractors.of(name).function, variables, x)
    smoothed = [_smoothed(one) for one in found[:-1] or found]
    height, width = smoothed[0].shape[1:3]
    step = max(1, min(height, width) // _PLACES)
    alike = [jax.image.resize(one, (one.shape[0], height, width, one.shape[3]), "bilinear") for one in smoothed]
    return tuple(one[:, ::step, ::step] for one in alike), found[-1].mean(axis=(1, 2))


def _computed(function: Callable[[Any, Array], Any], variables: Any, x: Array) -> Maps:
    """Applies an extractor's function to a few images at a time, or to each in an export with a symbolic batch."""

    def one(image: Array) -> Maps:
        found = function(variables, image[None])
        return tuple(leaf[0] for leaf in found) if isinstance(found, tuple | list) else (found[0],)

    if not isinstance(x.shape[0], int):
        return lax.map(one, x)
    return jax.vmap(one)(x) if x.shape[0] <= _AT_ONCE else lax.map(one, x, batch_size=_AT_ONCE)


def _smoothed(x: Array) -> Array:
    """Averages each position of a map [B, h, w, F] with its neighbours, leaving out those outside."""
    sums = lax.reduce_window(x, 0.0, lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")
    rows, columns = (np.minimum(np.arange(side), 1) + np.minimum(np.arange(side)[::-1], 1) + 1 for side in x.shape[1:3])
    return sums / jnp.asarray(np.outer(rows, columns)[None, :, :, None], x.dtype)


_maps = functools.partial(jax.jit, static_argnums=0)(maps)


def drawn(
    name: str, variables: Any, x: np.ndarray, count: int, random: np.random.Generator
) -> tuple[list[np.ndarray], np.ndarray]:
    """Computes the vectors of training images that `fit` takes.

    Args:
      name: as in `maps`.
      variables: as in `maps`.
      x: as in `maps`.
      count: number of training images; the number of positions drawn per image is such that about
        `patch_distance.CANDIDATES` are kept.
      random: the generator.

    Returns:
      Vectors [n, F] of each map, at the same positions, and the mean vectors [B, F'].
    """
    found, mean = _maps(name, variables, x)
    places = np.arange(found[0].shape[1] * found[0].shape[2])
    kept = random.permuted(np.tile(places, (len(x), 1)), axis=1)[:, : -(-patch_distance.CANDIDATES // count), None]
    flat = [np.asarray(one).reshape(len(x), len(places), -1) for one in found]
    return [np.concatenate(np.take_along_axis(one, kept, axis=1)) for one in flat], np.asarray(mean)


def fit(vectors: list[np.ndarray], means: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Fits the references of `patches` and `angle` to the results of `drawn` for normal images.

    Args:
      vectors: [n, F] float32 of each map.
      means: [m, F'] float32.
      seed: draws the mean vectors that are kept.

    Returns:
      float32 arrays: `scale` [number of maps], which brings each map to a total variance of 1; `bank` [k, sum of F],
      the kept vectors, scaled and joined, k at most `patch_distance.BANK`; `directions`, see `latent_statistics`.
    """
    totals = [max(float(one.var(axis=0, dtype=np.float64).sum()), _LEAST) for one in vectors]
    scale = np.array([total**-0.5 for total in totals], np.float32)
    joined = np.concatenate([one * factor for one, factor in zip(vectors, scale, strict=True)], axis=1)
    return {
        "scale": scale,
        "bank": patch_distance.covering(joined),
        "directions": latent_statistics.directions(means, seed),
    }


def distances(fitted: dict[str, Array], found: Maps) -> Array:
    """Computes the distance [B, h, w] of the vector at each position of maps to the nearest one in the bank. Pure."""
    joined = jnp.concatenate([one * fitted["scale"][i] for i, one in enumerate(found)], axis=-1)
    return patch_distance.nearest(fitted["bank"], joined)


def score(kind: str, fitted: dict[str, Array], found: Maps, mean: Array) -> Array:
    """Computes a score [B] of images. Pure.

    Args:
      kind: one of `features.KINDS`: `patches`, the mean of `distances`, or `angle`, see `latent_statistics.angle`.
      fitted: the result of `fit`.
      found: the maps that `maps` returns.
      mean: the mean vectors that `maps` returns.
    """
    if kind == "angle":
        return latent_statistics.angle(fitted, mean)
    return jnp.mean(distances(fitted, found), axis=(1, 2))
