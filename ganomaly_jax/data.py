"""A set of images with its classes, how it is split, and in which order a training walks it. NumPy only."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import re
import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ganomaly_jax import config, lazy
from ganomaly_jax.errors import UserError
from ganomaly_jax.lazy import Images

if TYPE_CHECKING:
    from ganomaly_jax.recordings import Recording

NORMAL_WORDS = ("normal", "good", "ok", "benign", "0")
ANOMALOUS_WORDS = ("anomalous", "abnormal", "anomaly", "bad", "defect", "defective", "1")
# Words for the training and the test part of a set.
PARTS = {"train": 0, "training": 0, "val": 0, "valid": 0, "validation": 0, "test": 1, "testing": 1, "t10k": 1}
# A part of `Dataset.parts` beside those: images that the source itself has set aside for calibration.
CALIBRATION = 2


# Streams of random numbers beside that of the split, which is (seed, 1); a trailing zero would make no other one.
_PLACES, _EPOCHS = (1, 1), 2


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Images of one size, and what their source says of them."""

    images: Images
    """`[N, H, W, C]` uint8, uint16 or float32, in memory or read on demand."""
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
    columns: tuple[str, ...] = ()
    """Of rows of sensors, `images` then being `[N, D]` or, of windows, `[N, T, D]` float32: the sensors' names."""
    spans: np.ndarray | None = None
    """Of rows, `[N, 3]` int64: recording, first row in it, and the one after the last; of sound the same in samples.
    None: these are images."""
    recordings: tuple[Recording, ...] = ()
    """Of sound, `images` then being windows `[N, T]` float32 of these."""
    heard: config.Data | None = None
    """Of sound: the settings, with what the recordings have filled in."""
    notes: tuple[str, ...] = ()
    """What the user should know of how they were read, a sentence each."""
    scaling: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    """Of rows whose detector is there already (a mixture): the values of each sensor that become -1 and +1."""


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Which image is used for what: indices into the data set, int64."""

    train: np.ndarray
    """Normal images."""
    calibration: np.ndarray
    """Normal images, never trained on."""
    test: np.ndarray
    labels: np.ndarray
    """Of `test`, int64: 0 normal, 1 anomalous."""
    protocol: str
    """How the split was made, in words."""
    notes: tuple[str, ...] = ()
    """What the user should know of it, a sentence each."""


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
        raise UserError(f"{name}: the images differ in size; wanted one array [N, H, W] or [N, H, W, C]") from None
    array = _pixels(array[..., None] if array.ndim == 3 else array, name)
    n = len(array)
    indices, names = _labels(labels, classes, n, name)
    if parts is not None:
        parts = np.asarray(parts)
        if parts.shape != (n,) or not np.isin(parts, (0, 1)).all():
            raise UserError(f"{name}: parts of shape {parts.shape}: wanted {n} values, 0 train and 1 test")
        parts = parts.astype(np.int8)
    if array.dtype.kind == "u" and low is None:
        low, high = 0.0, float(np.iinfo(array.dtype).max)
    paths = tuple(f"{name}[{i}]" for i in range(n))
    return Dataset(array, indices, names, normal_by_words(names), parts, paths, low, high, name=name)


def split(dataset: Dataset, settings: config.Data, seed: int) -> Split:
    """Training, calibration and test set.

    With `settings.abnormal`, the protocol of the published tables: train and test part are pooled in this order, the
    normal images shuffled as `numpy.random.seed(seed); numpy.random.shuffle` does and cut at 1 - `settings.test`;
    the test set holds the rest of them, then all abnormal images. Without, the source's own labels and parts count;
    where it has no parts, the normal images are cut in the same way and all anomalous ones are tested on.
    Calibration images come out of the training ones by a generator of their own; then `settings.limit` counts.

    Raises:
      UserError: a class that does not exist, none chosen where one must be, no or too few normal images, or
        normal training images with NaN or infinite pixels.
    """
    if not 0 <= seed < 2**32:
        raise UserError(f"seed={seed}: wanted 0 to {2**32 - 1}")
    normal = normal_classes(dataset, settings.abnormal)
    is_normal = np.isin(dataset.labels, [i for i, name in enumerate(dataset.classes) if name in normal])
    parts = np.zeros(len(dataset.labels), np.int8) if dataset.parts is None else dataset.parts
    pooled = np.argsort(parts, kind="stable")
    pooled_normal, pooled_anomalous = pooled[is_normal[pooled]], pooled[~is_normal[pooled]]
    notes: tuple[str, ...] = ()
    if settings.abnormal or not (parts == 1).any():
        order = np.arange(len(pooled_normal))
        np.random.RandomState(seed).shuffle(order)
        cut = int(len(order) * (1 - settings.test))
        train, rest = pooled_normal[order[:cut]], pooled_normal[order[cut:]]
        test = np.concatenate([rest, pooled_anomalous])
        protocol = f"one class abnormal: {settings.abnormal}" if settings.abnormal else "own labels, normals split"
    else:
        train, moved = np.flatnonzero(is_normal & (parts == 0)), np.flatnonzero(~is_normal & (parts == 0))
        test = np.concatenate([np.flatnonzero(parts == 1), moved])
        protocol = "own labels, own split"
        if len(moved):
            notes = (f"{len(moved)} anomalous images of the training part are tested on, never trained on",)
    check_finite(dataset, train)
    set_aside = np.flatnonzero(is_normal & (parts == CALIBRATION))
    if len(set_aside) and len(train) > 1:
        return Split(train, set_aside, test, (~is_normal[test]).astype(np.int64), "as the mixture says", notes)
    count = int(len(train) * settings.calibration)
    if settings.calibration > 0 and len(train) > 1:
        count = max(count, 1)
    # A generator of its own: with or without a calibration part, the shuffle above is the published one.
    drawn = np.random.default_rng((seed, 1)).permutation(len(train))
    calibration, kept = np.sort(drawn[:count]), drawn[count:]
    kept = np.sort(kept[: settings.limit or None])
    if len(kept) < 2:
        raise UserError(
            f"{dataset.name} has {len(pooled_normal)} normal images, of which {len(kept)} would be trained on "
            f"({count} for calibration): at least 2 are needed, and some hundreds are worth training on"
        )
    labels = (~is_normal[test]).astype(np.int64)
    return Split(train[kept], train[calibration], test, labels, protocol, notes)


def normal_classes(dataset: Dataset, abnormal: str) -> frozenset[str]:
    """The classes that count as normal: all but `abnormal` where that is given, else those the source names.

    Raises:
      UserError: `abnormal` is no class of it, none is given where the source has classes only, or none is normal.
    """
    listed = ", ".join(dataset.classes)
    if abnormal and abnormal not in dataset.classes:
        near = difflib.get_close_matches(abnormal, dataset.classes, n=1, cutoff=0.0)
        hint = f"; the nearest is {near[0]!r}" if near else ""
        raise UserError(f"data.abnormal={abnormal!r} is no class of {dataset.name}, which has {listed}{hint}")
    if abnormal:
        normal = frozenset(dataset.classes) - {abnormal}
    elif dataset.normal is None:
        raise UserError(
            f"{dataset.name} has the classes {listed}, and which of them are anomalous is not said: "
            f"--config.data.abnormal=NAME picks one, or name them with words that are understood "
            f"({', '.join(NORMAL_WORDS)}; {', '.join(ANOMALOUS_WORDS)})"
        )
    else:
        normal = dataset.normal
    present = [dataset.classes[label] for label in np.unique(dataset.labels)]
    if normal.isdisjoint(present):
        raise UserError(f"{dataset.name} has no normal images, only {', '.join(present)}: training needs normal ones")
    return normal


def normal_by_words(names: Iterable[str]) -> frozenset[str] | None:
    """The names that mean normal, where each is a word for normal or anomalous; None where one is neither."""
    if any(plain_word(name) not in NORMAL_WORDS + ANOMALOUS_WORDS for name in names):
        return None
    return frozenset(name for name in names if plain_word(name) in NORMAL_WORDS)


def plain_word(name: str) -> str:
    """The word in the name of a class: `0.Normal` is `normal`."""
    return re.sub(r"^\d+[._ -]+", "", name.strip().lower())


def check_finite(dataset: Dataset, indices: np.ndarray) -> None:
    """Refuse NaN or infinite pixels in the images at `indices` `[n]`, which are to be trained on.

    Raises:
      UserError: with their number and the first one's path.
    """
    if dataset.images.dtype.kind != "f":
        return
    good = [
        ok
        for block in lazy.blocks(dataset.images, indices)
        for ok in np.isfinite(block).all(axis=tuple(range(1, block.ndim)))
    ]
    bad = indices[~np.array(good, bool)]
    if len(bad):
        raise UserError(
            f"{len(bad)} of {len(indices)} normal training images of {dataset.name} have NaN or infinite pixels "
            f"(the first is {dataset.paths[bad[0]]}): take them out or repair them"
        )


def network_size(settings: config.Data, small: bool, own: tuple[int, int] | None = None) -> tuple[int, int]:
    """(height, width) that images are brought to: the network's input, or with `data.tile` what is cut into tiles.

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
    """The pixel values that become -1 and +1: the data set's, or the extremes of its images at `train` `[n]`.

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


def columns(seed: int, n: int, batch_size: int) -> np.ndarray:
    """int64 `[batch_size, ceil(n / batch_size)]`: the images, of n, that each place in a batch draws from.

    Drawn once a run. A place keeps its images, so that a device or a process needs only those of its own places, and
    the order of a training depends on neither their number. Where n is no multiple, the last of a row fills it up.

    Raises:
      UserError: fewer images than one batch.
    """
    if n < batch_size:
        raise UserError(f"{n} training images are fewer than one batch of {batch_size}: lower train.batch_size")
    order = np.random.default_rng((seed, *_PLACES)).permutation(n)
    return np.resize(order, -(-n // batch_size) * batch_size).reshape(-1, batch_size).T


def batch_rows(seed: int, n: int, batch_size: int, start_step: int, count: int) -> np.ndarray:
    """int32 `[count, batch_size]`: which of its `columns` each place takes in steps start_step ... + count - 1.

    It follows from seed and epoch alone. An epoch has n // batch_size steps and takes no image twice; what does not
    fill a batch is another part in every epoch.
    """
    if not count:
        return np.empty((0, batch_size), np.int32)
    steps = n // batch_size
    epochs = range(start_step // steps, (start_step + count - 1) // steps + 1)
    begin = start_step - epochs[0] * steps
    return np.concatenate([_epoch_rows(seed, n, batch_size, epoch) for epoch in epochs])[begin : begin + count]


@functools.lru_cache(2)  # many calls lie in one epoch, and drawing its order takes as long as some steps
def _epoch_rows(seed: int, n: int, batch_size: int, epoch: int) -> np.ndarray:
    steps, longest = n // batch_size, -(-n // batch_size)
    keys = np.random.default_rng((seed, _EPOCHS, epoch)).random((longest, batch_size))
    if longest > steps:
        keys[-1, n - steps * batch_size :] = np.inf  # these only fill up
    return keys.argsort(axis=0, kind="stable")[:steps].astype(np.int32)


def batch_indices(seed: int, n: int, batch_size: int, start_step: int, count: int) -> np.ndarray:
    """int32 `[count, batch_size]`: which of n training images steps start_step ... start_step + count - 1 take.

    Raises:
      UserError: fewer images than one batch.
    """
    places = columns(seed, n, batch_size)
    rows = batch_rows(seed, n, batch_size, start_step, count)
    return places[np.arange(batch_size), rows].astype(np.int32)


def image_hash(image: np.ndarray) -> bytes:
    """sha256 over the pixels of one image, little-endian: 32 bytes."""
    little = np.ascontiguousarray(image.astype(image.dtype.newbyteorder("<"), copy=False))
    return hashlib.sha256(little.reshape(-1).view(np.uint8).data).digest()


def content_hash(dataset: Dataset, hashes: Iterable[bytes] | None = None) -> str:
    """sha256 over images, labels, classes and parts, in hexadecimal: the same data give the same hash anywhere.

    Images count by their `image_hash` each, which may be given, so that nobody has to have all of them.
    """
    if dataset.digest:
        return dataset.digest
    if hashes is None:
        hashes = (image_hash(image) for block in lazy.blocks(dataset.images) for image in block)
    digest = hashlib.sha256(f"{dataset.images.dtype.newbyteorder('<').str}{dataset.images.shape};".encode())
    for one in hashes:
        digest.update(one)
    own = () if dataset.spans is None else (dataset.spans,)
    for array in (dataset.labels, dataset.parts, *own):
        if array is None:
            digest.update(b"none;")
            continue
        little = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False))
        digest.update(f"{little.dtype.str}{array.shape};".encode() + little.tobytes())
    normal = None if dataset.normal is None else sorted(dataset.normal)
    digest.update(repr((dataset.classes, normal, *dataset.columns)).encode())
    return digest.hexdigest()


def describe(dataset: Dataset, split: Split | None = None) -> str:
    """What was taken as what: a table of at most four rows, then size, range, split and unreadable files."""
    uses = np.full(len(dataset.labels), "images", dtype="<U11")
    if split is not None:
        uses[:] = "not used"
        uses[split.train], uses[split.calibration], uses[split.test] = "train", "calibration", "test"
        anomalous = set(dataset.labels[split.test[split.labels == 1]].tolist())
    else:
        if dataset.parts is not None:
            uses[:] = np.where(dataset.parts == 1, "test", "train")
        anomalous = {
            i for i, name in enumerate(dataset.classes) if dataset.normal is not None and name not in dataset.normal
        }
    columns = [use for use in ("images", "train", "calibration", "test", "not used") if (uses == use).any()]
    kinds = ("?", "?") if split is None and dataset.normal is None else ("normal", "anomalous")
    present = np.unique(dataset.labels).tolist()
    if len(present) <= 4:
        groups = [(dataset.classes[i], kinds[i in anomalous], [i]) for i in present]
    else:
        groups = []
        for kind, group in zip(kinds, ([i for i in present if i not in anomalous], sorted(anomalous)), strict=True):
            names = ", ".join(dataset.classes[i] for i in group)
            groups += [(textwrap.shorten(names, 48, placeholder=" ..."), kind, group)] if group else []
    rows = [("class", "taken as", *columns)]
    for name, kind, group in groups:
        counts = [int((np.isin(dataset.labels, group) & (uses == use)).sum()) for use in columns]
        rows.append((name, kind, *map(str, counts)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if k < 2 else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells))
    size = " x ".join(map(str, dataset.images.shape[1:]))
    span = "fitted on normal training images" if dataset.low is None else f"{dataset.low:g} to {dataset.high:g}"
    last = f"; {split.protocol}" if split else ""
    if dataset.recordings:
        lines.append(f"{size} samples a window; each band scaled by the normal training windows{last}")
    elif dataset.spans is None:
        lines.append(f"{size} pixels of {dataset.images.dtype}; range {span}{last}")
    else:
        what = "sensors a row" if dataset.images.ndim == 2 else "(rows, sensors) a window"
        lines.append(f"{size} {what}; scaled by the normal training rows{last}")
    lines.extend(f"note: {note}" for note in (*dataset.notes, *(split.notes if split else ())))
    if dataset.problems:
        path, reason = dataset.problems[0]
        lines.append(f"{len(dataset.problems)} files could not be read, the first: {path}: {reason}")
    return "\n".join(lines)


def _pixels(array: np.ndarray, name: str) -> np.ndarray:
    if array.ndim != 4 or 0 in array.shape:
        raise UserError(f"{name}: images of shape {array.shape}: wanted [N, H, W] or [N, H, W, C], none of them 0")
    if array.shape[1] in (1, 3) and array.shape[3] > 4:
        raise UserError(f"{name}: images of shape {array.shape} look like [N, C, H, W]: transpose them to [N, H, W, C]")
    kind = array.dtype.kind
    if kind == "b":
        return array.astype(np.uint8) * np.uint8(255)
    if kind == "f":
        with np.errstate(over="ignore"):  # becomes infinite, which is refused or flagged like any other infinity
            return array.astype(np.float32)
    if kind not in "iu":
        raise UserError(f"{name}: images of type {array.dtype}: wanted uint8, uint16 or floating point")
    if array.dtype in (np.uint8, np.uint16):
        return array.astype(array.dtype.newbyteorder("="), copy=False)
    fits = [kind for kind in (np.uint8, np.uint16) if array.min() >= 0 and array.max() <= np.iinfo(kind).max]
    return array.astype(fits[0] if fits else np.float32)


def _labels(labels: Any, classes: Sequence[str] | None, n: int, name: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """int64 `[n]` indices and the names that they point to."""
    if labels is None:
        return np.zeros(n, np.int64), ("normal",)
    try:
        labels = np.asarray(labels)
    except ValueError:
        raise UserError(f"{name}: the labels differ in length; wanted one integer or word an image") from None
    if labels.shape == (n, 1):
        labels = labels[:, 0]
    if labels.shape != (n,):
        raise UserError(f"{name}: labels of shape {labels.shape} for {n} images: wanted one label an image")
    if labels.dtype.kind == "b" or (labels.dtype.kind == "f" and (labels == np.rint(labels)).all()):
        labels = labels.astype(np.int64)
    if labels.dtype.kind not in "iuUS":
        raise UserError(f"{name}: labels of type {labels.dtype}: wanted integers or words")
    if labels.dtype.kind in "iu" and classes is not None:
        if labels.min() < 0 or labels.max() >= len(classes):
            raise UserError(f"{name}: labels {labels.min()} to {labels.max()} for {len(classes)} class names")
        return labels.astype(np.int64), tuple(map(str, classes))
    values, indices = np.unique(labels.astype(str), return_inverse=True)
    return indices.astype(np.int64), tuple(values.tolist())
