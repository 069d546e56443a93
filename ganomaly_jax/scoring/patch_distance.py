"""Distances of image patches from those of training images, and principal components of images. JAX, pure once fitted.

This is PatchCore (Roth et al. 2022, arXiv 2106.08265) with pixels in place of a pretrained network's features. As in
its algorithm 1, a tenth of the patches is kept, chosen to cover all of them, so that a rare normal patch is kept as
surely as a frequent one. Patches are compared by their structure: the mean is subtracted and the result divided by the
standard deviation plus `_FLOOR`, so that neither exposure nor thickness matters and noise in an empty patch is not
amplified.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ganomaly_jax.scoring import principal_components

SHARES = {"small": 1 / 8, "medium": 3 / 8, "whole": 1.0}
"""The side of a patch as a share of the image's, by name."""
BANK = 5_000
"""The largest number of training patches kept for comparison."""
CANDIDATES = 50_000
"""The approximate number of training patches from which the bank is chosen."""
AXES = 32
"""The number of principal axes along which patches are compared; finer detail is mostly noise."""
COMPONENTS = 64
"""The number of principal components of images whose residual `components` measures."""
# Steps of a patch along a side of the image.
_PLACES = 16
# The principal axes are fitted to this many patches.
_FITTED = 10_000
# Added to the standard deviation of a patch, whose values span a range of 2.
_FLOOR = 0.2
_LEAST_SIDE = 4
# Added to squared distances, which below it are rounding errors, as that of an image from itself.
_LEAST = 1e-6
# Axes with less than this share of the largest variance are rounding errors.
_LEAST_VARIANCE = 1e-6
# Added to the mean brightness, of a range of 1, so that nearly black images are not amplified.
_DARK = 0.02
# Larger patches are averaged down to this side, so that they stay cheap to compare.
_MOST_SIDE = 32
# Patches of the bank per group, and patches that are looked up at a time.
_GROUP = 50
_QUERIES = 1024


