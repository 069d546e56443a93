"""Image files as arrays: what is decoded how, and the reason in words where a file cannot be read.

Pillow is imported on use. Its warnings never reach the user: what matters is in the reason of a refusal.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data.images.decode import Source, Span, quiet, read_source, reason_of, shown
from ganomaly_jax.data.images.preprocess import fit_image, to_channels

Decoded = tuple[np.ndarray, Span] | str  # a picture, or the reason why there is none
Item = TypeVar("Item")
Result = TypeVar("Result")

ENDINGS = frozenset(".png .jpg .jpeg .jpe .jfif .bmp .dib .tif .tiff .webp .gif .ppm .pgm .pbm .pnm".split())  # noqa: SIM905
# Threads that decode: Pillow lets go of the interpreter meanwhile. No more, since each holds a picture in full size.
WORKERS = min(8, os.cpu_count() or 1)


def scan_folder(folder: str | Path, endings: frozenset[str] = ENDINGS) -> tuple[list[Path], int]:
    """Returns all image files below a folder, sorted, and the number of files skipped (hidden or other `endings`).

    Linked folders are entered once, and never where they lead back to the folder or out above it.

    Raises:
      UserError: a folder that may not be listed.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"{reason_of(error)}: {shown(error.filename)}")

    top = os.path.realpath(folder)
    seen: set[str] = set()
    found, others = [], 0
    for root, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        here = os.path.realpath(root)
        if here in seen or (here != top and (top + os.sep).startswith(here.rstrip(os.sep) + os.sep)):
            folders.clear()
            continue
        seen.add(here)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        wanted = [name for name in files if not name.startswith(".") and Path(name).suffix.lower() in endings]
        found += [Path(root, name) for name in wanted]
        others += len(files) - len(wanted)
    return sorted(found), others


def list_images(folder: str | Path) -> list[Path]:
    """Returns the files of `scan_folder`."""
    return scan_folder(folder)[0]


def decode_files(
    paths: Sequence[str | Path],
    height: int,
    width: int,
    channels: int,
    fit: str,
    progress: bool = False,
    like: tuple[str, float, float] | None = None,
) -> tuple[np.ndarray, np.ndarray, list[tuple[str, str]], Span]:
    """Decodes files in threads, in order; a file that cannot be used is reported and stops nothing.

    The images share one type. With `like`, that one; else uint8 where all are, uint16 where all are, float32 as stored
    where all are floating point, and otherwise float32 with black 0 and white 1. Floating point among integers has no
    common scale and is refused, file by file.

    Args:
      paths: n files.
      height: pixels of the result.
      width: pixels of the result.
      channels: of the result; 0: 3 where any image has colour, otherwise 1.
      fit: `stretch` or `letterbox`, see `preprocess.fit_image`.
      progress: show a bar on standard error.
      like: (type, low, high) of the data that a detector was trained on: `("uint8", 0, 255)`.

    Returns:
      images `[m, height, width, channels]`, the indices into `paths` that they belong to, int64 `[m]`, (path, reason)
      of each of the n - m others, and black and white of the common type, None for floating point as stored.
    """
    with contextlib.closing(read_ahead(lambda path: decoded(path, height, width, fit), paths)) as read:
        return together(paths, list(progress_bar(read, len(paths), progress)), height, width, channels, like)


def decode_each(paths: Sequence[str | Path], height: int, width: int, fit: str) -> Generator[Decoded, None, None]:
    """Decodes each file separately, fitted, in its own dtype and channels: (image, black and white), or the reason.

    Close it as `read_ahead`.
    """
    return read_ahead(lambda path: decoded(path, height, width, fit), paths)


def decode_blocks(
    paths: Sequence[str | Path],
    block: int,
    height: int,
    width: int,
    channels: int,
    fit: str,
    like: tuple[str, float, float] | None = None,
    workers: int = WORKERS,
) -> Generator[tuple[np.ndarray, np.ndarray, list[tuple[str, str]], Span], None, None]:
    """Yields `decode_files` of each `block` files, decoding as many ahead.

    A block has its own common type, and its indices begin at 0. Close it as `read_ahead`.
    """
    with contextlib.closing(read_ahead(lambda path: decoded(path, height, width, fit), paths, block, workers)) as read:
        for i in range(0, len(paths), block):
            yield together(paths[i : i + block], list(itertools.islice(read, block)), height, width, channels, like)


