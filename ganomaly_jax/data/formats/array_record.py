"""Packed images: ArrayRecord shards of raw pixels, each with a JSON file of metadata beside it.

A record is one image: its pixels in C order, little-endian, at the size of the network, so that nothing has to be
decoded or resized. Labels, classes and parts are in the JSON file. array_record is imported on use.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib
import json
import math
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
# Images are read one at a time in random order, so that reading ahead would be wasted.
_READER = {"options": "readahead_buffer_size:0", "file_reader_buffer_size": 32768}
_KEYS = (
    "bytes",
    "shape",
    "dtype",
    "low",
    "high",
    "classes",
    "normal",
    "labels",
    "parts",
    "paths",
    "checks",
    "problems",
)
_SHARD = re.compile(r"[^.].*\.array_?record(?:-\d+-of-\d+)?$")


@dataclasses.dataclass(frozen=True, eq=False)
class Shard:
    """A file of records with its metadata."""

    path: Path
    metadata: dict[str, Any]
    """Content of the JSON file beside it, without the checksum of that file."""


def is_shard(path: str | Path) -> bool:
    """Returns whether a name is that of a shard: `X.array_record` or `X.array_record-00000-of-00004`."""
    return bool(_SHARD.fullmatch(Path(path).name))


def shards_in(folder: Path) -> list[Path]:
    """Returns the shards in a folder, sorted by name."""
    return sorted(path for path in folder.iterdir() if is_shard(path))


def metadata_path(shard: Path) -> Path:
    """Returns the path of the JSON file beside a shard."""
    return shard.with_name(shard.name + ".json")


def encode_metadata(metadata: dict[str, Any]) -> str:
    """Returns the text of a shard's JSON file, with a SHA-256 of the metadata."""
    return json.dumps(metadata | {"sha256": _metadata_hash(metadata)}, allow_nan=False, separators=(",", ":"))


def load(paths: Sequence[Path], settings: config.Data, name: str, shared: bool = False) -> Dataset:
    """Loads shards of packed images as one data set.

    Args:
      paths: The shards.
      settings: Size, checked against that of the images; and `stream`, whether images are read on demand.
      name: Name of the data set for messages.
      shared: Whether all processes of a training call this, each reading the images that it needs.

    Raises:
      UserError: A shard has no JSON file, shards hold images of different kinds, or the images have another size than
        `settings` asks for.
      DamagedError: A shard or its JSON file is incomplete or was altered.
    """
    dataset = concatenate([open_shard(path) for path in paths], name)
    _, *size = dataset.images.shape
    requested = [settings.height or size[0], settings.width or size[1], settings.channels or size[2]]
    if requested != size:
        keys = ("height", "width", "channels")
        options = " ".join(f"--config.data.{key}={value}" for key, value in zip(keys, requested, strict=True))
        raise UserError(
            f"{name} was packed at {'x'.join(map(str, size))}, expected {'x'.join(map(str, requested))}: pack "
            f"the images again with {options}, or leave these keys out"
        )
    assert isinstance(dataset.images, LazyImages)
    if wanted(settings.stream, dataset.images.nbytes):
        return dataset
    held = dataclasses.replace(dataset.images, keep=True) if shared else dataset.images[:]
    return dataclasses.replace(dataset, images=held)


