"""Sound and vibration as a `Dataset`: recordings cut into windows, and what a network takes of them.

Windows are waveforms, read where they are asked for; `items` are the patches of the spectrogram that a network takes of
them, by the same pure function that the scorer and the export have inside (`spectrogram.patches`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ganomaly_jax.core import config, config_values
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.core.progress import Progress
from ganomaly_jax.data import datasets
from ganomaly_jax.data.audio import layout, recordings, spectrogram
from ganomaly_jax.data.audio.layout import NAME, SoundLayout
from ganomaly_jax.data.audio.recordings import Recording
from ganomaly_jax.data.audio.spectrogram import Spectrogram
from ganomaly_jax.data.datasets import Dataset
from ganomaly_jax.data.images import decode
from ganomaly_jax.data.images import files as image_files
from ganomaly_jax.data.lazy import Images, LazyImages

FEW = 1000
"""Normal windows below which automatic ones become shorter and overlap more."""
_FRAME, _SHORTER, _CLOSER = 0.064, 3, 2
_BANDS = _FRAMES = 32
# Windows that become patches at once.
_AT_ONCE = 64

Item = tuple[Recording, str, int]
"""A recording, its class and its part (0 train, 1 test)."""


def is_source(path: Path, settings: config.Data) -> bool:
    """Returns True for a recording, or a folder of recordings without images."""
    if not path.is_dir():
        return path.suffix.lower() in recordings.ENDINGS
    if settings.kind == NAME:
        return True
    found = False
    for inner in path.rglob("*"):
        if inner.suffix.lower() in image_files.ENDINGS:
            return False
        found = found or inner.suffix.lower() in recordings.ENDINGS
    return found


def load(
    items: Sequence[tuple[Path, str, int]],
    normal: frozenset[str] | None,
    has_parts: bool,
    name: str,
    settings: config.Data,
    progress: bool = False,
) -> Dataset:
    """Files, each with its class and part, as a data set; those that cannot be used are its `problems`.

    Raises:
      UserError: not one that can be used, none as long as a window, settings that do not fit the recordings.
    """
    found: list[Item] = []
    problems: list[tuple[str, str]] = []
    with Progress(len(items), 0, "recording", quiet=not progress) as bar:
        for i, (path, word, part) in enumerate(items, 1):
            recording, why = looked_through(path, settings.sound.channel)
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


def looked_through(path: Path, channel: int) -> tuple[Recording | None, str]:
    """Returns a file as a recording, or why it cannot be one."""
    try:
        found = recordings.survey(path)
    except UserError as error:
        if "python -m pip" in str(error):
            raise
        return None, str(error)
    if channel > found.channels:
        return None, f"{found.channels} channels, data.sound.channel={channel} is asked for"
    return found, ""


def of_arrays(given: Any, settings: config.Data, name: str = "the array") -> Dataset:
    """Recordings [N, S], or one [S], floating point with full scale at 1, or int16; or (that, labels [N])."""
    x, labels = given if isinstance(given, tuple) else (given, None)
    return _of_array(x, labels, None, settings, name)


def of_file(held: dict[str, np.ndarray], settings: config.Data, name: str) -> Dataset:
    """Reads an npz file: `waveforms` [N, S], `rate` in Hz, and optional `labels` [N] and `parts` [N] (0 train, 1 test).

    Raises:
      UserError: as `of_arrays`; another rate than `data.sound.rate`.
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
    rate = settings.sound.rate
    if not rate:
        raise UserError(f"{name}: how fast it was sampled is not known: expected data.sound.rate, in Hz")
    try:
        x = np.atleast_2d(np.asarray(x))
    except ValueError:
        raise UserError(f"{name}: recordings of different lengths: expected one array [N, S], or files") from None
    if x.ndim != 2 or not x.size:
        raise UserError(f"{name}: samples of shape {x.shape}: expected recordings [N, S], or one [S]")
    # They are labelled as images are.
    like = datasets.from_arrays(np.broadcast_to(np.uint8(0), (len(x), 1, 1)), labels, None, parts, name=name)
    names = [name] if len(x) == 1 else [f"{name}[{i}]" for i in range(len(x))]
    found: list[Item] = [
        (recordings.of_array(x[i], rate, names[i]), like.classes[label], 0 if parts is None else int(like.parts[i]))  # type: ignore[index]
        for i, label in enumerate(like.labels)
    ]
    return made(found, like.normal, parts is not None, name, settings)


