"""The settings of sound and vibration: how recordings become windows, and windows spectrograms, in Hz and seconds."""

from __future__ import annotations

import dataclasses
import math

from ganomaly_jax.errors import UserError

SCALES = ("mel", "linear")


@dataclasses.dataclass
class Sound:
    """How recordings become windows, what is judged together, and windows images: `data.height` bands of frequency,
    `data.width` frames."""

    rate: int = 0
    """Samples a second, Hz, that all recordings are brought to; 0: their own, of several the lowest. Of arrays: theirs,
    and has to be given."""
    channel: int = 0
    """The channel that is listened to, counted from 1; 0: the mean of all."""
    frame: float = 0.0
    """Seconds that a frame of the spectrogram looks at; 0: about 0.064, a power of two of samples; where that leaves
    fewer than 1,000 normal windows, shorter, down to an eighth; longer where a band would hold no frequency."""
    hop: float = 0.0
    """Seconds from frame to frame; 0: half of `frame`."""
    stride: float = 0.0
    """Seconds from the beginning of one window to that of the next; 0: half a window, down to an eighth of it where
    that leaves fewer than 1,000 normal windows."""
    low: float = 0.0
    """Hz at which the first band begins."""
    high: float = 0.0
    """Hz at which the last one ends; 0: half of `rate`."""
    scale: str = "mel"
    """Bands are equally wide on the mel scale, 2595 log10(1 + f / 700 Hz), or on a `linear` one, in Hz."""
    level: bool = True
    """Loudness counts; false: each window is brought to the same power first."""


def check(sound: Sound) -> None:
    """Refuse values that cannot work whatever the recordings are.

    Raises:
      UserError: naming the key, the value and what is wanted.
    """
    for name in ("rate", "channel", "frame", "hop", "stride", "low", "high"):
        value = getattr(sound, name)
        if not (math.isfinite(value) and value >= 0):
            raise UserError(f"data.sound.{name}={value!r}: wanted a number from 0 on, 0 for automatic")
    if sound.scale not in SCALES:
        raise UserError(f"data.sound.scale={sound.scale!r}: wanted {' or '.join(SCALES)}")
    if sound.high and sound.high <= sound.low:
        raise UserError(f"data.sound.high={sound.high:g}: wanted more Hz than data.sound.low={sound.low:g}, or 0")
