"""What the bands and frames of a spectrogram mean."""

from __future__ import annotations

import dataclasses

import numpy as np

from ganomaly_jax.data.audio import spectrogram
from ganomaly_jax.data.audio.spectrogram import Spectrogram


@dataclasses.dataclass(frozen=True)
class Scale:
    """What the bands, frames and values of a patch [bands, frames] in [-1, 1] mean."""

    settings: Spectrogram
    low: tuple[float, ...]
    """log10 of power that is -1, of each band."""
    high: tuple[float, ...]
    begin: float = 0.0
    """Second at which its first frame begins."""

    @property
    def hertz(self) -> np.ndarray:
        """Returns the peak of each band in Hz, [bands]."""
        return spectrogram.edges(self.settings)[1:-1]

    def decibels(self, x: np.ndarray) -> np.ndarray:
        """Values [..., bands, frames, 1] in [-1, 1] as levels [..., bands, frames]."""
        low, high = (np.asarray(ends)[:, None] for ends in (self.low, self.high))
        return 10 * (low + (x[..., 0] + 1) / 2 * (high - low))

    def seconds(self, first: int, last: int) -> tuple[float, float]:
        """Returns when frame `first` begins and frame `last` ends, in seconds."""
        return self.begin + first * self.settings.hop, self.begin + last * self.settings.hop + self.settings.window

    def band(self, first: int, last: int) -> tuple[float, float]:
        """Returns the range in Hz, from half-way below the peak of band `first` to half-way above that of `last`."""
        edges = spectrogram.edges(self.settings)
        return float(edges[first : first + 2].mean()), float(edges[last + 1 : last + 3].mean())
