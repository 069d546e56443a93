"""Data sets: items with their labels, classes and parts. NumPy only."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from ganomaly_jax.core import config
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data import lazy
from ganomaly_jax.data.lazy import Images

NORMAL_WORDS = ("normal", "good", "ok", "benign", "0")
ANOMALOUS_WORDS = ("anomalous", "abnormal", "anomaly", "bad", "defect", "defective", "1")
# Names of the training part (0) and the test part (1) of a data set.
PARTS = {"train": 0, "training": 0, "val": 0, "valid": 0, "validation": 0, "test": 1, "testing": 1, "t10k": 1}
# A third value of `Dataset.parts`: items that the source has set aside for calibration.
CALIBRATION = 2


class Layout(Protocol):
    """Data that a modality stores with its data sets; opaque to everything else but for these properties."""

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Returns the names of the last axis, empty if it has none; part of the content hash."""

    @property
    def hashed(self) -> tuple[np.ndarray, ...]:
        """Returns arrays that are part of the content hash, besides items, labels and parts."""

    def times_of(self, chosen: np.ndarray) -> list[str] | None:
        """Returns the times of the items at `chosen` [n] as text, empty if unknown; None if all are unknown."""


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Items of one size with their labels, classes and parts."""

    images: Images
    """Images `[N, H, W, C]`, uint8, uint16 or float32, in memory or read on demand; `[N, ...]` of other modalities."""
    labels: np.ndarray
    """Indices into `classes`, int64 `[N]`."""
    classes: tuple[str, ...]
    """Names of the classes."""
    normal: frozenset[str] | None
    """Classes that are normal according to the source; None: it does not say, and `data.abnormal` must name one."""
    parts: np.ndarray | None
    """Part of each item, int8 `[N]`: 0 train, 1 test, 2 calibration (in mixtures only); None: there are no parts."""
    paths: tuple[str, ...]
    """File of each item, or `name[i]` for an array."""
    low: float | None
    """Raw value that becomes -1; None (as `high`): fitted by `value_range`."""
    high: float | None
    """Raw value that becomes +1."""
    problems: tuple[tuple[str, str], ...] = ()
    """(path, reason) of each file that could not be read."""
    name: str = "the data"
    """Name of the data set for messages."""
    digest: str = ""
    """The `content_hash` if it is known; must be cleared when anything but the range is replaced."""
    notes: tuple[str, ...] = ()
    """Notes for the user on how the data were read, a sentence each."""
    modality: str = "images"
    """Name of the modality, see `modalities.named`."""
    layout: Layout | None = None
    """Layout of the modality, None if it stores nothing."""

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Returns the names of the last axis of `images`, empty if it has none."""
        return () if self.layout is None else self.layout.feature_names

    def times_of(self, chosen: np.ndarray) -> list[str] | None:
        """Returns the times of the items at `chosen` [n] as text, see `Layout`."""
        return None if self.layout is None else self.layout.times_of(chosen)


def from_arrays(
    images: Any,
    labels: Any = None,
    classes: Sequence[str] | None = None,
    parts: Any = None,
    low: float | None = None,
    high: float | None = None,
    name: str = "the array",
) -> Dataset:
    """Makes a data set of arrays of images, at their own size.

    Args:
      images: Images `[N, H, W]` or `[N, H, W, C]`: uint8, uint16, bool (False is black, True is white) or floating
        point, converted to float32. Other integers become uint8 or uint16 if all values fit, otherwise float32.
      labels: Labels `[N]`, integers, bool or words. If all are words for normal or anomalous, which include 0 and 1,
        they are taken as such; otherwise they are classes, and `data.abnormal` names one. None: all normal.
      classes: Names of the integer labels 0, 1, ...
      parts: `[N]`, 0 train and 1 test; None: there are no parts.
      low: Pixel value that becomes -1; None: that of the type, or fitted on normal training images for floating point.
      high: Pixel value that becomes +1, as `low`.
      name: Name of the data set for messages and paths (`name[i]`).

    Raises:
      UserError: Shapes, types or labels cannot be used.
    """
    try:
        array = np.asarray(images)
    except ValueError:
        raise UserError(f"{name}: the images differ in size; expected one array [N, H, W] or [N, H, W, C]") from None
    array = _pixels(array[..., None] if array.ndim == 3 else array, name)
    n = len(array)
    indices, names = _labels(labels, classes, n, name)
    if parts is not None:
        parts = np.asarray(parts)
        if parts.shape != (n,) or not np.isin(parts, (0, 1)).all():
            raise UserError(f"{name}: parts of shape {parts.shape}: expected {n} values, 0 train and 1 test")
        parts = parts.astype(np.int8)
    if array.dtype.kind == "u" and low is None:
        low, high = 0.0, float(np.iinfo(array.dtype).max)
    paths = tuple(f"{name}[{i}]" for i in range(n))
    return Dataset(array, indices, names, normal_by_words(names), parts, paths, low, high, name=name)