def made(
    found: Sequence[Item], normal: frozenset[str] | None, has_parts: bool, name: str, settings: config.Data
) -> Dataset:
    """Recordings as windows [N, T], every one of them of the class and the part of its recording.

    Raises:
      UserError: none is as long as a window; settings that make no spectrogram at this rate.
    """
    of = [recording for recording, _, _ in found]
    trained = [
        r for r, word, part in found if not part and (normal is None or word in normal) and word != settings.abnormal
    ]
    resolved = _resolved(settings, trained or of)
    own, size = resolved.sound, length(resolved)
    step = round(own.stride * own.rate)
    starts = [np.arange(0, recordings.length(one, own.rate) - size + 1, step) for one in of]
    if not sum(map(len, starts)):
        longest = max(one.seconds for one in of)
        raise UserError(
            f"{name}: the longest recording has {longest:.3g} s, a window {size / own.rate:.3g} s (data.width="
            f"{resolved.width} frames of {own.frame:.3g} s, {own.hop:.3g} s apart): expected fewer or shorter frames"
        )
    number = np.repeat(np.arange(len(of)), [len(each) for each in starts])
    first = np.concatenate(starts)
    spans = np.stack([number, first, first + size], axis=1).astype(np.int64)
    # Normal classes first, so that a table of them begins with what is trained on.
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
        paths=tuple(at(of[i].name, begin / own.rate) for i, begin, _ in spans.tolist()),
        low=None,
        high=None,
        name=name,
        digest=digest.hexdigest(),
        notes=tuple(notes(of, resolved)),
        modality=NAME,
        layout=SoundLayout(tuple(of), spans, resolved),
    )


def at(name: str, seconds: float) -> str:
    """Returns the name of a window, its recording and its beginning: `pump.wav@12.5s`."""
    return f"{decode.shown(name)}@{seconds:.3f}".rstrip("0").rstrip(".") + "s"


def length(settings: config.Data) -> int:
    """Samples of a window, by resolved settings."""
    return spectrogram.of_data(settings).length(settings.width)


def _resolved(settings: config.Data, of: Sequence[Recording]) -> config.Data:
    """Returns the settings, resolved for these recordings.

    Raises:
      UserError: settings that make no spectrogram.
    """
    asked = settings.sound
    rate = asked.rate or min(one.rate for one in of)
    bands = settings.height or _BANDS
    sizes: dict[str, Any] = {"kind": NAME, "height": bands, "width": settings.width or _FRAMES, "channels": 1}
    nearest = max(2 ** round(math.log2(_FRAME * rate)), 4)
    tried = [(nearest >> k, 2) for k in range(_SHORTER + 1) if nearest >> k >= 4]
    tried += [(tried[-1][0], 4 << k) for k in range(_CLOSER)]
    for samples, closer in tried:
        frame = asked.frame or _holding(samples, rate, bands, asked)
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


def _holding(samples: int, rate: int, bands: int, asked: Any) -> float:
    """Seconds of the shortest frame, of so many samples or twice, four times, ... as many, whose bands all hold a
    frequency."""
    top = asked.high or rate / 2
    while samples < rate:
        made_of = Spectrogram(rate, samples / rate, 1.0, bands, asked.low, top, asked.scale)
        if asked.low < top <= rate / 2 and (spectrogram.filters(made_of).sum(axis=0) > 0).all():
            break
        samples *= 2
    return samples / rate


