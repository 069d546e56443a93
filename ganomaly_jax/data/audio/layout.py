"""What a data set of sound knows beside its windows: the recordings, and where each window lies in them."""

from __future__ import annotations

import dataclasses

import numpy as np

from ganomaly_jax.core import config
from ganomaly_jax.data.audio.recordings import Recording
from ganomaly_jax.data.datasets import Dataset

NAME = "sound"


@dataclasses.dataclass(frozen=True, eq=False)
class SoundLayout:
    """`Dataset.images` are windows `[N, T]` float32 of waveforms, read on demand."""

    recordings: tuple[Recording, ...]
    spans: np.ndarray
    """`[N, 3]` int64: recording, first sample in it, and the one after the last."""
    settings: config.Data
    """With what the recordings have filled in."""

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Returns None: frequency bands have no names."""
        return ()

    @property
    def hashed(self) -> tuple[np.ndarray, ...]:
        """Returns the positions of the windows, which are part of the content hash."""
        return (self.spans,)


def of(dataset: Dataset) -> SoundLayout:
    """Returns the layout of a data set of sound.

    Raises:
      ValueError: it is of something else.
    """
    if not isinstance(dataset.layout, SoundLayout):
        raise ValueError(f"a data set of {dataset.modality}: expected sound")
    return dataset.layout
