"""The linear layers of GANomaly for rows of sensors: dense for [B, D], convolutions along time for [B, T, D].

The convolutions are written as products of matrices, with shifted copies side by side: their gradients are products as
well, which every platform computes fast.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array


def halved_lengths(steps: int) -> tuple[int, ...]:
    """Returns the lengths of the maps, from that of the window to the one the head covers: 20 gives (20, 10, 5, 3)."""
    lengths = [steps]
    while lengths[-1] > 4 or len(lengths) < 3:  # at least two halvings: the first has no batch norm
        lengths.append(-(-lengths[-1] // 2))
    return tuple(lengths)


def dense(x: Array, kernel: Array) -> Array:
    """Multiplies [B, C] by a kernel [C, F]: [B, F]."""
    return x @ kernel


def collapse(x: Array, kernel: Array) -> Array:
    """Applies a kernel [t, C, F] that covers the whole map [B, t, C]: [B, F]."""
    inputs = kernel.shape[0] * kernel.shape[1]  # the size of the batch may be symbolic
    return x.reshape(-1, inputs) @ kernel.reshape(inputs, -1)


def expand(z: Array, kernel: Array) -> Array:
    """Applies the transpose of `collapse`: [B, N] and a kernel [t, N, F] to [B, t, F]."""
    steps, size, features = kernel.shape
    return (z @ kernel.transpose(1, 0, 2).reshape(size, -1)).reshape(-1, steps, features)


def convolve(x: Array, kernel: Array) -> Array:
    """Convolves [B, T, C] with a kernel [3, C, F], stride 1 and padding 1: [B, T, F]."""
    padded, steps = jnp.pad(x, ((0, 0), (1, 1), (0, 0))), x.shape[1]
    shifted = jnp.concatenate([padded[:, i : i + steps] for i in range(3)], axis=-1)
    return shifted @ kernel.reshape(-1, kernel.shape[-1])


def downsample(x: Array, kernel: Array) -> Array:
    """Convolves [B, T, C] with a kernel [4, C, F], stride 2 and padding 1: [B, ceil(T / 2), F]."""
    steps = -(-x.shape[1] // 2)
    padded = jnp.pad(x, ((0, 0), (1, 1 + x.shape[1] % 2), (0, 0)))
    shifted = jnp.concatenate([padded[:, i : i + 2 * steps - 1 : 2] for i in range(4)], axis=-1)
    return shifted @ kernel.reshape(-1, kernel.shape[-1])


def upsample(x: Array, kernel: Array) -> Array:
    """Applies the transpose of `downsample`: [B, t, C] and a kernel [4, C, F] to [B, 2 t, F].

    Step 2 i of the result comes from x[i] and x[i - 1], step 2 i + 1 from x[i] and x[i + 1].
    """
    steps = x.shape[1]
    padded = jnp.pad(x, ((0, 0), (1, 1), (0, 0)))
    before, here, after = (padded[:, i : i + steps] for i in range(3))
    even = here @ kernel[1] + before @ kernel[3]
    odd = here @ kernel[2] + after @ kernel[0]
    return jnp.stack([even, odd], axis=2).reshape(-1, 2 * steps, kernel.shape[-1])
