"""The images of each call of the training step: all of them held on the devices, or those of the next steps read ahead.

Both give the same pixels in the same order, so that a training computes the same either way. What comes next follows
from seed and step alone: the state of grain's iterator is {"next_index": step}, and the step is in every checkpoint.
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

# Pixels that a call's steps take on a device, at most; the next call's lie there as well before this one ends.
BUFFER_BYTES = 2**26
_THREADS = min(8, 2 * (os.cpu_count() or 1))


@dataclasses.dataclass(frozen=True, eq=False)
class Feed:
    """The images of each call of the training step (`train_step.make_steps`)."""

    images: Callable[[int, int], Array]
    """`images(step, count)`: what `index` points into, for `count` steps from `step` on."""
    index: Callable[[int, int], np.ndarray]
    """`index(step, count)`: int32 [steps, B], each place in a batch within the images of its device."""
    like: Any
    """An array as `images` gives them, or its shape and type, to compile for."""
    max_steps: int
    """Steps that one call may run."""
    note: str = ""
    """A sentence for the user."""


@contextmanager
def opened(training_run: TrainingRun, mesh: Any, step: int) -> Iterator[Feed]:
    """Opens the images of a training from `step` on.

    Raises:
      UserError: they have to be read ahead and grain is not installed.
    """
    run, places = training_run.run, training_run.places
    if _is_streamed(run, mesh):
        with _streamed(training_run, mesh, step) as feed:
            yield feed
        return
    # Each device holds the images of its own places in a batch.
    images = sharding.shard_rows(run.dataset.images, run.split.train[places.ravel()], mesh)
    first = (np.arange(len(places)) % (len(places) // mesh.size) * places.shape[1]).astype(np.int32)
    yield Feed(lambda *_: images, lambda step, count: first + training_run.rows(step, count), images, STEPS_A_CALL)


def _is_streamed(run: Run, mesh: Any) -> bool:
    """Returns whether the images are read while the model is trained; the same in all processes."""
    images, asked = run.dataset.images, run.config.data.stream
    here = asked == "always" or (isinstance(images, lazy.LazyImages) and not images.keep)
    if asked == "auto" and not here and importlib.util.find_spec("grain") is not None:
        size = images.nbytes // len(images) * len(run.split.train)
        if jax.local_devices()[0].platform == "cpu":
            held = len(sharding.local_shards(mesh)) / mesh.size if isinstance(images, lazy.LazyImages) else 1
            here = lazy.wanted(asked, int(size * held))
        else:
            room = cost.device_memory()
            here = room is not None and size // mesh.size > lazy.SHARE * room
    # All processes run one program.
    return bool(processes.all_gather(np.array([here], np.int32)).any())


@contextmanager
def _streamed(training_run: TrainingRun, mesh: Any, step: int) -> Iterator[Feed]:
    """Reads the images of the next call while the device works on this one."""
    images, batch = training_run.run.dataset.images, training_run.run.config.train.batch_size
    own, share = sharding.local_shards(mesh), batch // mesh.size
    shape, size = images.shape[1:], images.nbytes // len(images)
    most = int(np.clip(BUFFER_BYTES // (share * size), 1, STEPS_A_CALL))
    whole = (mesh.size * most * share, *shape)
    places = np.concatenate([np.arange(part * share, (part + 1) * share) for part in own])
    index = (np.arange(most)[:, None] * share + np.arange(batch) % share).astype(np.int32)
    position = step

    with ahead(reader(training_run, places), step, training_run.total_steps, most) as batches:

        def next_images(at: int, count: int) -> Array:
            nonlocal position
            if at != position:
                batches.set_state({"next_index": at})
            # A new one for each call: the one before may still be on its way to the device.
            pixels = np.empty((len(own), most * share, *shape), images.dtype)
            for i in range(count):
                pixels[:, i * share : (i + 1) * share] = next(batches).reshape(len(own), share, *shape)
            position = at + count
            return sharding.from_local_shards(dict(zip(own, pixels, strict=True)), whole, mesh)

        mebibytes = len(own) * most * share * size / 2**20
        note = f"images are read while it trains: at most {most} steps a call, {mebibytes:.1f} MiB of pixels each"
        yield Feed(next_images, lambda *_: index, sharding.batch_struct(whole, images.dtype, mesh), most, note)


def reader(training_run: TrainingRun, places: np.ndarray) -> Callable[[int], np.ndarray]:
    """Makes `read(step)`: the images [n, H, W, C] that `places` [n] in a batch take in a step; no others are read."""
    run, columns = training_run.run, training_run.places[places]
    batch, lock = run.config.train.batch_size, threading.Lock()

    def read(step: int) -> np.ndarray:
        with lock:  # the order of an epoch is worked out once, not by every thread
            own = batch_order.batch_rows(run.config.seed, training_run.image_count, batch, int(step), 1)[0, places]
        return run.dataset.images[run.split.train[columns[np.arange(len(places)), own]]]

    return read


@contextmanager
def ahead(read: Callable[[int], np.ndarray], step: int, total: int, count: int) -> Iterator[Any]:
    """Opens grain's iterator over `read(step)` ... `read(total - 1)`, of which threads read the next `count` ahead.

    What `read` raises is raised at its place.

    Raises:
      UserError: grain is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import grain
    except ImportError as error:
        raise UserError(
            f"to read images while a model is trained needs grain ({error}): python -m pip install "
            "'ganomaly-jax[data]', or hold all of them in memory: --config.data.stream=never"
        ) from None
    options = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=count)
    batches = iter(grain.MapDataset.range(total).map(read).to_iter_dataset(options))
    batches.set_state({"next_index": step})
    try:
        yield batches
    finally:
        if hasattr(batches, "close"):
            batches.close()
