"""A detector of spectrograms as one of waveforms: the spectrogram is part of the compiled program. Pure."""

from __future__ import annotations

import dataclasses

from jax import Array

from ganomaly_jax import detectors, spectrogram
from ganomaly_jax.config import Config
from ganomaly_jax.detector import Detector
from ganomaly_jax.spectrogram import Spectrogram


@dataclasses.dataclass(frozen=True)
class Heard:
    """What scores waveforms of `shape` (T,) with a detector of their spectrograms (bands, frames, 1)."""

    network: Detector
    spectrogram: Spectrogram

    @property
    def shape(self) -> tuple[int]:
        return (self.spectrogram.length(self.network.shape[1]),)

    def unit(self, low: tuple[float, ...], high: tuple[float, ...], x: Array) -> Array:
        """Waveforms [B, T] as the network takes them, see `spectrogram.patches`."""
        return spectrogram.patches(self.spectrogram, low, high)(x)


def from_config(config: Config) -> Heard:
    """What a resolved configuration of sound describes."""
    return Heard(detectors.from_config(config), spectrogram.of_data(config.data))