def normal_by_words(names: Iterable[str]) -> frozenset[str] | None:
    """Returns the names that mean normal if every name means normal or anomalous, otherwise None."""
    if any(plain_word(name) not in NORMAL_WORDS + ANOMALOUS_WORDS for name in names):
        return None
    return frozenset(name for name in names if plain_word(name) in NORMAL_WORDS)


def plain_word(name: str) -> str:
    """Returns the name of a class in lower case without a leading number: `normal` for `0.Normal`."""
    return re.sub(r"^\d+[._ -]+", "", name.strip().lower())


def network_size(settings: config.Data, small: bool, own: tuple[int, int] | None = None) -> tuple[int, int]:
    """Returns the size that images are resized to.

    Args:
      settings: Height, width and side of tiles.
      small: Whether all images are at most 32 x 32 pixels.
      own: (height, width) of the images, if known.

    Returns:
      (height, width) of the network's input, or of the images that are cut into tiles if `settings.tile` is set.

    Raises:
      UserError: Images are to be cut into tiles, and their size is not known.
    """
    if settings.tile and not (settings.height and settings.width):
        if own is None:
            raise UserError("data.tile: these images have no one size, give data.height and data.width as well")
        return max(settings.height or own[0], settings.tile), max(settings.width or own[1], settings.tile)
    automatic = 32 if small else 64
    return settings.height or automatic, settings.width or automatic


def value_range(dataset: Dataset, train: np.ndarray) -> tuple[float, float]:
    """Returns (low, high), the pixel values that become -1 and +1.

    Args:
      dataset: Data set whose range is returned if it is known.
      train: Indices `[n]` of the training images, whose extremes are returned otherwise.

    Raises:
      UserError: The range has to be fitted, and all pixels have the same value.
    """
    if dataset.low is not None and dataset.high is not None:
        return dataset.low, dataset.high
    extremes = np.array([(block.min(), block.max()) for block in lazy.blocks(dataset.images, train)], np.float64)
    low, high = float(extremes[:, 0].min()), float(extremes[:, 1].max())
    if not low < high:
        raise UserError(f"every pixel of the {len(train)} training images of {dataset.name} is {low}: nothing to learn")
    return low, high


def image_hash(image: np.ndarray) -> bytes:
    """Returns the SHA-256 of an image's little-endian pixels, 32 bytes."""
    little = np.ascontiguousarray(image.astype(image.dtype.newbyteorder("<"), copy=False))
    return hashlib.sha256(little.reshape(-1).view(np.uint8).data).digest()


def check_unchanged(name: str, before: str | None, now: str, advice: str, since: str = "the training") -> None:
    """Checks that data are still those that a run was trained on.

    Args:
      name: Name of the data for the message.
      before: Their recorded `content_hash`; None if it was not recorded, which passes.
      now: Their present `content_hash`.
      advice: What to do, a sentence without its full stop.
      since: When the hash was recorded, for the message.

    Raises:
      UserError: The hashes differ.
    """
    if before is not None and before != now:
        raise UserError(
            f"the data {name} have changed since {since} (their hash was {before[:12]}, now it is {now[:12]}): which "
            f"items were trained on is no longer known. {advice}"
        )


