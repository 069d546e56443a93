"""How far the patches of an image are from those of training images. Pure JAX once fitted.

Like PatchCore (Roth et al. 2022, arXiv 2106.08265) with pixels in the place of a pretrained network's features, and as
there with a tenth of the patches, spread out over all of them (its algorithm 1): a patch that is rare among normal ones
is kept as surely as a frequent one. A patch is compared by what is drawn in it: its mean is subtracted, and it is
divided by its own deviation plus `_FLOOR`, so that neither exposure nor thickness counts, and noise in an empty patch
is not blown up.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ganomaly_jax.scoring import principal_components

SHARES = {"small": 1 / 8, "medium": 3 / 8, "whole": 1.0}
"""Sides of a patch as shares of the image's."""
BANK = 5_000
"""At most so many patches of training images are kept to be compared with,"""
CANDIDATES = 50_000
"""chosen from at most so many."""
AXES = 32
"""Along which patches are compared: finer detail than these is mostly noise."""
COMPONENTS = 64
"""Beyond which `components` measures what is left."""
_PLACES = 16
# The axes are those of so many patches.
_FITTED = 10_000
# Of the range 2.
_FLOOR = 0.2
_LEAST_SIDE = 4
# A squared distance that says nothing: that of an image to itself is rounding.
_LEAST = 1e-6
# As a share of the largest: what is below is rounding.
_LEAST_VARIANCE = 1e-6
# Of a range of 1: what is as dark as that is not made brighter.
_DARK = 0.02
# Larger patches are averaged down to this, so that a description stays small.
_MOST_SIDE = 32
# Of the bank, and places that are looked up at once.
_GROUP = 50
_QUERIES = 1024


