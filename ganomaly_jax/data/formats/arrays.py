"""Files that hold one array of all images: npz, npy, idx.

Where several processes of one training read them, npy and idx files are mapped: of their pages only those are loaded
that are asked for. An npz file is read whole.
"""

from __future__ import annotations

import gzip
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data.datasets import PARTS, Dataset, from_arrays
from ganomaly_jax.data.images.decode import shown

ENDINGS = (".npz", ".npy")
IDX = re.compile(r"(.*)(train|test|t10k)-images[-.]idx3-ubyte(\.gz)?")
_IDX_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


def regular(path: Path) -> Path:
    """Returns the path of a file that can be opened without waiting for ever, as one would for a named pipe.

    Raises:
      UserError: it is something else than a file.
    """
    path.stat()  # says that there is none
    if not path.is_file():
        raise UserError(f"{shown(path)} is not a regular file")
    return path


def read(path: Path, mapped: bool = False) -> np.ndarray | dict[str, Any]:
    """Reads the array of an npy file, or the arrays of an npz file by name.

    Args:
      path: the file.
      mapped: map an npy file instead of reading it.

    Raises:
      UserError: it is no regular file.
      OSError, ValueError, zipfile.BadZipFile: it cannot be read.
    """
    with open(regular(path), "rb") as file:
        alone = file.read(len(np.lib.format.MAGIC_PREFIX)) == np.lib.format.MAGIC_PREFIX
        file.seek(0)
        loaded = np.load(path if mapped and alone else file, "r" if mapped and alone else None, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        return {key: loaded[key] for key in loaded.files}


def images(held: dict[str, Any], name: str) -> Dataset:
    """Makes a data set of the images of an npz file.

    Raises:
      UserError: it holds something else.
    """
    classes = held.get("classes")
    if "images" in held:
        return from_arrays(held["images"], held.get("labels"), classes, name=name)
    if "x_train" not in held:
        listed = ", ".join(list(held)[:9]) or "nothing"
        raise UserError(f"{name} holds {listed}: expected images and labels, or x_train, y_train, x_test, y_test")
    sets = [(held[f"x_{part}"], held.get(f"y_{part}"), part) for part in ("train", "test") if f"x_{part}" in held]
    return _joined(sets, classes, name)


def idx(files: list[Path], name: str, mapped: bool = False) -> Dataset:
    """Reads idx3 image files with the idx1 labels beside them; train-* and t10k-* (or test-*) are its parts.

    Args:
      files: the image files.
      name: of the data set.
      mapped: map files that are not packed instead of reading them.

    Raises:
      UserError: files that are none, or are cut short; several sets.
    """
    # The same file may lie there packed and unpacked.
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
        raise UserError(f"{name} holds several sets: {', '.join(stems)}; take one of the files")
    return _joined(sets, None, name)


def _joined(sets: list[tuple[np.ndarray, np.ndarray | None, str]], classes: Sequence[str] | None, name: str) -> Dataset:
    """Joins training and test parts, each (images, labels, name of the part), to one data set."""
    if len(sets) == 1:
        return from_arrays(*sets[0][:2], classes, name=name)
    labels = [labels for _, labels, _ in sets]
    if labels[0] is None and labels[1] is not None:  # trained on normal images alone
        labels[0] = np.full(len(sets[0][0]), "normal" if labels[1].dtype.kind in "US" else 0)
    for known, (images, _, part) in zip(labels, sets, strict=True):
        if known is None or len(known) != len(images):
            have = "no labels" if known is None else f"{len(known)} labels"
            raise UserError(f"{name}: {have} for the {len(images)} images of its {part} part: expected one an image")
    parts = np.concatenate([np.full(len(images), PARTS[part], np.int8) for images, _, part in sets])
    joined = np.concatenate([known for known in labels if known is not None])
    return from_arrays(np.concatenate([images for images, _, _ in sets]), joined, classes, parts, name=name)


def _read_idx(path: Path, mapped: bool = False) -> np.ndarray:
    regular(path)
    with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
        head = file.read(4)
        if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in _IDX_TYPES:
            raise UserError(f"{shown(path)} is no idx file: it begins with {head!r}")
        shape = np.frombuffer(file.read(4 * head[3]), ">u4").tolist()
        kind = np.dtype(_IDX_TYPES[head[2]])
        size = math.prod(shape) * kind.itemsize
        if size > 2**34:
            raise UserError(f"{shown(path)}: its header says {shape}, {size / 2**30:.0f} GiB: not read")
        if mapped and path.suffix != ".gz" and path.stat().st_size == file.tell() + size:
            return np.memmap(path, kind, "r", file.tell(), tuple(shape))
        data = file.read(size + 1)
    if len(shape) != head[3] or len(data) != size:
        raise UserError(f"{shown(path)} is truncated or altered: its header says {shape}, expected {size} bytes")
    return np.frombuffer(data, kind).reshape(shape)
