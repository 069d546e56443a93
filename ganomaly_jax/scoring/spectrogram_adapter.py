"""A detector of spectrograms as one of waveforms: the spectrogram is part of the compiled program. Pure."""

from __future__ import annotations

import dataclasses

from jax import Array

from ganomaly_jax.core.config import Config
from ganomaly_jax.data.audio import spectrogram as audio_spectrogram
from ganomaly_jax.data.audio.spectrogram import Spectrogram
from ganomaly_jax.model import registry
from ganomaly_jax.model.protocol import Detector


@dataclasses.dataclass(frozen=True)
class SpectrogramDetector:
    """What scores waveforms of `shape` (T,) with a detector of their spectrograms (bands, frames, 1)."""

    network: Detector
    spectrogram: Spectrogram

    @property
    def shape(self) -> tuple[int]:
        return (self.spectrogram.length(self.network.shape[1]),)

    def unit(self, low: tuple[float, ...], high: tuple[float, ...], x: Array) -> Array:
        """Waveforms [B, T] as the network takes them, see `spectrogram.patches`."""
        return audio_spectrogram.patches(self.spectrogram, low, high)(x)


def from_config(config: Config) -> SpectrogramDetector:
    """What a resolved configuration of sound describes."""
    return SpectrogramDetector(registry.from_config(config), audio_spectrogram.of_data(config.data))
