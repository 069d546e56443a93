"""Packed images: ArrayRecord shards of raw pixels, each with a JSON file beside it that says what they are.

A record is one image, its pixels in C order, little-endian, as they go into the network: nothing is decoded or resized
any more. Labels, classes and parts are in the JSON file alone. array_record is imported on use.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib
import json
import re
import threading
import warnings
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ganomaly_jax.core import config
from ganomaly_jax.core.errors import DamagedError, UserError, last_line
from ganomaly_jax.data.datasets import Dataset
from ganomaly_jax.data.lazy import LazyImages, wanted

FORMAT = 1
# Single images are read, in no order: what lies beside them is of no use.
_READER = {"options": "readahead_buffer_size:0", "file_reader_buffer_size": 32768}
_SHARD = re.compile(r"[^.].*\.array_?record(?:-\d+-of-\d+)?$")


@dataclasses.dataclass(frozen=True, eq=False)
class Shard:
    """One file of records, and what the JSON file beside it says."""

    path: Path
    note: dict[str, Any]


def is_shard(path: str | Path) -> bool:
    """Returns True for names of shards: `X.array_record`, `X.array_record-00000-of-00004`."""
    return bool(_SHARD.fullmatch(Path(path).name))


def shards_in(folder: Path) -> list[Path]:
    """Returns the shards in a folder, by name."""
    return sorted(path for path in folder.iterdir() if is_shard(path))


def note_path(shard: Path) -> Path:
    """Returns the JSON file that belongs to a shard."""
    return shard.with_name(shard.name + ".json")


def encode(note: dict[str, Any]) -> str:
    """Returns the text of that file, with a sha256 of its other content."""
    return json.dumps(note | {"sha256": _sum(note)}, allow_nan=False, separators=(",", ":"))


def load(paths: Sequence[Path], settings: config.Data, name: str, shared: bool = False) -> Dataset:
    """Loads packed images of some shards as one data set, read on demand as `settings.stream` says.

    `shared`: by all processes of a training, each of which reads those that it needs.

    Raises:
      UserError: no JSON file beside a shard, shards of different images, another size than `settings` asks for.
      DamagedError: a shard or its JSON file is incomplete or was altered.
    """
    dataset = joined([opened(path) for path in paths], name)
    _, *size = dataset.images.shape
    asked = [settings.height or size[0], settings.width or size[1], settings.channels or size[2]]
    if asked != size:
        keys = ("height", "width", "channels")
        how = " ".join(f"--config.data.{key}={value}" for key, value in zip(keys, asked, strict=True))
        raise UserError(
            f"{name} was packed at {'x'.join(map(str, size))}, asked are {'x'.join(map(str, asked))}: pack the images "
            f"again with {how}, or leave these keys out"
        )
    assert isinstance(dataset.images, LazyImages)
    if wanted(settings.stream, dataset.images.nbytes):
        return dataset
    held = dataclasses.replace(dataset.images, keep=True) if shared else dataset.images[:]
    return dataclasses.replace(dataset, images=held)


def joined(shards: Sequence[Shard], name: str) -> Dataset:
    """Shards one after the other, unread."""
    first = shards[0].note
    for shard in shards[1:]:
        for key in ("shape", "dtype", "low", "high"):
            if shard.note[key] != first[key]:
                raise UserError(
                    f"{name} holds shards of different images: {key} is {first[key]} in {shards[0].path.name} and "
                    f"{shard.note[key]} in {shard.path.name}; expected shards that were packed in the same way"
                )
        if (shard.note["parts"] is None) != (first["parts"] is None):
            raise UserError(f"{name} holds shards with and without a train and a test part: expected one kind")
    classes = list(dict.fromkeys(word for shard in shards for word in shard.note["classes"]))
    labels = [classes.index(shard.note["classes"][i]) for shard in shards for i in shard.note["labels"]]
    normals = [shard.note["normal"] for shard in shards]
    parts = None if first["parts"] is None else [part for shard in shards for part in shard.note["parts"]]
    dtype = np.dtype(first["dtype"])
    counts = [len(shard.note["labels"]) for shard in shards]
    hashes = [shard.note.get("data_hash", "") for shard in shards]
    together = hashlib.sha256(" ".join(hashes).encode()).hexdigest()
    return Dataset(
        images=LazyImages(_reading(shards, counts, dtype), (sum(counts), *first["shape"]), dtype),
        labels=np.array(labels, np.int64),
        classes=tuple(classes),
        normal=None if None in normals else frozenset(word for words in normals for word in words),
        parts=None if parts is None else np.array(parts, np.int8),
        paths=tuple(path for shard in shards for path in shard.note["paths"]),
        low=first["low"],
        high=first["high"],
        problems=tuple((path, reason) for shard in shards for path, reason in shard.note["problems"]),
        name=name,
        digest=hashes[0] if len(hashes) == 1 else together,
    )


def check(image: bytes) -> int:
    """Returns the checksum of a record for its JSON file."""
    return zlib.crc32(image)


def module() -> Any:
    """Imports array_record's module of readers and writers.

    Raises:
      UserError: it is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module("array_record.python.array_record_module")
    except ImportError as error:
        raise UserError(
            f"packed images need array_record ({error}): python -m pip install 'ganomaly-jax[data]'"
        ) from None