def _layout(shape: tuple[int, ...], share: float) -> tuple[int, tuple[int, int], tuple[int, int]]:
    """Returns the factor by which images are averaged down, and the sides and steps of a patch afterwards."""
    sides = [max(_LEAST_SIDE, round(share * side)) for side in shape[:2]]
    down = 1
    while max(sides) // down > _MOST_SIDE and all(side % (2 * down) == 0 for side in shape[:2]):
        down *= 2
    height, width = (max(_LEAST_SIDE, side // down) for side in sides)
    step = tuple(max(1, side // down // _PLACES) for side in shape[:2])
    return down, (height, width), (step[0], step[1])


def averaged(x: Array, down: int) -> Array:
    """Averages images x [B, H, W, C] over squares of side `down`: [B, H / down, W / down, C]; any x for down = 1."""
    size = (1, down, down, 1)
    return lax.reduce_window(x, 0.0, lax.add, size, size, "VALID") / down**2 if down > 1 else x


def _moments(x: Array, size: tuple[int, int], step: tuple[int, int]) -> tuple[Array, Array]:
    """Computes the mean of each patch and the divisor, its standard deviation plus `_FLOOR`: [B, h, w] each."""
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
    """Cuts patches out of images and normalises them.

    Args:
      x: images [B, H, W, C] float in [-1, 1].
      places: int [B, n], the indices of an image's patches, counted row by row.
      share: the side of a patch as a share of the image's.

    Returns:
      [B, n, h, w, C], each patch less its mean, over its standard deviation plus `_FLOOR`.
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
    """Draws random patches for `described`, as many per image as give about `CANDIDATES` over `count` images.

    Args:
      shape: (H, W, C) of an image.
      share: the side of a patch as a share of the image's.
      count: the number of all images that are drawn from.
      n: the number of images to draw for now.
      random: the generator.

    Returns:
      int [n, k], indices of patches, counted row by row.
    """
    every = places(shape, share)
    return random.permuted(np.tile(np.arange(every), (n, 1)), axis=1)[:, : -(-CANDIDATES // count)]


def fit(patches: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Fits the bank of patches that `distance` compares with.

    Args:
      patches: [n, h, w, C] of normal images, as returned by `described`.
      seed: draws the candidates for the bank.

    Returns:
      float32 arrays: `kernel` [h, w, C, k], the first `AXES` principal axes of the patches; `total` [k], the sum of the
      entries of each axis, and `mean` [k], the mean patch along it; `bank` [m, k], the kept patches along the axes, m
      at most `BANK`.
    """
    flat = patches.reshape(len(patches), -1)
    random = np.random.default_rng(seed).permutation(len(patches))[:CANDIDATES]
    mean, _, axes = principal_components.fit(flat[random[:_FITTED]], AXES, _LEAST_VARIANCE)
    axes = axes.astype(np.float32)
    # In parts, to limit memory.
    parts = [flat[random[i : i + _FITTED]] @ axes for i in range(0, len(random), _FITTED)]
    along = np.concatenate(parts) - (mean @ axes).astype(np.float32)
    return {
        "kernel": axes.reshape(*patches.shape[1:], -1),
        "total": axes.sum(axis=0),
        "mean": (mean @ axes).astype(np.float32),
        "bank": covering(along),
    }


def covering(at: np.ndarray) -> np.ndarray:
    """Returns at most `BANK` rows of at [n, k], chosen by `spread` to cover them all; all rows if they are fewer."""
    return at[np.sort(spread(at, BANK))] if len(at) > BANK else at


@functools.partial(jax.jit, static_argnums=1)
def spread(at: Array, count: int) -> Array:
    """Selects `count` rows of at [n, k] by farthest-point sampling, starting with the one nearest to the mean.

    The largest distance of a row to the nearest selected one is at most twice the smallest that `count` rows can have.

    Returns:
      int [count], the indices of the selected rows.

    References:
      Gonzalez 1985, "Clustering to Minimize the Maximum Intercluster Distance".
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
    """Computes the mean distance of the patches of each image to their nearest neighbours in the bank. Pure.

    Args:
      fitted: the arrays returned by `fit` for patches of this share.
      x: images [B, H, W, C] float in [-1, 1].
      share: the side of a patch as a share of the image's.

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
    return jnp.mean(nearest(fitted["bank"], at), axis=(1, 2))


@jax.jit
def exposed(x: Array) -> Array:
    """Averages images x [B, H, W, C] in [-1, 1] down and divides out their brightness: [B, h, w, C] of mean about 0.

    This removes the effect of illumination and exposure before `components` compares the images.
    """
    down, _, _ = _layout(x.shape[1:], 1.0)
    light = (averaged(x, down) + 1) / 2
    return light / (jnp.mean(light, axis=(1, 2, 3), keepdims=True) + _DARK) - 1


def fit_components(images: np.ndarray) -> dict[str, np.ndarray]:
    """Fits the principal components that `components` uses.

    Args:
      images: [n, h, w, C] float, normal images as returned by `exposed`.

    Returns:
      float32 arrays: `middle` [h, w, C], their mean, and `axes` [h, w, C, k], their first `COMPONENTS` principal axes.
    """
    rows = images.reshape(len(images), -1)
    middle, _, axes = principal_components.fit(rows, COMPONENTS, _LEAST_VARIANCE)
    shape = images.shape[1:]
    return {"middle": middle.reshape(shape).astype(np.float32), "axes": axes.reshape(*shape, -1).astype(np.float32)}


def components(fitted: dict[str, Array], x: Array) -> Array:
    """Computes the mean squared distance [B] of images x [B, H, W, C] from the principal components: Q of the PCA.

    Args:
      fitted: the arrays returned by `fit_components`.
      x: images [B, H, W, C] float in [-1, 1].
    """
    centred = exposed(x) - fitted["middle"]
    at = jnp.einsum("bhwc,hwck->bk", centred, fitted["axes"])
    # Subtracted pixel by pixel: the difference of two sums of squares would be mostly rounding error.
    return jnp.mean(jnp.square(centred - jnp.einsum("bk,hwck->bhwc", at, fitted["axes"])), axis=(1, 2, 3))


def nearest(bank: Array, at: Array) -> Array:
    """Computes the distance [B, h, w] of each patch of at [B, h, w, k] to its nearest neighbour in the bank [m, k].

    The search first finds the group of the bank that holds the neighbour, then computes distances within it, because a
    minimum is found many times faster than an argmin. A few images at a time keep intermediate results in the
    processor's cache.
    """
    groups = jnp.pad(bank, ((0, -len(bank) % _GROUP), (0, 0)), constant_values=1e4).reshape(-1, _GROUP, bank.shape[1])
    flat = groups.reshape(-1, bank.shape[1])
    squares = jnp.sum(flat * flat, axis=-1)

    def of(queries: Array) -> Array:
        nearness = (squares - 2 * queries @ flat.T).reshape(*queries.shape[:-1], -1, _GROUP)
        which = lax.stop_gradient(jnp.argmin(nearness.min(axis=-1), axis=-1))
        # Subtracted first: the expansion above cancels large, nearly equal numbers and is mostly rounding error.
        exact = jnp.sum(jnp.square(queries[..., None, :] - groups[which]), axis=-1)
        return jnp.sqrt(exact.min(axis=-1) + _LEAST)

    images, places = at.shape[0], at.shape[1] * at.shape[2]
    together = max(1, _QUERIES // places)
    if isinstance(images, int) and images <= together:
        return of(at)
    # In an export the number of images is symbolic.
    return lax.map(of, at, batch_size=together) if isinstance(images, int) else lax.map(of, at)
