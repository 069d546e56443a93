"""Reads files that hold all images in one array: npz, npy and idx.

Where several processes of a training read them, npy and idx files are mapped into memory, so that each process loads
only the pages it uses. An npz file is read whole.
"""

from __future__ import annotations

import gzip
import math
import os
import re
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from ganomaly_jax.core import memory
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.core.printable import printable
from ganomaly_jax.data.datasets import PARTS, Dataset, from_arrays
from ganomaly_jax.data.images.decode import shown

ENDINGS = (".npz", ".npy")
IDX = re.compile(r"(.*)(train|test|t10k)-images[-.]idx3-ubyte(\.gz)?")
MAX_BYTES = 2**34
"""Maximum size of the arrays of a file in bytes."""
MAX_MEMBERS = 1000
"""Maximum number of arrays in an npz file."""
_IDX_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
_MAX_DIMENSIONS = 8
# The largest compression factor of Deflate.
_MAX_COMPRESSION = 1032
# Above this size, data with a larger compression factor are treated as an attack on memory.
_SUSPECT_BYTES, _SUSPECT_COMPRESSION = 2**28, 100


def regular_file(path: Path) -> Path:
    """Returns the path if it is a regular file: opening a named pipe, for example, would wait forever.

    Raises:
      FileNotFoundError: The path does not exist.
      UserError: The path is not a regular file.
    """
    path.stat()  # raises FileNotFoundError
    if not path.is_file():
        raise UserError(f"{shown(path)} is not a regular file")
    return path


def read(path: Path, mapped: bool = False) -> np.ndarray | dict[str, Any]:
    """Reads the array of an npy file, or the arrays of an npz file by name; other members are ignored.

    Args:
      path: Path of the file.
      mapped: Whether to map an npy file into memory instead of reading it.

    Raises:
      UserError: The path is not a regular file, or the file is damaged.
      OSError: The file cannot be read.
    """
    try:
        found = _read(path, mapped)
        held = found if isinstance(found, dict) else {"": found}
        if not all(_is_text(array) for array in held.values()):
            raise UserError(f"{shown(path)} is damaged: its text contains invalid characters")
        return found
    except (UserError, OSError):
        raise
    except Exception as error:  # zipfile and NumPy raise almost anything for damaged files
        detail = printable(" ".join(str(part) for part in error.args[:1])) or type(error).__name__
        raise UserError(f"{shown(path)} cannot be read: {detail}") from None


def _is_text(array: np.ndarray) -> bool:
    """Returns whether an array holds numbers, or text that is valid in Python."""
    if array.dtype.kind != "U" or not array.size:
        return True
    codes = np.ascontiguousarray(array).view(np.dtype(np.uint32).newbyteorder(array.dtype.byteorder))
    return int(codes.max()) <= sys.maxunicode


def _read(path: Path, mapped: bool) -> np.ndarray | dict[str, Any]:
    """Reads like `read`, but raises the errors of NumPy and zipfile."""
    with open(regular_file(path), "rb") as file:
        if file.read(len(np.lib.format.MAGIC_PREFIX)) == np.lib.format.MAGIC_PREFIX:
            file.seek(0)
            _refuse_too_large(path, _declared(file, shown(path), os.fstat(file.fileno()).st_size), mapped)
            file.seek(0)
            return np.load(path if mapped else file, "r" if mapped else None, allow_pickle=False)
        file.seek(0)
        if not zipfile.is_zipfile(file):
            raise UserError(f"{shown(path)} is neither an npy nor an npz file, or it is truncated")
        with zipfile.ZipFile(file) as members:
            _refuse_too_large(path, _declared_members(members, path), False)
        file.seek(0)
        loaded = np.load(file, allow_pickle=False)
        held = {key: loaded[key] for key in loaded.files}
        return {key: array for key, array in held.items() if isinstance(array, np.ndarray)}


