"""Functions that run many training steps in one compiled call."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax

from ganomaly_jax.data.images import preprocess
from ganomaly_jax.model.protocol import Detector, TrainState

# Most steps of one call.
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
    run computes the same bits as one that was never stopped.

    Args:
      detector: the detector that is trained.
      low: raw value that is scaled to -1; a scalar, or one for each sensor or frequency band.
      high: raw value that is scaled to +1, likewise.
      augmentation: called with the scaled images of a step and the step number, see `augment.make`.
      take: takes a batch from the images; `sharding.take_local_rows` where XLA partitions the program.
      constrain: keeps the sharding of the state, see `sharding.constrain`.

    Returns:
      A function of the state, raw items `images` [N, H, W, C], `index` int32 [steps, B] (which of them each step
      takes) and `count`, an int32 scalar of at most `steps`. It returns the new state and the losses before each step,
      float32 [steps, L] in the order of `detector.losses`, zeros from row `count` on.
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

    They are not trained with `vmap`, because `vmap` over kernels turns convolutions into grouped ones, which are
    several times slower and need M times the memory (benchmarks/speed/members.py measures both).

    Args:
      detector: the detector of all models.
      augmentation_of: makes the augmentation of a model from its seed.

    Returns:
      A function of the states stacked along a leading axis M, the shared images [N, H, W, C], `index` int32
      [M, steps, B] and `count` int32 [M] of each model, `ranges` float32 [M, 2] (the raw values that are scaled to -1
      and +1) and `seeds` uint32 [M]. It returns the new states and the losses, float32 [M, steps, L].
    """

    def steps(
        states: TrainState, images: Array, index: Array, count: Array, ranges: Array, seeds: Array
    ) -> tuple[TrainState, Array]:
        # Not lax.map: its result could not reuse the memory of its argument, and the states would be held twice.
        def train_member(m: Array, carry: tuple[TrainState, Array]) -> tuple[TrainState, Array]:
            states, history = carry
            run = make_steps(detector, ranges[m, 0], ranges[m, 1], augmentation_of(seeds[m]))
            state, losses = run(jax.tree.map(lambda leaf: leaf[m], states), images, index[m], count[m])
            return jax.tree.map(lambda leaf, new: leaf.at[m].set(new), states, state), history.at[m].set(losses)

        members, length, _ = index.shape
        losses = jnp.zeros((members, length, len(detector.losses)), jnp.float32)
        return lax.fori_loop(0, members, train_member, (states, losses))

    return steps
