"""The layout of a data set of sound: its recordings, and where each window lies in them."""

from __future__ import annotations

import dataclasses

import numpy as np

from ganomaly_jax.core import config
from ganomaly_jax.data.audio.recordings import Recording
from ganomaly_jax.data.datasets import Dataset

NAME = "sound"


@dataclasses.dataclass(frozen=True, eq=False)
class SoundLayout:
    """Layout of a data set whose `images` are windows of waveforms, `[N, T]` float32, read on demand."""

    recordings: tuple[Recording, ...]
    spans: np.ndarray
    """`[N, 3]` int64: index of the recording, first sample of the window, and the sample after its last."""
    settings: config.Data
    """Settings, completed from the recordings."""

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Returns no names: frequency bands have none."""
        return ()

    @property
    def hashed(self) -> tuple[np.ndarray, ...]:
        """Returns the positions of the windows, which are part of the content hash."""
        return (self.spans,)

    def times_of(self, chosen: np.ndarray) -> None:
        """Returns None: recordings have no times."""
        return None


def of(dataset: Dataset) -> SoundLayout:
    """Returns the layout of a data set of sound.

    Raises:
      ValueError: The data set is not of sound.
    """
    if not isinstance(dataset.layout, SoundLayout):
        raise ValueError(f"got a data set of {dataset.modality}, expected sound")
    return dataset.layout
