"""Makes data sets of sound and vibration: recordings are cut into windows.

Windows are waveforms that are read on demand. `lazy_spectrograms` are their scaled spectrograms, the input of the
networks, computed by the function that scorer and export contain as well (`spectrogram.patches`).
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ganomaly_jax.core import config
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.core.progress import Progress
from ganomaly_jax.data import datasets, folders
from ganomaly_jax.data.audio import layout, recordings, spectrogram, window_settings
from ganomaly_jax.data.audio.layout import NAME, SoundLayout
from ganomaly_jax.data.audio.recordings import Recording
from ganomaly_jax.data.datasets import Dataset
from ganomaly_jax.data.images import decode
from ganomaly_jax.data.lazy import Images, LazyImages

# Windows whose spectrograms are computed at once.
_AT_ONCE = 64

Item = tuple[Recording, str, int]
"""A recording, its class and its part (0 train, 1 test)."""


def is_source(path: Path, settings: config.Data) -> bool:
    """Returns whether a path is a recording, or a folder of recordings without images."""
    if not path.is_dir():
        return path.suffix.lower() in recordings.ENDINGS
    return settings.kind == NAME or folders.holds_only(path, recordings.ENDINGS)


def load(
    items: Sequence[tuple[Path, str, int]],
    normal: frozenset[str] | None,
    has_parts: bool,
    name: str,
    settings: config.Data,
    progress: bool = False,
) -> Dataset:
    """Loads recordings as a data set of windows; files that cannot be used are listed in its `problems`.

    Args:
      items: Path, class and part (0 train, 1 test) of each file.
      normal: Normal classes; None: `settings.abnormal` names the abnormal one.
      has_parts: Whether the source has a training and a test part.
      name: Name of the data set for messages.
      settings: Settings of windows and spectrograms.
      progress: Whether to show progress on standard error.

    Raises:
      UserError: No file can be used, none is as long as a window, or the settings do not fit the recordings.
    """
    found: list[Item] = []
    problems: list[tuple[str, str]] = []
    with Progress(len(items), 0, "recording", quiet=not progress) as bar:
        for i, (path, word, part) in enumerate(items, 1):
            recording, why = inspect_file(path, settings.sound.channel)
            if recording is not None:
                found.append((recording, word, part))
            else:
                problems.append((decode.shown(path), why))
            bar.update(i, path.name)
    if not found:
        first = "; ".join(f"{path}: {why}" for path, why in problems[:3])
        raise UserError(f"none of the {len(items)} recordings of {name} can be used: {first}")
    made_of = made(found, normal, has_parts, name, settings)
    return dataclasses.replace(made_of, problems=tuple(problems))


def inspect_file(path: Path, channel: int) -> tuple[Recording | None, str]:
    """Returns (recording, ""), or (None, the reason why the file cannot be used).

    Raises:
      UserError: A package is not installed.
    """
    try:
        found = recordings.inspect(path)
    except UserError as error:
        if "python -m pip" in str(error):
            raise
        return None, str(error)
    if channel > found.channels:
        return None, f"it has {found.channels} channels: expected at least data.sound.channel={channel}"
    return found, ""


def from_arrays(given: Any, settings: config.Data, name: str = "the array") -> Dataset:
    """Makes a data set of an array of recordings.

    Args:
      given: Recordings [N, S] or one recording [S], floating point with full scale at 1, or int16; or a pair of these
        and labels [N].
      settings: Settings of windows and spectrograms; `sound.rate` is required.
      name: Name of the data set for messages.

    Raises:
      UserError: The rate is not given, or shape, type or labels cannot be used.
    """
    x, labels = given if isinstance(given, tuple) else (given, None)
    return _of_array(x, labels, None, settings, name)


def from_npz(held: dict[str, np.ndarray], settings: config.Data, name: str) -> Dataset:
    """Makes a data set of the arrays of an npz file.

    Args:
      held: `waveforms` [N, S], and optionally `rate` in Hz, `labels` [N] and `parts` [N] (0 train, 1 test).
      settings: Settings of windows and spectrograms.
      name: Name of the data set for messages.

    Raises:
      UserError: The rate is not that of `settings`; and as `from_arrays`.
    """
    rate = int(held["rate"]) if "rate" in held and held["rate"].shape == () else 0
    if rate and settings.sound.rate not in (0, rate):
        raise UserError(
            f"{name} is recorded at {rate} Hz, data.sound.rate={settings.sound.rate}: expected the same, or 0"
        )
    if rate:
        settings = dataclasses.replace(settings, sound=dataclasses.replace(settings.sound, rate=rate))
    return _of_array(held["waveforms"], held.get("labels"), held.get("parts"), settings, name)


def _of_array(x: Any, labels: Any, parts: Any, settings: config.Data, name: str) -> Dataset:
    """Makes a data set of recordings [N, S] or one recording [S], with optional labels and parts [N]."""
    rate = settings.sound.rate
    if not rate:
        raise UserError(f"{name}: the sampling rate of an array is not known: expected data.sound.rate, in Hz")
    try:
        x = np.atleast_2d(np.asarray(x))
    except ValueError:
        raise UserError(f"{name}: recordings of different lengths: expected one array [N, S], or files") from None
    if x.ndim != 2 or not x.size:
        raise UserError(f"{name}: samples of shape {x.shape}: expected recordings [N, S], or one [S]")
    # Labels are interpreted as those of images.
    like = datasets.from_arrays(np.broadcast_to(np.uint8(0), (len(x), 1, 1)), labels, None, parts, name=name)
    names = [name] if len(x) == 1 else [f"{name}[{i}]" for i in range(len(x))]
    found: list[Item] = [
        (recordings.from_array(x[i], rate, names[i]), like.classes[label], 0 if parts is None else int(like.parts[i]))  # type: ignore[index]
        for i, label in enumerate(like.labels)
    ]
    return made(found, like.normal, parts is not None, name, settings)


def made(
    found: Sequence[Item], normal: frozenset[str] | None, has_parts: bool, name: str, settings: config.Data
) -> Dataset:
    """Makes a data set of the windows [N, T] of recordings; a window has the class and the part of its recording.

    Raises:
      UserError: No recording is as long as a window, or there is no spectrogram with these settings.
    """
    of = [recording for recording, _, _ in found]
    trained = [
        r for r, word, part in found if not part and (normal is None or word in normal) and word != settings.abnormal
    ]
    resolved = window_settings.complete(settings, trained or of)
    own, size = resolved.sound, window_settings.length(resolved)
    step = round(own.stride * own.rate)
    starts = [np.arange(0, recordings.length(one, own.rate) - size + 1, step) for one in of]
    if not sum(map(len, starts)):
        longest = max(one.seconds for one in of)
        raise UserError(
            f"{name}: the longest recording lasts {longest:.3g} s, a window {size / own.rate:.3g} s (data.width="
            f"{resolved.width} frames of {own.frame:.3g} s, {own.hop:.3g} s apart): expected fewer or shorter frames"
        )
    number = np.repeat(np.arange(len(of)), [len(each) for each in starts])
    first = np.concatenate(starts)
    spans = np.stack([number, first, first + size], axis=1).astype(np.int64)
    # Normal classes come first, so that tables begin with what is trained on.
    classes = sorted({word for _, word, _ in found}, key=lambda word: (normal is not None and word not in normal, word))
    labels = np.array([classes.index(word) for _, word, _ in found], np.int64)[number]
    parts = np.array([part for _, _, part in found], np.int8)[number] if has_parts else None
    digest = hashlib.sha256(repr((own.rate, size, step, own.channel, classes, sorted(normal or ()))).encode())
    for recording, word, part in found:
        digest.update(recording.digest + f"{word};{part};".encode())
    return Dataset(
        images=windows(of, spans, own),
        labels=labels,
        classes=tuple(classes),
        normal=normal,
        parts=parts,
        paths=tuple(window_name(of[i].name, begin / own.rate) for i, begin, _ in spans.tolist()),
        low=None,
        high=None,
        name=name,
        digest=digest.hexdigest(),
        notes=tuple(window_settings.notes(of, resolved)),
        modality=NAME,
        layout=SoundLayout(tuple(of), spans, resolved),
    )


def window_name(name: str, seconds: float) -> str:
    """Returns the name of a window from that of its recording and its beginning, such as `pump.wav@12.5s`."""
    return f"{decode.shown(name)}@{seconds:.3f}".rstrip("0").rstrip(".") + "s"


def windows(of: Sequence[Recording], spans: np.ndarray, own: Any) -> LazyImages:
    """Returns windows [N, T] float32 that are read on demand; windows that touch are read together.

    Args:
      of: The recordings.
      spans: Positions of the windows, int64 [N, 3], see `SoundLayout.spans`.
      own: Resolved settings of sound.
    """
    size = int(spans[0, 2] - spans[0, 1])

    def read(indices: np.ndarray) -> np.ndarray:
        chosen = spans[indices]
        order = np.lexsort((chosen[:, 1], chosen[:, 0]))
        found = np.empty((len(chosen), size), np.float32)
        k = 0
        while k < len(order):
            number, begin, end = chosen[order[k]].tolist()
            last = k
            while last + 1 < len(order):
                other, first, until = chosen[order[last + 1]].tolist()
                if other != number or first > end or until - begin > max(recordings.BLOCK, size):
                    break
                last, end = last + 1, until
            wave = recordings.read(of[number], begin, end, own.rate, own.channel)
            for i in order[k : last + 1]:
                found[i] = wave[chosen[i, 1] - begin : chosen[i, 2] - begin]
            k = last + 1
        return found

    return LazyImages(read, (len(spans), size), np.dtype(np.float32), keep=True)


def lazy_spectrograms(waves: Images, settings: config.Data, low: Sequence[float], high: Sequence[float]) -> LazyImages:
    """Returns the scaled spectrograms of windows [N, T], float32 [N, bands, frames, 1] in [-1, 1], computed on demand.

    Args:
      waves: The windows.
      settings: Resolved settings.
      low: log10 of the power that becomes -1, for each band.
      high: log10 of the power that becomes +1, for each band.
    """
    import jax

    run = jax.jit(spectrogram.patches(spectrogram.of_data(settings), low, high))
    shape = (settings.height, settings.width, 1)

    def read(indices: np.ndarray) -> np.ndarray:
        order = np.argsort(indices, kind="stable")
        found = np.empty((len(indices), *shape), np.float32)
        for begin in range(0, len(order), _AT_ONCE):
            own = order[begin : begin + _AT_ONCE]
            block = waves[indices[own]]
            padded = np.concatenate([block, np.repeat(block[-1:], _AT_ONCE - len(block), axis=0)])
            found[own] = np.asarray(run(padded))[: len(own)]
        return found

    return LazyImages(read, (len(waves), *shape), np.dtype(np.float32), keep=True)


def resolved(settings: config.Data, dataset: Dataset) -> config.Data:
    """Returns the settings, completed from the recordings."""
    found = layout.of(dataset).settings
    names = ("kind", "sound", "height", "width", "channels")
    return dataclasses.replace(settings, **{name: getattr(found, name) for name in names})


def as_input(given: Any, settings: config.Data) -> np.ndarray:
    """Converts waveforms or files to the input of a detector.

    Args:
      given: Waveforms [n, T] at the detector's rate, floating point or int16; or a longer waveform [S], a file or
        several files, which are cut into windows as in training.
      settings: Resolved settings of the detector.

    Returns:
      Windows [n, T], float32, n at least 1.

    Raises:
      UserError: Shape or type is another, a file cannot be used, or nothing is as long as a window.
    """
    size = window_settings.length(settings)
    if isinstance(given, str | Path):
        given = [given]
    if not hasattr(given, "dtype") and len(given) and isinstance(given[0], str | Path):
        found = []
        for path in map(Path, given):
            recording, why = inspect_file(path, settings.sound.channel)
            if recording is None:
                raise UserError(f"{decode.shown(path)}: {why}")
            found.append(of_recording(recording, settings)[0][:])
        return np.concatenate(found)
    x = recordings.as_float(given, "waveforms")
    if x.ndim == 1 and len(x) >= size:
        starts = np.arange(0, len(x) - size + 1, round(settings.sound.stride * settings.sound.rate))
        return x[starts[:, None] + np.arange(size)]
    if x.ndim != 2 or x.shape[1] != size or not len(x):
        raise UserError(
            f"waveforms of shape {x.shape}: expected [B, {size}], B at least 1, which is "
            f"{size / settings.sound.rate:.4g} s at {settings.sound.rate} Hz, or one longer waveform [S]"
        )
    return x


def of_recording(recording: Recording, settings: config.Data) -> tuple[LazyImages, np.ndarray]:
    """Returns all windows [n, T] of a recording, read on demand, and the times in seconds [n] at which they begin.

    Raises:
      UserError: The recording is shorter than a window.
    """
    size, own = window_settings.length(settings), settings.sound
    first = np.arange(0, recordings.length(recording, own.rate) - size + 1, round(own.stride * own.rate))
    if not len(first):
        raise UserError(
            f"{decode.shown(recording.name)}: {recording.seconds:.3g} s, shorter than a window of "
            f"{size / own.rate:.3g} s"
        )
    spans = np.stack([np.zeros(len(first), int), first, first + size], axis=1).astype(np.int64)
    return windows([recording], spans, own), first / own.rate