def concatenate(shards: Sequence[Shard], name: str) -> Dataset:
    """Concatenates shards to one data set whose images are read on demand.

    Raises:
      UserError: The shards differ in shape, type or range, or only some have parts.
    """
    first = shards[0].metadata
    for shard in shards[1:]:
        for key in ("shape", "dtype", "low", "high"):
            if shard.metadata[key] != first[key]:
                raise UserError(
                    f"{name} holds shards of different images: {key} is {first[key]} in {shards[0].path.name} and "
                    f"{shard.metadata[key]} in {shard.path.name}: expected shards that were packed in the same way"
                )
        if (shard.metadata["parts"] is None) != (first["parts"] is None):
            raise UserError(
                f"{name} holds shards with and without a training and a test part: pack all images in the same way"
            )
    classes = list(dict.fromkeys(word for shard in shards for word in shard.metadata["classes"]))
    labels = [classes.index(shard.metadata["classes"][i]) for shard in shards for i in shard.metadata["labels"]]
    normals = [shard.metadata["normal"] for shard in shards]
    parts = None if first["parts"] is None else [part for shard in shards for part in shard.metadata["parts"]]
    dtype = np.dtype(first["dtype"])
    counts = [len(shard.metadata["labels"]) for shard in shards]
    hashes = [shard.metadata.get("data_hash", "") for shard in shards]
    together = hashlib.sha256(" ".join(hashes).encode()).hexdigest()
    return Dataset(
        images=LazyImages(_reader(shards, counts, dtype), (sum(counts), *first["shape"]), dtype),
        labels=np.array(labels, np.int64),
        classes=tuple(classes),
        normal=None if None in normals else frozenset(word for words in normals for word in words),
        parts=None if parts is None else np.array(parts, np.int8),
        paths=tuple(path for shard in shards for path in shard.metadata["paths"]),
        low=first["low"],
        high=first["high"],
        problems=tuple((path, reason) for shard in shards for path, reason in shard.metadata["problems"]),
        name=name,
        digest=hashes[0] if len(hashes) == 1 else together,
    )


def checksum(image: bytes) -> int:
    """Returns the CRC-32 of a record, which is stored in the metadata."""
    return zlib.crc32(image)


