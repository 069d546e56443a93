"""`ganomaly pack`: images decoded and brought to the network's size once, as records of raw pixels (`records.py`)."""

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
    """What was written."""

    path: Path
    count: int
    size: int
    """Bytes of the records."""
    shape: tuple[int, ...]
    dtype: str
    problems: tuple[tuple[str, str], ...]
    """(path, reason) of each file that could not be read and was left out."""


def pack(settings: config.Data, out: str | os.PathLike[str], progress: bool = False) -> Packed:
    """Writes the images of `settings.source` and their labels as OUT and OUT.json, replacing existing files.

    A folder is read a few images at a time, whatever its size, and so is tfds:NAME. `height`, `width`, `channels` and
    `fit` count as in a training; `abnormal` is left to it, but for folders whose words are not understood.

    Raises:
      UserError: a source that cannot be used, nothing that can be read, a file that cannot be written.
    """
    out = Path(out)
    if not array_record.is_shard(out):
        raise UserError(f"{out}: expected a name that ends in .array_record")
    if not settings.source:
        raise UserError("nothing to pack: expected `ganomaly pack DIR OUT.array_record`, DIR a folder of images")
    found = sources.image_folder(settings.source)
    note = array_record.metadata_path(out)
    # The JSON file last: a shard without it is no data set, one with another's is noticed.
    with atomic_files.replacing(note) as written, atomic_files.replacing(out) as shard:
        if found is None:
            dataset, checks = _stored(sources.read(settings, progress=progress), shard, out)
        else:
            dataset, checks = _folder(*found, settings, shard, out, progress)
        said = _note(dataset, checks, shard.stat().st_size, settings)
        again = dataclasses.replace(
            array_record.concatenate([array_record.Shard(shard, said)], dataset.name), digest=""
        )
        # Read once more: the hash is that of what lies on the disk, and the same as that of the images themselves.
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
    """Images of another source than a folder."""
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
    """Returns the images of a folder, with dtype and channels of the first unless a later one differs."""
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
        if kind is None and checks is None:  # they differ: all once more, now that it is known how
            kind = seen
            continue
        break
    assert seen is not None and checks is not None
    kind = kind or seen
    classes, labels, parts = image_sources.class_labels(items, np.array(kept), normal, has_parts)
    low, high = kind.span or (None, None)
    # Only what is said of them is asked of these images.
    stand_in = np.broadcast_to(np.zeros((), kind.dtype), (len(kept), height, width, kind.channels))
    found = Dataset(
        stand_in, labels, classes, normal, parts, tuple(decode.shown(paths[i]) for i in kept), low, high,
        tuple(problems), name,
    )  # fmt: skip
    return found, checks


def _to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def describe(packed: Packed) -> str:
    """Lines for the terminal: what was written, and each file that was left out."""
    height, width, channels = packed.shape
    lines = [
        f"{packed.count:,} images of {height} x {width} x {channels} {packed.dtype} in {packed.path}, "
        f"{packed.size / 2**20:,.1f} MiB"
    ]
    lines += itertools.starmap("left out: {}: {}".format, packed.problems)
    return "\n".join(lines)
