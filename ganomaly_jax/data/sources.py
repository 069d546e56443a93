"""Loads data from folders, files, arrays and packages as a `Dataset` of its modality; `load` is the entry point."""

from __future__ import annotations

import dataclasses
import difflib
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

from ganomaly_jax.core import config
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data import modalities, splits
from ganomaly_jax.data.datasets import Dataset, from_arrays
from ganomaly_jax.data.folders import Item
from ganomaly_jax.data.formats import arrays as array_files
from ganomaly_jax.data.formats import mixture
from ganomaly_jax.data.images import sources as image_sources
from ganomaly_jax.data.images.decode import shown
from ganomaly_jax.data.images.modality import Images
from ganomaly_jax.data.splits import Split, normal_classes

__all__ = ["describe", "from_arrays", "load"]

_WANTED = (
    f"a folder of images, tables or recordings, a file (npz, npy, idx3-ubyte, array_record, csv, wav), tfds:NAME, "
    f"{', '.join(image_sources.NAMES)}"
)


def load(settings: config.Data, arrays: Any = None, progress: bool = False, shared: bool = False) -> Dataset:
    """Reads data and checks that their classes say what is normal; arguments as `read`.

    Raises:
      UserError: As `read`; or the normal classes are not known.
    """
    dataset = read(settings, arrays, progress, shared)
    if settings.abnormal and dataset.normal is not None and set(dataset.classes) != {"0", "1"}:
        others = sorted(set(dataset.classes) - dataset.normal - {settings.abnormal})
        if settings.abnormal in dataset.classes and others:
            raise UserError(
                f"data.abnormal={settings.abnormal!r}: {dataset.name} says itself what is anomalous, and "
                f"{', '.join(others)} would be counted as normal; leave data.abnormal empty"
            )
    normal_classes(dataset, settings.abnormal)
    return dataset


def read(settings: config.Data, arrays: Any = None, progress: bool = False, shared: bool = False) -> Dataset:
    """Reads the data of a run at the size of the network.

    Args:
      settings: Source, abnormal class, size, channels, fit and range, see `config.Data`.
      arrays: Used instead of `settings.source`: a `Dataset`, or items or (items, labels) as arrays of the modality that
        `settings.kind` names; with `auto`, images `[N, H, W]` or `[N, H, W, C]` unless another modality accepts them.
      progress: Whether to show a progress bar on standard error.
      shared: Whether all processes of a training call this; each then reads its own part of image files, and later the
        images that it needs.

    Returns:
      The data set. Files that cannot be read are listed in its `problems`.

    Raises:
      UserError: The source does not exist, nothing in it can be read, or a package is missing.
    """
    if arrays is None:
        dataset = _open(settings, progress, shared)
    elif isinstance(arrays, Dataset):
        dataset = modalities.named(arrays.modality).prepared(arrays, settings, False)
    else:
        dataset = _of_arrays(arrays, settings, "the array", False)
    if settings.low < settings.high:
        dataset = dataclasses.replace(dataset, low=settings.low, high=settings.high)
    return dataset


def describe(dataset: Dataset, split: Split | None = None) -> str:
    """Returns a summary of a data set in several lines: classes, size, range, split and unreadable files."""
    return splits.describe(dataset, modalities.named(dataset.modality).describe(dataset), split)


def image_folder(source: str) -> tuple[list[Item], frozenset[str] | None, bool] | None:
    """Returns the contents of a folder of image files, see `images.sources.image_folder`; None for any other source.

    Raises:
      UserError: The folder holds no images, or its layout is not recognised.
    """
    path = Path(source).expanduser()
    if image_sources.is_name(source) or not path.is_dir():
        return None
    settings = config.Data()
    found = next(one for one in modalities.candidates(settings) if one.is_source(path, settings))
    return image_sources.image_folder(path) if found.name == Images.name else None


def _of_arrays(given: Any, settings: config.Data, name: str, shared: bool) -> Dataset:
    """Makes a data set of arrays of the modality that accepts them."""
    if isinstance(given, (str, os.PathLike)):
        path = os.fspath(given)
        raise UserError(f"arrays={path!r}: expected arrays; for a folder or file set config.data.source = {path!r}")
    modality = modalities.of_arrays(given, settings)
    return modality.prepared(modality.from_arrays(given, settings, name), settings, shared)


def _open(settings: config.Data, progress: bool, shared: bool) -> Dataset:
    """Reads `settings.source`."""
    source = settings.source
    if not source:
        raise UserError(f"data.source is empty: expected {_WANTED}")
    asked = list(modalities.candidates(settings))
    if image_sources.is_name(source):
        return image_sources.open_name(source, settings, progress, shared)
    path = Path(source).expanduser()
    try:
        path.stat()
        if path.name == mixture.NAME and path.is_file():
            return mixture.load(path, lambda part: read(part, progress=progress))
        if path.suffix in array_files.ENDINGS and not path.is_dir():
            return _of_arrays(array_files.read(path, shared), settings, path.name, shared)
        for modality in asked:
            if modality.is_source(path, settings):
                return modality.open(path, settings, progress, shared)
    except UserError:
        raise
    except FileNotFoundError:
        names = image_sources.NAMES
        siblings = os.listdir(path.parent) if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, [*names, *siblings], n=1)
        hint = f"; did you mean {near[0] if near[0] in names else shown(path.parent / near[0])}?" if near else ""
        raise UserError(f"{shown(path)} does not exist; expected {_WANTED}{hint}") from None
    except (OSError, EOFError, ValueError, KeyError, MemoryError, zlib.error, zipfile.BadZipFile) as error:
        detail = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{shown(path)} cannot be read: {detail}") from None
    pickled = path.suffix in (".pt", ".pth", ".pkl", ".pickle", ".joblib")
    why = "pickles are not read, since they can run code" if pickled else "not a source"
    raise UserError(f"{shown(path)}: {why}; expected {_WANTED}")