def read_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], ahead: int = 256, workers: int = WORKERS
) -> Generator[Result, None, None]:
    """Yields `function` of each item in order, computed in threads ahead; a single item without threads.

    At most `ahead` items are begun or done and not yet taken, so that memory does not grow with their number. What
    `function` raises is raised at its item's place. The threads end with the iterator: whoever may leave it early
    closes it (`contextlib.closing`), which waits for the items in work. Until then no warning is shown.
    """
    rest = iter(items)
    first = list(itertools.islice(rest, 2))
    if len(first) < 2:  # nothing to work out meanwhile: a thread would cost more than a small file
        with quiet():
            yield from map(function, first)
        return
    rest = itertools.chain(first, rest)
    with quiet(), ThreadPoolExecutor(workers, "read") as pool:
        try:
            begun = collections.deque(pool.submit(function, item) for item in itertools.islice(rest, ahead))
            while begun:
                done = begun.popleft().result()
                begun.extend(pool.submit(function, item) for item in itertools.islice(rest, 1))
                yield done
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def decoded(path: Source, height: int, width: int, fit: str) -> Decoded:
    """Decodes one image file to [height, width, c] with its black and white, or says why it cannot be read."""
    try:
        array, span = read_source(path, (height, width))
        return fit_image(array, height, width, 0, fit), span
    except UserError as error:
        return str(error)


def together(
    paths: Sequence[str | Path],
    read: Sequence[Decoded],
    height: int,
    width: int,
    channels: int,
    like: tuple[str, float, float] | None,
) -> tuple[np.ndarray, np.ndarray, list[tuple[str, str]], Span]:
    """Returns what `decode_files` does, for files that are decoded."""
    good = [item for item in read if not isinstance(item, str)]
    wanted = channels or max((array.shape[2] for array, _ in good), default=1)
    name, scaled, raw = common_type(good, like)
    images, kept, problems = [], [], []
    for i, item in enumerate(read):
        try:
            if isinstance(item, str):
                raise UserError(item)
            images.append(to_channels(as_type(*item, name, scaled, raw), wanted))
            kept.append(i)
        except UserError as error:
            problems.append((shown(paths[i]), str(error)))
    stacked = np.stack(images) if images else np.empty((0, height, width, wanted), np.dtype(name))
    white = 1.0 if name == "float32" else float(np.iinfo(name).max)
    return stacked, np.array(kept, np.int64), problems, (0.0, white) if scaled else None


def common_type(
    good: Sequence[tuple[np.ndarray, Span]], like: tuple[str, float, float] | None
) -> tuple[str, bool, bool]:
    """Returns the common dtype of all images, whether integers can be scaled to it, and whether floats fit."""
    if like is not None:
        # Floating-point data whose range is 0 to 1 have the scale that integers can be brought to; others do not.
        return like[0], like[0] != "float32" or tuple(like[1:]) == (0, 1), like[0] == "float32"
    integers = {array.dtype.name for array, span in good if span is not None}
    return (min(integers) if len(integers) == 1 else "float32"), bool(integers), not integers


def as_type(array: np.ndarray, span: Span, name: str, scaled: bool, raw: bool) -> np.ndarray:
    """Converts one image to the result of `common_type`; raises a UserError if that is impossible."""
    if span is None:
        if not raw:
            raise UserError(f"floating-point or 32-bit pixels where {name} is expected: no common scale")
        return array
    if not scaled:
        raise UserError(f"{array.dtype} pixels where floating-point ones are expected: no common scale")
    if array.dtype == name:
        return array
    unit = (array.astype(np.float32) - span[0]) / (span[1] - span[0])
    return unit if name == "float32" else np.rint(unit * np.iinfo(name).max).astype(name)


def progress_bar(items: Iterator[Any], total: int, progress: bool) -> Iterator[Any]:
    if not progress:
        return items
    try:
        from tqdm import tqdm
    except ImportError:
        return items
    return iter(tqdm(items, "reading", total, unit="image", leave=False, disable=None))
