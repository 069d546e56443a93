"""The modality of images."""

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
from ganomaly_jax.data.images import decode, files, preprocess, sources, tiling, value_range
from ganomaly_jax.data.lazy import LazyImages
from ganomaly_jax.data.modality import InputSpec, Resolved, Scaling
from ganomaly_jax.data.splits import Split
from ganomaly_jax.data.words import Words

if TYPE_CHECKING:
    import jax


@dataclasses.dataclass(frozen=True)
class Pixels:
    """Preprocessing of images `[B, H, W, C]`: the range of the training images is scaled to [-1, 1]."""

    shape: tuple[int, ...]
    """(H, W, C)."""
    bounded: bool = False
    """Whether images may be so large that blocks of them have to be bounded in bytes."""

    def unit(self, pixels: tuple[str, Any, Any], x: jax.Array) -> jax.Array:
        """Scales raw images to the range of the networks; a pure function.

        The type determines the scale. Images of the training images' type are scaled as those were; otherwise uint8
        and uint16 span their type, and floating point is assumed to be in [-1, 1] already.

        Args:
          pixels: (dtype, low, high) of the training images.
          x: Raw images `[B, H, W, C]`.

        Returns:
          Images `[B, H, W, C]`, float32 in [-1, 1].

        Raises:
          UserError: The type is none of these.
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
    """Images `[H, W, C]` from files, packages or arrays, whole or cut into tiles. See `modality.Modality`."""

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
            return arrays.from_npz(given, name)
        images, labels, classes = (*given, None, None)[:3] if isinstance(given, tuple) else (given, None, None)
        return datasets.from_arrays(images, labels, classes, name=name)

    def prepared(self, dataset: Dataset, settings: config.Data, shared: bool) -> Dataset:
        return sources.resized(dataset, settings, shared)

    def check(self, settings: config.Config) -> None:
        """Accepts every configuration."""

    def split(self, dataset: Dataset, settings: config.Data, seed: int) -> Split:
        return splits.split(dataset, settings, seed)

    def resolve(self, dataset: Dataset, settings: config.Config) -> Resolved:
        split = splits.split(dataset, settings.data, settings.seed)
        height, width, channels = dataset.images.shape[1:]
        low, high = datasets.value_range(dataset, split.train)
        if min(height, width) < settings.data.tile:
            raise UserError(
                f"data.tile={settings.data.tile}: tiles are larger than the images, {height}x{width}; set data.tile to "
                f"{min(height, width)} or less"
            )
        data = dataclasses.replace(settings.data, height=height, width=width, channels=channels, low=low, high=high)
        return Resolved(dataset, split, data, None)

    def network_inputs(self, found: Resolved) -> Resolved:
        """Replaces images by their tiles, if there are tiles; each tile is in the part of its image.

        Tiles of the calibration part are shuffled, so that the first ones come from many images.
        """
        where = grid(found.data)
        if where is None:
            return found
        dataset, split = found.dataset, found.split
        owner = np.repeat(np.arange(len(dataset.labels)), where.count)
        tiles = dataclasses.replace(
            dataset,
            images=tiling.lazy_tiles(dataset.images, where),
            labels=dataset.labels[owner],
            parts=None if dataset.parts is None else dataset.parts[owner],
            paths=tuple(dataset.paths[i] for i in owner),
        )
        calibration = tiling.tile_indices(split.calibration, where)
        parts = dataclasses.replace(
            split,
            train=tiling.tile_indices(split.train, where),
            calibration=np.random.default_rng(0).permutation(calibration),
            test=tiling.tile_indices(split.test, where),
            labels=np.repeat(split.labels, where.count),
        )
        return dataclasses.replace(found, dataset=tiles, split=parts)

    def describe(self, dataset: Dataset) -> str:
        span = "fitted on normal training images" if dataset.low is None else f"{dataset.low:g} to {dataset.high:g}"
        size = " x ".join(map(str, dataset.images.shape[1:]))
        return f"{size} pixels of {dataset.images.dtype}; range {span}"

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
        return _resized(_as_pixels(given, spec), spec)

    def blocks(self, given: Any, spec: InputSpec, size: int) -> tuple[Iterator[np.ndarray], int]:
        if isinstance(given, LazyImages):
            return modality.input_blocks(self, given, spec, size)
        found = _files(given)
        if found is not None:
            return file_blocks(found, spec, size, []), len(found)
        x = _as_pixels(given, spec)
        return modality.sliced(x, size, lambda block: _resized(block, spec))


def grid(data: config.Data) -> tiling.Grid | None:
    """Returns the grid of tiles of resolved settings, or None for whole images."""
    return tiling.grid(data.height, data.width, data.tile, data.overlap) if data.tile else None


def read_files(
    paths: Sequence[Any], spec: InputSpec, progress: bool = False
) -> tuple[np.ndarray, list[tuple[str, str]]]:
    """Reads image files as the input of a detector.

    Args:
      paths: The n files.
      spec: Input of the detector.
      progress: Whether to show a progress bar on standard error.

    Returns:
      Images `[n, H, W, C]` of the training type; and (path, reason) of each file that cannot be read. If there are
      any, they are NaN and the result is float32, so that they are scored as invalid and keep their place.
    """
    height, width, channels = spec.shape
    read = files.decode_files(paths, height, width, channels, spec.data.fit, progress, spec.pixels)
    return _with_invalid(*read[:3], spec), read[2]


def file_blocks(
    paths: Sequence[Any],
    spec: InputSpec,
    size: int,
    problems: list[tuple[str, str]],
    workers: int = files.WORKERS,
) -> Generator[np.ndarray]:
    """Yields image files as `read_files` returns them, in blocks, while threads decode the next blocks.

    Args:
      paths: The files.
      spec: Input of the detector.
      size: Files in a block.
      problems: (path, reason) of each file that cannot be read is added to this list.
      workers: Number of threads.
    """
    height, width, channels = spec.shape
    decoded = files.decode_blocks(paths, size, height, width, channels, spec.data.fit, spec.pixels, workers)
    with contextlib.closing(decoded) as blocks:
        for block in blocks:
            problems.extend(block[2])
            yield _with_invalid(*block[:3], spec)


def _with_invalid(read: np.ndarray, kept: np.ndarray, problems: Sequence[Any], spec: InputSpec) -> np.ndarray:
    """Returns the images that could be read, `[m, H, W, C]` at indices `kept` [m], with NaN in place of the others."""
    if not problems:
        return read
    every = np.zeros((len(kept) + len(problems), *read.shape[1:]), read.dtype)
    every[kept] = read
    x = np.array(preprocess.to_unit(every, spec.low, spec.high)) if spec.dtype != "float32" else every
    x[np.setdiff1d(np.arange(len(x)), kept)] = np.nan
    return x


def _files(given: Any) -> Sequence[Any] | None:
    """Returns the files of an image file, a folder or a sequence of files, or None for images as arrays.

    Raises:
      UserError: A folder holds no image files, or the input cannot be images.
    """
    if isinstance(given, (str, os.PathLike)):
        if not os.path.lexists(given):
            raise UserError(
                f"{decode.shown(given)} does not exist: expected an image file, a folder of them or an array"
            )
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


def _as_pixels(given: Any, spec: InputSpec) -> np.ndarray:
    """Returns images as an array of the detector's type and channels but of any size, or raises a UserError."""
    try:
        x = np.asarray(given)
    except ValueError:
        raise UserError("images of different shapes: expected an array, or image files, which are resized") from None
    height, width, channels = spec.shape
    if x.ndim == 3 and channels == 1 and x.shape[-1] > 1:  # not a single image [H, W, 1]
        x = x[..., None]
    if x.ndim != 4 or x.shape[-1] != channels or not x.size:
        raise UserError(
            f"images of shape {x.shape}: expected [B, {height}, {width}, {channels}] with B at least 1, as in training "
            "(pass a single image as image[None]; other sizes are resized, but channels are not converted)"
        )
    if x.dtype.kind == "f":
        x = x.astype(np.float32) if spec.dtype == "float32" else value_range.to_unit(x, spec.value_range)
    elif x.dtype.kind == "u" and spec.dtype == "float32":
        raise UserError(
            f"images of type {x.dtype}: expected floating point from {spec.low:g} to {spec.high:g}, as in training: "
            "the scale of integer pixels in that range is not known"
        )
    elif x.dtype.kind not in "uf":
        raise UserError(f"images of type {x.dtype}: expected {spec.dtype}, as in training, or floating point")
    return x


def _resized(x: np.ndarray, spec: InputSpec) -> np.ndarray:
    """Resizes images to the size of the network in threads, exactly as files are."""
    if x.shape[1:] == spec.shape:
        return x
    height, width, channels = spec.shape

    def fitted(image: np.ndarray) -> np.ndarray:
        return preprocess.fit_image(image, height, width, channels, spec.data.fit)

    with contextlib.closing(files.read_ahead(fitted, x)) as resized:
        return np.stack(list(resized))