def _sum(note: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(note, sort_keys=True).encode()).hexdigest()


def opened(path: Path) -> Shard:
    """Opens a packed shard, checking its JSON file and its size.

    Raises:
      UserError, DamagedError: as `load`.
    """
    size, note = path.stat().st_size, note_path(path)
    try:
        said = json.loads(note.read_text(encoding="utf-8"))
        good = isinstance(said, dict) and said.pop("sha256", "") == _sum(said)
    except FileNotFoundError:
        raise UserError(
            f"{path} has no {note.name} beside it, which says what its records are: `ganomaly pack DIR {path.name}` "
            "writes both, and both have to be moved"
        ) from None
    except (ValueError, RecursionError):
        good = False
    if not good:
        raise DamagedError(f"{note} was altered or cut short: pack the images again")
    if said.get("format") != FORMAT:
        raise UserError(f"{note} is of format {said.get('format')}, expected {FORMAT}: pack the images again")
    if size != said["bytes"]:
        raise DamagedError(
            f"{path} has {size:,} bytes where {note.name} says {said['bytes']:,}: cut short, or another file; pack the "
            "images again"
        )
    return Shard(path, said)


def _reading(shards: Sequence[Shard], counts: Sequence[int], dtype: np.dtype) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the `read` of `LazyImages` over these shards, each opened when first needed."""
    ends = np.cumsum(counts)
    shape = tuple(shards[0].note["shape"])
    size = int(np.prod(shape)) * dtype.itemsize
    opened: dict[int, Any] = {}
    lock = threading.Lock()

    def reader(s: int) -> Any:
        with lock:
            if s not in opened:
                opened[s] = module().ArrayRecordReader(str(shards[s].path), **_READER)
            return opened[s]

    def read(indices: np.ndarray) -> np.ndarray:
        images = np.empty((len(indices), *shape), dtype)
        of = np.searchsorted(ends, indices, side="right")
        for s in np.unique(of).tolist():
            at, shard = np.flatnonzero(of == s), shards[s]
            own = (indices[at] - (ends[s] - counts[s])).tolist()
            try:
                found = reader(s).read(own)
            except (RuntimeError, ValueError, IndexError, OSError) as error:
                if isinstance(error, UserError):
                    raise
                raise DamagedError(f"{shard.path} is damaged: {last_line(error)}; pack the images again") from None
            for place, i, record in zip(at, own, found, strict=True):
                if len(record) != size or check(record) != shard.note["checks"][i]:
                    raise DamagedError(f"{shard.path} is damaged: record {i} was altered; pack the images again")
                images[place] = np.frombuffer(record, dtype.newbyteorder("<")).reshape(shape)
        return images

    return read


@contextlib.contextmanager
def writer(path: Path, shown: Path) -> Any:
    """Yields `write(image)` for images of one shape and dtype in a new shard; it returns their checksums.

    Raises:
      UserError: the file cannot be written.
    """
    try:
        # One record a group, so that each can be read alone; pixels hardly shrink, and are read faster as they are.
        into = module().ArrayRecordWriter(str(path), "group_size:1,uncompressed")

        def write(image: np.ndarray) -> int:
            record = np.ascontiguousarray(image.astype(image.dtype.newbyteorder("<"), copy=False)).tobytes()
            into.write(record)
            return check(record)

        try:
            yield write
        finally:
            into.close()
    except (RuntimeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{shown} cannot be written: {last_line(error)}; choose another folder or make room") from None
