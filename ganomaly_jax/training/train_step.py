"""Many training steps in one program."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax

from ganomaly_jax.data.images import preprocess
from ganomaly_jax.model.protocol import Detector, TrainState

# A call runs at most this many steps.
STEPS_A_CALL = 128


def make_chunk(
    detector: Detector,
    low: float | Array,
    high: float | Array,
    augmentation: Callable[[Array, Array], Array] | None = None,
    take: Callable[[Array, Array], Array] = lambda images, rows: images[rows],
    constrain: Callable[[TrainState], TrainState] = lambda state: state,
) -> Callable[..., tuple[TrainState, Array]]:
    """`chunk(state, images, index, count)`: `count` steps in one program, and the losses before each,
    [steps, L] in the order of `detector.losses`.

    `images` [N, H, W, C] are raw pixels, the whole training part; `index` [steps, B] int32 says which of them each step
    takes; `augmentation`, if any, gets those scaled and the step (`augment.make`). The number of steps is an argument,
    not a shape, so that one executable serves calls of every length and a resumed run computes the same bits as one
    that was never stopped (`lax.scan` is this loop with a fixed count). `take` and `constrain` are for a program that
    XLA partitions: how a batch is taken, and the shardings of the state (`sharding.take_local_rows`,
    `sharding.constrain`).
    """

    def chunk(state: TrainState, images: Array, index: Array, count: Array) -> tuple[TrainState, Array]:
        def one(i: Array, carry: tuple[TrainState, Array]) -> tuple[TrainState, Array]:
            state, history = carry
            x = preprocess.to_unit(take(images, index[i]), low, high)
            if augmentation is not None:
                x = augmentation(x, state.step)
            state, metrics = detector.update(state, x)
            return constrain(state), history.at[i].set(jnp.stack([metrics[name] for name in detector.losses]))

        return lax.fori_loop(0, count, one, (state, jnp.zeros((index.shape[0], len(detector.losses)), jnp.float32)))

    return chunk


def make_members_chunk(
    detector: Detector, augmentation_of: Callable[[Array], Callable[[Array, Array], Array] | None]
) -> Callable[..., tuple[TrainState, Array]]:
    """`chunk(states, images, index, count, ranges, seeds)`: as `make_chunk` for M models, one after the other.

    Every array of `states` has a leading axis M; `index` [M, steps, B] and `count` [M] are each model's own, into the
    one set of images; `ranges` [M, 2] float32 are the pixel values that become -1 and +1; `seeds` [M] uint32 are what
    `augmentation_of` makes each model's augmentation from. Losses [M, steps, L].

    One after the other, because `vmap` over kernels turns convolutions into grouped ones, which are several times
    slower, and asks for M times the memory (benchmarks/speed/members.py measures both).
    """

    def chunk(
        states: TrainState, images: Array, index: Array, count: Array, ranges: Array, seeds: Array
    ) -> tuple[TrainState, Array]:
        # Not lax.map: its result could not take the place of the argument, and the states would be held twice.
        def one(m: Array, carry: tuple[TrainState, Array]) -> tuple[TrainState, Array]:
            states, history = carry
            run = make_chunk(detector, ranges[m, 0], ranges[m, 1], augmentation_of(seeds[m]))
            state, losses = run(jax.tree.map(lambda leaf: leaf[m], states), images, index[m], count[m])
            return jax.tree.map(lambda leaf, new: leaf.at[m].set(new), states, state), history.at[m].set(losses)

        members, steps, _ = index.shape
        return lax.fori_loop(0, members, one, (states, jnp.zeros((members, steps, len(detector.losses)), jnp.float32)))

    return chunk
