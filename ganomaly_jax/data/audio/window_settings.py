"""Completes the settings of windows and spectrograms from the recordings they are for."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from ganomaly_jax.core import config, config_values
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data.audio import recordings, spectrogram
from ganomaly_jax.data.audio.layout import NAME
from ganomaly_jax.data.audio.recordings import Recording
from ganomaly_jax.data.audio.spectrogram import Spectrogram
from ganomaly_jax.data.images import decode

FEW = 1000
"""Number of normal windows below which automatic windows become shorter and overlap more."""
# Length of a frame in seconds by default, and how often it and then the stride of windows may be halved.
_FRAME, _SHORTER, _CLOSER = 0.064, 3, 2
_BANDS = _FRAMES = 32


def check(settings: config.Config) -> None:
    """Checks that no options are set that sound does not support.

    Raises:
      UserError: Some are; the message names them.
    """
    given, usual = (config_values.flatten(config_values.to_dict(one)) for one in (settings, config.Config()))
    keys = (
        *("train.shift", "train.flip", "loss.contrast", "model.exposure", "members.classes", "members.seeds"),
        *("data.tile", "data.low", "data.high", "data.window", "data.columns", "data.missing"),
    )
    named = [key for key in keys if given[key] != usual[key]]
    if named:
        raise UserError(f"{', '.join(named)}: not supported for sound, see data.sound.*; leave it out")


def length(settings: config.Data) -> int:
    """Returns the number of samples in a window from resolved settings."""
    return spectrogram.of_data(settings).length(settings.width)


def complete(settings: config.Data, of: Sequence[Recording]) -> config.Data:
    """Returns the settings, completed from recordings.

    Raises:
      UserError: There is no spectrogram with these settings.
    """
    asked = settings.sound
    rate = asked.rate or min(one.rate for one in of)
    bands = settings.height or _BANDS
    sizes: dict[str, Any] = {"kind": NAME, "height": bands, "width": settings.width or _FRAMES, "channels": 1}
    nearest = max(2 ** round(math.log2(_FRAME * rate)), 4)
    tried = [(nearest >> k, 2) for k in range(_SHORTER + 1) if nearest >> k >= 4]
    tried += [(tried[-1][0], 4 << k) for k in range(_CLOSER)]
    for samples, closer in tried:
        frame = asked.frame or _frame_seconds(samples, rate, bands, asked)
        hop = asked.hop or max(round(frame * rate / 2), 1) / rate
        own = dataclasses.replace(asked, rate=rate, frame=frame, hop=hop, high=asked.high or rate / 2)
        resolved = dataclasses.replace(settings, **sizes, sound=own)
        spectrogram.check(spectrogram.of_data(resolved))
        size = length(resolved)
        own.stride = asked.stride or max(size // closer, 1) / rate
        if own.stride * rate < 0.5:
            raise UserError(f"data.sound.stride={own.stride:g} s is less than a sample at {rate} Hz")
        step = round(own.stride * rate)
        if sum(max((recordings.length(one, rate) - size) // step + 1, 0) for one in of) >= FEW:
            break
    return resolved


def _frame_seconds(samples: int, rate: int, bands: int, asked: Any) -> float:
    """Returns the length in seconds of the shortest frame whose bands all contain a frequency.

    Frames of `samples` samples and of powers of two times as many are tried.
    """
    top = asked.high or rate / 2
    while samples < rate:
        made_of = Spectrogram(rate, samples / rate, 1.0, bands, asked.low, top, asked.scale)
        if asked.low < top <= rate / 2 and (spectrogram.filters(made_of).sum(axis=0) > 0).all():
            break
        samples *= 2
    return samples / rate


def notes(of: Sequence[Recording], resolved: config.Data) -> list[str]:
    """Returns notes for the user on how recordings are cut into windows, a sentence each."""
    own, said = resolved.sound, []
    size = length(resolved)
    said.append(
        f"windows of {size / own.rate:.4g} s, every {own.stride:.4g} s: {resolved.height} {own.scale} bands from "
        f"{own.low:g} to {own.high:g} Hz, {resolved.width} frames of {own.frame:.4g} s, {own.hop:.4g} s apart, "
        f"at {own.rate} Hz"
    )
    rates = sorted({one.rate for one in of} - {own.rate})
    if rates:
        listed = ", ".join(map(str, rates))
        said.append(
            f"recorded at {listed} Hz, resampled to {own.rate} Hz: {_first(of, lambda one: one.rate != own.rate)}"
        )
    deaf = [one for one in of if one.rate < min(own.rate, 2 * own.high)]
    if deaf:
        said.append(
            f"{len(deaf)} recordings contain no frequencies above {deaf[0].rate / 2:g} Hz, half their sampling rate, "
            f"and appear silent in the bands between there and {own.high:g} Hz: {decode.shown(deaf[0].name)}"
        )
    channels = sorted({one.channels for one in of})
    if len(channels) > 1:
        taken = f"channel {own.channel} is used" if own.channel else "the mean of the channels is used"
        said.append(f"recordings have {', '.join(map(str, channels))} channels: {taken}")
    short = [one for one in of if recordings.length(one, own.rate) < size]
    if short:
        said.append(
            f"{len(short)} recordings are shorter than a window and not used: {decode.shown(short[0].name)} "
            f"({short[0].seconds:.3g} s)"
        )
    return said


def _first(of: Sequence[Recording], is_one: Callable[[Recording], bool]) -> str:
    """Returns the name of the first recording that satisfies a condition, and how many others do."""
    found = [decode.shown(one.name) for one in of if is_one(one)]
    return found[0] + (f" and {len(found) - 1} more" if len(found) > 1 else "")