def notes(of: Sequence[Recording], resolved: config.Data) -> list[str]:
    """Returns notes for the user on recordings that are cut into windows."""
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
            f"{len(deaf)} recordings have nothing above {deaf[0].rate / 2:g} Hz, half their rate, where bands up to "
            f"{own.high:g} Hz are looked at, and will look quieter than they were: {decode.shown(deaf[0].name)}"
        )
    channels = sorted({one.channels for one in of})
    if len(channels) > 1:
        taken = f"channel {own.channel} is taken" if own.channel else "the mean of each is taken"
        said.append(f"recordings of {', '.join(map(str, channels))} channels: {taken}")
    short = [one for one in of if recordings.length(one, own.rate) < size]
    if short:
        said.append(
            f"{len(short)} recordings are shorter than a window and not used: {decode.shown(short[0].name)} "
            f"({short[0].seconds:.3g} s)"
        )
    return said


def _first(of: Sequence[Recording], is_one: Callable[[Recording], bool]) -> str:
    found = [decode.shown(one.name) for one in of if is_one(one)]
    return found[0] + (f" and {len(found) - 1} more" if len(found) > 1 else "")


def windows(of: Sequence[Recording], spans: np.ndarray, own: Any) -> LazyImages:
    """Windows [N, T] float32 at `spans` [N, 3], see `SoundLayout.spans`; those that touch are read together."""
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


def items(waves: Images, settings: config.Data, low: Sequence[float], high: Sequence[float]) -> LazyImages:
    """Returns patches [N, bands, frames, 1] float32 in [-1, 1] of windows [N, T], computed when read."""
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


def check(settings: config.Config) -> None:
    """Checks that no options are set that sound does not support.

    Raises:
      UserError: naming the keys.
    """
    given, usual = (config_values.flatten(config_values.to_dict(one)) for one in (settings, config.Config()))
    keys = (
        *("train.shift", "train.flip", "loss.contrast", "model.exposure", "members.classes", "members.seeds"),
        *("data.tile", "data.low", "data.high", "data.window", "data.columns", "data.missing"),
    )
    named = [key for key in keys if given[key] != usual[key]]
    if named:
        raise UserError(f"{', '.join(named)}: not for sound, whose own settings are data.sound.*; leave it out")


def resolved(settings: config.Data, dataset: Dataset) -> config.Data:
    """Returns the settings, completed from the recordings."""
    found = layout.of(dataset).settings
    names = ("kind", "sound", "height", "width", "channels")
    return dataclasses.replace(settings, **{name: getattr(found, name) for name in names})


def as_input(given: Any, settings: config.Data) -> np.ndarray:
    """Windows as a detector takes them, [n, T] float32, n at least 1.

    Args:
      given: waveforms [n, T] at the detector's rate, floating point or int16; one longer waveform [S], or a file or
        several, of which windows are cut as in training.
      settings: resolved ones of the detector.

    Raises:
      UserError: another shape or type, a file that cannot be used, or nothing as long as a window.
    """
    size = length(settings)
    if isinstance(given, str | Path):
        given = [given]
    if not hasattr(given, "dtype") and len(given) and isinstance(given[0], str | Path):
        found = []
        for path in map(Path, given):
            recording, why = looked_through(path, settings.sound.channel)
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
            f"waveforms of shape {x.shape}: expected [B, {size}], B at least 1, {size / settings.sound.rate:.4g} s at "
            f"{settings.sound.rate} Hz, or one longer waveform [S]"
        )
    return x


def of_recording(recording: Recording, settings: config.Data) -> tuple[LazyImages, np.ndarray]:
    """Returns all windows [n, T] of one recording, unread, and their beginnings in seconds [n].

    Raises:
      UserError: it is shorter than a window.
    """
    size, own = length(settings), settings.sound
    first = np.arange(0, recordings.length(recording, own.rate) - size + 1, round(own.stride * own.rate))
    if not len(first):
        raise UserError(
            f"{decode.shown(recording.name)}: {recording.seconds:.3g} s, shorter than a window of "
            f"{size / own.rate:.3g} s"
        )
    spans = np.stack([np.zeros(len(first), int), first, first + size], axis=1).astype(np.int64)
    return windows([recording], spans, own), first / own.rate
