"""Distributes images over the processes of a training.

At the start each process reads its own part of the images once and sends their hashes to the others. Afterwards a
process reads the images that it trains on, calibrates with or scores, and refuses those whose hash has changed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ganomaly_jax.core import config
from ganomaly_jax.core.errors import UserError, last_line
from ganomaly_jax.data import datasets, lazy
from ganomaly_jax.data.datasets import Dataset
from ganomaly_jax.data.images import decode, scan
from ganomaly_jax.data.images import files as image_files
from ganomaly_jax.data.images.decode import Span
from ganomaly_jax.data.images.preprocess import fit_image
from ganomaly_jax.data.lazy import LazyImages
from ganomaly_jax.parallel import processes


def read(
    files: Sequence[Path], height: int, width: int, settings: config.Data, progress: bool
) -> tuple[LazyImages, np.ndarray, list[tuple[str, str]], Span, list[bytes]]:
    """Returns images that are read on demand, after each process has scanned its part of the files.

    A collective operation: all processes call it.

    Args:
      files: The n files.
      height: Height of the images in pixels.
      width: Width of the images in pixels.
      settings: Channels and fit.
      progress: Whether to show a progress bar on standard error.

    Returns:
      As `files.decode_files`, with `LazyImages` in place of an array; and the hash of each image, 32 bytes.

    Raises:
      UserError: The processes do not see the same files.
    """
    base = os.path.commonpath([path.parent for path in files])
    processes.check_same(**{"list of images": "\n".join(decode.shown(path.relative_to(base)) for path in files)})
    own = processes.local_range(len(files))
    paths = [files[i] for i in own]
    scans: list[tuple[scan.PixelFormat | None, list[bytes] | None, list[int], list[tuple[str, str]]]] = []

    def scan_own(pixel_format: scan.PixelFormat | None) -> scan.PixelFormat | None:
        with contextlib.closing(image_files.decode_each(paths, height, width, settings.fit)) as decoded:
            shown = image_files.progress_bar(iter(decoded), len(paths), progress)
            scans.append(scan.scan_images(paths, shown, settings.channels, pixel_format, datasets.image_hash))
        return scans[-1][0]

    def own_format() -> bytes:
        found = scan_own(None)
        return json.dumps(None if found is None else dataclasses.asdict(found)).encode()

    formats = [json.loads(text) for text in processes.all_gather_bytes(own_format)]
    common = scan.common_format(scan.PixelFormat(**values) for values in formats if values is not None)

    def own_images() -> bytes:
        found, hashes, _, _ = scans[-1]
        if found is not None and (found != common or hashes is None):  # other processes have another format
            scan_own(common)
        _, hashes, kept, problems = scans[-1]
        summary = {"hashes": [one.hex() for one in hashes or ()], "kept": [own[i] for i in kept], "problems": problems}
        return json.dumps(summary).encode()

    summaries = [json.loads(text) for text in processes.all_gather_bytes(own_images)]
    kept = [i for part in summaries for i in part["kept"]]
    hashes = [bytes.fromhex(one) for part in summaries for one in part["hashes"]]
    problems = [(path, reason) for part in summaries for path, reason in part["problems"]]
    if common is None:
        common = scan.PixelFormat("uint8", True, False, settings.channels or 1)
    images = _on_demand([files[i] for i in kept], hashes, (height, width), common, settings.fit)
    return images, np.array(kept, np.int64), problems, common.span, hashes


def distribute(dataset: Dataset, size: tuple[int, ...], fit: str) -> Dataset:
    """Distributes a data set in memory over the processes: its images are resized when they are read.

    An array in memory is moved to a temporary file; mapped files stay where they are. A collective operation: all
    processes call it.

    Args:
      dataset: Images [N, h, w, c] of any size.
      size: (height, width, channels) of the result.
      fit: `stretch` or `letterbox`, see `preprocess.fit_image`.

    Raises:
      UserError: The processes see images of different numbers, sizes or types, or there is no room for the temporary
        file.
    """
    if dataset.digest:
        return dataset
    images, names = dataset.images, dataset.paths  # a closure over the data set would keep its images in memory
    processes.check_same(**{"number, type or size of images": f"{images.dtype} {images.shape}"})
    if isinstance(images, np.ndarray) and not _mapped(images):
        images = _to_temporary_file(images)
    stored, (height, width, channels) = images, size

    def fitted(indices: np.ndarray) -> np.ndarray:
        found = np.asarray(stored[indices])
        if found.shape[1:] == size:
            return found
        return np.stack([fit_image(image, height, width, channels, fit) for image in found])

    keep = images.keep if isinstance(images, LazyImages) else True
    unread = LazyImages(fitted, (len(images), *size), images.dtype, keep)
    part = processes.local_range(len(unread))

    def hashed() -> bytes:
        blocks = lazy.blocks(unread, np.arange(part.start, part.stop))
        return b"".join(datasets.image_hash(image) for block in blocks for image in block)

    gathered = b"".join(processes.all_gather_bytes(hashed))
    hashes = [gathered[i : i + 32] for i in range(0, len(gathered), 32)]

    def read(indices: np.ndarray) -> np.ndarray:
        return _unchanged(fitted(indices), [hashes[i] for i in indices], [names[i] for i in indices])

    found = dataclasses.replace(dataset, images=dataclasses.replace(unread, read=read))
    return dataclasses.replace(found, digest=datasets.content_hash(found, hashes))


def _mapped(array: Any) -> bool:
    """Returns whether an array, or the one it is a view of, is mapped from a file."""
    while array is not None and not isinstance(array, np.memmap):
        array = getattr(array, "base", None)
    return array is not None


def _to_temporary_file(array: np.ndarray) -> np.ndarray:
    """Moves an array to an unnamed temporary file, which is mapped into memory and vanishes with the process.

    Raises:
      UserError: The file cannot be written.
    """
    try:
        with tempfile.TemporaryFile() as file:
            np.ascontiguousarray(array).tofile(file)
            return np.memmap(file, array.dtype, "r", 0, array.shape)
    except OSError as error:
        raise UserError(
            f"{array.nbytes:,} bytes of images cannot be written to {tempfile.gettempdir()} ({last_line(error)}): free "
            "disk space, set TMPDIR to another folder, or pack the images (`ganomaly pack`) and train on the result"
        ) from None


def _unchanged(images: np.ndarray, hashes: Sequence[bytes], names: Sequence[str]) -> np.ndarray:
    """Returns images whose hashes are as expected; otherwise raises a UserError with the name of the first other."""
    for image, expected, name in zip(images, hashes, names, strict=True):
        if datasets.image_hash(image) != expected:
            raise UserError(
                f"{name} differs from the image that one of the processes read at the start: it has changed since, or "
                "the processes see different data"
            )
    return images


def _on_demand(
    files: Sequence[Path], hashes: Sequence[bytes], size: tuple[int, int], pixel_format: scan.PixelFormat, fit: str
) -> LazyImages:
    """Returns images that are decoded when they are read, and checked against their hashes."""
    like = (pixel_format.dtype, 0.0, 1.0 if pixel_format.scaled else 0.0)
    lock = threading.Lock()  # one call at a time, since decoding has threads of its own

    def read(indices: np.ndarray) -> np.ndarray:
        chosen = [files[i] for i in indices.tolist()]
        with lock:
            found, _, problems, _ = image_files.decode_files(chosen, *size, pixel_format.channels, fit, False, like)
        if problems:
            raise UserError(f"{problems[0][0]} could be read at the start but no longer can: {problems[0][1]}")
        return _unchanged(found, [hashes[i] for i in indices], list(map(decode.shown, chosen)))

    return LazyImages(read, (len(files), *size, pixel_format.channels), np.dtype(pixel_format.dtype), keep=True)
