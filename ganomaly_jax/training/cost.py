"""What a training will cost, before it is paid: parameters, FLOPs, memory of a device, and the largest batch."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp

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

# Of what the compiler counts; the rest is for the allocator's gaps and the programs themselves.
_USABLE = 0.9


@dataclasses.dataclass(frozen=True)
class Plan:
    """Of one device, for the batch asked for. Sizes in bytes; FLOPs by XLA's own count."""

    parameters: dict[str, int]
    """By network."""
    step_flops: float
    image_flops: float
    """To score one image."""
    batch_size: int
    """Images a device."""
    memory: int
    """That a training step holds at most, the images of the training set not counted."""
    available: int | None
    """None where the device does not say."""
    largest_batch: int | None
    """The largest power of two of images a device that fits; None where `available` is."""


def plan(settings: Config, devices: int = 1) -> Plan:
    """Compiles the training step for the batch and for half of it, and extrapolates.

    Args:
      settings: with height, width and channels given.
      devices: over how many the batch is spread.

    Raises:
      UserError: sizes that are not given or cannot work.
    """
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
    an_image = max((full - half) / (batch - batch // 2), 1)
    available = device_memory()
    largest = None
    if available is not None:
        fits = (_USABLE * available - full) / an_image + batch
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
    held = compiled.memory_analysis()
    total = held.argument_size_in_bytes + held.output_size_in_bytes - held.alias_size_in_bytes
    # A loop whose length is not known is counted as one turn of it.
    return total + held.temp_size_in_bytes, _flops(compiled)


def _flops(compiled: Any) -> float:
    return float(compiled.cost_analysis().get("flops", 0.0))


def device_memory() -> int | None:
    """Bytes that the first local device has for us, None where it does not say."""
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return core_memory.machine_memory()
    stats = device.memory_stats()
    return stats.get("bytes_limit") if stats else None


def describe(found: Plan) -> str:
    """Formats the plan for the terminal."""
    parameters = ", ".join(f"{name} {count / 1e6:.2f} M" for name, count in found.parameters.items())
    available = "unknown" if found.available is None else _size(found.available)
    largest = "unknown" if found.largest_batch is None else f"{found.largest_batch:,} images a device"
    return (
        f"parameters     {parameters}\n"
        f"training step  {found.step_flops / 1e9:.1f} GFLOP for {found.batch_size} images a device\n"
        f"scoring        {found.image_flops / 1e6:.0f} MFLOP an image\n"
        f"memory         {_size(found.memory)} a device for a step, of {available}; the training images come on top\n"
        f"largest batch  {largest}"
    )


@contextmanager
def out_of_memory_named(settings: Config, devices: int) -> Iterator[None]:
    """Turns an error of the device for want of memory into one sentence.

    Raises:
      UserError: with a batch that would fit.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        # XLA's CPU says the second.
        if not any(words in str(error) for words in ("RESOURCE_EXHAUSTED", "Out of memory")):
            raise
        raise _out_of_memory(settings, devices) from None


def _out_of_memory(settings: Config, devices: int) -> UserError:
    smaller = copy.deepcopy(settings)
    smaller.train.batch_size = 4 * devices
    found = plan(smaller, devices)
    if not found.largest_batch or found.largest_batch < 2:
        advice = f"not even a batch of 2 fits into {_size(found.available or 0)}: fewer features or smaller images"
    else:
        fits = min(found.largest_batch, settings.train.batch_size // devices // 2) * devices
        advice = f"a batch of {fits} would fit: --config.train.batch_size={fits}"
    return UserError(f"out of memory with a batch of {settings.train.batch_size}; {advice}")


def check_members(detector: Detector, members: int, devices: int, image_bytes: int) -> None:
    """Raises a UserError for more members than the memory of a device can hold.

    Raises:
      UserError: with the number that would fit.
    """
    needed, available, fit = _members(detector, members, devices, image_bytes)
    if fit is not None and members > fit:
        raise UserError(
            f"{members} members need {_size(needed)} a device for their weights and optimisers, of "
            f"{_size(available or 0)}: at most {fit} fit; train fewer classes or seeds at a time, or on more devices"
        )


def describe_members(detector: Detector, members: int, devices: int, image_bytes: int) -> str:
    """Formats the line on the members for the terminal."""
    needed, available, fit = _members(detector, members, devices, image_bytes)
    most = "unknown" if fit is None else f"{fit:,}"
    held = "" if available is None else f", of {_size(available)}"
    return f"members        {members}, {_size(needed)} a device for weights and optimisers{held}; at most {most} fit"


def _members(detector: Detector, members: int, devices: int, image_bytes: int) -> tuple[int, int | None, int | None]:
    """Returns the bytes of the members on a device, the bytes it has, and the members that fit on all devices."""
    state = jax.eval_shape(detector.init, jax.random.key(0))
    one = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    needed = -(-members // devices) * one
    available = device_memory()
    if available is None:
        return needed, None, None
    if jax.local_devices()[0].platform == "cpu":
        available //= devices  # virtual devices share the host's
    # On top of the states: one more while it is being computed, and as much again for its step.
    return needed, available, max(int((_USABLE * available - image_bytes - 2 * one) // one), 0) * devices


def _size(count: float) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
