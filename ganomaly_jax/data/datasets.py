"""A set of images with its classes, how it is split, and in which order a training walks it. NumPy only."""

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
# Words for the training and the test part of a set.
PARTS = {"train": 0, "training": 0, "val": 0, "valid": 0, "validation": 0, "test": 1, "testing": 1, "t10k": 1}
# A part of `Dataset.parts` beside those: images that the source itself has set aside for calibration.
CALIBRATION = 2


class Layout(Protocol):
    """What only its own modality knows of a data set; beside what is asked here it is opaque to others."""

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the last axis; empty: none. They count in the content hash."""

    @property
    def hashed(self) -> tuple[np.ndarray, ...]:
        """Arrays that count in the content hash beside items, labels and parts."""


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Items of one size, images or what else `modality` says, and what their source says of them."""

    images: Images
    """`[N, H, W, C]` uint8, uint16 or float32, in memory or read on demand; of other modalities `[N, ...]`."""
    labels: np.ndarray
    """`[N]` int64, indices into `classes`."""
    classes: tuple[str, ...]
    normal: frozenset[str] | None
    """The classes that the source itself calls normal; None: it has classes only, `data.abnormal` must name one."""
    parts: np.ndarray | None
    """`[N]` int8, 0 train, 1 test, 2 calibration (of a mixture only); None: the source has no split."""
    paths: tuple[str, ...]
    """`[N]` file, or `name[i]` for an array."""
    low: float | None
    """Pixel value that becomes -1; None, with `high`: fitted by `value_range`."""
    high: float | None
    """Pixel value that becomes +1."""
    problems: tuple[tuple[str, str], ...] = ()
    """(path, reason) of each file that could not be read."""
    name: str = "the data"
    """Where it came from, for messages."""
    digest: str = ""
    """Its `content_hash`, where the source knows it; it has to go where anything is replaced but the range."""
    notes: tuple[str, ...] = ()
    """What the user should know of how they were read, a sentence each."""
    modality: str = "images"
    """The name of what the data are, see `modalities.named`."""
    layout: Layout | None = None
    """What only that modality knows of them; None: nothing."""

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the last axis of `images`; empty where it has none."""
        return () if self.layout is None else self.layout.feature_names


def from_arrays(
    images: Any,
    labels: Any = None,
    classes: Sequence[str] | None = None,
    parts: Any = None,
    low: float | None = None,
    high: float | None = None,
    name: str = "the array",
) -> Dataset:
    """Arrays as a data set, at their own size.

    Args:
      images: `[N, H, W]` or `[N, H, W, C]`: uint8, uint16, bool (False black, True white) or floating point (as
        float32). Other integers are taken as uint8 or uint16 where all values fit, else as float32.
      labels: `[N]` integers, bool or words. Where all that occur are words for normal and anomalous, 0 and 1 among
        them, they count as such; otherwise they are classes, of which `data.abnormal` picks one. None: all normal.
      classes: names of the integer labels 0, 1, ...
      parts: `[N]`, 0 train and 1 test; None: not split.
      low: pixel value that becomes -1; None: the type's, or for floating point fitted on normal training images.
      high: pixel value that becomes +1.
      name: what messages and paths (`name[i]`) call it.

    Raises:
      UserError: shapes, types or labels that cannot be used.
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
    """Returns the names that mean normal, if each is a word for normal or anomalous; None otherwise."""
    if any(plain_word(name) not in NORMAL_WORDS + ANOMALOUS_WORDS for name in names):
        return None
    return frozenset(name for name in names if plain_word(name) in NORMAL_WORDS)


def plain_word(name: str) -> str:
    """Returns the word in the name of a class: `0.Normal` is `normal`."""
    return re.sub(r"^\d+[._ -]+", "", name.strip().lower())


def network_size(settings: config.Data, small: bool, own: tuple[int, int] | None = None) -> tuple[int, int]:
    """Returns (height, width) of the network's input, or with `data.tile` of the images that are cut into tiles.

    `small`: no image is larger than 32 x 32; `own`: the size that the images have, where that is known.

    Raises:
      UserError: there shall be tiles, and no size is known.
    """
    if settings.tile and not (settings.height and settings.width):
        if own is None:
            raise UserError("data.tile: these images have no one size, give data.height and data.width as well")
        return max(settings.height or own[0], settings.tile), max(settings.width or own[1], settings.tile)
    automatic = 32 if small else 64
    return settings.height or automatic, settings.width or automatic


def value_range(dataset: Dataset, train: np.ndarray) -> tuple[float, float]:
    """Returns the pixel values that become -1 and +1: the data set's, or the extremes of its images at `train` `[n]`.

    Raises:
      UserError: they have to be fitted and all pixels have one value.
    """
    if dataset.low is not None and dataset.high is not None:
        return dataset.low, dataset.high
    extremes = np.array([(block.min(), block.max()) for block in lazy.blocks(dataset.images, train)], np.float64)
    low, high = float(extremes[:, 0].min()), float(extremes[:, 1].max())
    if not low < high:
        raise UserError(f"every pixel of the {len(train)} training images of {dataset.name} is {low}: nothing to learn")
    return low, high


def image_hash(image: np.ndarray) -> bytes:
    """Returns the sha256 of the pixels of one image, little-endian: 32 bytes."""
    little = np.ascontiguousarray(image.astype(image.dtype.newbyteorder("<"), copy=False))
    return hashlib.sha256(little.reshape(-1).view(np.uint8).data).digest()


def check_unchanged(name: str, before: str | None, now: str, advice: str, since: str = "the training") -> None:
    """Makes sure that data are those that a run was trained on.

    Args:
      name: what the message calls the data.
      before: their `content_hash` at that time; None where it was not recorded, which passes.
      now: their `content_hash` as they are.
      advice: a sentence without its full stop that says what to do.
      since: what happened at that time.

    Raises:
      UserError: the hashes differ.
    """
    if before is not None and before != now:
        raise UserError(
            f"the data {name} have changed since {since} (their hash was {before[:12]}, now it is {now[:12]}): which "
            f"items were trained on is no longer known. {advice}"
        )


def content_hash(dataset: Dataset, hashes: Iterable[bytes] | None = None) -> str:
    """Returns the sha256 of images, labels, classes and parts in hexadecimal; equal data give equal hashes anywhere.

    Images count by their `image_hash` each, which may be given, so that nobody has to have all of them.
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
    """Returns int64 `[n]` indices and the names they refer to."""
    if labels is None:
        return np.zeros(n, np.int64), ("normal",)
    try:
        labels = np.asarray(labels)
    except ValueError:
        raise UserError(f"{name}: the labels differ in length; expected one integer or word an image") from None
    if labels.shape == (n, 1):
        labels = labels[:, 0]
    if labels.shape != (n,):
        raise UserError(f"{name}: labels of shape {labels.shape} for {n} images: expected one label an image")
    if labels.dtype.kind == "b" or (labels.dtype.kind == "f" and (labels == np.rint(labels)).all()):
        labels = labels.astype(np.int64)
    if labels.dtype.kind not in "iuUS":
        raise UserError(f"{name}: labels of type {labels.dtype}: expected integers or words")
    if labels.dtype.kind in "iu" and classes is not None:
        if labels.min() < 0 or labels.max() >= len(classes):
            raise UserError(f"{name}: labels {labels.min()} to {labels.max()} for {len(classes)} class names")
        return labels.astype(np.int64), tuple(map(str, classes))
    values, indices = np.unique(labels.astype(str), return_inverse=True)
    return indices.astype(np.int64), tuple(values.tolist())
