"""Many training steps in one program."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array, lax

from ganomaly_jax import preprocess
from ganomaly_jax.detector import Detector, TrainState

LOSSES = ("adversarial", "contextual", "encoder", "generator", "discriminator")
# A call runs at most this many steps.
STEPS_A_CALL = 128


def make_chunk(
    detector: Detector,
    low: float,
    high: float,
    augmentation: Callable[[Array, Array], Array] | None = None,
) -> Callable[..., tuple[TrainState, Array]]:
    """`chunk(state, images, index, count)`: `count` steps in one program, and the losses [steps, 5] before each.

    `images` [N, H, W, C] are raw pixels, the whole training part; `index` [steps, B] int32 says which of them each step
    takes; `augmentation`, if any, gets those scaled and the step (`augment.make`). The number of steps is an argument,
    not a shape, so that one executable serves calls of every length and a resumed run computes the same bits as one
    that was never stopped (`lax.scan` is this loop with a fixed count).
    """

    def chunk(state: TrainState, images: Array, index: Array, count: Array) -> tuple[TrainState, Array]:
        def one(i: Array, carry: tuple[TrainState, Array]) -> tuple[TrainState, Array]:
            state, history = carry
            x = preprocess.to_unit(images[index[i]], low, high)
            if augmentation is not None:
                x = augmentation(x, state.step)
            state, metrics = detector.update(state, x)
            return state, history.at[i].set(jnp.stack([metrics[name] for name in LOSSES]))

        return lax.fori_loop(0, count, one, (state, jnp.zeros((index.shape[0], len(LOSSES)), jnp.float32)))

    return chunk
