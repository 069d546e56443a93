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
    """Compiles the training step of one model, with each batch split over the devices.

    Args:
      training_run: the run that is trained.
      mesh: the devices.
      state: the state on the devices; the first call donates its memory.
      feed: the images of each call; a device gets only those of its own positions in a batch.
      log: called with the time that compilation took.
    """
    settings, detector = training_run.run.config, training_run.run.detector
    low, high = training_run.run.pixels[1:]
    # Where XLA partitions the program, a step sees the whole batch and need not average over devices.
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
    """Compiles the training step of all members of a sweep, distributed over the devices and sharing one data set.

    Args:
      training_runs: the runs of the members, with the same images and equal detectors.
      mesh: the devices.
      state: the states of all members stacked along a leading axis, padded with `fill` and sharded along it.
      log: called with the time that compilation took.
    """
    first_run, count, slots = training_runs[0].run, len(training_runs), len(state.step)
    settings, detector = first_run.config.train, first_run.detector
    images = sharding.replicate(first_run.dataset.images, mesh)
    ranges = np.array([member.run.pixels[1:] for member in training_runs], np.float32)
    seeds = np.array([member.run.config.seed for member in training_runs], np.uint32)
    per_member = sharding.shard_members(fill((ranges, seeds), mesh.size), mesh)
    steps = make_member_steps(detector, lambda seed: augment.make(seed, settings.shift, settings.flip))
    program = sharding.member_parallel(steps, mesh, (True, False, True, True, True, True), donate=0)

    def arguments(first: np.ndarray, counts: np.ndarray) -> tuple[Any, ...]:
        # Slots that only pad the axis to the number of devices hold a copy of the last member and take no steps.
        index = np.zeros((slots, STEPS_A_CALL, settings.batch_size), np.int32)
        for m, member in enumerate(training_runs):
            index[m] = member.run.split.train[member.index(first[m], counts[m])]
        slot_counts = np.zeros(slots, np.int32)
        slot_counts[:count] = counts
        return images, *sharding.shard_members((index, slot_counts), mesh), *per_member

    compiled = _compile(program, state, arguments(np.zeros(count, int), np.ones(count, int)), log)
    all_finite = jax.jit(jax.vmap(is_finite))
    return CompiledSteps(
        advance=lambda state, first, counts: compiled(state, *arguments(first, counts)),
        finite=lambda state: np.asarray(all_finite(state))[:count],
        kept=lambda state: jax.tree.map(lambda leaf: leaf[:count], state),
        measure=health.make_measure(detector, [health.sample(member.run) for member in training_runs], stacked=True),
        losses=detector.losses,
    )


@jax.jit
def is_finite(state: TrainState) -> Array:
    """Returns whether all floating-point numbers in a state are finite, a bool scalar."""
    leaves = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.stack(leaves).all()


def fill(tree: Any, devices: int) -> Any:
    """Pads the leading axis of members to a multiple of the number of devices, by repeating the last member."""

    def fill_leaf(leaf: Any) -> np.ndarray:
        leaf = np.asarray(leaf)
        return np.concatenate([leaf, np.repeat(leaf[-1:], -len(leaf) % devices, axis=0)])

    return jax.tree.map(fill_leaf, tree)


def _compile(program: Any, state: TrainState, arguments: Sequence[Any], log: Log) -> Any:
    began = time.monotonic()
    compiled = program.lower(state, *arguments).compile()
    log(f"compiled in {time.monotonic() - began:.1f} s")
    return compiled
