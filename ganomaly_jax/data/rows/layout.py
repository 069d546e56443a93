"""What a data set of rows knows beside its values: the sensors, and where each row or window lies in its recording."""

from __future__ import annotations

import dataclasses

import numpy as np

from ganomaly_jax.data.datasets import Dataset
from ganomaly_jax.data.modality import Scaling

NAME = "rows"


@dataclasses.dataclass(frozen=True, eq=False)
class RowLayout:
    """`Dataset.images` are rows `[N, D]`, or windows `[N, T, D]` of them, float32."""

    columns: tuple[str, ...]
    """D names of sensors."""
    spans: np.ndarray
    """`[N, 3]` int64: recording, first row in it, and the one after the last."""
    scaling: Scaling | None = None
    """Of a mixture, whose detector is there already: the values of each sensor that become -1 and +1."""

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Returns the names of the sensors."""
        return self.columns

    @property
    def hashed(self) -> tuple[np.ndarray, ...]:
        """Returns the positions of the rows, which are part of the content hash."""
        return (self.spans,)


def of(dataset: Dataset) -> RowLayout:
    """Returns the layout of a data set of rows.

    Raises:
      ValueError: it is of something else.
    """
    if not isinstance(dataset.layout, RowLayout):
        raise ValueError(f"a data set of {dataset.modality}: expected rows")
    return dataset.layout
