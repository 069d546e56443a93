"""Packs images: decodes and resizes them once, and stores them as records of raw pixels (`formats/array_record.py`)."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np

from ganomaly_jax import __version__
from ganomaly_jax.core import atomic_files, config
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data import datasets, folders, lazy, sources
from ganomaly_jax.data.datasets import Dataset
from ganomaly_jax.data.formats import array_record
from ganomaly_jax.data.images import decode, scan
from ganomaly_jax.data.images import files as image_files
from ganomaly_jax.data.images import sources as image_sources


@dataclasses.dataclass(frozen=True)
class Packed:
    """A written file of packed images."""

    path: Path
    count: int
    """Number of images."""
    size: int
    """Size of the records in bytes."""
    shape: tuple[int, ...]
    """(height, width, channels)."""
    dtype: str
    """`uint8`, `uint16` or `float32`."""
    problems: tuple[tuple[str, str], ...]
    """(path, reason) of each file that could not be read and was left out."""


def pack(settings: config.Data, out: str | os.PathLike[str], progress: bool = False) -> Packed:
    """Writes images and their labels as OUT and OUT.json, replacing existing files.

    Folders and tfds:NAME are read a few images at a time, whatever their size.

    Args:
      settings: Source, size, channels and fit, as in a training. `abnormal` is needed only for folders whose names mean
        neither normal nor anomalous; a training may use another.
      out: File to write; its name must end in .array_record.
      progress: Whether to show a progress bar on standard error.

    Raises:
      UserError: The source cannot be used, none of its images can be read, or the file cannot be written.
    """
    out = Path(out)
    if not array_record.is_shard(out):
        raise UserError(f"{out}: expected a name that ends in .array_record")
    if not settings.source:
        raise UserError("nothing to pack: expected `ganomaly pack DIR OUT.array_record`, DIR a folder of images")
    found = sources.image_folder(settings.source)
    note = array_record.metadata_path(out)
    # The JSON file is written last: a shard without it is refused, and so is one with that of another shard.
    with atomic_files.replacing(note) as written, atomic_files.replacing(out) as shard:
        if found is None:
            dataset, checks = _stored(sources.read(settings, progress=progress), shard, out)
        else:
            dataset, checks = _folder(*found, settings, shard, out, progress)
        said = _note(dataset, checks, shard.stat().st_size, settings)
        again = dataclasses.replace(
            array_record.concatenate([array_record.Shard(shard, said)], dataset.name), digest=""
        )
        # The hash is computed from the file as written; it equals that of the images themselves.
        written.write_text(
            array_record.encode_metadata(said | {"data_hash": datasets.content_hash(again)}), encoding="utf-8"
        )
        for path in (shard, written):
            _to_disk(path)
        note.unlink(missing_ok=True)
    return Packed(
        out, len(checks), said["bytes"], tuple(said["shape"]), said["dtype"], tuple(map(tuple, said["problems"]))
    )


def _note(dataset: Dataset, checks: list[int], size: int, settings: config.Data) -> dict[str, Any]:
    """Returns the metadata of a shard."""
    return {
        "format": array_record.FORMAT,
        "bytes": size,
        "shape": list(dataset.images.shape[1:]),
        "dtype": str(dataset.images.dtype),
        "low": dataset.low,
        "high": dataset.high,
        "classes": list(dataset.classes),
        "normal": None if dataset.normal is None else sorted(dataset.normal),
        "labels": dataset.labels.tolist(),
        "parts": None if dataset.parts is None else dataset.parts.tolist(),
        "paths": list(dataset.paths),
        "checks": checks,
        "problems": [list(problem) for problem in dataset.problems],
        "made": {"by": f"ganomaly-jax {__version__}", "source": settings.source, "fit": settings.fit},
    }


def _stored(dataset: Dataset, shard: Path, out: Path) -> tuple[Dataset, list[int]]:
    """Writes the images of any source that is not a folder; returns the data set and the checksums."""
    with array_record.writer(shard, out) as write:
        return dataset, [write(image) for block in lazy.blocks(dataset.images) for image in block]


def _folder(
    items: list[folders.Item],
    normal: frozenset[str] | None,
    has_parts: bool,
    settings: config.Data,
    shard: Path,
    out: Path,
    progress: bool,
) -> tuple[Dataset, list[int]]:
    """Writes the images of a folder, again if a later image changes the common format; returns as `_stored`."""
    paths = [path for path, _, _ in items]
    height, width = image_sources.target_size(paths, settings)

    def decoded() -> contextlib.closing[Any]:
        return contextlib.closing(image_files.decode_each(paths, height, width, settings.fit))

    name = decode.shown(Path(settings.source).expanduser())
    kind: scan.PixelFormat | None = None
    while True:
        with decoded() as read, array_record.writer(shard, out) as write:
            shown = image_files.progress_bar(iter(read), len(paths), progress)
            seen, checks, kept, problems = scan.scan_images(paths, shown, settings.channels, kind, write)
        if not kept:
            first = "; ".join(f"{path}: {reason}" for path, reason in problems[:3])
            raise UserError(f"none of the {len(paths)} image files of {name} can be read: {first}")
        if kind is None and checks is None:  # the formats differ: convert all images to the common one
            kind = seen
            continue
        break
    assert seen is not None and checks is not None
    kind = kind or seen
    classes, labels, parts = image_sources.class_labels(items, np.array(kept), normal, has_parts)
    low, high = kind.span or (None, None)
    # The pixels are not needed any more, only shape and type.
    stand_in = np.broadcast_to(np.zeros((), kind.dtype), (len(kept), height, width, kind.channels))
    found = Dataset(
        stand_in, labels, classes, normal, parts, tuple(decode.shown(paths[i]) for i in kept), low, high,
        tuple(problems), name,
    )  # fmt: skip
    return found, checks


def _to_disk(path: Path) -> None:
    """Waits until a file is written to the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def describe(packed: Packed) -> str:
    """Returns a summary for the terminal: what was written, and each file that was left out."""
    height, width, channels = packed.shape
    lines = [
        f"{packed.count:,} images of {height} x {width} x {channels} {packed.dtype} in {packed.path}, "
        f"{packed.size / 2**20:,.1f} MiB"
    ]
    lines += itertools.starmap("left out: {}: {}".format, packed.problems)
    return "\n".join(lines)
