"""Parts of a fixed number of images from image files, Parquet and ArrayRecord shards, read a block at a time.

pyarrow and array_record are imported on use.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ganomaly_jax.core.errors import UserError, last_line
from ganomaly_jax.data.formats import array_record
from ganomaly_jax.data.images import decode
from ganomaly_jax.data.images import files as image_files

# Rows per part, which a killed worker or a stopped run has to score again.
PART = 1024
BLOCK = 256  # images of a shard that are in memory at a time


@dataclasses.dataclass(frozen=True)
class Part:
    """Rows of a shard, or some image files.

    Attributes:
      kind: `images`, `parquet`, `array_record` (encoded images) or `packed` (by `ganomaly pack`).
      names: the image files, or the shard.
      start: first row.
      stop: row after the last.
    """

    kind: str
    names: tuple[str, ...]
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """Returns the number of rows."""
        return self.stop - self.start


@dataclasses.dataclass(frozen=True)
class Block:
    """Rows that were read together.

    Attributes:
      names: names of the rows.
      labels: labels, None if unknown.
      images: file names, encoded images, or pixels [n, H, W, C].
      faults: reasons by index of rows that could not be read.
    """

    names: list[str]
    labels: list[int | None]
    images: Sequence[str | bytes] | np.ndarray
    faults: Mapping[int, str] = dataclasses.field(default_factory=dict)


def list_parts(sources: Sequence[str], part_size: int = PART) -> list[Part]:
    """Cuts the input into parts, deterministically: image files together, each shard by itself.

    Args:
      sources: files and folders.
      part_size: rows per part at most.

    Raises:
      UserError: there are no rows, a shard cannot be read or has other columns, or a folder holds images and shards.
    """
    found: list[str] = []
    shards: list[tuple[str, str]] = []
    for source in sources:
        if "://" in source:
            raise UserError(f"{source}: expected a path that all machines see, such as a mounted bucket")
        inside = _shards(Path(source)) if Path(source).is_dir() else []
        images = [str(path) for path in image_files.list_images(source)] if Path(source).is_dir() else []
        if inside and images:
            raise UserError(f"{source} holds both images ({images[0]}) and shards ({inside[0][1]}): expected one kind")
        if not Path(source).is_dir():
            kind = _kind(source)
            (shards if kind else found).append((kind, source) if kind else source)  # type: ignore[arg-type]
        found += images
        shards += inside
    parts = [
        Part("images", tuple(found[i : i + part_size]), i, min(i + part_size, len(found)))
        for i in range(0, len(found), part_size)
    ]
    for kind, shard in shards:
        rows = {"parquet": _parquet_rows, "array_record": _records, "packed": _packed_rows}[kind](shard)
        parts += [Part(kind, (shard,), i, min(i + part_size, rows)) for i in range(0, rows, part_size)]
    if not parts:
        raise UserError(f"nothing to score in {', '.join(sources)}: expected images, Parquet or ArrayRecord files")
    return parts


def _kind(name: str) -> str:
    """Returns the kind of a shard by its name; empty for other files."""
    if name.endswith(".parquet"):
        return "parquet"
    if not array_record.is_shard(name):
        return ""
    return "packed" if array_record.metadata_path(Path(name)).exists() else "array_record"


def _shards(folder: Path) -> list[tuple[str, str]]:
    """Returns (kind, path) of all shards below a folder."""
    names = (os.path.join(root, name) for root, _, inside in os.walk(folder) for name in inside if name[0] not in "._")
    return [(kind, name) for name in sorted(names) if (kind := _kind(name))]


def _parquet_rows(path: str) -> int:
    """Returns the number of rows of a Parquet shard, after checking its columns."""
    import pyarrow as pa

    try:
        file = import_package("pyarrow.parquet", "pyarrow").ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{decode.shown(path)} cannot be read as Parquet: {last_line(error)}") from None
    with file:
        schema, rows = file.schema_arrow, file.metadata.num_rows
    types = {name: schema.field(name).type for name in ("image", "path", "label") if name in schema.names}
    held = ", ".join(f"{field.name} ({field.type})" for field in schema)
    wanted = (
        ("image", types.get("image"), (pa.types.is_binary, pa.types.is_large_binary)),
        ("path", types.get("path"), (pa.types.is_string, pa.types.is_large_string)),
        ("label", types.get("label"), (pa.types.is_integer, pa.types.is_boolean, pa.types.is_null)),
    )
    good = all(kind is None or any(check(kind) for check in checks) for _, kind, checks in wanted)
    if not good or not {"image", "path"} & set(types):
        raise UserError(
            f"{decode.shown(path)} has the columns {held}: expected image (binary: PNG, JPEG, ... files) or path "
            "(string), and label (0 normal, 1 anomalous) if there are labels"
        )
    return rows


def _records(path: str) -> int:
    """Returns the number of records of an ArrayRecord shard."""
    reader = import_package("array_record.python.array_record_module", "array_record").ArrayRecordReader(path)
    rows = reader.num_records() if reader.ok() else 0
    try:
        reader.close()  # raises what was wrong from the beginning
    except RuntimeError as error:
        raise UserError(f"{decode.shown(path)} cannot be read as ArrayRecord: {last_line(error)}") from None
    return rows


def blocks(part: Part, base: str) -> Iterator[Block]:
    """Yields the rows of a part; of a shard in blocks, of which damaged ones have faults."""
    if part.kind == "images":
        yield Block(list(part.names), [None] * part.rows, [os.path.join(base, name) for name in part.names])
        return
    shard = part.names[0]
    read = {"parquet": _parquet_blocks, "array_record": _record_blocks, "packed": _packed_blocks}[part.kind]
    at = part.start
    try:
        for block in read(shard, os.path.join(base, shard), part.start, part.stop):
            at += len(block.names)
            yield block
    except (OSError, RuntimeError, ValueError) as error:  # how pyarrow and array_record report damage
        if isinstance(error, UserError):
            raise
        reason = f"damaged shard: {last_line(error)}"
        for i in range(at, part.stop, BLOCK):
            names = [f"{shard}[{k}]" for k in range(i, min(i + BLOCK, part.stop))]
            yield Block(names, [None] * len(names), [b""] * len(names), dict.fromkeys(range(len(names)), reason))


def _parquet_blocks(shard: str, path: str, start: int, stop: int) -> Iterator[Block]:
    """Yields the rows of a Parquet shard."""
    with import_package("pyarrow.parquet", "pyarrow").ParquetFile(path) as file:
        sizes = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
        ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
        groups = [i for i, end in enumerate(ends) if end > start and end - sizes[i] < stop]
        at = ends[groups[0]] - sizes[groups[0]]
        columns = [name for name in ("image", "path", "label") if name in file.schema_arrow.names]
        for batch in file.iter_batches(BLOCK, groups, columns):
            rows = batch.slice(max(start - at, 0), max(min(stop - at, len(batch)) - max(start - at, 0), 0)).to_pydict()
            first, count = max(start, at), len(rows[columns[0]])
            at += len(batch)
            if count:
                yield _parquet_block(shard, os.path.dirname(path), first, count, rows)


def _parquet_block(shard: str, folder: str, first: int, count: int, rows: dict[str, list[Any]]) -> Block:
    """Returns a block of these rows of a Parquet shard."""
    labels = rows.get("label", [None] * count)
    names = [name or f"{shard}[{first + i}]" for i, name in enumerate(rows.get("path", [None] * count))]
    for name, label in zip(names, labels, strict=True):
        if label not in (None, 0, 1):
            raise UserError(f"{name} has the label {label}: expected 0 normal, 1 anomalous, or null")
    images = rows.get("image") or [name and os.path.join(folder, name) for name in rows["path"]]
    faults = {i: "no image: null" for i, item in enumerate(images) if item is None}
    known = [None if label is None else int(label) for label in labels]
    return Block(names, known, [item or b"" for item in images], faults)


def _record_blocks(shard: str, path: str, start: int, stop: int) -> Iterator[Block]:
    """Yields the rows of an ArrayRecord shard of encoded images."""
    module = import_package("array_record.python.array_record_module", "array_record")
    reader = module.ArrayRecordReader(path)
    try:
        for first in range(start, stop, BLOCK):
            wanted = range(first, min(first + BLOCK, stop))
            names = [f"{shard}[{i}]" for i in wanted]
            yield Block(names, [None] * len(names), reader.read(list(wanted)))
    finally:
        reader.close()


def _packed_rows(path: str) -> int:
    """Returns the number of rows of a packed shard."""
    import_package("array_record.python.array_record_module", "array_record")
    return len(array_record.open_shard(Path(path)).metadata["labels"])


def _packed_blocks(shard: str, path: str, start: int, stop: int) -> Iterator[Block]:
    """Yields the rows of a packed shard; labels are those of its source, if that says which classes are normal."""
    dataset = array_record.concatenate([array_record.open_shard(Path(path))], shard)
    normal = dataset.normal
    for first in range(start, stop, BLOCK):
        rows = range(first, min(first + BLOCK, stop))
        words = [dataset.classes[dataset.labels[i]] for i in rows]
        labels = [None if normal is None else int(word not in normal) for word in words]
        yield Block([dataset.paths[i] for i in rows], labels, dataset.images[rows.start : rows.stop])


@contextlib.contextmanager
def as_files(images: Sequence[str | bytes]) -> Iterator[list[str]]:
    """Yields file names, with encoded images as files in memory, since images are read from files only."""
    descriptors: list[int] = []
    try:
        paths = []
        for item in images:
            if isinstance(item, bytes):
                descriptors.append(os.memfd_create("image"))
                with open(descriptors[-1], "wb", closefd=False) as file:
                    file.write(item)
                item = f"/proc/self/fd/{descriptors[-1]}"
            paths.append(item)
        yield paths
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def import_package(module: str, package: str) -> Any:
    """Imports a module of an optional package.

    Raises:
      UserError: it is not installed.
    """
    try:
        with without_warnings():
            return importlib.import_module(module)
    except ImportError as error:
        extra = "'ganomaly-jax[ray]'" if package != "array_record" else "array_record"
        raise UserError(f"--engine ray needs {package} ({error}): pip install {extra}") from None


@contextlib.contextmanager
def without_warnings() -> Iterator[None]:
    """Ignores warnings inside the context."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
