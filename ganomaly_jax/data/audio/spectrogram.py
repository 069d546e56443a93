"""Spectrograms of sound and vibration: log power in frequency bands over time, in JAX.

JAX is imported on use, so that reading recordings does not wait for it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ganomaly_jax.core import config
from ganomaly_jax.core.errors import UserError

if TYPE_CHECKING:
    from jax import Array

FLOOR = 1e-10
"""Power that is added to every band before the logarithm: digital silence is -100 dB."""


@dataclasses.dataclass(frozen=True)
class Spectrogram:
    """Parameters of a spectrogram."""

    rate: float
    """Sampling rate in Hz."""
    window: float
    """Length of a frame in seconds."""
    hop: float
    """Seconds from one frame to the next."""
    bands: int
    """Number of frequency bands."""
    low: float = 0.0
    """Lower end of the first band in Hz."""
    high: float = 0.0
    """Upper end of the last band in Hz; 0: half the sampling rate."""
    scale: str = "mel"
    """Scale on which the bands are equally wide: `mel`, 2595 log10(1 + f / 700), or `linear`, in Hz."""
    level: bool = True
    """Whether loudness counts; False: each waveform is scaled to a mean square of 1 first."""

    @property
    def samples(self) -> int:
        """Returns the number of samples in a frame."""
        return round(self.window * self.rate)

    @property
    def step(self) -> int:
        """Returns the number of samples from one frame to the next."""
        return round(self.hop * self.rate)

    def length(self, frames: int) -> int:
        """Returns the number of samples in a waveform of that many frames."""
        return self.samples + (frames - 1) * self.step


def of_data(data: config.Data) -> Spectrogram:
    """Returns the parameters of the spectrogram from resolved settings."""
    own = data.sound
    return Spectrogram(
        own.rate, own.frame, own.hop, data.height, own.low, own.high or own.rate / 2, own.scale, own.level
    )


def check(settings: Spectrogram) -> None:
    """Checks the parameters of a spectrogram.

    Raises:
      UserError: There is no spectrogram with these parameters.
    """
    top = settings.high or settings.rate / 2
    if not (math.isfinite(settings.rate) and settings.rate > 0):
        raise UserError(f"a sampling rate of {settings.rate} Hz: expected more than 0")
    if settings.samples < 2 or settings.step < 1:
        raise UserError(
            f"a frame of {settings.window} s and a hop of {settings.hop} s are {settings.samples} and {settings.step} "
            f"samples at {settings.rate:g} Hz: expected at least 2 and at least 1"
        )
    if not 0 <= settings.low < top <= settings.rate / 2:
        raise UserError(
            f"bands from {settings.low:g} to {top:g} Hz: expected a rising range from 0 or more to at most half the "
            f"sampling rate, {settings.rate / 2:g} Hz"
        )
    if settings.scale not in ("mel", "linear"):
        raise UserError(f"a scale of {settings.scale!r}: expected mel or linear")
    if settings.bands < 1 or (filters(settings).sum(axis=0) == 0).any():
        raise UserError(
            f"{settings.bands} bands with frames of {settings.window} s: some bands contain no frequency, since these "
            f"are {settings.rate / settings.samples:.4g} Hz apart; use fewer bands, longer frames or the linear scale"
        )


def edges(settings: Spectrogram) -> np.ndarray:
    """Returns the edges of the bands in Hz, float64 [bands + 2]: band k rises from edge k to k + 1, falls to k + 2."""
    top = settings.high or settings.rate / 2
    ends = np.array([settings.low, top])
    mel = settings.scale == "mel"
    ends = 2595 * np.log10(1 + ends / 700) if mel else ends
    found = np.linspace(ends[0], ends[1], settings.bands + 2)
    return 700 * (10 ** (found / 2595) - 1) if mel else found


def filters(settings: Spectrogram) -> np.ndarray:
    """Returns the triangular weights of each band, float32 [frequencies, bands]; columns add up to 1."""
    hertz = edges(settings)
    at = np.fft.rfftfreq(settings.samples, 1 / settings.rate)[:, None]
    rising = (at - hertz[:-2]) / (hertz[1:-1] - hertz[:-2])
    falling = (hertz[2:] - at) / (hertz[2:] - hertz[1:-1])
    found = np.maximum(np.minimum(rising, falling), 0)
    return (found / np.maximum(found.sum(axis=0), 1e-12)).astype(np.float32)


def function(settings: Spectrogram) -> Callable[[Array], Array]:
    """Returns a pure function that computes log spectrograms.

    The function takes waveforms [..., T], floating point, and returns the log10 of the mean power in each band, float32
    [..., bands, frames], with bands of rising frequency. Frames have a Hann window and are not padded: frame i covers
    the samples from `i * step` to `i * step + samples - 1`, and samples that do not fill a last frame are left out. It
    raises a UserError for a waveform shorter than a frame.

    Raises:
      UserError: There is no spectrogram with these parameters.
    """
    import jax.numpy as jnp
    from jax import lax

    check(settings)
    size, step = settings.samples, settings.step
    weights = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
    window = (weights / np.sqrt((weights**2).sum())).astype(np.float32)
    triangles = filters(settings)

    def apply(waveform: Array) -> Array:
        if waveform.shape[-1] < size:
            raise UserError(f"{waveform.shape[-1]} samples: expected at least {size}, a frame of {settings.window} s")
        frames = (waveform.shape[-1] - size) // step + 1
        index = np.arange(frames)[:, None] * step + np.arange(size)
        waveform = jnp.asarray(waveform, jnp.float32)
        if not settings.level:
            waveform *= lax.rsqrt(jnp.mean(waveform**2, axis=-1, keepdims=True) + FLOOR)
        spectrum = jnp.fft.rfft(waveform[..., index] * window)
        power = spectrum.real**2 + spectrum.imag**2
        # Full precision, since accelerators would otherwise multiply in bfloat16.
        bands = jnp.matmul(power, triangles, precision=lax.Precision.HIGHEST)
        return jnp.swapaxes(jnp.log10(bands + FLOOR), -1, -2)

    return apply


def patches(settings: Spectrogram, low: Sequence[float], high: Sequence[float]) -> Callable[[Array], Array]:
    """Returns a pure function that converts waveforms to the input of the networks.

    The function takes waveforms [B, T], floating point with full scale at 1, or int16, and returns their spectrograms,
    float32 [B, bands, frames, 1], scaled and clipped to [-1, 1].

    Args:
      settings: Parameters of the spectrogram.
      low: log10 of the power that becomes -1, for each band.
      high: log10 of the power that becomes +1, for each band.

    Raises:
      UserError: There is no spectrogram with these parameters.
    """
    import jax.numpy as jnp

    apply = function(settings)
    lowest, highest = (np.asarray(ends, np.float32)[:, None] for ends in (low, high))

    def scaled(waveform: Array) -> Array:
        if waveform.dtype == jnp.int16:
            waveform = waveform / jnp.float32(32768)
        bands = apply(waveform)
        return jnp.clip((bands - (lowest + highest) / 2) / ((highest - lowest) / 2), -1, 1)[..., None]

    return scaled
