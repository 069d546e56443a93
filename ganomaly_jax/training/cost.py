"""The cost of a training, estimated beforehand: parameters, FLOPs, memory of a device, and the largest batch."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp

from ganomaly_jax.core import calls
from ganomaly_jax.core import memory as core_memory
from ganomaly_jax.core.config import Config, Train
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data import modalities
from ganomaly_jax.model import registry
from ganomaly_jax.model.protocol import Detector
from ganomaly_jax.parallel import sharding
from ganomaly_jax.scoring import adapters
from ganomaly_jax.training import augment
from ganomaly_jax.training.train_step import STEPS_A_CALL, make_steps

# Share of a device's memory that is planned with; the rest is for the allocator's gaps and the programs themselves.
_USABLE = 0.9


@dataclasses.dataclass(frozen=True)
class Plan:
    """The cost of training on one device with the configured batch. Sizes in bytes; FLOPs as XLA counts them."""

    parameters: dict[str, int]
    """Number of parameters of each network."""
    step_flops: float
    """FLOPs of one training step on one device."""
    image_flops: float
    """FLOPs to score one image."""
    batch_size: int
    """Images per device."""
    memory: int
    """Peak memory of a training step, without the images of the training set."""
    available: int | None
    """Memory of the device; None if the device does not report it."""
    largest_batch: int | None
    """The largest power of two of images per device that fits; None if `available` is None."""


def plan(settings: Config, devices: int = 1) -> Plan:
    """Estimates the cost of a training by compiling its step for the batch and for half of it.

    Args:
      settings: the configuration, with the height, width and channels of the data set.
      devices: number of devices that the batch is split over.

    Returns:
      The plan for one device; the largest batch is extrapolated from the two compiled ones.

    Raises:
      UserError: the sizes are missing or cannot work.
    """
    calls.expect_config(settings, "gj.plan(config)")
    shape = modalities.of(settings.data).network_shape(settings.data)
    if 0 in shape:
        raise UserError(
            f"data.height, data.width, data.channels = {shape}: expected all three, or data to take them from: "
            "ganomaly plan DATA, or --config.data.height=64 --config.data.width=64 --config.data.channels=3"
        )
    detector = registry.from_config(settings)
    state = jax.eval_shape(detector.init, jax.random.key(0))
    batch = max(settings.train.batch_size // devices, 2)
    full, flops = _step(detector, state, batch, settings.train)
    half, _ = _step(detector, state, batch // 2, settings.train)
    image_bytes = max((full - half) / (batch - batch // 2), 1)
    available = device_memory()
    largest = None
    if available is not None:
        fits = (_USABLE * available - full) / image_bytes + batch
        largest = 1 << (int(fits).bit_length() - 1) if fits >= 1 else 0
    x = jax.ShapeDtypeStruct((1, *detector.shape), jnp.float32)
    score = jax.jit(detector.score).lower(detector.variables(state), x).compile()
    return Plan(
        parameters={name: sum(leaf.size for leaf in jax.tree.leaves(p)) for name, p in state.params.items()},
        step_flops=flops,
        image_flops=_flops(score) * adapters.tiles_of(settings.data),
        batch_size=batch,
        memory=full,
        available=available,
        largest_batch=largest,
    )


def _step(detector: Detector, state: Any, batch: int, settings: Train) -> tuple[int, float]:
    """Returns the peak memory of the compiled training step in bytes, and its FLOPs, including augmentation."""
    images = jax.ShapeDtypeStruct((1, *detector.shape), jnp.uint8 if len(detector.shape) == 3 else jnp.float32)
    index = jax.ShapeDtypeStruct((STEPS_A_CALL, batch), jnp.int32)
    count = jax.ShapeDtypeStruct((), jnp.int32)
    steps = make_steps(detector, 0, 255, augment.make(0, settings.shift, settings.flip))
    chunk = sharding.data_parallel(steps, sharding.local_mesh(1), (None, None, 1, None), donate=0)
    compiled = chunk.lower(state, images, index, count).compile()
    memory = compiled.memory_analysis()
    total = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    # XLA counts a loop of unknown length as one iteration, so these are the FLOPs of one step.
    return total + memory.temp_size_in_bytes, _flops(compiled)


def _flops(compiled: Any) -> float:
    return float(compiled.cost_analysis().get("flops", 0.0))


def device_memory() -> int | None:
    """Returns the memory of the first local device in bytes, or None if the device does not report it."""
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return core_memory.machine_memory()
    stats = device.memory_stats()
    return stats.get("bytes_limit") if stats else None


def describe(estimate: Plan) -> str:
    """Formats the plan for the terminal, one line each."""
    parameters = ", ".join(f"{name} {count / 1e6:.2f} M" for name, count in estimate.parameters.items())
    available = "unknown" if estimate.available is None else _size(estimate.available)
    largest = "unknown" if estimate.largest_batch is None else f"{estimate.largest_batch:,} images per device"
    return (
        f"parameters     {parameters}\n"
        f"training step  {estimate.step_flops / 1e9:.1f} GFLOP for {estimate.batch_size} images per device\n"
        f"scoring        {estimate.image_flops / 1e6:.0f} MFLOP per image\n"
        f"memory         {_size(estimate.memory)} per device for a step, of {available}; without the training images\n"
        f"largest batch  {largest}"
    )


@contextmanager
def out_of_memory_named(settings: Config, devices: int) -> Iterator[None]:
    """Turns a device's out-of-memory error into one sentence.

    Args:
      settings: the configuration that is trained.
      devices: number of devices that the batch is split over.

    Raises:
      UserError: naming a batch size that would fit.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        # The second is the message of XLA on CPUs.
        if not any(words in str(error) for words in ("RESOURCE_EXHAUSTED", "Out of memory")):
            raise
        raise _out_of_memory(settings, devices) from None


