"""The one interface for what the data are: images, rows of sensors, sound, and whatever is registered beside them.

A modality is chosen once, by `data.modalities`, and everything that depends on what the data are is asked of it. What
scoring, report, streaming and deployment need beside this lies in one table of each of these rooms, by `Modality.name`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ganomaly_jax.core import config
from ganomaly_jax.data.lazy import Images, LazyImages

if TYPE_CHECKING:
    import jax

    from ganomaly_jax.data.datasets import Dataset, Layout
    from ganomaly_jax.data.splits import Split
    from ganomaly_jax.data.words import Words

Scaling = tuple[Any, Any]
"""(low, high): the raw values that become -1 and +1, each a number or one value per feature or band."""


@dataclasses.dataclass(frozen=True, eq=False)
class InputSpec:
    """Input of a detector: everything needed to convert given data to raw items."""

    shape: tuple[int, ...]
    """Shape of one raw item."""
    dtype: str
    """Type of the raw training items."""
    low: Any
    """Raw value that becomes -1, or one value per feature or band."""
    high: Any
    """Raw value that becomes +1, as `low`."""
    data: config.Data
    """The detector's resolved settings."""
    feature_names: tuple[str, ...] = ()
    """Names of the last axis, where the modality names them."""
    value_range: tuple[float, float] | None = None
    """(black, white) of floating-point images given to a detector of integer pixels, if known."""

    @property
    def pixels(self) -> tuple[str, Any, Any]:
        """Returns (dtype, low, high)."""
        return self.dtype, self.low, self.high


class Preprocessing(Protocol):
    """The part of preprocessing that is inside every compiled program and export; hashable, equal if it does the same.

    Implementations are frozen dataclasses, so that JAX compiles one program for all that are equal.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Returns the shape of one raw item."""

    @property
    def bounded(self) -> bool:
        """Returns True if raw items may be so large that blocks of them have to be bounded in bytes."""

    def unit(self, pixels: tuple[str, Any, Any], x: jax.Array) -> jax.Array:
        """Returns raw items x `[B, *shape]` as the network takes them, float32; `pixels` are (dtype, low, high). Pure.

        Raises:
          UserError: a type that the detector does not take.
        """


@dataclasses.dataclass(frozen=True, eq=False)
class Resolved:
    """The data of a run: data set, split and complete settings."""

    dataset: Dataset
    split: Split
    data: config.Data
    """The settings, with every automatic value filled in."""
    scaling: Scaling | None
    """Scaling fitted on the training set; None if it is `data.low` and `data.high`."""
    notes: tuple[str, ...] = ()
    """Notes for the user, a sentence each."""


class Modality(Protocol):
    """Interface to everything that depends on the kind of data. Implementations hold no state."""

    @property
    def name(self) -> str:
        """Returns its name in `data.kind` and `Dataset.modality`."""

    @property
    def in_time(self) -> bool:
        """Returns True if neighbours are alike, so that n items count for fewer than n."""

    @property
    def mixes(self) -> bool:
        """Returns True if an update may train on a mixture of old and new data."""

    @property
    def per_process(self) -> bool:
        """Returns True if several processes may train on it together."""

    def words(self, data: config.Data) -> Words:
        """Returns the words for items in messages."""

    # Reading.

    def is_source(self, path: Path, settings: config.Data) -> bool:
        """Returns whether an existing file or folder holds data of this modality."""

    def open(self, path: Path, settings: config.Data, progress: bool, shared: bool) -> Dataset:
        """Reads a file or folder; arguments and errors as in `sources.read`."""

    def takes(self, given: Any, settings: config.Data) -> bool:
        """Returns whether arrays, or arrays by name as an npz file holds them, are data of this modality."""

    def from_arrays(self, given: Any, settings: config.Data, name: str) -> Dataset:
        """Makes a data set of arrays that it `takes`; `name` is the name of the data set for messages.

        Raises:
          UserError: The arrays cannot be used.
        """

    def prepared(self, dataset: Dataset, settings: config.Data, shared: bool) -> Dataset:
        """Returns a data set made elsewhere as `open` would have read it, at the size of the network."""

    # A run.

    def check(self, settings: config.Config) -> None:
        """Checks that no options are set that this modality does not support.

        Raises:
          UserError: Some are; the message names them.
        """

    def split(self, dataset: Dataset, settings: config.Data, seed: int) -> Split:
        """Returns training, calibration and test part.

        Raises:
          UserError: There is too little to train on, or values that cannot be trained on.
        """

    def resolve(self, dataset: Dataset, settings: config.Config) -> Resolved:
        """Splits a data set and fills in what the settings leave to it.

        Raises:
          UserError: The data do not fit the settings.
        """

    def network_inputs(self, found: Resolved) -> Resolved:
        """Returns the run's data as the network takes them: tiles of images, patches of spectrograms, or themselves."""

    def describe(self, dataset: Dataset) -> str:
        """Returns size, type and range of the items in a few words."""

    # A mixture of data sets, which an update trains on.

    def as_part(self, dataset: Dataset, settings: config.Data, scaling: Scaling | None) -> Dataset:
        """Returns a data set as the part of a mixture whose detector has this scaling."""

    def mixed(
        self, datasets: Sequence[Dataset], chosen: Sequence[np.ndarray], scaling: Scaling | None
    ) -> Layout | None:
        """Returns the layout of a mixture of the items `chosen` of each data set.

        Raises:
          UserError: The data sets cannot be combined.
        """

    # A detector.

    def network_shape(self, data: config.Data) -> tuple[int, ...]:
        """Returns the shape of what a network takes, with 0 for what the settings still leave to the data."""

    def preprocessing(self, data: config.Data) -> Preprocessing:
        """Returns the part of preprocessing that is compiled with the detector, by resolved settings."""

    def as_input(self, given: Any, spec: InputSpec) -> np.ndarray:
        """Returns what a caller gives, arrays or files, as raw items `[n, *spec.shape]`, n at least 1.

        Raises:
          UserError: Shape, size or type is another, or a file cannot be read.
        """

    def blocks(self, given: Any, spec: InputSpec, size: int) -> tuple[Iterator[np.ndarray], int]:
        """Returns the same in blocks of at most `size` items, and how many items there are."""


def sliced(x: Images, size: int, take: Callable[[np.ndarray], np.ndarray]) -> tuple[Iterator[np.ndarray], int]:
    """Returns `take` of x `[n, ...]`, in memory or read on demand, block by block of at most `size` items, and n."""
    return (take(x[i : i + size]) for i in range(0, len(x), size)), len(x)


def input_blocks(modality: Modality, given: Any, spec: InputSpec, size: int) -> tuple[Iterator[np.ndarray], int]:
    """Returns what `Modality.blocks` does for items that are arrays: those read on demand are taken block by block."""
    if isinstance(given, LazyImages):
        return sliced(given, size, lambda block: modality.as_input(block, spec))
    return sliced(modality.as_input(given, spec), size, lambda block: block)
