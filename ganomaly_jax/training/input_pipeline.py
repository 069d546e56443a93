"""The input pipeline: the images of each call of the training step, held on the devices or read ahead.

Both ways give the same pixels in the same order, so training computes the same result. The order depends only on the
seed and the step: the state of grain's iterator is {"next_index": step}, and the step is in every checkpoint.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax import Array

from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data import batch_order, lazy
from ganomaly_jax.parallel import processes, sharding
from ganomaly_jax.runs.resolution import Run
from ganomaly_jax.training import cost
from ganomaly_jax.training.train_step import STEPS_A_CALL
from ganomaly_jax.training.training_run import TrainingRun

# Most bytes of pixels for the steps of a call on a device, which holds those of the next call at the same time.
BUFFER_BYTES = 2**26
_THREADS = min(8, 2 * (os.cpu_count() or 1))


@dataclasses.dataclass(frozen=True, eq=False)
class Feed:
    """The images of each call of the training step (`train_step.make_steps`)."""

    images: Callable[[int, int], Array]
    """`images(step, count)`: the array that `index` points into, for `count` steps from `step` on."""
    index: Callable[[int, int], np.ndarray]
    """`index(step, count)`: int32 [steps, B], for each position in a batch an index into the images of its device."""
    like: Any
    """An array such as `images` returns, or its shape and dtype, to compile for."""
    max_steps: int
    """Most steps that one call may run."""
    note: str = ""
    """A sentence for the user, or empty."""


@contextmanager
def opened(training_run: TrainingRun, mesh: Any, step: int) -> Iterator[Feed]:
    """Opens the images of a training.

    Args:
      training_run: the run whose images are read.
      mesh: the devices.
      step: the step at which training begins.

    Yields:
      The feed of the training loop.

    Raises:
      UserError: the images have to be read ahead and grain is not installed.
    """
    run, places = training_run.run, training_run.places
    if _is_streamed(run, mesh):
        with _streamed(training_run, mesh, step) as feed:
            yield feed
        return
    # Each device holds the images that its own positions in a batch draw from.
    images = sharding.shard_rows(run.dataset.images, run.split.train[places.ravel()], mesh)
    first = (np.arange(len(places)) % (len(places) // mesh.size) * places.shape[1]).astype(np.int32)
    yield Feed(lambda *_: images, lambda step, count: first + training_run.rows(step, count), images, STEPS_A_CALL)


def _is_streamed(run: Run, mesh: Any) -> bool:
    """Returns whether the images are read during training instead of held in memory; the same in all processes."""
    images, mode = run.dataset.images, run.config.data.stream
    is_streamed = mode == "always" or (isinstance(images, lazy.LazyImages) and not images.keep)
    if mode == "auto" and not is_streamed and importlib.util.find_spec("grain") is not None:
        size = images.nbytes // len(images) * len(run.split.train)
        if jax.local_devices()[0].platform == "cpu":
            local_share = len(sharding.local_shards(mesh)) / mesh.size if isinstance(images, lazy.LazyImages) else 1
            is_streamed = lazy.wanted(mode, int(size * local_share))
        else:
            available = cost.device_memory()
            is_streamed = available is not None and size // mesh.size > lazy.SHARE * available
    # If one process has to stream, all do: they run the same program.
    return bool(processes.all_gather(np.array([is_streamed], np.int32)).any())


@contextmanager
def _streamed(training_run: TrainingRun, mesh: Any, step: int) -> Iterator[Feed]:
    """Reads the images of the next call while the device works on the current one."""
    images, batch = training_run.run.dataset.images, training_run.run.config.train.batch_size
    shards, shard_size = sharding.local_shards(mesh), batch // mesh.size
    shape, image_bytes = images.shape[1:], images.nbytes // len(images)
    max_steps = int(np.clip(BUFFER_BYTES // (shard_size * image_bytes), 1, STEPS_A_CALL))
    global_shape = (mesh.size * max_steps * shard_size, *shape)
    places = np.concatenate([np.arange(shard * shard_size, (shard + 1) * shard_size) for shard in shards])
    index = (np.arange(max_steps)[:, None] * shard_size + np.arange(batch) % shard_size).astype(np.int32)
    position = step

    with ahead(reader(training_run, places), step, training_run.total_steps, max_steps) as batches:

        def next_images(at: int, count: int) -> Array:
            nonlocal position
            if at != position:
                batches.set_state({"next_index": at})
            # A new buffer for each call: the previous one may still be on its way to the device.
            pixels = np.empty((len(shards), max_steps * shard_size, *shape), images.dtype)
            for i in range(count):
                batch_pixels = next(batches).reshape(len(shards), shard_size, *shape)
                pixels[:, i * shard_size : (i + 1) * shard_size] = batch_pixels
            position = at + count
            return sharding.from_local_shards(dict(zip(shards, pixels, strict=True)), global_shape, mesh)

        mebibytes = len(shards) * max_steps * shard_size * image_bytes / 2**20
        note = (
            f"images are read during training: at most {max_steps} steps per call, {mebibytes:.1f} MiB of pixels each"
        )
        like = sharding.batch_struct(global_shape, images.dtype, mesh)
        yield Feed(next_images, lambda *_: index, like, max_steps, note)


def reader(training_run: TrainingRun, places: np.ndarray) -> Callable[[int], np.ndarray]:
    """Makes the function that reads the images of a step.

    Args:
      training_run: the run whose images are read.
      places: positions in a batch, int [n].

    Returns:
      `read(step)`, which reads the images [n, H, W, C] at those positions of a step's batch, and no others.
    """
    run, columns = training_run.run, training_run.places[places]
    batch, lock = run.config.train.batch_size, threading.Lock()

    def read(step: int) -> np.ndarray:
        with lock:  # so that the order of an epoch is computed once, not by every thread
            rows = batch_order.batch_rows(run.config.seed, training_run.image_count, batch, int(step), 1)[0, places]
        return run.dataset.images[run.split.train[columns[np.arange(len(places)), rows]]]

    return read


@contextmanager
def ahead(read: Callable[[int], np.ndarray], step: int, total: int, count: int) -> Iterator[Any]:
    """Opens a grain iterator over `read(step)`, ..., `read(total - 1)`.

    An exception in `read` is raised by the iterator when it reaches that step.

    Args:
      read: called by threads with a step.
      step: the first step.
      total: the step after the last.
      count: number of steps that are read ahead.

    Yields:
      The iterator.

    Raises:
      UserError: grain is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import grain
    except ImportError as error:
        raise UserError(
            f"reading images during training requires grain ({error}): python -m pip install 'ganomaly-jax[data]', "
            "or hold all of them in memory: --config.data.stream=never"
        ) from None
    options = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=count)
    batches = iter(grain.MapDataset.range(total).map(read).to_iter_dataset(options))
    batches.set_state({"next_index": step})
    try:
        yield batches
    finally:
        if hasattr(batches, "close"):
            batches.close()