def _declared_members(members: zipfile.ZipFile, path: Path) -> int:
    """Returns the total size in bytes of the arrays of an npz file, from their headers alone.

    Raises:
      UserError: There are too many members, or a header does not fit the file.
    """
    infos = members.infolist()
    if len(infos) > MAX_MEMBERS:
        raise UserError(f"{shown(path)} holds {len(infos)} members: expected {MAX_MEMBERS} arrays at most")
    whole = os.path.getsize(path)
    total = 0
    if sum(info.compress_size for info in infos) > whole:
        raise UserError(f"{shown(path)} is damaged: its members overlap")
    for info in infos:
        name = f"{shown(path)}: member {printable(info.filename)!r}"
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UserError(f"{name} uses a compression method that NumPy does not write")
        if info.file_size > _MAX_COMPRESSION * (info.compress_size + 1):
            raise UserError(f"{name} is damaged: it claims {info.file_size} bytes, more than the file can contain")
        with members.open(info) as file:
            if file.read(len(np.lib.format.MAGIC_PREFIX)) != np.lib.format.MAGIC_PREFIX:
                total += info.file_size  # read as bytes
                continue
        with members.open(info) as file:
            total += _declared(file, name, info.file_size)
    return total


def _declared(file: IO[bytes], name: str, size: int) -> int:
    """Returns the size in bytes of the array in an npy file, from its header alone.

    Args:
      file: The file at its beginning.
      name: The file in messages.
      size: Bytes of the file.

    Raises:
      UserError: The header does not fit the size, or the type is neither numbers nor text.
    """
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise UserError(
            f"{name} has the format version {version[0]}.{version[1]}: expected an array of numbers or text"
        )
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, kind = read_header(file)
    if kind.kind not in "biufcUSMm" or not kind.itemsize:
        raise UserError(f"{name} holds values of type {printable(str(kind))}: expected numbers or text")
    declared = math.prod(shape) * kind.itemsize
    if min(shape, default=0) < 0 or file.tell() + declared != size:
        raise UserError(
            f"{name} is truncated or altered: its header claims {_text(shape)} values of {kind.itemsize} bytes, "
            f"but there are {size - file.tell()} bytes"
        )
    return declared


def _refuse_too_large(path: Path, size: int, mapped: bool) -> None:
    """Raises a UserError if arrays of this size cannot be read; mapped ones take no memory."""
    if size > MAX_BYTES:
        raise UserError(f"{shown(path)} holds arrays of {size / 2**30:.0f} GiB: expected {MAX_BYTES >> 30} GiB at most")
    whole = path.stat().st_size
    if size > max(_SUSPECT_BYTES, _SUSPECT_COMPRESSION * whole):
        raise UserError(
            f"{shown(path)} would expand from {whole / 2**20:.0f} to {size / 2**20:.0f} MiB, by more "
            f"than a factor of {_SUSPECT_COMPRESSION}: refused above {_SUSPECT_BYTES >> 20} MiB; store it uncompressed"
        )
    free = memory.free_memory()
    if free is not None and size > free and not mapped:
        raise UserError(
            f"{shown(path)} holds arrays of {size / 2**20:.0f} MiB, {free / 2**20:.0f} MiB of memory are free: "
            "pack the data with `ganomaly pack`, to have them read on demand, or use a part of them"
        )


def _text(shape: Sequence[int]) -> str:
    """Returns a shape for a message."""
    return printable(" x ".join(map(str, shape)) or "1", 60)


def from_npz(arrays: dict[str, Any], name: str) -> Dataset:
    """Makes a data set of the arrays of an npz file of images.

    Args:
      arrays: `images` and optionally `labels`; or `x_train` and optionally `y_train`, `x_test` and `y_test`; and
        optionally `classes`, names of integer labels. Shapes and types as `datasets.from_arrays` takes them.
      name: Name of the data set for messages.

    Raises:
      UserError: The names, shapes or types of the arrays cannot be used.
    """
    classes = arrays.get("classes")
    if "images" in arrays:
        return from_arrays(arrays["images"], arrays.get("labels"), classes, name=name)
    if "x_train" not in arrays:
        listed = ", ".join(list(arrays)[:9]) or "no arrays"
        raise UserError(f"{name} holds {listed}: expected images and labels, or x_train, y_train, x_test and y_test")
    parts = [part for part in ("train", "test") if f"x_{part}" in arrays]
    sets = [(arrays[f"x_{part}"], arrays.get(f"y_{part}"), part) for part in parts]
    return _joined(sets, classes, name)