def _out_of_memory(settings: Config, devices: int) -> UserError:
    smaller = copy.deepcopy(settings)
    smaller.train.batch_size = 4 * devices
    estimate = plan(smaller, devices)
    if not estimate.largest_batch or estimate.largest_batch < 2:
        advice = (
            f"not even a batch of 2 fits into {_size(estimate.available or 0)}: use fewer features or smaller images"
        )
    else:
        fits = min(estimate.largest_batch, settings.train.batch_size // devices // 2) * devices
        advice = f"a batch of {fits} would fit: --config.train.batch_size={fits}"
    return UserError(f"out of memory with a batch of {settings.train.batch_size}; {advice}")


def check_members(detector: Detector, members: int, devices: int, image_bytes: int) -> None:
    """Checks that the members of a sweep fit into the memory of the devices.

    Args:
      detector: the detector of every member.
      members: number of members.
      devices: number of devices that they are distributed over.
      image_bytes: size of the data set, of which every device has a copy.

    Raises:
      UserError: they do not fit; names the number that would.
    """
    needed, available, fit = _members(detector, members, devices, image_bytes)
    if fit is not None and members > fit:
        raise UserError(
            f"{members} members need {_size(needed)} per device for their weights and optimisers, of "
            f"{_size(available or 0)}: at most {fit} fit; train fewer classes or seeds at a time, or on more devices"
        )


def describe_members(detector: Detector, members: int, devices: int, image_bytes: int) -> str:
    """Formats the line of the plan about the members of a sweep; arguments as of `check_members`."""
    needed, available, fit = _members(detector, members, devices, image_bytes)
    most = "unknown" if fit is None else f"{fit:,}"
    of_available = "" if available is None else f", of {_size(available)}"
    return (
        f"members        {members}, {_size(needed)} per device for weights and optimisers{of_available}; "
        f"at most {most} fit"
    )


def _members(detector: Detector, members: int, devices: int, image_bytes: int) -> tuple[int, int | None, int | None]:
    """Returns the bytes of the members on a device, the bytes it has, and how many members fit on all devices."""
    state = jax.eval_shape(detector.init, jax.random.key(0))
    member_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    needed = -(-members // devices) * member_bytes
    available = device_memory()
    if available is None:
        return needed, None, None
    if jax.local_devices()[0].platform == "cpu":
        available //= devices  # virtual devices share the host's
    # Beside the states of all: a new state while it is computed, and as much again for the step's intermediate values.
    free = _USABLE * available - image_bytes - 2 * member_bytes
    return needed, available, max(int(free // member_bytes), 0) * devices


def _size(count: float) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
