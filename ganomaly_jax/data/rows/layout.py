"""The layout of a data set of rows: its sensors, and where each row or window lies in its recording."""

from __future__ import annotations

import dataclasses

import numpy as np

from ganomaly_jax.data.datasets import Dataset
from ganomaly_jax.data.modality import Scaling
from ganomaly_jax.data.rows.clock import Times

NAME = "rows"


@dataclasses.dataclass(frozen=True, eq=False)
class RowLayout:
    """Layout of a data set whose `images` are rows `[N, D]` or windows of rows `[N, T, D]`, float32."""

    columns: tuple[str, ...]
    """Names of the D sensors."""
    spans: np.ndarray
    """`[N, 3]` int64: index of the recording, first row of the item, and the row after its last."""
    scaling: Scaling | None = None
    """For a mixture, the scaling of the detector to update: values of each sensor that become -1 and +1."""
    times: Times | None = None
    """Times of the last row of each item, if they are known."""
    csv: str = "auto"
    """The format of the files, as in `data.csv`."""

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Returns the names of the sensors."""
        return self.columns

    @property
    def hashed(self) -> tuple[np.ndarray, ...]:
        """Returns the positions of the rows, which are part of the content hash."""
        return (self.spans,)

    def times_of(self, chosen: np.ndarray) -> list[str] | None:
        """Returns the times of the last rows of the items at `chosen` [n] as text; None if they are not known."""
        return None if self.times is None else self.times[chosen].text()


def of(dataset: Dataset) -> RowLayout:
    """Returns the layout of a data set of rows.

    Raises:
      ValueError: The data set is not of rows.
    """
    if not isinstance(dataset.layout, RowLayout):
        raise ValueError(f"got a data set of {dataset.modality}, expected rows")
    return dataset.layout
