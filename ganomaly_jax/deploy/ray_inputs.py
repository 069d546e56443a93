"""Images in parts of a fixed number of rows, from image files, Parquet and ArrayRecord shards, read a block at a time.

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

# Rows a part: what a killed worker or a stopped run has to score again.
PART = 1024
BLOCK = 256  # images of a shard that are in memory at a time


@dataclasses.dataclass(frozen=True)
class Part:
    """Rows `start` to `stop` of a shard, or, with the kind `images`, so many files."""

    kind: str
    """`images`, `parquet`, `array_record` (encoded images) or `packed` (by `ganomaly pack`)."""
    names: tuple[str, ...]
    """The image files, or the one shard."""
    start: int
    stop: int

    @property
    def rows(self) -> int:
        return self.stop - self.start


@dataclasses.dataclass(frozen=True)
class Block:
    """Rows as they are read: `images` are file names, encoded images or pixels [n, H, W, C], `faults` those that could
    not be read."""

    names: list[str]
    labels: list[int | None]
    images: Sequence[str | bytes] | np.ndarray
    faults: Mapping[int, str] = dataclasses.field(default_factory=dict)


def list_parts(sources: Sequence[str], part_size: int = PART) -> list[Part]:
    """The input in parts, always the same for the same files: image files together, each shard by itself.

    Raises:
      UserError: no rows, a shard that cannot be read or has other columns, images and shards in one folder.
    """
    found: list[str] = []
    shards: list[tuple[str, str]] = []
    for source in sources:
        if "://" in source:
            raise UserError(f"{source}: wanted a path that all machines see, such as a bucket that is mounted")
        inside = _shards(Path(source)) if Path(source).is_dir() else []
        pictures = [str(path) for path in image_files.list_images(source)] if Path(source).is_dir() else []
        if inside and pictures:
            raise UserError(f"{source} holds both images ({pictures[0]}) and shards ({inside[0][1]}): wanted one kind")
        if not Path(source).is_dir():
            kind = _kind(source)
            (shards if kind else found).append((kind, source) if kind else source)  # type: ignore[arg-type]
        found += pictures
        shards += inside
    parts = [
        Part("images", tuple(found[i : i + part_size]), i, min(i + part_size, len(found)))
        for i in range(0, len(found), part_size)
    ]
    for kind, shard in shards:
        rows = {"parquet": _parquet_rows, "array_record": _records, "packed": _packed_rows}[kind](shard)
        parts += [Part(kind, (shard,), i, min(i + part_size, rows)) for i in range(0, rows, part_size)]
    if not parts:
        raise UserError(f"nothing to score in {', '.join(sources)}: wanted images, Parquet or ArrayRecord files")
    return parts


def _kind(name: str) -> str:
    if name.endswith(".parquet"):
        return "parquet"
    if not array_record.is_shard(name):
        return ""
    return "packed" if array_record.note_path(Path(name)).exists() else "array_record"


def _shards(folder: Path) -> list[tuple[str, str]]:
    names = (os.path.join(root, name) for root, _, inside in os.walk(folder) for name in inside if name[0] not in "._")
    return [(kind, name) for name in sorted(names) if (kind := _kind(name))]


def _parquet_rows(path: str) -> int:
    import pyarrow as pa

    try:
        file = package("pyarrow.parquet", "pyarrow").ParquetFile(path)
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
            f"{decode.shown(path)} has the columns {held}: wanted image (binary: PNG, JPEG, ... files) or path "
            "(string), and label (0 normal, 1 anomalous) if there are labels"
        )
    return rows


def _records(path: str) -> int:
    reader = package("array_record.python.array_record_module", "array_record").ArrayRecordReader(path)
    rows = reader.num_records() if reader.ok() else 0
    try:
        reader.close()  # says what was wrong from the beginning
    except RuntimeError as error:
        raise UserError(f"{decode.shown(path)} cannot be read as ArrayRecord: {last_line(error)}") from None
    return rows


def blocks(part: Part, base: str) -> Iterator[Block]:
    """The rows of a part; those of a shard a block at a time."""
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
    except (OSError, RuntimeError, ValueError) as error:  # as pyarrow and array_record tell of damage
        if isinstance(error, UserError):
            raise
        reason = f"damaged shard: {last_line(error)}"
        for i in range(at, part.stop, BLOCK):
            names = [f"{shard}[{k}]" for k in range(i, min(i + BLOCK, part.stop))]
            yield Block(names, [None] * len(names), [b""] * len(names), dict.fromkeys(range(len(names)), reason))


def _parquet_blocks(shard: str, path: str, start: int, stop: int) -> Iterator[Block]:
    with package("pyarrow.parquet", "pyarrow").ParquetFile(path) as file:
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
    labels = rows.get("label", [None] * count)
    names = [name or f"{shard}[{first + i}]" for i, name in enumerate(rows.get("path", [None] * count))]
    for name, label in zip(names, labels, strict=True):
        if label not in (None, 0, 1):
            raise UserError(f"{name} has the label {label}: wanted 0 normal, 1 anomalous, or null")
    given = rows.get("image") or [name and os.path.join(folder, name) for name in rows["path"]]
    faults = {i: "no image: null" for i, item in enumerate(given) if item is None}
    known = [None if label is None else int(label) for label in labels]
    return Block(names, known, [item or b"" for item in given], faults)


def _record_blocks(shard: str, path: str, start: int, stop: int) -> Iterator[Block]:
    module = package("array_record.python.array_record_module", "array_record")
    reader = module.ArrayRecordReader(path)
    try:
        for first in range(start, stop, BLOCK):
            wanted = range(first, min(first + BLOCK, stop))
            names = [f"{shard}[{i}]" for i in wanted]
            yield Block(names, [None] * len(names), reader.read(list(wanted)))
    finally:
        reader.close()


def _packed_rows(path: str) -> int:
    package("array_record.python.array_record_module", "array_record")
    return len(array_record.opened(Path(path)).note["labels"])


def _packed_blocks(shard: str, path: str, start: int, stop: int) -> Iterator[Block]:
    """Labels are those that the source of the packed images says itself, if it does."""
    dataset = array_record.joined([array_record.opened(Path(path))], shard)
    normal = dataset.normal
    for first in range(start, stop, BLOCK):
        rows = range(first, min(first + BLOCK, stop))
        words = [dataset.classes[dataset.labels[i]] for i in rows]
        labels = [None if normal is None else int(word not in normal) for word in words]
        yield Block([dataset.paths[i] for i in rows], labels, dataset.images[rows.start : rows.stop])


@contextlib.contextmanager
def as_files(given: Sequence[str | bytes]) -> Iterator[list[str]]:
    """File names, and encoded images as files in memory: there is one way to read an image, and it opens a file."""
    held: list[int] = []
    try:
        paths = []
        for item in given:
            if isinstance(item, bytes):
                held.append(os.memfd_create("image"))
                with open(held[-1], "wb", closefd=False) as file:
                    file.write(item)
                item = f"/proc/self/fd/{held[-1]}"
            paths.append(item)
        yield paths
    finally:
        for descriptor in held:
            os.close(descriptor)


def package(module: str, package: str) -> Any:
    try:
        with quiet():
            return importlib.import_module(module)
    except ImportError as error:
        extra = "'ganomaly-jax[ray]'" if package != "array_record" else "array_record"
        raise UserError(f"--engine ray: {package} is missing ({error}): python -m pip install {extra}") from None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