def idx(files: list[Path], name: str, mapped: bool = False) -> Dataset:
    """Reads idx3 image files with the idx1 labels beside them; train-* and t10k-* (or test-*) are the parts.

    Args:
      files: The image files.
      name: Name of the data set for messages.
      mapped: Whether to map uncompressed files into memory instead of reading them.

    Raises:
      UserError: A file is not an idx file or is cut short, or there are several data sets.
    """
    # A file may be there both compressed and uncompressed.
    stems = {file.name.removesuffix(".gz"): file for file in reversed(files)}
    sets: list[tuple[np.ndarray, np.ndarray | None, str]] = []
    for stem in sorted(stems, key=lambda stem: "train" not in stem):
        match = IDX.fullmatch(stem)
        beside = stems[stem].with_name(stem.replace("images", "labels").replace("idx3", "idx1"))
        labels = [path for path in (beside, beside.with_name(beside.name + ".gz")) if path.exists()]
        sets.append(
            (_read_idx(stems[stem], mapped), _read_idx(labels[0]) if labels else None, match[2] if match else "train")
        )
    if len({PARTS[part] for _, _, part in sets}) < len(sets):
        raise UserError(f"{name} holds several data sets: {', '.join(stems)}; name one of the files as the source")
    return _joined(sets, None, name)


def _joined(sets: list[tuple[np.ndarray, np.ndarray | None, str]], classes: Sequence[str] | None, name: str) -> Dataset:
    """Joins training and test part, each (images, labels, name of the part), to one data set."""
    if len(sets) == 1:
        return from_arrays(*sets[0][:2], classes, name=name)
    labels = [labels for _, labels, _ in sets]
    if labels[0] is None and labels[1] is not None:  # trained on normal images alone
        labels[0] = np.full(len(sets[0][0]), "normal" if labels[1].dtype.kind in "US" else 0)
    for known, (images, _, part) in zip(labels, sets, strict=True):
        if known is None or len(known) != len(images):
            found = "no labels" if known is None else f"{len(known)} labels"
            raise UserError(f"{name}: {found} for the {len(images)} images of its {part} part: expected one per image")
    parts = np.concatenate([np.full(len(images), PARTS[part], np.int8) for images, _, part in sets])
    joined = np.concatenate([known for known in labels if known is not None])
    return from_arrays(np.concatenate([images for images, _, _ in sets]), joined, classes, parts, name=name)


def _read_idx(path: Path, mapped: bool = False) -> np.ndarray:
    """Reads or maps the array of an idx file, which may be compressed with gzip if it is read."""
    regular_file(path)
    with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
        head = file.read(4)
        if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in _IDX_TYPES:
            raise UserError(f"{shown(path)} is not an idx file: it begins with {head!r}")
        if not 1 <= head[3] <= _MAX_DIMENSIONS:
            raise UserError(f"{shown(path)}: its header claims {head[3]} dimensions: expected 1 to {_MAX_DIMENSIONS}")
        shape = np.frombuffer(file.read(4 * head[3]), ">u4").tolist()
        kind = np.dtype(_IDX_TYPES[head[2]])
        size = math.prod(shape) * kind.itemsize
        whole = path.stat().st_size
        fits = size <= _MAX_COMPRESSION * whole if path.suffix == ".gz" else size == whole - file.tell()
        if len(shape) != head[3] or not fits:
            raise _truncated(path, shape, size)
        mapped &= path.suffix != ".gz"
        _refuse_too_large(path, size, mapped)
        if mapped:
            return np.memmap(path, kind, "r", file.tell(), tuple(shape))
        data = file.read(size + 1)
    if len(data) != size:
        raise _truncated(path, shape, size)
    return np.frombuffer(data, kind).reshape(shape)


def _truncated(path: Path, shape: Sequence[int], size: int) -> UserError:
    """Returns the error for an idx file whose content does not fit its header."""
    return UserError(
        f"{shown(path)} is truncated or altered: its header claims {_text(shape)} values, which take {size} bytes"
    )