def content_hash(dataset: Dataset, hashes: Iterable[bytes] | None = None) -> str:
    """Returns the SHA-256 of images, labels, classes and parts in hexadecimal; equal on all machines.

    Args:
      dataset: The data set.
      hashes: The `image_hash` of each image; None: computed. No process needs to have all images if they are given.
    """
    if dataset.digest:
        return dataset.digest
    if hashes is None:
        hashes = (image_hash(image) for block in lazy.blocks(dataset.images) for image in block)
    digest = hashlib.sha256(f"{dataset.images.dtype.newbyteorder('<').str}{dataset.images.shape};".encode())
    for one in hashes:
        digest.update(one)
    own = () if dataset.layout is None else dataset.layout.hashed
    for array in (dataset.labels, dataset.parts, *own):
        if array is None:
            digest.update(b"none;")
            continue
        little = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False))
        digest.update(f"{little.dtype.str}{array.shape};".encode() + little.tobytes())
    normal = None if dataset.normal is None else sorted(dataset.normal)
    digest.update(repr((dataset.classes, normal, *dataset.feature_names)).encode())
    return digest.hexdigest()


def _pixels(array: np.ndarray, name: str) -> np.ndarray:
    """Converts images to uint8, uint16 or float32, or raises a UserError if shape or type cannot be used."""
    if array.ndim != 4 or 0 in array.shape:
        raise UserError(f"{name}: images of shape {array.shape}: expected [N, H, W] or [N, H, W, C], none of them 0")
    if array.shape[1] in (1, 3) and array.shape[3] > 4:
        raise UserError(f"{name}: images of shape {array.shape} look like [N, C, H, W]: transpose them to [N, H, W, C]")
    kind = array.dtype.kind
    if kind == "b":
        return array.astype(np.uint8) * np.uint8(255)
    if kind == "f":
        with np.errstate(over="ignore"):  # becomes infinite, which is refused or flagged like any other infinity
            return array.astype(np.float32)
    if kind not in "iu":
        raise UserError(f"{name}: images of type {array.dtype}: expected uint8, uint16 or floating point")
    if array.dtype in (np.uint8, np.uint16):
        return array.astype(array.dtype.newbyteorder("="), copy=False)
    fits = [kind for kind in (np.uint8, np.uint16) if array.min() >= 0 and array.max() <= np.iinfo(kind).max]
    return array.astype(fits[0] if fits else np.float32)


def _labels(labels: Any, classes: Sequence[str] | None, n: int, name: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Returns indices of classes, int64 `[n]`, and the names of the classes."""
    if labels is None:
        return np.zeros(n, np.int64), ("normal",)
    try:
        labels = np.asarray(labels)
    except ValueError:
        raise UserError(f"{name}: the labels differ in length; expected one integer or word per image") from None
    if labels.shape == (n, 1):
        labels = labels[:, 0]
    if labels.shape != (n,):
        raise UserError(f"{name}: labels of shape {labels.shape} for {n} images: expected one label per image")
    if labels.dtype.kind == "b" or (labels.dtype.kind == "f" and (labels == np.rint(labels)).all()):
        labels = labels.astype(np.int64)
    if labels.dtype.kind not in "iuUS":
        raise UserError(f"{name}: labels of type {labels.dtype}: expected integers or words")
    if classes is not None and np.ndim(classes) != 1:
        raise UserError(f"{name}: class names of shape {np.shape(classes)}: expected a list of names")
    if labels.dtype.kind in "iu" and classes is not None:
        if labels.min() < 0 or labels.max() >= len(classes):
            raise UserError(f"{name}: labels {labels.min()} to {labels.max()} for {len(classes)} class names")
        return labels.astype(np.int64), tuple(map(str, classes))
    values, indices = np.unique(labels.astype(str), return_inverse=True)
    return indices.astype(np.int64), tuple(values.tolist())
