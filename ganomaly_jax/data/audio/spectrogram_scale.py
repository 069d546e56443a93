"""Converts bands, frames and values of a spectrogram to Hz, seconds and decibels."""

from __future__ import annotations

import dataclasses

import numpy as np

from ganomaly_jax.data.audio import spectrogram
from ganomaly_jax.data.audio.spectrogram import Spectrogram


@dataclasses.dataclass(frozen=True)
class Scale:
    """Scales of a spectrogram [bands, frames] with values in [-1, 1]."""

    settings: Spectrogram
    low: tuple[float, ...]
    """log10 of the power that -1 stands for, in each band."""
    high: tuple[float, ...]
    """log10 of the power that +1 stands for, in each band."""
    begin: float = 0.0
    """Time at which the first frame begins, in seconds."""

    @property
    def hertz(self) -> np.ndarray:
        """Returns the centre frequency of each band in Hz, [bands]."""
        return spectrogram.edges(self.settings)[1:-1]

    def decibels(self, x: np.ndarray) -> np.ndarray:
        """Converts values [..., bands, frames, 1] in [-1, 1] to levels [..., bands, frames] in decibels."""
        low, high = (np.asarray(ends)[:, None] for ends in (self.low, self.high))
        return 10 * (low + (x[..., 0] + 1) / 2 * (high - low))

    def seconds(self, first: int, last: int) -> tuple[float, float]:
        """Returns the times at which frame `first` begins and frame `last` ends, in seconds."""
        return self.begin + first * self.settings.hop, self.begin + last * self.settings.hop + self.settings.window

    def band(self, first: int, last: int) -> tuple[float, float]:
        """Returns a range in Hz, from halfway below the peak of band `first` to halfway above that of band `last`."""
        edges = spectrogram.edges(self.settings)
        return float(edges[first : first + 2].mean()), float(edges[last + 1 : last + 3].mean())
