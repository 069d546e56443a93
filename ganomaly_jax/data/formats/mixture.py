"""Mixtures: several data sets joined to the one that a detector is updated and tested with."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ganomaly_jax.core import config, config_values
from ganomaly_jax.core.errors import DamagedError, UserError
from ganomaly_jax.data import datasets as data_datasets
from ganomaly_jax.data import modalities
from ganomaly_jax.data.datasets import Dataset
from ganomaly_jax.data.images.decode import shown
from ganomaly_jax.data.lazy import Images, LazyImages
from ganomaly_jax.data.modality import Scaling

NAME = "mixture.json"
_USES = (("train", 0), ("calibration", data_datasets.CALIBRATION), ("test", 1))


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """The items that are taken from one data set."""

    settings: config.Data
    """Settings that the data set is read with."""
    content_hash: str
    """`datasets.content_hash` of the whole data set."""
    normal: frozenset[str]
    """Its normal classes."""
    train: np.ndarray
    """Indices of the items to train on, int64."""
    calibration: np.ndarray
    """Indices of the items to calibrate with, int64."""
    test: np.ndarray
    """Indices of the items to test on, int64."""

    @property
    def chosen(self) -> np.ndarray:
        """Returns the indices of all items taken, int64 [n], in the order of the mixture."""
        return np.concatenate([getattr(self, name) for name, _ in _USES])


def origins(parts: Sequence[Part]) -> np.ndarray:
    """Returns the index of the part that each of the N items of a mixture comes from, int64 [N]."""
    return np.repeat(np.arange(len(parts)), [len(part.chosen) for part in parts])


def join(
    parts: Sequence[Part], datasets: Sequence[Dataset], name: str = NAME, scaling: Scaling | None = None
) -> Dataset:
    """Joins data sets of one size and dtype to a mixture, in the order of the parts.

    Classes keep their names; a class that is normal in one data set and anomalous in another becomes two. Images that
    are read on demand remain so.

    Args:
      parts: What is taken from each data set.
      datasets: The data sets.
      name: Name of the mixture for messages.
      scaling: Scaling of the detector to update, for rows of sensors.

    Raises:
      UserError: The data sets differ in size, type or sensors.
    """
    kinds = {(dataset.images.shape[1:], str(dataset.images.dtype)) for dataset in datasets}
    if len(kinds) > 1:
        listed = ", ".join(f"{dtype} {'x'.join(map(str, shape))} of {d.name}" for d in datasets
                           for shape, dtype in [(d.images.shape[1:], d.images.dtype)])  # fmt: skip
        raise UserError(f"the images differ in size or type: {listed}; convert them to one size and type")
    modality = modalities.named(datasets[0].modality)
    layout = modality.mixed(datasets, [part.chosen for part in parts], scaling)
    pairs: list[tuple[str, bool]] = []
    for part, dataset in zip(parts, datasets, strict=True):
        words = [dataset.classes[label] for label in dataset.labels[part.chosen]]
        pairs += [(word, word not in part.normal) for word in words]
    classes = sorted(set(pairs), key=lambda pair: (pair[1], pair[0]))
    names = [f"{word} (anomalous)" if bad and (word, False) in classes else word for word, bad in classes]
    place = {pair: i for i, pair in enumerate(classes)}
    uses = [np.full(len(getattr(part, use)), value, np.int8) for part in parts for use, value in _USES]
    return Dataset(
        images=_joined([(dataset.images, part.chosen) for part, dataset in zip(parts, datasets, strict=True)]),
        labels=np.array([place[pair] for pair in pairs], np.int64),
        classes=tuple(names),
        normal=frozenset(word for word, (_, bad) in zip(names, classes, strict=True) if not bad),
        parts=np.concatenate(uses),
        paths=tuple(d.paths[i] for part, d in zip(parts, datasets, strict=True) for i in part.chosen),
        low=None,
        high=None,
        problems=tuple(problem for dataset in datasets for problem in dataset.problems),
        name=name,
        modality=modality.name,
        layout=layout,
    )


def _joined(sets: Sequence[tuple[Images, np.ndarray]]) -> Images:
    """Joins the chosen images of several data sets; unread if any are read on demand."""
    if not any(isinstance(images, LazyImages) for images, _ in sets):
        return np.concatenate([images[chosen] for images, chosen in sets])
    first = sets[0][0]
    owner = np.repeat(np.arange(len(sets)), [len(chosen) for _, chosen in sets])
    inside = np.concatenate([chosen for _, chosen in sets])

    def read(indices: np.ndarray) -> np.ndarray:
        found = np.empty((len(indices), *first.shape[1:]), first.dtype)
        for k, (images, _) in enumerate(sets):
            here = owner[indices] == k
            if here.any():
                found[here] = images[inside[indices[here]]]
        return found

    keep = any(isinstance(images, LazyImages) and images.keep for images, _ in sets)
    return LazyImages(read, (len(owner), *first.shape[1:]), np.dtype(first.dtype), keep)


def to_dict(parts: Sequence[Part], scaling: Scaling | None = None) -> dict[str, Any]:
    """Returns the content of `mixture.json`."""

    def one(part: Part) -> dict[str, Any]:
        indices = {name: getattr(part, name).tolist() for name, _ in _USES}
        settings = dataclasses.asdict(part.settings)
        return {"data": settings, "content_hash": part.content_hash, "normal": sorted(part.normal), **indices}

    return {"format": 1, "parts": [one(part) for part in parts], "scaling": scaling}


def load(path: Path, read: Callable[[config.Data], Dataset]) -> Dataset:
    """Loads the mixture that a file describes.

    Args:
      path: The `mixture.json`.
      read: Reads the data set of some settings.

    Raises:
      UserError: One of the data sets no longer exists or has changed.
      DamagedError: The file is damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        parts = [
            Part(
                config_values.from_dict({"data": one["data"]}).data,
                str(one["content_hash"]),
                frozenset(map(str, one["normal"])),
                *(np.array(one[name], np.int64) for name, _ in _USES),
            )
            for one in content["parts"]
        ]
        if not parts or any(getattr(part, name).ndim != 1 for part in parts for name, _ in _USES):
            raise ValueError("no lists of items")
        ends = content.get("scaling")
        scaling = None if ends is None else (tuple(map(float, ends[0])), tuple(map(float, ends[1])))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise DamagedError(f"{path} cannot be read ({error}); repeat the update with another --out") from None
    datasets = []
    for part in parts:
        dataset = read(part.settings)
        dataset = modalities.named(dataset.modality).as_part(dataset, part.settings, scaling)
        advice = f"Restore them as {shown(path)} describes them, or name other data with --data"
        now = data_datasets.content_hash(dataset)
        data_datasets.check_unchanged(part.settings.source, part.content_hash, now, advice, since="the update")
        chosen = part.chosen
        if not len(chosen) or chosen.min() < 0 or chosen.max() >= len(dataset.images):
            raise DamagedError(f"{path} cannot be read (missing items); repeat the update with another --out")
        datasets.append(dataset)
    return join(parts, datasets, shown(path), scaling)
