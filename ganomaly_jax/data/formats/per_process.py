"""Images among several processes: each looks through its own part of them, and reads what it needs.

At the start each process reads its part once, keeps the images' hashes only, and tells the others. From then on all
know what every image is, and a process reads those that it trains on, calibrates with or scores; one whose hash is
another than the one that was told is refused.
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
    """Reads as `images.decode_files`, on demand, and returns the hash of each image; a collective.

    Raises:
      UserError: the processes do not see the same files.
    """
    base = os.path.commonpath([path.parent for path in files])
    processes.check_same(**{"list of images": "\n".join(decode.shown(path.relative_to(base)) for path in files)})
    own = processes.local_range(len(files))
    paths = [files[i] for i in own]
    looked: list[tuple[scan.Kind | None, list[bytes] | None, list[int], list[tuple[str, str]]]] = []

    def look(kind: scan.Kind | None) -> scan.Kind | None:
        with contextlib.closing(image_files.decode_each(paths, height, width, settings.fit)) as decoded:
            shown = image_files.progress_bar(iter(decoded), len(paths), progress)
            looked.append(scan.look(paths, shown, settings.channels, kind, datasets.image_hash))
        return looked[-1][0]

    def first() -> bytes:
        kind = look(None)
        return json.dumps(None if kind is None else dataclasses.asdict(kind)).encode()

    said = [json.loads(text) for text in processes.all_gather_bytes(first)]
    kind = scan.common(scan.Kind(**values) for values in said if values is not None)

    def second() -> bytes:
        seen, hashes, _, _ = looked[-1]
        if seen is not None and (seen != kind or hashes is None):  # others have images of another kind
            look(kind)
        _, hashes, kept, problems = looked[-1]
        told = {"hashes": [one.hex() for one in hashes or ()], "kept": [own[i] for i in kept], "problems": problems}
        return json.dumps(told).encode()

    told = [json.loads(text) for text in processes.all_gather_bytes(second)]
    kept = [i for part in told for i in part["kept"]]
    hashes = [bytes.fromhex(one) for part in told for one in part["hashes"]]
    problems = [(path, reason) for part in told for path, reason in part["problems"]]
    if kind is None:
        kind = scan.Kind("uint8", True, False, settings.channels or 1)
    found = _on_demand([files[i] for i in kept], hashes, (height, width), kind, settings.fit)
    return found, np.array(kept, np.int64), problems, kind.span, hashes


def apart(dataset: Dataset, size: tuple[int, ...], fit: str) -> Dataset:
    """Returns a data set whose images [N, h, w, c] are brought to `size` when read, as `fit` says.

    What lies in memory is put into a temporary file and let go; mapped files are left where they are. All processes
    call it.

    Raises:
      UserError: the processes see images of different sizes or numbers; no room for the temporary file.
    """
    if dataset.digest:
        return dataset
    images, names = dataset.images, dataset.paths  # a closure that holds the data set holds its images
    processes.check_same(**{"number, type or size of images": f"{images.dtype} {images.shape}"})
    if isinstance(images, np.ndarray) and not _mapped(images):
        images = _in_a_file(images)
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

    told = b"".join(processes.all_gather_bytes(hashed))
    hashes = [told[i : i + 32] for i in range(0, len(told), 32)]

    def read(indices: np.ndarray) -> np.ndarray:
        return _checked(fitted(indices), [hashes[i] for i in indices], [names[i] for i in indices])

    found = dataclasses.replace(dataset, images=dataclasses.replace(unread, read=read))
    return dataclasses.replace(found, digest=datasets.content_hash(found, hashes))


def _mapped(array: Any) -> bool:
    while array is not None and not isinstance(array, np.memmap):
        array = getattr(array, "base", None)
    return array is not None


def _in_a_file(array: np.ndarray) -> np.ndarray:
    """Moves an array to an unnamed file that is cached in memory as needed and vanishes with the process.

    Raises:
      UserError: it cannot be written.
    """
    try:
        with tempfile.TemporaryFile() as file:
            np.ascontiguousarray(array).tofile(file)
            return np.memmap(file, array.dtype, "r", 0, array.shape)
    except OSError as error:
        raise UserError(
            f"{array.nbytes:,} bytes of images cannot be put into {tempfile.gettempdir()} ({last_line(error)}): make "
            "room, let TMPDIR name another folder, or pack them (`ganomaly pack`) and train on that"
        ) from None


def _checked(images: np.ndarray, hashes: Sequence[bytes], names: Sequence[str]) -> np.ndarray:
    """Images as they are, if they are those of the hashes."""
    for image, told, name in zip(images, hashes, names, strict=True):
        if datasets.image_hash(image) != told:
            raise UserError(
                f"{name} is another image than at the start, where it was read by one of the processes: it has changed "
                "since, or the processes see different data"
            )
    return images


def _on_demand(
    files: Sequence[Path], hashes: Sequence[bytes], size: tuple[int, int], kind: scan.Kind, fit: str
) -> LazyImages:
    like = (kind.dtype, 0.0, 1.0 if kind.scaled else 0.0)
    alone = threading.Lock()  # decoding has threads of its own

    def read(indices: np.ndarray) -> np.ndarray:
        chosen = [files[i] for i in indices.tolist()]
        with alone:
            found, _, problems, _ = image_files.decode_files(chosen, *size, kind.channels, fit, False, like)
        if problems:
            raise UserError(f"{problems[0][0]} could be read at the start and cannot be now: {problems[0][1]}")
        return _checked(found, [hashes[i] for i in indices], list(map(decode.shown, chosen)))

    return LazyImages(read, (len(files), *size, kind.channels), np.dtype(kind.dtype), keep=True)
