"""Many training steps as one function to compile."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax

from ganomaly_jax.data.images import preprocess
from ganomaly_jax.model.protocol import Detector, TrainState

# A call runs at most this many steps.
STEPS_A_CALL = 128


def make_steps(
    detector: Detector,
    low: float | Array,
    high: float | Array,
    augmentation: Callable[[Array, Array], Array] | None = None,
    take: Callable[[Array, Array], Array] = lambda images, rows: images[rows],
    constrain: Callable[[TrainState], TrainState] = lambda state: state,
) -> Callable[..., tuple[TrainState, Array]]:
    """Makes `steps(state, images, index, count)`, which runs `count` training steps.

    The number of steps is an argument, not a shape, so that one executable serves calls of every length and a resumed
    run computes the same bits as one that was never stopped (`lax.scan` is this loop with a fixed count).

    Args:
      detector: what is trained.
      low: raw pixel value that becomes -1, or one for each sensor or band.
      high: raw pixel value that becomes +1.
      augmentation: called with the scaled images of a step and the step, see `augment.make`.
      take: how a batch is taken from the images; `sharding.take_local_rows` where XLA partitions the program.
      constrain: keeps the state where it lies, `sharding.constrain`.

    Returns:
      A function of the state, raw pixels `images` [N, H, W, C], `index` [steps, B] int32, which says which of them each
      step takes, and `count`. It returns the new state and the losses before each step, [steps, L] float32 in the order
      of `detector.losses`.
    """

    def steps(state: TrainState, images: Array, index: Array, count: Array) -> tuple[TrainState, Array]:
        def step(i: Array, carry: tuple[TrainState, Array]) -> tuple[TrainState, Array]:
            state, history = carry
            x = preprocess.to_unit(take(images, index[i]), low, high)
            if augmentation is not None:
                x = augmentation(x, state.step)
            state, metrics = detector.update(state, x)
            return constrain(state), history.at[i].set(jnp.stack([metrics[name] for name in detector.losses]))

        return lax.fori_loop(0, count, step, (state, jnp.zeros((index.shape[0], len(detector.losses)), jnp.float32)))

    return steps


def make_member_steps(
    detector: Detector, augmentation_of: Callable[[Array], Callable[[Array, Array], Array] | None]
) -> Callable[..., tuple[TrainState, Array]]:
    """Makes `steps(states, images, index, count, ranges, seeds)`, which trains M models one after the other.

    One after the other, because `vmap` over kernels turns convolutions into grouped ones, which are several times
    slower, and asks for M times the memory (benchmarks/speed/members.py measures both).

    Args:
      detector: the same for all models.
      augmentation_of: makes the augmentation of a model from its seed.

    Returns:
      A function of the states, every array with a leading axis M, the one set of images [N, H, W, C], `index`
      [M, steps, B] and `count` [M] of each model, `ranges` [M, 2] float32, the pixel values that become -1 and +1, and
      `seeds` [M] uint32. It returns the new states and the losses [M, steps, L].
    """

    def steps(
        states: TrainState, images: Array, index: Array, count: Array, ranges: Array, seeds: Array
    ) -> tuple[TrainState, Array]:
        # Not lax.map: its result could not take the place of the argument, and the states would be held twice.
        def train_member(m: Array, carry: tuple[TrainState, Array]) -> tuple[TrainState, Array]:
            states, history = carry
            run = make_steps(detector, ranges[m, 0], ranges[m, 1], augmentation_of(seeds[m]))
            state, losses = run(jax.tree.map(lambda leaf: leaf[m], states), images, index[m], count[m])
            return jax.tree.map(lambda leaf, new: leaf.at[m].set(new), states, state), history.at[m].set(losses)

        members, length, _ = index.shape
        losses = jnp.zeros((members, length, len(detector.losses)), jnp.float32)
        return lax.fori_loop(0, members, train_member, (states, losses))

    return steps
