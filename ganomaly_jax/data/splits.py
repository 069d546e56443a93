"""Splits data sets into training, calibration and test sets."""

from __future__ import annotations

import dataclasses
import difflib
import textwrap

import numpy as np

from ganomaly_jax.core import config, text_table
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.core.printable import LONGEST, listed, printable
from ganomaly_jax.data import lazy
from ganomaly_jax.data.datasets import ANOMALOUS_WORDS, CALIBRATION, NORMAL_WORDS, Dataset
from ganomaly_jax.data.words import IMAGES, Words

# Classes that a message lists: those of the usual benchmarks, and not each of a column that is no label.
_MOST_CLASSES = 20


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Indices of the items in each set, int64."""

    train: np.ndarray
    """Normal items to train on."""
    calibration: np.ndarray
    """Normal items to calibrate with, never trained on."""
    test: np.ndarray
    """Items to test on."""
    labels: np.ndarray
    """Labels of the test items, int64: 0 normal, 1 anomalous."""
    protocol: str
    """Description of how the split was made."""
    notes: tuple[str, ...] = ()
    """Notes for the user, a sentence each."""


def split(dataset: Dataset, settings: config.Data, seed: int, words: Words = IMAGES) -> Split:
    """Splits items into training, calibration and test sets.

    If `settings.abnormal` is set, the protocol is that of the published tables: training and test part are pooled in
    this order, the normal items are shuffled as by `numpy.random.seed(seed); numpy.random.shuffle` and cut at
    1 - `settings.test`; the test set is the rest of them, followed by all abnormal items. Otherwise the labels and
    parts of the source are used; if it has no parts, the normal items are cut in the same way, and all anomalous ones
    are tested on. Calibration items are drawn from the training items by another random generator.

    Args:
      dataset: Data set of any modality.
      settings: Abnormal class, fractions and limit of training items.
      seed: Seed from 0 to 2**32 - 1.
      words: Words of the modality, for messages.

    Raises:
      UserError: The abnormal class does not exist or is not given although it is needed, there are no or too few normal
        items, or normal training items have values that are not finite.
    """
    if not 0 <= seed < 2**32:
        raise UserError(f"seed={seed}: expected 0 to {2**32 - 1}")
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
        protocol = (
            f"one class abnormal: {printable(settings.abnormal)}" if settings.abnormal else "own labels, normals split"
        )
    else:
        train, moved = np.flatnonzero(is_normal & (parts == 0)), np.flatnonzero(~is_normal & (parts == 0))
        test = np.concatenate([np.flatnonzero(parts == 1), moved])
        protocol = "own labels, own split"
        if len(moved):
            notes = (f"{len(moved)} anomalous {words.items} of the training part are tested on, never trained on",)
    check_finite(dataset, train, words)
    set_aside = np.flatnonzero(is_normal & (parts == CALIBRATION))
    if len(set_aside) and len(train) > 1:
        return Split(train, set_aside, test, (~is_normal[test]).astype(np.int64), "as the mixture says", notes)
    count = int(len(train) * settings.calibration)
    if settings.calibration > 0 and len(train) > 1:
        count = max(count, 1)
    # Another generator, so that the shuffle above is the published one with or without a calibration set.
    drawn = np.random.default_rng((seed, 1)).permutation(len(train))
    calibration, kept = np.sort(drawn[:count]), drawn[count:]
    kept = np.sort(kept[: settings.limit or None])
    if len(kept) < 2:
        raise UserError(
            f"{dataset.name} has {len(pooled_normal)} normal {words.items}, of which {len(kept)} would be trained on "
            f"({count} for calibration): at least 2 are needed, and some hundreds are worth training on"
        )
    labels = (~is_normal[test]).astype(np.int64)
    return Split(train[kept], train[calibration], test, labels, protocol, notes)


def normal_classes(dataset: Dataset, abnormal: str) -> frozenset[str]:
    """Returns the normal classes: all but `abnormal` if it is given, otherwise those that the source names.

    Raises:
      UserError: `abnormal` is not a class of the data set, is not given although it is needed, or no item is normal.
    """
    classes = listed(dataset.classes, _MOST_CLASSES)
    if abnormal and abnormal not in dataset.classes:
        near = difflib.get_close_matches(abnormal, dataset.classes, n=1, cutoff=0.0)
        hint = f"; the nearest is {near[0]!r}" if near else ""
        raise UserError(f"data.abnormal={abnormal!r} is not a class of {dataset.name}, which has {classes}{hint}")
    if abnormal:
        normal = frozenset(dataset.classes) - {abnormal}
    elif dataset.normal is None:
        raise UserError(
            f"{dataset.name} has the classes {classes}, and which of them are anomalous is not said: "
            f"--config.data.abnormal=NAME picks one, or name them with words that are understood "
            f"({', '.join(NORMAL_WORDS)}; {', '.join(ANOMALOUS_WORDS)})"
        )
    else:
        normal = dataset.normal
    present = [dataset.classes[label] for label in np.unique(dataset.labels)]
    if normal.isdisjoint(present):
        raise UserError(
            f"{dataset.name} has no normal images, only {listed(present, _MOST_CLASSES)}: training needs normal ones"
        )
    return normal


def check_finite(dataset: Dataset, indices: np.ndarray, words: Words = IMAGES) -> None:
    """Checks that the training items at `indices` `[n]` have finite values only.

    Raises:
      UserError: Some do not; the message says how many and names the first.
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
            f"{len(bad)} of {len(indices)} normal training {words.items} of {dataset.name} have {words.not_finite} "
            f"(the first is {dataset.paths[bad[0]]}): take them out or repair them"
        )


def describe(dataset: Dataset, what: str, split: Split | None = None) -> str:
    """Returns a summary of a data set: a table of classes, then size, range, split and unreadable files.

    Args:
      dataset: The data set.
      what: Description of its items by `Modality.describe`.
      split: Its split; None: not split yet.
    """
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
            names = ", ".join(printable(dataset.classes[i]) for i in group)
            groups += [(textwrap.shorten(names, 48, placeholder=" ..."), kind, group)] if group else []
    rows = [("class", "taken as", *columns)]
    for name, kind, group in groups:
        counts = [int((np.isin(dataset.labels, group) & (uses == use)).sum()) for use in columns]
        rows.append((name, kind, *map(str, counts)))
    lines = text_table.lines(rows, right=range(2, len(rows[0])))
    lines.append(f"{what}{f'; {split.protocol}' if split else ''}")
    lines.extend(f"note: {printable(note, LONGEST)}" for note in (*dataset.notes, *(split.notes if split else ())))
    if dataset.problems:
        path, reason = dataset.problems[0]
        first = printable(f"{path}: {reason}", LONGEST)
        lines.append(f"{len(dataset.problems)} files could not be read, the first: {first}")
    return "\n".join(lines)
