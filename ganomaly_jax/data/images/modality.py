"""Images as a modality."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ganomaly_jax.core import config
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data import datasets, modality, splits, words
from ganomaly_jax.data.datasets import Dataset
from ganomaly_jax.data.formats import arrays
from ganomaly_jax.data.images import decode, files, preprocess, sources, tiling
from ganomaly_jax.data.lazy import LazyImages
from ganomaly_jax.data.modality import InputSpec, Resolved, Scaling
from ganomaly_jax.data.splits import Split
from ganomaly_jax.data.words import Words

if TYPE_CHECKING:
    import jax


@dataclasses.dataclass(frozen=True)
class Pixels:
    """Preprocessing of images `[B, H, W, C]`: the range of the training images becomes [-1, 1]."""

    shape: tuple[int, ...]
    bounded: bool = False

    def unit(self, pixels: tuple[str, Any, Any], x: jax.Array) -> jax.Array:
        """Returns raw images as the networks take them, float32 in [-1, 1].

        The type says what the values mean: that of the training images is scaled as they were; uint8 and uint16
        otherwise span their type; other floating point is taken as being in [-1, 1] already.

        Raises:
          UserError: another type.
        """
        import jax.numpy as jnp

        dtype, low, high = pixels
        floating = jnp.issubdtype(x.dtype, jnp.floating)
        if x.dtype == dtype or (floating and dtype == "float32"):
            return preprocess.to_unit(x, low, high)
        if floating:
            return x
        if x.dtype in (jnp.uint8, jnp.uint16) and dtype in ("uint8", "uint16"):
            return preprocess.to_unit(x, 0, jnp.iinfo(x.dtype).max)
        raise UserError(f"images of type {x.dtype}: expected {dtype}, as in training, or floating point in [-1, 1]")


class Images:
    """Images `[H, W, C]` in files, packages or arrays; large ones may be cut into tiles. See `modality.Modality`."""

    name = "images"
    in_time = False
    mixes = True
    per_process = True

    def words(self, data: config.Data) -> Words:
        return words.IMAGES

    def is_source(self, path: Path, settings: config.Data) -> bool:
        return sources.is_path(path)

    def open(self, path: Path, settings: config.Data, progress: bool, shared: bool) -> Dataset:
        return sources.open_path(path, settings, progress, shared)

    def takes(self, given: Any, settings: config.Data) -> bool:
        return True

    def from_arrays(self, given: Any, settings: config.Data, name: str) -> Dataset:
        if isinstance(given, dict):
            return arrays.images(given, name)
        images, labels, classes = (*given, None, None)[:3] if isinstance(given, tuple) else (given, None, None)
        return datasets.from_arrays(images, labels, classes, name=name)

    def prepared(self, dataset: Dataset, settings: config.Data, shared: bool) -> Dataset:
        return sources.fitted(dataset, settings, shared)

    def check(self, settings: config.Config) -> None:
        """Takes everything that a configuration may ask for."""

    def split(self, dataset: Dataset, settings: config.Data, seed: int) -> Split:
        return splits.split(dataset, settings, seed)

    def resolve(self, dataset: Dataset, settings: config.Config) -> Resolved:
        split = splits.split(dataset, settings.data, settings.seed)
        height, width, channels = dataset.images.shape[1:]
        low, high = datasets.value_range(dataset, split.train)
        if min(height, width) < settings.data.tile:
            raise UserError(
                f"data.tile={settings.data.tile}: the images are {height}x{width}, expected tiles that lie within them"
            )
        data = dataclasses.replace(settings.data, height=height, width=width, channels=channels, low=low, high=high)
        return Resolved(dataset, split, data, None)

    def network_inputs(self, found: Resolved) -> Resolved:
        """Returns all tiles of the images where there are tiles, each in the part that its image is in.

        Those of the calibration part are in random order, so that the first of them are of many images.
        """
        where = grid(found.data)
        if where is None:
            return found
        dataset, split = found.dataset, found.split
        several = np.repeat(np.arange(len(dataset.labels)), where.count)
        tiles = dataclasses.replace(
            dataset,
            images=tiling.items(dataset.images, where),
            labels=dataset.labels[several],
            parts=None if dataset.parts is None else dataset.parts[several],
            paths=tuple(dataset.paths[i] for i in several),
        )
        calibration = tiling.of_images(split.calibration, where)
        parts = dataclasses.replace(
            split,
            train=tiling.of_images(split.train, where),
            calibration=np.random.default_rng(0).permutation(calibration),
            test=tiling.of_images(split.test, where),
            labels=np.repeat(split.labels, where.count),
        )
        return dataclasses.replace(found, dataset=tiles, split=parts)

    def describe(self, dataset: Dataset) -> str:
        span = "fitted on normal training images" if dataset.low is None else f"{dataset.low:g} to {dataset.high:g}"
        return f"{self.size(dataset)} pixels of {dataset.images.dtype}; range {span}"

    def size(self, dataset: Dataset) -> str:
        return " x ".join(map(str, dataset.images.shape[1:]))

    def as_part(self, dataset: Dataset, settings: config.Data, scaling: Scaling | None) -> Dataset:
        return dataset

    def mixed(self, datasets: Sequence[Dataset], chosen: Sequence[np.ndarray], scaling: Scaling | None) -> None:
        return None

    def network_shape(self, data: config.Data) -> tuple[int, ...]:
        return min(data.tile or data.height, data.height), min(data.tile or data.width, data.width), data.channels

    def preprocessing(self, data: config.Data) -> Pixels:
        return Pixels((data.height, data.width, data.channels), bounded=data.tile > 0)

    def as_input(self, given: Any, spec: InputSpec) -> np.ndarray:
        found = _files(given)
        if found is not None:
            return read_files(found, spec)[0]
        return _sized(_checked(given, spec), spec)

    def blocks(self, given: Any, spec: InputSpec, size: int) -> tuple[Iterator[np.ndarray], int]:
        if isinstance(given, LazyImages):
            return modality.input_blocks(self, given, spec, size)
        found = _files(given)
        if found is not None:
            return file_blocks(found, spec, size, []), len(found)
        x = _checked(given, spec)
        return modality.sliced(x, size, lambda block: _sized(block, spec))


def grid(data: config.Data) -> tiling.Grid | None:
    """Returns the tiles of resolved settings; None: whole images."""
    return tiling.grid(data.height, data.width, data.tile, data.overlap) if data.tile else None


def read_files(
    paths: Sequence[Any], spec: InputSpec, progress: bool = False
) -> tuple[np.ndarray, list[tuple[str, str]]]:
    """Reads image files as a detector takes them.

    Returns:
      `[n, H, W, C]` of the training type, and (path, reason) of those that cannot be read. An unreadable one is there
      as NaN (float32 then), so that it is scored as invalid and keeps its place.
    """
    height, width, channels = spec.shape
    read = files.decode_files(paths, height, width, channels, spec.data.fit, progress, spec.pixels)
    return _placed(*read[:3], spec), read[2]


def file_blocks(
    paths: Sequence[Any],
    spec: InputSpec,
    size: int,
    problems: list[tuple[str, str]],
    workers: int = files.WORKERS,
) -> Generator[np.ndarray]:
    """Yields image files as `read_files` has them, in blocks of `size`; what cannot be read is added to `problems`.

    While a block is used, `workers` threads decode the next ones.
    """
    height, width, channels = spec.shape
    decoded = files.decode_blocks(paths, size, height, width, channels, spec.data.fit, spec.pixels, workers)
    with contextlib.closing(decoded) as blocks:
        for block in blocks:
            problems.extend(block[2])
            yield _placed(*block[:3], spec)


def _placed(read: np.ndarray, kept: np.ndarray, problems: Sequence[Any], spec: InputSpec) -> np.ndarray:
    """Images of the training type at their places among those that could not be read."""
    if not problems:
        return read
    whole = np.zeros((len(kept) + len(problems), *read.shape[1:]), read.dtype)
    whole[kept] = read
    x = np.array(preprocess.to_unit(whole, spec.low, spec.high)) if spec.dtype != "float32" else whole
    x[np.setdiff1d(np.arange(len(x)), kept)] = np.nan
    return x


def _files(given: Any) -> Sequence[Any] | None:
    """Returns an image file, a folder or a sequence of files as a sequence; None for images as arrays.

    Raises:
      UserError: a folder without image files, or nothing that could be images.
    """
    if isinstance(given, (str, os.PathLike)):
        if not os.path.isdir(given):
            return [given]
        if not (found := files.list_images(os.fspath(given))):
            raise UserError(f"no image files in {decode.shown(given)}")
        return found
    if hasattr(given, "dtype"):
        return None
    if not isinstance(given, Sequence):
        raise UserError(f"{type(given).__name__}: expected images as an array, image files, or a folder of them")
    return given if len(given) and isinstance(given[0], (str, os.PathLike)) else None


def _checked(given: Any, spec: InputSpec) -> np.ndarray:
    """Images as an array of the detector's type and channels; of any size."""
    try:
        x = np.asarray(given)
    except ValueError:
        raise UserError("images of different shapes: expected an array, or image files, which are resized") from None
    height, width, channels = spec.shape
    if x.ndim == 3 and channels == 1 and x.shape[-1] > 1:  # not one image [H, W, 1]
        x = x[..., None]
    if x.ndim != 4 or x.shape[-1] != channels or not x.size:
        raise UserError(
            f"images of shape {x.shape}: expected [B, {height}, {width}, {channels}], B at least 1, the shape that "
            "this detector was trained on (other sizes are resized, other numbers of channels are not guessed)"
        )
    if x.dtype.kind == "f" and x.dtype != spec.dtype:
        x = x.astype(np.float32)
        # Not a NaN: that is the image's own fault and becomes a verdict.
        if spec.dtype != "float32" and (np.abs(x) > 1).any():
            raise UserError(
                f"floating-point images from {np.nanmin(x):g} to {np.nanmax(x):g}: expected [-1, 1]; this detector "
                f"was trained on {spec.dtype} images, pass those or scale as 2 * (x - low) / (high - low) - 1"
            )
    elif x.dtype.kind == "u" and spec.dtype == "float32":
        raise UserError(
            f"images of type {x.dtype}: expected floating point from {spec.low:g} to {spec.high:g}, as in training; "
            "what other pixels mean in that range is not known"
        )
    elif x.dtype.kind not in "uf":
        raise UserError(f"images of type {x.dtype}: expected {spec.dtype}, as in training, or floating point")
    return x


def _sized(x: np.ndarray, spec: InputSpec) -> np.ndarray:
    """Images at the size of the network, resized by threads, as files are decoded."""
    if x.shape[1:] == spec.shape:
        return x
    height, width, channels = spec.shape

    def fitted(image: np.ndarray) -> np.ndarray:
        return preprocess.fit_image(image, height, width, channels, spec.data.fit)

    with contextlib.closing(files.read_ahead(fitted, x)) as resized:
        return np.stack(list(resized))
