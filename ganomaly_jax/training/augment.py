"""Images moved and mirrored at random, inside the training program."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax

# Apart from the keys that draw weights, which follow from the seed or the step as well.
_STREAM = 0xA06


def augment(key: Array, x: Array, shift: int, flip: bool, first: int | Array = 0) -> Array:
    """Images x [B, H, W, C] of any type, each by draws of its own. Pure.

    Each is moved by a whole number of pixels, uniform from -shift to shift in both directions, edge pixels being
    repeated, and with `flip` mirrored left-right with probability 1/2. The draws of image i follow from `key` and
    first + i.
    """

    def one(i: Array, image: Array) -> Array:
        move, mirror = jax.random.split(jax.random.fold_in(key, i))
        if shift:
            padded = jnp.pad(image, ((shift, shift), (shift, shift), (0, 0)), mode="edge")
            row, column = jax.random.randint(move, (2,), 0, 2 * shift + 1)
            image = lax.dynamic_slice(padded, (row, column, 0), image.shape)
        return jnp.where(jax.random.bernoulli(mirror), image[:, ::-1], image) if flip else image

    return jax.vmap(one)(first + jnp.arange(len(x)), x)


def make(
    seed: int | Array, shift: int, flip: bool, axis_name: str | None = None
) -> Callable[[Array, Array], Array] | None:
    """Returns the augmentation for `make_steps`, (x [B, H, W, C], step) -> x; None if none is requested.

    The draws follow from the seed, the step and the place of an image in the batch over all devices, whose parts lie
    along the mapped axis `axis_name`: a run that is resumed, on however many devices, goes on with the same ones.
    """
    if not shift and not flip:
        return None

    def augmentation(x: Array, step: Array) -> Array:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), _STREAM), step)
        first = 0 if axis_name is None else lax.axis_index(axis_name) * len(x)
        return augment(key, x, shift, flip, first)

    return augmentation