def _layout(shape: tuple[int, ...], share: float) -> tuple[int, tuple[int, int], tuple[int, int]]:
    """Returns the factor by which images are averaged down, and sides and steps of a patch after that."""
    sides = [max(_LEAST_SIDE, round(share * side)) for side in shape[:2]]
    down = 1
    while max(sides) // down > _MOST_SIDE and all(side % (2 * down) == 0 for side in shape[:2]):
        down *= 2
    height, width = (max(_LEAST_SIDE, side // down) for side in sides)
    step = tuple(max(1, side // down // _PLACES) for side in shape[:2])
    return down, (height, width), (step[0], step[1])


def averaged(x: Array, down: int) -> Array:
    """Averages images x [B, H, W, C] down: means [B, H / down, W / down, C] over squares; anything for down = 1."""
    size = (1, down, down, 1)
    return lax.reduce_window(x, 0.0, lax.add, size, size, "VALID") / down**2 if down > 1 else x


def _moments(x: Array, size: tuple[int, int], step: tuple[int, int]) -> tuple[Array, Array]:
    """Computes mean and divisor [B, h, w] of each patch."""
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
    """Returns patches [B, n, h, w, C] as they are compared.

    Args:
      x: images [B, H, W, C] in [-1, 1].
      places: int [B, n], which of an image's patches, counted row by row.
      share: side of a patch as a share of the image's.
    """
    down, size, step = _layout(x.shape[1:], share)
    x = averaged(x, down)
    across = (x.shape[2] - size[1]) // step[1] + 1

    def one(image: Array, place: Array) -> Array:
        begin = (place // across * step[0], place % across * step[1], 0)
        patch = lax.dynamic_slice(image, begin, (*size, image.shape[-1]))
        return (patch - patch.mean()) / (patch.std() + _FLOOR)

    return jax.vmap(lambda image, row: jax.vmap(lambda place: one(image, place))(row))(x, places)


def places(shape: tuple[int, ...], share: float) -> int:
    """Returns the number of patches of an image of `shape` (H, W, C)."""
    down, size, step = _layout(shape, share)
    return int(np.prod([(side // down - part) // by + 1 for side, part, by in zip(shape, size, step, strict=False)]))


def drawn(shape: tuple[int, ...], share: float, count: int, n: int, random: np.random.Generator) -> np.ndarray:
    """Draws `places` int [n, k] for `described`, so many per image that `count` images have about `CANDIDATES`."""
    every = places(shape, share)
    return random.permuted(np.tile(np.arange(every), (n, 1)), axis=1)[:, : -(-CANDIDATES // count)]


def fit(patches: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Fits the bank of `distance` to `described` patches [n, h, w, C] of normal images; `seed` draws candidates.

    Args:
      patches: `described` patches [n, h, w, C] of normal images.
      seed: draws the candidates for the bank.

    Returns:
      float32 arrays: `kernel` [h, w, C, k], the first `AXES` principal axes of these patches; `total` and `mean` [k],
      the sum of each axis and the mean along it; `bank` [m, k], the patches along the axes, m at most `BANK`.
    """
    flat = patches.reshape(len(patches), -1)
    random = np.random.default_rng(seed).permutation(len(patches))[:CANDIDATES]
    mean, _, axes = principal_components.fit(flat[random[:_FITTED]], AXES, _LEAST_VARIANCE)
    axes = axes.astype(np.float32)
    # Some at a time: all of them are large.
    parts = [flat[random[i : i + _FITTED]] @ axes for i in range(0, len(random), _FITTED)]
    along = np.concatenate(parts) - (mean @ axes).astype(np.float32)
    return {
        "kernel": axes.reshape(*patches.shape[1:], -1),
        "total": axes.sum(axis=0),
        "mean": (mean @ axes).astype(np.float32),
        "bank": along[np.sort(_spread(along, BANK))] if len(along) > BANK else along,
    }


@functools.partial(jax.jit, static_argnums=1)
def _spread(at: Array, count: int) -> Array:
    """Selects `count` of at [n, k] by farthest-point sampling, from the middle on: int [count].

    The first is the nearest to the middle. The largest distance to the nearest one kept is at most twice the least that
    so many can have (Gonzalez 1985).
    """
    squares = jnp.sum(at * at, axis=-1)

    def one(i: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        chosen, far, new = carry
        far = jnp.minimum(far, squares - 2 * at @ at[new] + squares[new])
        return chosen.at[i].set(new), far, jnp.argmax(far)

    first = jnp.argmin(jnp.sum(jnp.square(at - at.mean(axis=0)), axis=-1))
    begin = (jnp.zeros(count, first.dtype), jnp.full(len(at), jnp.inf, at.dtype), first)
    return lax.fori_loop(0, count, one, begin)[0]


def distance(fitted: dict[str, Array], x: Array, share: float) -> Array:
    """Computes the mean distance [B] of the patches of images x [B, H, W, C] in [-1, 1] to the nearest in the bank.

    Args:
      fitted: what `fit` returns, for patches of this share.
      x: images [B, H, W, C] in [-1, 1].
      share: side of a patch as a share of the image's.

    Returns:
      [B] float32, at least 0.
    """
    down, size, step = _layout(x.shape[1:], share)
    x = averaged(x, down)
    mean, divisor = _moments(x, size, step)
    along = lax.conv_general_dilated(
        x, fitted["kernel"].astype(x.dtype), step, "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    at = (along - mean[..., None] * fitted["total"]) / divisor[..., None] - fitted["mean"]
    return jnp.mean(_nearest(fitted["bank"], at), axis=(1, 2))


@jax.jit
def exposed(x: Array) -> Array:
    """Returns images x [B, H, W, C] in [-1, 1] as `components` compares them, [B, h, w, C]: small, brightness apart.

    Their mean becomes 0 whatever the lamp, the exposure or the current that they were taken with.
    """
    down, _, _ = _layout(x.shape[1:], 1.0)
    light = (averaged(x, down) + 1) / 2
    return light / (jnp.mean(light, axis=(1, 2, 3), keepdims=True) + _DARK) - 1


def fit_components(images: np.ndarray) -> dict[str, np.ndarray]:
    """Fits the principal components of `components` to `exposed` normal images [n, h, w, C].

    Returns:
      float32 `middle` [h, w, C], their mean, and `axes` [h, w, C, k], their first `COMPONENTS` principal axes.
    """
    rows = images.reshape(len(images), -1)
    middle, _, axes = principal_components.fit(rows, COMPONENTS, _LEAST_VARIANCE)
    shape = images.shape[1:]
    return {"middle": middle.reshape(shape).astype(np.float32), "axes": axes.reshape(*shape, -1).astype(np.float32)}


def components(fitted: dict[str, Array], x: Array) -> Array:
    """Computes the squared distance [B] of `exposed` images x [B, H, W, C] from the components: the Q of a PCA."""
    centred = exposed(x) - fitted["middle"]
    at = jnp.einsum("bhwc,hwck->bk", centred, fitted["axes"])
    # Subtracted place by place: a difference of two sums of squares would be mostly rounding.
    return jnp.mean(jnp.square(centred - jnp.einsum("bk,hwck->bhwc", at, fitted["axes"])), axis=(1, 2, 3))


def _nearest(bank: Array, at: Array) -> Array:
    """Computes the distance [B, h, w] of each of at [B, h, w, k] to its nearest in the bank [m, k].

    First the group of the bank that it is in, then exactly within that: least distances are found many times faster
    than where they are. Some images at a time, so that what is between stays in a processor's cache.
    """
    groups = jnp.pad(bank, ((0, -len(bank) % _GROUP), (0, 0)), constant_values=1e4).reshape(-1, _GROUP, bank.shape[1])
    flat = groups.reshape(-1, bank.shape[1])
    squares = jnp.sum(flat * flat, axis=-1)

    def of(queries: Array) -> Array:
        nearness = (squares - 2 * queries @ flat.T).reshape(*queries.shape[:-1], -1, _GROUP)
        which = lax.stop_gradient(jnp.argmin(nearness.min(axis=-1), axis=-1))
        # Subtracted: between large numbers that are nearly the same, the sum above is mostly rounding.
        exact = jnp.sum(jnp.square(queries[..., None, :] - groups[which]), axis=-1)
        return jnp.sqrt(exact.min(axis=-1) + _LEAST)

    images, places = at.shape[0], at.shape[1] * at.shape[2]
    together = max(1, _QUERIES // places)
    if isinstance(images, int) and images <= together:
        return of(at)
    # How many images there are is not known in an export.
    return lax.map(of, at, batch_size=together) if isinstance(images, int) else lax.map(of, at)
