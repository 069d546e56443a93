"""TensorFlow Datasets, and the import of optional packages that contain data sets."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib
import logging
import os
import shlex
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ganomaly_jax.core import config
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data.datasets import PARTS, Dataset, from_arrays, network_size
from ganomaly_jax.data.images.files import progress_bar
from ganomaly_jax.data.images.preprocess import fit_image
from ganomaly_jax.data.lazy import LazyImages, wanted


def tfds(name: str, settings: config.Data, progress: bool, shared: bool = False) -> Dataset:
    """Loads a data set of TensorFlow Datasets that was prepared as array_record files, without TensorFlow.

    Args:
      name: Name of the data set, such as `mnist`.
      settings: Size, channels, fit, and whether images are read on demand.
      progress: Whether to show a progress bar on standard error.
      shared: Whether all processes of a training call this, each reading the images that it needs.

    Raises:
      UserError: The package is missing, the data set is unknown, not prepared as array_record, or has no images.
    """
    module = import_package("tensorflow_datasets", "tensorflow-datasets", f"tfds:{name}")
    folder = os.environ.get("TFDS_DATA_DIR")
    with silence():
        try:
            builder = module.builder(name, data_dir=folder)
        except Exception as error:
            near = difflib.get_close_matches(name, module.list_builders(with_community_datasets=False), n=1)
            hint = f"; did you mean tfds:{near[0]}?" if near and near[0] != name else ""
            raise UserError(f"tfds:{name}: {str(error).partition(chr(10))[0]}{hint}") from None
        try:
            splits = builder.as_data_source()
            features = builder.info.features
        except Exception as error:
            again = " --overwrite" if (Path(builder.data_path) / "dataset_info.json").exists() else ""
            where = f" --data_dir={shlex.quote(folder)}" if folder else ""
            missing = "array_record is not installed"
            if not isinstance(error, ImportError):
                missing = f"not prepared as array_record in {builder.data_path}"
            raise UserError(
                f"tfds:{name}: {missing}; preparing the data set needs TensorFlow once: "
                f"python -m pip install tensorflow array_record && "
                f"tfds build {name} --file_format=array_record{where}{again}"
            ) from None
        if "image" not in features:
            raise UserError(
                f"tfds:{name} has the features {', '.join(features)}: expected image and, optionally, label"
            )
        known = [part for part in splits if part in PARTS] or list(splits)
        shape = features["image"].shape
        height, width = network_size(settings, all(side and side <= 32 for side in shape[:2]))
        first = splits[known[0]][0]["image"]  # reading the type from the features would need TensorFlow
        channels = settings.channels or shape[2] or first.shape[2]
        counts = [len(splits[part]) for part in known]
        dtype, size = first.dtype, (height, width, channels)
        read = _reader([splits[part] for part in known], size, settings.fit)
        lazy = LazyImages(read, (sum(counts), *size), dtype, keep=True)
        large = wanted(settings.stream, lazy.nbytes)
        lazy = dataclasses.replace(lazy, keep=not large)
        # Images of types that `from_arrays` converts are read at once.
        streamed = dtype in (np.uint8, np.uint16, np.float32) and (large or shared)
        labels, parts, images = [], np.repeat([PARTS.get(part, 0) for part in known], counts), []
        for part in known:
            for item in progress_bar(iter(splits[part]), len(splits[part]), progress):
                labels.append(item.get("label", 0))
                if not streamed:
                    images.append(fit_image(item["image"], height, width, channels, settings.fit))
    names = getattr(features["label"], "names", None) if "label" in features else ["normal"]
    # An array of the same shape and type stands in for images that are read on demand.
    pixels = np.broadcast_to(np.zeros((), dtype), lazy.shape) if streamed else np.stack(images)
    dataset = from_arrays(pixels, labels, names, parts if len(known) > 1 else None, name=f"tfds:{name}")
    return dataclasses.replace(dataset, images=lazy) if streamed else dataset


def _reader(parts: Sequence[Any], size: tuple[int, int, int], fit: str) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the function `LazyImages.read` for the parts of a data set."""
    ends = np.cumsum([len(part) for part in parts])

    def one(i: int) -> np.ndarray:
        k = int(np.searchsorted(ends, i, side="right"))
        return fit_image(parts[k][i - int(ends[k]) + len(parts[k])]["image"], *size, fit)

    return lambda indices: np.stack([one(i) for i in indices.tolist()])


def import_package(module: str, name: str, source: str) -> Any:
    """Imports a module that a source needs.

    Args:
      module: Name of the module.
      name: Name of the package to install.
      source: The source, for messages.

    Raises:
      UserError: The package is not installed.
    """
    try:
        with silence():
            return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"{source} needs {name} ({error}): python -m pip install {name}") from None


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Silences warnings and log messages of other packages within a block."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
