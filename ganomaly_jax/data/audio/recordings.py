"""Reads spans of recordings of sound and vibration, from files or arrays, at any sampling rate.

Files are read by libsndfile (extra `audio`) and never held in memory. A span is resampled (soxr) together with as much
around it as the filter reaches, so that the result is the same as if the whole recording had been resampled.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data.images.decode import shown

ENDINGS = frozenset((".wav", ".wave", ".flac", ".ogg", ".oga", ".aif", ".aiff", ".w64", ".rf64", ".au", ".caf"))
# Samples that are read at once; and samples, at the lower rate, that resampling takes in beyond both ends of a span.
BLOCK, _CONTEXT = 2**20, 512
# Line in the log of libsndfile for a data chunk that is cut short. Writers that did not know the length of the chunk
# leave the largest possible number.
_CUT = re.compile(r"^ *(?:data|SSND) : (\d+) \(should be (\d+)\)", re.MULTILINE)
_UNKNOWN = 0xFFFFFF00
# Highest sampling rate in Hz, ten times that of ultrasound. The memory of spectrograms is proportional to it, whatever
# the length of a recording.
_HIGHEST = 10_000_000
# Size, relative to full scale, from which integer samples count as clipped.
_FULL = 0.9999


@dataclasses.dataclass(frozen=True, eq=False)
class Recording:
    """A recording and what one pass over its samples has found."""

    name: str
    rate: int
    """Sampling rate in Hz, as recorded."""
    frames: int
    """Samples of each channel, at that rate."""
    channels: int
    """Number of channels."""
    kind: str
    """File format and encoding, such as `WAV PCM_16`, or the type of an array."""
    digest: bytes
    """SHA-256 of rate and samples."""
    finite: bool
    """Whether no sample is NaN or infinite."""
    peak: float
    """Largest absolute value of a sample; full scale is 1."""
    clipped: float
    """Fraction of samples at full scale; 0 for floating point."""
    source: Path | np.ndarray
    """The file, or samples [S] float32."""

    @property
    def seconds(self) -> float:
        """Returns the length in seconds."""
        return self.frames / self.rate


def inspect(path: Path) -> Recording:
    """Reads through a sound file, a block at a time, and returns what it contains.

    Raises:
      UserError: The file cannot be used, with a reason that does not name the file; or soundfile is not installed.
    """
    library = _package("soundfile")
    try:
        if not path.is_file():
            raise UserError("not a regular file" if path.exists() else "no such file")
        if not path.stat().st_size:
            raise UserError("an empty file")
        with library.SoundFile(path) as file:
            _check_rate(file.samplerate)
            cut = _CUT.search(file.extra_info)
            if cut and int(cut[2]) < int(cut[1]) < _UNKNOWN:
                raise UserError(f"truncated: its header says {cut[1]} bytes of samples, but there are {cut[2]}")
            digest, read, peak, full, finite = hashlib.sha256(f"{file.samplerate};".encode()), 0, 0.0, 0, True
            while len(block := file.read(BLOCK // file.channels, dtype="float32", always_2d=True)):
                digest.update(np.ascontiguousarray(block, "<f4").data)
                read += len(block)
                size = np.abs(block)
                finite = finite and bool(np.isfinite(size).all())
                peak = max(peak, float(np.nan_to_num(size, posinf=0.0).max()))
                full += int((size >= _FULL).sum())
            if not read:
                raise UserError("no samples")
            if read < file.frames:
                raise UserError(f"truncated: its header says {file.frames} samples, but only {read} can be read")
            clipped = full / (read * file.channels) if file.subtype.startswith("PCM") else 0.0
            kind = f"{file.format} {file.subtype}"
            return Recording(
                str(path), file.samplerate, read, file.channels, kind, digest.digest(), finite, peak, clipped, path
            )
    except OSError as error:
        raise UserError(error.strerror or str(error)) from None
    except library.SoundFileError as error:
        why = " ".join(str(error).split()).replace(f"Error opening {str(path)!r}: ", "")
        raise UserError(f"damaged, or not a sound format that libsndfile reads ({why})") from None


def from_array(values: np.ndarray, rate: int, name: str) -> Recording:
    """Makes a recording of an array.

    Args:
      values: Samples [S], floating point with full scale at 1, or int16.
      rate: Sampling rate in Hz.
      name: Name of the recording for messages.

    Raises:
      UserError: The array has another type or shape, or no samples; or there is no such rate.
    """
    _check_rate(rate)
    kind = str(values.dtype)
    values = as_float(values, name)
    if values.ndim != 1 or not len(values):
        raise UserError(f"{name}: samples of shape {values.shape}: expected [S], S at least 1")
    digest = hashlib.sha256(f"{rate};".encode() + np.ascontiguousarray(values, "<f4").tobytes()).digest()
    peak = float(np.nan_to_num(np.abs(values), posinf=0.0).max())
    full = float((np.abs(values) >= _FULL).mean()) if kind == "int16" else 0.0
    finite = bool(np.isfinite(values).all())
    return Recording(name, rate, len(values), 1, f"array {kind}", digest, finite, peak, full, values)


def _check_rate(rate: int) -> None:
    """Checks a sampling rate in Hz, or raises a UserError."""
    if not 1 <= rate <= _HIGHEST:
        raise UserError(f"sampling rate {rate} Hz: expected 1 to {_HIGHEST:,}")


def as_float(values: Any, name: str) -> np.ndarray:
    """Converts samples [...] to float32; those of int16 are scaled so that full scale is 1.

    Raises:
      UserError: The samples are neither floating point nor int16.
    """
    values = np.asarray(values)
    if values.dtype == np.int16:
        return values.astype(np.float32) / np.float32(32768)
    if values.dtype.kind != "f":
        raise UserError(f"{name}: samples of type {values.dtype}: expected floating point, full scale at 1, or int16")
    with np.errstate(over="ignore"):  # becomes infinite, which is refused or flagged like any other infinity
        return values.astype(np.float32)


def length(recording: Recording, rate: int) -> int:
    """Returns the number of samples that a recording has at another rate."""
    return recording.frames * rate // recording.rate


def read(recording: Recording, first: int, last: int, rate: int, channel: int) -> np.ndarray:
    """Reads a span of a recording.

    Args:
      recording: The recording.
      first: First sample of the span, at `rate`.
      last: Sample after the last one of the span, at `rate`.
      rate: Sampling rate of the result in Hz.
      channel: Channel to read, counted from 1; 0: the mean of all channels.

    Returns:
      Samples [last - first], float32.

    Raises:
      UserError: The file has changed since it was read through, or soxr is not installed.
    """
    if recording.rate == rate:
        return _mono(recording, first, last, channel)
    common = math.gcd(recording.rate, rate)
    # Every `old` samples of the recording there is a sample of the result at the same time.
    old, new = recording.rate // common, rate // common
    margin = -(-_CONTEXT // min(old, new))
    begin = max(first // new - margin, 0)
    end = min((-(-last // new) + margin) * old, recording.frames)
    x = _package("soxr").resample(_mono(recording, begin * old, end, channel), recording.rate, rate, quality="HQ")
    found = x[first - begin * new : last - begin * new]
    return np.pad(found, (0, last - first - len(found)), mode="edge")  # its length may be rounded down


def _mono(recording: Recording, first: int, last: int, channel: int) -> np.ndarray:
    """Reads a span of one channel, or the mean of all, at the recording's own rate."""
    if isinstance(recording.source, np.ndarray):
        return recording.source[first:last]
    library = _package("soundfile")
    try:
        with library.SoundFile(recording.source) as file:
            file.seek(first)
            found = file.read(last - first, dtype="float32", always_2d=True)
    except (OSError, library.SoundFileError) as error:
        raise UserError(f"{shown(recording.name)} can no longer be read: {' '.join(str(error).split())}") from None
    if len(found) < last - first or found.shape[1] != recording.channels:
        raise UserError(f"{shown(recording.name)} has changed while it was in use: run the command again")
    with np.errstate(invalid="ignore"):  # the mean of opposite infinities is NaN
        return found.mean(axis=1) if not channel else found[:, channel - 1]


def _package(name: str) -> Any:
    """Imports an optional package, or raises a UserError that says how to install it."""
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:  # OSError: libsndfile itself is missing
        raise UserError(f"sound needs {name} ({error}): python -m pip install 'ganomaly-jax[audio]'") from None
