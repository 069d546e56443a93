"""Resolution of a configuration: what it becomes once its data have been read."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

from ganomaly_jax.core import validation
from ganomaly_jax.core.config import Config
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data import modalities, sources
from ganomaly_jax.data.datasets import Dataset
from ganomaly_jax.data.images.modality import grid
from ganomaly_jax.data.modality import Modality, Resolved, Scaling
from ganomaly_jax.data.splits import Split
from ganomaly_jax.data.words import Words
from ganomaly_jax.model import registry
from ganomaly_jax.model.protocol import Detector


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A resolved run: nothing automatic is left in its configuration.

    Attributes:
      config: the resolved configuration.
      dataset: the data.
      split: their split.
      notes: sentences that the user should see before the training.
      detector: the detector, built once for everything that is done with the run.
      scaling: (low, high), the raw values that become -1 and +1, or one pair per feature or band; None for those of
        `config`.
    """

    config: Config
    dataset: Dataset
    split: Split
    notes: tuple[str, ...]
    detector: Detector
    scaling: Scaling | None = None

    @property
    def modality(self) -> Modality:
        """Returns the modality of the data."""
        return modalities.named(self.dataset.modality)

    @property
    def words(self) -> Words:
        """Returns the modality's words for its items."""
        return self.modality.words(self.config.data)

    @property
    def pixels(self) -> tuple[str, Any, Any]:
        """Returns (dtype, low, high) of the raw items."""
        low, high = self.scaling or (self.config.data.low, self.config.data.high)
        return str(self.dataset.images.dtype), low, high


def resolve(settings: Config, arrays: Any = None, progress: bool = False) -> Run:
    """Loads and splits the data, and completes the configuration from them.

    Args:
      settings: the configuration.
      arrays: data in place of `data.source`, see `sources.load`.
      progress: show a progress bar while files are read.

    Raises:
      UserError: the configuration or the data cannot be used.
    """
    validation.check(settings)
    return resolve_checked(settings, arrays, progress=progress)


def resolve_checked(
    settings: Config, arrays: Any = None, devices: int = 1, progress: bool = False, shared: bool = False
) -> Run:
    """Resolves a configuration that `validation.check` has accepted.

    Args:
      settings: as in `resolve`.
      arrays: as in `resolve`.
      devices: number of devices over which a batch is spread. A batch larger than the training part is reduced to the
        largest that training part and devices allow, with a note.
      progress: as in `resolve`.
      shared: whether several processes call this.

    Raises:
      UserError: the data cannot be used.
    """
    dataset = sources.load(settings.data, arrays, progress, shared)
    modality = modalities.named(dataset.modality)
    modality.check(settings)
    found = modality.resolve(dataset, settings)
    resolved = dataclasses.replace(copy.deepcopy(settings), data=found.data)
    validation.check_shape(resolved)
    notes, where = found.notes, grid(resolved.data)
    items = modality.words(found.data).items
    inputs, what = len(found.split.train) * (where.count if where else 1), "tiles of training" if where else "training"
    if inputs < settings.train.batch_size:
        fits = inputs // devices * devices
        if fits < 2:
            raise UserError(f"{inputs} {what} {items} do not fill a batch on {devices} devices")
        resolved.train.batch_size = fits
        notes += (f"batch {settings.train.batch_size} -> {fits}: there are only {inputs} {what} {items}",)
    return Run(resolved, found.dataset, found.split, notes, registry.from_config(resolved), found.scaling)


def of_inputs(this: Run) -> Run:
    """Returns the run whose items are what the network takes, see `Modality.network_inputs`."""
    found = Resolved(this.dataset, this.split, this.config.data, this.scaling)
    inputs = this.modality.network_inputs(found)
    if inputs is found:
        return this
    return dataclasses.replace(this, dataset=inputs.dataset, split=inputs.split, scaling=inputs.scaling)


def total_steps(settings: Config, images: int) -> int:
    """Returns the steps of the whole training on that many images."""
    return settings.train.steps or settings.train.epochs * (images // settings.train.batch_size)
