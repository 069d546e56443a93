"""The modality of rows of sensors, each by itself or in windows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ganomaly_jax.core import config
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data import modality
from ganomaly_jax.data import splits as data_splits
from ganomaly_jax.data.datasets import Dataset
from ganomaly_jax.data.images import preprocess
from ganomaly_jax.data.modality import InputSpec, Resolved, Scaling
from ganomaly_jax.data.rows import folders, layout, splits, windows
from ganomaly_jax.data.rows.layout import RowLayout
from ganomaly_jax.data.splits import Split
from ganomaly_jax.data.words import Words

if TYPE_CHECKING:
    import jax

_KIND = "rows of sensors"


@dataclasses.dataclass(frozen=True)
class Sensors:
    """Preprocessing of rows `[B, D]` or windows `[B, T, D]`: each sensor is scaled by its own centre and spread."""

    shape: tuple[int, ...]
    """(D,), or (T, D) for windows."""
    bounded: bool = False
    """Whether items may be so large that blocks of them have to be bounded in bytes."""

    def unit(self, pixels: tuple[str, Any, Any], x: jax.Array) -> jax.Array:
        """Scales rows to units of each sensor's spread, float32, see `preprocess.to_unit`; a pure function.

        Raises:
          UserError: The values are integers, whose unit is not known.
        """
        import jax.numpy as jnp

        dtype, low, high = pixels
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise UserError(f"rows of type {x.dtype}: expected {dtype}, as in training")
        return preprocess.to_unit(x, low, high)


class Rows:
    """Rows of sensors in tables or arrays, `[N, D]`, or windows of rows, `[N, T, D]`. See `modality.Modality`."""

    name = layout.NAME
    in_time = True
    mixes = True
    per_process = True

    def words(self, data: config.Data) -> Words:
        return Words("window", "windows", _KIND) if data.window else Words("row", "rows", _KIND)

    def is_source(self, path: Path, settings: config.Data) -> bool:
        return folders.is_source(path, settings)

    def open(self, path: Path, settings: config.Data, progress: bool, shared: bool) -> Dataset:
        return windows.load(path, settings)

    def takes(self, given: Any, settings: config.Data) -> bool:
        return windows.takes(given, settings)

    def from_arrays(self, given: Any, settings: config.Data, name: str) -> Dataset:
        if isinstance(given, dict):
            return windows.from_npz(given, settings, name)
        return windows.from_arrays(given, settings, name)

    def prepared(self, dataset: Dataset, settings: config.Data, shared: bool) -> Dataset:
        return dataset

    def check(self, settings: config.Config) -> None:
        splits.check(settings)

    def split(self, dataset: Dataset, settings: config.Data, seed: int) -> Split:
        return splits.split(dataset, settings)

    def resolve(self, dataset: Dataset, settings: config.Config) -> Resolved:
        data, scaling = splits.resolved(settings.data, dataset), layout.of(dataset).scaling
        if scaling is not None:
            split = data_splits.split(dataset, settings.data, settings.seed, self.words(data))
            return Resolved(dataset, split, data, scaling)
        split = splits.split(dataset, settings.data)
        dataset, scaling, notes = splits.scaled(dataset, split, settings)
        return Resolved(dataset, split, data, scaling, notes)

    def network_inputs(self, found: Resolved) -> Resolved:
        return found

    def describe(self, dataset: Dataset) -> str:
        *rows, sensors = dataset.images.shape[1:]
        named = f"{sensors} sensor{'s' if sensors > 1 else ''}"
        size = f"{rows[0]} rows of {named} a window" if rows else f"{named} a row"
        return f"{size}; scaled by the normal training rows"

    def as_part(self, dataset: Dataset, settings: config.Data, scaling: Scaling | None) -> Dataset:
        """Returns the data set with missing values replaced by the centre of the detector's scaling, if masked."""
        if scaling is None or settings.missing != "mask":
            return dataset
        images = splits.masked(dataset.images, splits.centre_of(*scaling))
        return dataclasses.replace(dataset, images=images, digest="")

    def mixed(self, datasets: Sequence[Dataset], chosen: Sequence[np.ndarray], scaling: Scaling | None) -> RowLayout:
        """Returns the layout of a mixture; recordings are numbered across the data sets.

        Raises:
          UserError: The data sets have different sensors.
        """
        columns = datasets[0].feature_names
        if any(dataset.feature_names != columns for dataset in datasets):
            raise UserError(
                f"the sensors of {datasets[-1].name} differ from those of {datasets[0].name}: expected the same"
            )
        found, begin = [], 0
        for dataset, own in zip(datasets, chosen, strict=True):
            spans = layout.of(dataset).spans
            found.append(spans[own] + [begin, 0, 0])
            begin += int(spans[:, 0].max()) + 1
        return RowLayout(columns, np.concatenate(found), scaling, csv=layout.of(datasets[0]).csv)

    def network_shape(self, data: config.Data) -> tuple[int, ...]:
        return (data.window, data.channels) if data.window else (data.channels,)

    def preprocessing(self, data: config.Data) -> Sensors:
        return Sensors(self.network_shape(data))

    def as_input(self, given: Any, spec: InputSpec) -> np.ndarray:
        return splits.as_input(given, spec)

    def blocks(self, given: Any, spec: InputSpec, size: int) -> tuple[Iterator[np.ndarray], int]:
        return modality.input_blocks(self, given, spec, size)
