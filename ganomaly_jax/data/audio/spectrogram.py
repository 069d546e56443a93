"""Sound and vibration as images: log power in bands of frequency over time, in JAX, parameters in Hz and seconds.

jax is imported where it is used, so that reading recordings does not wait for it.
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
    """How a waveform becomes bands and frames."""

    rate: float
    """Samples a second, Hz."""
    window: float
    """Seconds that a frame looks at."""
    hop: float
    """Seconds from one frame to the next."""
    bands: int
    low: float = 0.0
    """Hz at which the first band begins."""
    high: float = 0.0
    """Hz at which the last one ends; 0: half of `rate`."""
    scale: str = "mel"
    """`mel`: bands are equally wide on the mel scale, 2595 log10(1 + f / 700); `linear`: in Hz."""
    level: bool = True
    """Loudness counts; False: each waveform is brought to a mean square of 1 first."""

    @property
    def samples(self) -> int:
        """Samples in a frame's window."""
        return round(self.window * self.rate)

    @property
    def step(self) -> int:
        """Samples from frame to frame."""
        return round(self.hop * self.rate)

    def length(self, frames: int) -> int:
        """Samples of a waveform that has so many frames."""
        return self.samples + (frames - 1) * self.step


def of_data(data: config.Data) -> Spectrogram:
    """Returns the spectrogram that resolved settings of sound describe."""
    own = data.sound
    return Spectrogram(
        own.rate, own.frame, own.hop, data.height, own.low, own.high or own.rate / 2, own.scale, own.level
    )


def check(settings: Spectrogram) -> None:
    """Raises UserError for settings that make no spectrogram."""
    top = settings.high or settings.rate / 2
    if not (math.isfinite(settings.rate) and settings.rate > 0):
        raise UserError(f"a rate of {settings.rate} Hz: expected samples a second, more than 0")
    if settings.samples < 2 or settings.step < 1:
        raise UserError(
            f"a window of {settings.window} s and a hop of {settings.hop} s are {settings.samples} and {settings.step} "
            f"samples at {settings.rate:g} Hz: expected 2 or more, and 1 or more"
        )
    if not 0 <= settings.low < top <= settings.rate / 2:
        raise UserError(
            f"bands from {settings.low:g} to {top:g} Hz: expected 0 or more, rising, up to half the rate, "
            f"{settings.rate / 2:g} Hz"
        )
    if settings.scale not in ("mel", "linear"):
        raise UserError(f"a scale of {settings.scale!r}: expected mel or linear")
    if settings.bands < 1 or (filters(settings).sum(axis=0) == 0).any():
        raise UserError(
            f"{settings.bands} bands of a window of {settings.window} s: some hold no frequency, since these are "
            f"{settings.rate / settings.samples:.4g} Hz apart; take fewer bands, a longer window or scale='linear'"
        )


def edges(settings: Spectrogram) -> np.ndarray:
    """Returns the band edges in Hz, float64 [bands + 2]: band k rises from edge k to k + 1 and falls to k + 2."""
    top = settings.high or settings.rate / 2
    ends = np.array([settings.low, top])
    mel = settings.scale == "mel"
    ends = 2595 * np.log10(1 + ends / 700) if mel else ends
    found = np.linspace(ends[0], ends[1], settings.bands + 2)
    return 700 * (10 ** (found / 2595) - 1) if mel else found


def filters(settings: Spectrogram) -> np.ndarray:
    """Triangles float32 [frequencies, bands], each with a sum of 1: of what a band is the mean."""
    hertz = edges(settings)
    at = np.fft.rfftfreq(settings.samples, 1 / settings.rate)[:, None]
    rising = (at - hertz[:-2]) / (hertz[1:-1] - hertz[:-2])
    falling = (hertz[2:] - at) / (hertz[2:] - hertz[1:-1])
    found = np.maximum(np.minimum(rising, falling), 0)
    return (found / np.maximum(found.sum(axis=0), 1e-12)).astype(np.float32)


def function(settings: Spectrogram) -> Callable[[Array], Array]:
    """Waveforms float [..., T] -> log10 of the mean power in each band, float32 [..., bands, frames].

    A Hann window, no padding: frame i looks at samples `i * step` to `i * step + samples`, and what does not fill a
    frame at the end is left out. Bands rise in frequency. A pure function, for use under jit and in an export.

    Raises:
      UserError: settings that make no spectrogram; when called, a waveform shorter than a frame.
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
            raise UserError(f"{waveform.shape[-1]} samples: expected {size} or more, a window of {settings.window} s")
        frames = (waveform.shape[-1] - size) // step + 1
        index = np.arange(frames)[:, None] * step + np.arange(size)
        waveform = jnp.asarray(waveform, jnp.float32)
        if not settings.level:
            waveform *= lax.rsqrt(jnp.mean(waveform**2, axis=-1, keepdims=True) + FLOOR)
        spectrum = jnp.fft.rfft(waveform[..., index] * window)
        power = spectrum.real**2 + spectrum.imag**2
        # In full precision: accelerators would multiply with 8 bits of it.
        bands = jnp.matmul(power, triangles, precision=lax.Precision.HIGHEST)
        return jnp.swapaxes(jnp.log10(bands + FLOOR), -1, -2)

    return apply


def patches(settings: Spectrogram, low: Sequence[float], high: Sequence[float]) -> Callable[[Array], Array]:
    """Waveforms [B, T] -> what a network takes of them, float32 [B, bands, frames, 1] in [-1, 1]. A pure function.

    `low` and `high`, a log10 of power for each band, become -1 and 1, and what lies beyond is clipped. Integers of 16
    bits have their full scale at 1.

    Raises:
      UserError: as `function`.
    """
    import jax.numpy as jnp

    apply = function(settings)
    lowest, highest = (np.asarray(ends, np.float32)[:, None] for ends in (low, high))

    def of(waveform: Array) -> Array:
        if waveform.dtype == jnp.int16:
            waveform = waveform / jnp.float32(32768)
        bands = apply(waveform)
        return jnp.clip((bands - (lowest + highest) / 2) / ((highest - lowest) / 2), -1, 1)[..., None]

    return of