def module() -> Any:
    """Imports the module with the readers and writers of array_record.

    Raises:
      UserError: array_record is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module("array_record.python.array_record_module")
    except ImportError as error:
        raise UserError(
            f"packed images need array_record ({error}): python -m pip install 'ganomaly-jax[data]'"
        ) from None


def _metadata_hash(metadata: dict[str, Any]) -> str:
    """Returns the SHA-256 of metadata in hexadecimal."""
    return hashlib.sha256(json.dumps(metadata, sort_keys=True).encode()).hexdigest()


def open_shard(path: Path) -> Shard:
    """Opens a shard after checking its JSON file and its size; errors as `load`."""
    size, beside = path.stat().st_size, metadata_path(path)
    try:
        metadata = json.loads(beside.read_text(encoding="utf-8"))
        intact = isinstance(metadata, dict) and metadata.pop("sha256", "") == _metadata_hash(metadata)
    except FileNotFoundError:
        raise UserError(
            f"{path} has no {beside.name} beside it, which describes its records: `ganomaly pack DIR {path.name}` "
            "writes both files; move them together"
        ) from None
    except (ValueError, RecursionError):
        intact = False
    if not intact:
        raise DamagedError(f"{beside} was altered or cut short: pack the images again")
    if metadata.get("format") != FORMAT:
        raise UserError(f"{beside} has format {metadata.get('format')}, expected {FORMAT}: pack the images again")
    wrong = _wrong(metadata)
    if wrong:
        raise DamagedError(
            f"{beside} was not written by `ganomaly pack`: unexpected value of {wrong}; pack the images again"
        )
    if size != metadata["bytes"]:
        raise DamagedError(
            f"{path} has {size:,} bytes, expected {metadata['bytes']:,} according to {beside.name}: it was cut short "
            "or replaced; pack the images again"
        )
    return Shard(path, metadata)


def _wrong(metadata: dict[str, Any]) -> str:
    """Returns the first key of the metadata with an impossible value; empty if there is none.

    A valid checksum shows that the metadata are undamaged, not who wrote them.
    """

    def words(value: Any) -> bool:
        return isinstance(value, list) and all(isinstance(word, str) for word in value)

    def numbers(value: Any, below: int, count: int) -> bool:
        sized = isinstance(value, list) and len(value) == count
        return sized and all(type(number) is int and 0 <= number < below for number in value)

    held = {key: metadata.get(key, 0) for key in _KEYS}
    n = len(held["labels"]) if isinstance(held["labels"], list) else 1
    width = {"uint8": 1, "uint16": 2, "float32": 4}.get(str(held["dtype"]), 0)
    sized = numbers(held["shape"], 2**31, 3) and numbers([held["bytes"]], 2**63, 1)
    low, high = held["low"], held["high"]
    finite = all(type(end) in (int, float) and abs(end) < 1e300 for end in (low, high))
    problems = held["problems"]
    valid = {
        "dtype": width > 0,
        # Records are not compressed: a few bytes cannot be so many pixels.
        "shape": sized and 0 < math.prod(held["shape"]) * n * width <= held["bytes"],
        "low": (low is None and high is None) or (finite and low < high),
        "classes": words(held["classes"]),
        "normal": held["normal"] is None or words(held["normal"]),
        "labels": words(held["classes"]) and numbers(held["labels"], len(held["classes"]), n),
        "parts": held["parts"] is None or numbers(held["parts"], 2, n),
        "paths": words(held["paths"]) and len(held["paths"]) == n,
        "checks": numbers(held["checks"], 2**32, n),
        "problems": isinstance(problems, list) and all(words(one) and len(one) == 2 for one in problems),
        "data_hash": isinstance(metadata.get("data_hash", ""), str),
    }
    return next((key for key, is_valid in valid.items() if not is_valid), "")


def _reader(shards: Sequence[Shard], counts: Sequence[int], dtype: np.dtype) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the function `LazyImages.read` for shards, each of which is opened when first needed."""
    ends = np.cumsum(counts)
    shape = tuple(shards[0].metadata["shape"])
    size = int(np.prod(shape)) * dtype.itemsize
    opened: dict[int, Any] = {}
    lock = threading.Lock()

    def open_reader(s: int) -> Any:
        with lock:
            if s not in opened:
                opened[s] = module().ArrayRecordReader(str(shards[s].path), **_READER)
            return opened[s]

    def read(indices: np.ndarray) -> np.ndarray:
        images = np.empty((len(indices), *shape), dtype)
        owner = np.searchsorted(ends, indices, side="right")
        for s in np.unique(owner).tolist():
            places, shard = np.flatnonzero(owner == s), shards[s]
            inside = (indices[places] - (ends[s] - counts[s])).tolist()
            try:
                records = open_reader(s).read(inside)
            except (RuntimeError, ValueError, IndexError, OSError) as error:
                if isinstance(error, UserError):
                    raise
                raise DamagedError(f"{shard.path} is damaged: {last_line(error)}; pack the images again") from None
            for place, i, record in zip(places, inside, records, strict=True):
                if len(record) != size or checksum(record) != shard.metadata["checks"][i]:
                    raise DamagedError(f"{shard.path} is damaged: record {i} was altered; pack the images again")
                images[place] = np.frombuffer(record, dtype.newbyteorder("<")).reshape(shape)
        return images

    return read


@contextlib.contextmanager
def writer(path: Path, shown: Path) -> Any:
    """Yields a function that appends an image to a new shard and returns its checksum.

    Args:
      path: File to write.
      shown: Path that messages show.

    Raises:
      UserError: The file cannot be written.
    """
    try:
        # One record per group, so that each can be read alone; uncompressed, since pixels hardly shrink.
        into = module().ArrayRecordWriter(str(path), "group_size:1,uncompressed")

        def write(image: np.ndarray) -> int:
            record = np.ascontiguousarray(image.astype(image.dtype.newbyteorder("<"), copy=False)).tobytes()
            into.write(record)
            return checksum(record)

        try:
            yield write
        finally:
            into.close()
    except (RuntimeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{shown} cannot be written: {last_line(error)}; choose another folder or free disk space"
        ) from None
