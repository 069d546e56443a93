"""The compiled training step of one model, and of all members of a sweep."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ganomaly_jax.model import registry
from ganomaly_jax.model.protocol import TrainState
from ganomaly_jax.parallel import sharding
from ganomaly_jax.training import augment, health
from ganomaly_jax.training.input_pipeline import Feed
from ganomaly_jax.training.state import CompiledSteps, Log
from ganomaly_jax.training.train_step import STEPS_A_CALL, make_member_steps, make_steps
from ganomaly_jax.training.training_run import TrainingRun


def one_model(training_run: TrainingRun, mesh: Any, state: TrainState, feed: Feed, log: Log) -> CompiledSteps:
    """Compiles the steps of one model; each batch is spread over the devices.

    Args:
      training_run: what is trained.
      mesh: the devices.
      state: as it lies on the devices; its memory is given to the first call.
      feed: the images of each call. A device gets those of its own places in a batch only.
      log: takes one line, how long it took.
    """
    settings, detector = training_run.run.config, training_run.run.detector
    low, high = training_run.run.pixels[1:]
    # Where XLA partitions the program, a step sees the whole batch and has nothing to average.
    axis_name = None if settings.mesh.shard_from else sharding.axis_name(mesh)
    stepping = registry.over_axis(detector, axis_name)
    augmentation = augment.make(settings.seed, settings.train.shift, settings.train.flip, axis_name)
    if settings.mesh.shard_from:
        shardings = sharding.state_shardings(state, mesh, settings.mesh.shard_from)
        take, constrain = sharding.take_local_rows(mesh), sharding.constrain(shardings)
        steps = make_steps(stepping, low, high, augmentation, take, constrain)
        program = sharding.partitioned(steps, mesh, shardings, (0, 1, None))
    else:
        steps = make_steps(stepping, low, high, augmentation)
        transform = settings.mesh.transform
        program = sharding.data_parallel(steps, mesh, (None, 0, 1, None), donate=0, transform=transform)

    def index(step: int, count: int) -> tuple[Array, Array]:
        return sharding.shard_batch(feed.index(step, count), mesh, 1), sharding.replicate(np.int32(count), mesh)

    compiled = _compile(program, state, (feed.like, *index(int(state.step), 1)), log)

    def advance(state: TrainState, first: np.ndarray, counts: np.ndarray) -> tuple[TrainState, Array]:
        step, count = int(first[0]), int(counts[0])
        state, losses = compiled(state, feed.images(step, count), *index(step, count))
        return state, losses[None]

    return CompiledSteps(
        advance,
        finite=lambda state: np.asarray(is_finite(state))[None],
        kept=lambda state: state,
        measure=health.make_measure(detector, [health.sample(training_run.run)]),
        losses=detector.losses,
        max_steps=feed.max_steps,
    )


def members(training_runs: Sequence[TrainingRun], mesh: Any, state: TrainState, log: Log) -> CompiledSteps:
    """Compiles the steps of all members of a sweep, which are dealt out over the devices and share one data set.

    Args:
      training_runs: of each member; their runs have the same images and equal detectors.
      mesh: the devices.
      state: every array with a leading axis of members, filled up (`fill`) and sharded along it.
      log: takes one line, how long it took.
    """
    first_run, count, slots = training_runs[0].run, len(training_runs), len(state.step)
    settings, detector = first_run.config.train, first_run.detector
    images = sharding.replicate(first_run.dataset.images, mesh)
    ranges = np.array([one.run.pixels[1:] for one in training_runs], np.float32)
    seeds = np.array([one.run.config.seed for one in training_runs], np.uint32)
    per_member = sharding.shard_members(fill((ranges, seeds), mesh.size), mesh)
    steps = make_member_steps(detector, lambda seed: augment.make(seed, settings.shift, settings.flip))
    program = sharding.member_parallel(steps, mesh, (True, False, True, True, True, True), donate=0)

    def arguments(first: np.ndarray, counts: np.ndarray) -> tuple[Any, ...]:
        # A slot that only fills up the devices repeats the last member and takes no step.
        index = np.zeros((slots, STEPS_A_CALL, settings.batch_size), np.int32)
        for m, one in enumerate(training_runs):
            index[m] = one.run.split.train[one.index(first[m], counts[m])]
        steps_of_each = np.zeros(slots, np.int32)
        steps_of_each[:count] = counts
        return images, *sharding.shard_members((index, steps_of_each), mesh), *per_member

    compiled = _compile(program, state, arguments(np.zeros(count, int), np.ones(count, int)), log)
    all_finite = jax.jit(jax.vmap(is_finite))
    return CompiledSteps(
        advance=lambda state, first, counts: compiled(state, *arguments(first, counts)),
        finite=lambda state: np.asarray(all_finite(state))[:count],
        kept=lambda state: jax.tree.map(lambda leaf: leaf[:count], state),
        measure=health.make_measure(detector, [health.sample(one.run) for one in training_runs], stacked=True),
        losses=detector.losses,
    )


@jax.jit
def is_finite(state: TrainState) -> Array:
    """Returns whether all floating-point numbers of a state are finite, bool scalar."""
    leaves = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.stack(leaves).all()


def fill(tree: Any, devices: int) -> Any:
    """Fills up the leading axis of members to a multiple of the devices, by repeating the last member."""

    def fill_leaf(leaf: Any) -> np.ndarray:
        leaf = np.asarray(leaf)
        return np.concatenate([leaf, np.repeat(leaf[-1:], -len(leaf) % devices, axis=0)])

    return jax.tree.map(fill_leaf, tree)


def _compile(program: Any, state: TrainState, arguments: Sequence[Any], log: Log) -> Any:
    began = time.monotonic()
    compiled = program.lower(state, *arguments).compile()
    log(f"compiled in {time.monotonic() - began:.1f} s")
    return compiled
