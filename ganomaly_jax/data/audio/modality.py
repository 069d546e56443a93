"""The modality of sound and vibration: recordings that are cut into windows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ganomaly_jax.core import config
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data import folders, modality
from ganomaly_jax.data.audio import layout, recordings, spectrogram, splits, window_settings, windows
from ganomaly_jax.data.audio.spectrogram import Spectrogram
from ganomaly_jax.data.datasets import Dataset
from ganomaly_jax.data.images.decode import shown
from ganomaly_jax.data.modality import InputSpec, Resolved, Scaling
from ganomaly_jax.data.splits import Split
from ganomaly_jax.data.words import Words

if TYPE_CHECKING:
    import jax

WORDS = Words("window", "windows", "sound", "NaN or infinite samples", "the same to the sample")


@dataclasses.dataclass(frozen=True)
class Waveforms:
    """Preprocessing of waveforms `[B, T]`: their spectrograms, each band scaled by its own range."""

    spectrogram: Spectrogram
    frames: int
    """Frames of a window's spectrogram."""
    bounded: bool = True
    """Whether windows may be so large that blocks of them have to be bounded in bytes."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Returns (T,), the number of samples in a window."""
        return (self.spectrogram.length(self.frames),)

    def unit(self, pixels: tuple[str, Any, Any], x: jax.Array) -> jax.Array:
        """Returns the scaled spectrograms `[B, bands, frames, 1]` in [-1, 1], see `spectrogram.patches`."""
        return spectrogram.patches(self.spectrogram, *pixels[1:])(x)


class Sound:
    """Windows of recordings, `[N, T]` waveforms; networks see their spectrograms `[bands, frames, 1]`.

    See `modality.Modality`.
    """

    name = layout.NAME
    in_time = True
    mixes = False
    per_process = False

    def words(self, data: config.Data) -> Words:
        return WORDS

    def is_source(self, path: Path, settings: config.Data) -> bool:
        return windows.is_source(path, settings)

    def open(self, path: Path, settings: config.Data, progress: bool, shared: bool) -> Dataset:
        items: tuple[list[folders.Item], frozenset[str] | None, bool]
        items = [(path, "normal", 0)], frozenset({"normal"}), False
        if path.is_dir():
            items = folders.layout(path, settings.abnormal, recordings.ENDINGS, "recordings")
        return windows.load(*items, shown(path), settings, progress)

    def takes(self, given: Any, settings: config.Data) -> bool:
        return "waveforms" in given if isinstance(given, dict) else settings.kind == self.name

    def from_arrays(self, given: Any, settings: config.Data, name: str) -> Dataset:
        if isinstance(given, dict):
            return windows.from_npz(given, settings, name)
        return windows.from_arrays(given, settings, name)

    def prepared(self, dataset: Dataset, settings: config.Data, shared: bool) -> Dataset:
        return dataset

    def check(self, settings: config.Config) -> None:
        window_settings.check(settings)

    def split(self, dataset: Dataset, settings: config.Data, seed: int) -> Split:
        return splits.split(dataset, settings, seed)

    def resolve(self, dataset: Dataset, settings: config.Config) -> Resolved:
        split = splits.split(dataset, settings.data, settings.seed)
        return Resolved(dataset, split, windows.resolved(settings.data, dataset), splits.scaled(dataset, split))

    def network_inputs(self, found: Resolved) -> Resolved:
        """Replaces windows by their scaled spectrograms, which are computed when they are read."""
        patches = windows.lazy_spectrograms(found.dataset.images, found.data, *(found.scaling or ((), ())))
        return dataclasses.replace(
            found, dataset=dataclasses.replace(found.dataset, images=patches), scaling=(-1.0, 1.0)
        )

    def describe(self, dataset: Dataset) -> str:
        settings, [samples] = layout.of(dataset).settings, dataset.images.shape[1:]
        bands = f"{settings.height} bands x {settings.width} frames"
        return f"{samples} samples a window, {bands}; each band scaled by the normal training windows"

    def as_part(self, dataset: Dataset, settings: config.Data, scaling: Scaling | None) -> Dataset:
        raise UserError(_NO_MIXTURE)

    def mixed(self, datasets: Sequence[Dataset], chosen: Sequence[np.ndarray], scaling: Scaling | None) -> None:
        raise UserError(_NO_MIXTURE)

    def network_shape(self, data: config.Data) -> tuple[int, ...]:
        return data.height, data.width, data.channels

    def preprocessing(self, data: config.Data) -> Waveforms:
        return Waveforms(spectrogram.of_data(data), data.width)

    def as_input(self, given: Any, spec: InputSpec) -> np.ndarray:
        return windows.as_input(given, spec.data)

    def blocks(self, given: Any, spec: InputSpec, size: int) -> tuple[Iterator[np.ndarray], int]:
        return modality.input_blocks(self, given, spec, size)


_NO_MIXTURE = "detectors of sound cannot be updated, only those of images and rows: train again on all recordings"
