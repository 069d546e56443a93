"""A run's folder: its resolved configuration, its data, and where it was made."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np

from ganomaly_jax.core import config as config_module
from ganomaly_jax.core import validation
from ganomaly_jax.core.config import Config
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data import datasets, sources, splits
from ganomaly_jax.data.audio import splits as audio_splits
from ganomaly_jax.data.audio import windows as audio_windows
from ganomaly_jax.data.datasets import Dataset
from ganomaly_jax.data.images import tiling
from ganomaly_jax.data.rows import splits as row_splits
from ganomaly_jax.data.splits import Split


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """What a configuration becomes once its data are seen: nothing automatic is left in `config`."""

    config: Config
    dataset: Dataset
    split: Split
    notes: tuple[str, ...]
    """Sentences that the user should see before the training starts."""
    scaling: tuple[Any, Any] | None = None
    """Of rows of sensors: the values of each that become -1 and +1; of sound of each band, or of all patches."""

    @property
    def pixels(self) -> tuple[str, Any, Any]:
        """(dtype, low, high) of the images; of rows low and high of each sensor."""
        if self.scaling is not None:
            return str(self.dataset.images.dtype), *self.scaling
        return str(self.dataset.images.dtype), self.config.data.low, self.config.data.high


def resolve(
    settings: Config, arrays: Any = None, devices: int = 1, progress: bool = False, shared: bool = False
) -> Run:
    """Load and split the data and fill in what the configuration leaves to them.

    `arrays` stands in for `data.source`; for that and `shared` see `sources.load`. A batch larger than the training
    part becomes the largest that the part and the `devices` allow, with a note.

    Raises:
      UserError: a configuration or data that cannot work.
    """
    validation.check(settings)
    dataset = sources.load(settings.data, arrays, progress, shared)
    resolved = copy.deepcopy(settings)
    notes: tuple[str, ...] = ()
    scaling: tuple[Any, Any] | None = None
    if dataset.recordings:
        audio_windows.check(settings)
        split = audio_splits.split(dataset, settings.data, settings.seed)
        scaling = audio_splits.scaled(dataset, split)
        resolved.data = audio_windows.resolved(settings.data, dataset)
    elif dataset.spans is not None:
        row_splits.check(settings)
        if dataset.scaling is not None:
            split, scaling = splits.split(dataset, settings.data, settings.seed), dataset.scaling
        else:
            split = row_splits.split(dataset, settings.data)
            dataset, scaling, notes = row_splits.scaled(dataset, split, settings)
        resolved.data = row_splits.resolved(settings.data, dataset)
    else:
        split = splits.split(dataset, settings.data, settings.seed)
        resolved.data.height, resolved.data.width, resolved.data.channels = dataset.images.shape[1:]
        resolved.data.low, resolved.data.high = datasets.value_range(dataset, split.train)
        if min(dataset.images.shape[1:3]) < settings.data.tile:
            size = "x".join(map(str, dataset.images.shape[1:3]))
            raise UserError(f"data.tile={settings.data.tile}: the images are {size}, wanted tiles that lie within them")
    validation.check_shape(resolved)
    where = _grid(resolved.data)
    inputs, what = len(split.train) * (where.count if where else 1), "tiles of training" if where else "training"
    if inputs < settings.train.batch_size:
        fits = inputs // devices * devices
        if fits < 2:
            raise UserError(f"{inputs} {what} images do not fill a batch on {devices} devices")
        resolved.train.batch_size = fits
        notes += (f"batch {settings.train.batch_size} -> {fits}: there are only {inputs} {what} images",)
    return Run(resolved, dataset, split, notes, scaling)


def _grid(settings: config_module.Data) -> tiling.Grid | None:
    return tiling.grid(settings.height, settings.width, settings.tile, settings.overlap) if settings.tile else None


def of_inputs(this: Run) -> Run:
    """The run whose images are what the network takes: with `data.tile` all tiles of the images, of sound the patches
    of its spectrogram, else the run itself.

    The tiles of an image are all in the part that the image is in. Those of the calibration part are in random order,
    so that the first of them are of many images.
    """
    if this.dataset.recordings and this.scaling is not None:
        patches = audio_windows.items(this.dataset.images, this.config.data, *this.scaling)
        return dataclasses.replace(
            this, dataset=dataclasses.replace(this.dataset, images=patches, spans=None), scaling=(-1.0, 1.0)
        )
    where = _grid(this.config.data)
    if where is None:
        return this
    dataset, split = this.dataset, this.split
    several = np.repeat(np.arange(len(dataset.labels)), where.count)
    tiles = dataclasses.replace(
        dataset,
        images=tiling.items(dataset.images, where),
        labels=dataset.labels[several],
        parts=None if dataset.parts is None else dataset.parts[several],
        paths=tuple(dataset.paths[i] for i in several),
    )
    calibration = tiling.of_images(split.calibration, where)
    parts = dataclasses.replace(
        split,
        train=tiling.of_images(split.train, where),
        calibration=np.random.default_rng(0).permutation(calibration),
        test=tiling.of_images(split.test, where),
        labels=np.repeat(split.labels, where.count),
    )
    return dataclasses.replace(this, dataset=tiles, split=parts)


def total_steps(settings: Config, images: int) -> int:
    """Steps of the whole training on that many images."""
    return settings.train.steps or settings.train.epochs * (images // settings.train.batch_size)
