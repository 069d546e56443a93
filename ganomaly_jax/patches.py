"""How far the patches of an image are from those of training images. Pure JAX once fitted.

As PatchCore (Roth et al. 2022) with pixels in the place of a pretrained network's features. A patch is compared by what
is drawn in it: its mean is subtracted, and it is divided by its own deviation plus `_FLOOR`, so that neither exposure
nor thickness counts, and noise in an empty patch is not blown up.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

SHARES = {"small": 1 / 8, "medium": 3 / 8, "whole": 1.0}
"""Sides of a patch as shares of the image's."""
BANK = 10_000
"""At most so many patches of training images are kept to be compared with."""
COMPONENTS = 64
_PLACES = 16
# Of the range 2.
_FLOOR = 0.2
_LEAST_SIDE = 4
# A squared distance that says nothing: that of an image to itself is rounding.
_LEAST = 1e-6
# Larger patches are averaged down to this, so that a description stays small.
_MOST_SIDE = 32
_BLOCK = 500


def _layout(shape: tuple[int, ...], share: float) -> tuple[int, tuple[int, int], tuple[int, int]]:
    """How far images are averaged down, and sides and steps of a patch after that."""
    sides = [max(_LEAST_SIDE, round(share * side)) for side in shape[:2]]
    down = 1
    while max(sides) // down > _MOST_SIDE and all(side % (2 * down) == 0 for side in shape[:2]):
        down *= 2
    height, width = (max(_LEAST_SIDE, side // down) for side in sides)
    step = tuple(max(1, side // down // _PLACES) for side in shape[:2])
    return down, (height, width), (step[0], step[1])


def _averaged(x: Array, down: int) -> Array:
    size = (1, down, down, 1)
    return lax.reduce_window(x, 0.0, lax.add, size, size, "VALID") / down**2 if down > 1 else x


def _moments(x: Array, size: tuple[int, int], step: tuple[int, int]) -> tuple[Array, Array]:
    """Mean and divisor [B, h, w] of each patch."""
    count = size[0] * size[1] * x.shape[-1]
    window, strides = (1, *size, x.shape[-1]), (1, *step, 1)
    sums = functools.partial(
        lax.reduce_window, init_value=0.0, computation=lax.add, window_dimensions=window, window_strides=strides
    )
    mean = sums(x, padding="VALID")[..., 0] / count
    square = sums(jnp.square(x), padding="VALID")[..., 0] / count
    return mean, jnp.sqrt(jnp.maximum(square - jnp.square(mean), 1e-8)) + _FLOOR


@functools.partial(jax.jit, static_argnums=2)
def described(x: Array, places: Array, share: float) -> Array:
    """Patches [B, n, D] of images x [B, H, W, C] in [-1, 1] as they are compared.

    Args:
      places: int [B, n], which of an image's patches, counted row by row.
    """
    down, size, step = _layout(x.shape[1:], share)
    x = _averaged(x, down)
    across = (x.shape[2] - size[1]) // step[1] + 1

    def one(image: Array, place: Array) -> Array:
        begin = (place // across * step[0], place % across * step[1], 0)
        patch = lax.dynamic_slice(image, begin, (*size, image.shape[-1])).reshape(-1)
        return (patch - patch.mean()) / (patch.std() + _FLOOR)

    return jax.vmap(lambda image, row: jax.vmap(lambda place: one(image, place))(row))(x, places)


def places(shape: tuple[int, ...], share: float) -> int:
    """How many patches an image of `shape` (H, W, C) has."""
    down, size, step = _layout(shape, share)
    return int(np.prod([(side // down - part) // by + 1 for side, part, by in zip(shape, size, step, strict=False)]))


def fit(patches: np.ndarray, shape: tuple[int, ...], share: float, seed: int) -> dict[str, np.ndarray]:
    """What `distance` needs, from `described` patches [n, D] of normal images; `seed` draws those that are kept.

    Returns float32 arrays: `middle` [h, w, C], the mean of these patches; `kernel` [h, w, C, k], their first
    `COMPONENTS` principal axes; `total` and `mean` [k], the sum of each axis and the mean along it; `bank` [m, k], the
    patches along the axes, m at most `BANK`.
    """
    _, size, _ = _layout(shape, share)
    kept = patches[np.sort(np.random.default_rng(seed).permutation(len(patches))[:BANK])]
    mean = kept.mean(axis=0, dtype=np.float64)
    centred = kept - mean
    # The smaller of the two products has the same eigenvalues.
    few = len(kept) < kept.shape[1]
    values, vectors = np.linalg.eigh(centred @ centred.T if few else centred.T @ centred)
    count = min(COMPONENTS, int((values > 1e-6 * values[-1]).sum()))
    values, vectors = values[-count:], vectors[:, -count:]
    axes = centred.T @ vectors / np.sqrt(values) if few else vectors
    return {
        "middle": mean.reshape(*size, shape[-1]).astype(np.float32),
        "kernel": axes.reshape(*size, shape[-1], count).astype(np.float32),
        "total": axes.sum(axis=0).astype(np.float32),
        "mean": (mean @ axes).astype(np.float32),
        "bank": (centred @ axes).astype(np.float32),
    }


def distance(fitted: dict[str, Array], x: Array, share: float) -> Array:
    """Mean [B] over the patches of images x [B, H, W, C] in [-1, 1] of the distance to the nearest one in the bank."""
    down, size, step = _layout(x.shape[1:], share)
    x = _averaged(x, down)
    mean, divisor = _moments(x, size, step)
    along = lax.conv_general_dilated(
        x, fitted["kernel"].astype(x.dtype), step, "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    at = (along - mean[..., None] * fitted["total"]) / divisor[..., None] - fitted["mean"]
    return jnp.mean(_nearest(fitted["bank"], at), axis=(1, 2))


def residual(fitted: dict[str, Array], x: Array, share: float) -> Array:
    """Squared distance [B] of images x [B, H, W, C] in [-1, 1], the Q of principal components, from the space of these.

    Of a patch that is the whole image.
    """
    down, size, step = _layout(x.shape[1:], share)
    x = _averaged(x, down)
    mean, divisor = _moments(x, size, step)
    centred = (x - mean[..., None]) / divisor[..., None] - fitted["middle"]
    at = jnp.einsum("bhwc,hwck->bk", centred, fitted["kernel"])
    # Subtracted place by place: a difference of two sums of squares would be mostly rounding.
    return jnp.sum(jnp.square(centred - jnp.einsum("bk,hwck->bhwc", at, fitted["kernel"])), axis=(1, 2, 3))


def _nearest(bank: Array, at: Array) -> Array:
    """Distance [...] of each of at [..., k] to its nearest in the bank, some of it at a time."""
    blocks = jnp.pad(bank, ((0, -len(bank) % _BLOCK), (0, 0)), constant_values=1e4).reshape(-1, _BLOCK, bank.shape[1])

    def nearer(best: tuple[Array, Array], block: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
        first, values = block
        squares = jnp.sum(values * values, axis=-1) - 2 * at @ values.T
        least, which = squares.min(axis=-1), first + squares.argmin(axis=-1)
        return (jnp.minimum(best[0], least), jnp.where(least < best[0], which, best[1])), None

    # One step outside: the type of what goes around, whatever varies over a mapped axis.
    first = jnp.arange(len(blocks)) * _BLOCK
    best, _ = nearer((jnp.full_like(at[..., 0], jnp.inf), jnp.zeros(at.shape[:-1], first.dtype)), (first[0], blocks[0]))
    (_, which), _ = lax.scan(nearer, best, (first[1:], blocks[1:]))
    # Subtracted: between large numbers that are nearly the same, the sum above is mostly rounding.
    return jnp.sqrt(jnp.sum(jnp.square(at - bank[lax.stop_gradient(which)]), axis=-1) + _LEAST)
