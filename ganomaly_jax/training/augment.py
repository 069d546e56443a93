"""Random shifts and flips of images, inside the compiled training step."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax

# Keeps these keys apart from those that initialise weights, which are derived from the seed and the step as well.
_STREAM = 0xA06


def augment(key: Array, x: Array, shift: int, flip: bool, first: int | Array = 0) -> Array:
    """Shifts and flips each image at random; a pure function.

    Args:
      key: the key of this batch; image i uses `jax.random.fold_in(key, first + i)`.
      x: images [B, H, W, C] of any dtype.
      shift: largest shift in pixels; each image moves by a whole number of pixels, uniform from -shift to shift, in
        both directions, and edge pixels are repeated.
      flip: mirror each image left-right with probability 1/2.
      first: index of the first of these images in the batch over all devices.

    Returns:
      The augmented images, of the shape and dtype of `x`.
    """

    def augment_image(i: Array, image: Array) -> Array:
        move, mirror = jax.random.split(jax.random.fold_in(key, i))
        if shift:
            padded = jnp.pad(image, ((shift, shift), (shift, shift), (0, 0)), mode="edge")
            row, column = jax.random.randint(move, (2,), 0, 2 * shift + 1)
            image = lax.dynamic_slice(padded, (row, column, 0), image.shape)
        return jnp.where(jax.random.bernoulli(mirror), image[:, ::-1], image) if flip else image

    return jax.vmap(augment_image)(first + jnp.arange(len(x)), x)


def make(
    seed: int | Array, shift: int, flip: bool, axis_name: str | None = None
) -> Callable[[Array, Array], Array] | None:
    """Returns the augmentation for `make_steps`, or None if none is requested.

    The random draws depend only on the seed, the step and the position of an image in the batch over all devices, so
    a run that is resumed on any number of devices continues with the same draws.

    Args:
      seed: seed of the run.
      shift: largest shift in pixels, see `augment`.
      flip: whether images are mirrored at random.
      axis_name: the mapped axis along which the batch is split over devices; None where a step sees the whole batch.

    Returns:
      `augmentation(x, step)`, which maps a batch [B, H, W, C] to an augmented one.
    """
    if not shift and not flip:
        return None

    def augmentation(x: Array, step: Array) -> Array:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), _STREAM), step)
        first = 0 if axis_name is None else lax.axis_index(axis_name) * len(x)
        return augment(key, x, shift, flip, first)

    return augmentation
