"""Decodes many image files in threads and brings them to a common size and type.

Pillow is imported on use. Its warnings are not shown: the reason why a file cannot be read says what matters.
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
from ganomaly_jax.data.images.decode import Source, Span, ignore_warnings, read_source, reason_of, shown
from ganomaly_jax.data.images.preprocess import fit_image, to_channels

Decoded = tuple[np.ndarray, Span] | str
"""An image with its (black, white), or the reason why the file cannot be read."""
Item = TypeVar("Item")
Result = TypeVar("Result")

ENDINGS = frozenset(".png .jpg .jpeg .jpe .jfif .bmp .dib .tif .tiff .webp .gif .ppm .pgm .pbm .pnm".split())  # noqa: SIM905
# Threads that decode; Pillow releases the interpreter lock. Limited, since each holds an image at full size.
WORKERS = min(8, os.cpu_count() or 1)


def scan_folder(folder: str | Path, endings: frozenset[str] = ENDINGS) -> tuple[list[Path], int]:
    """Returns all files with certain endings below a folder, sorted, and the number of files skipped.

    Hidden files are skipped. Linked folders are entered once, and not if they lead to the folder itself or to one that
    contains it.

    Args:
      folder: Folder to search.
      endings: File name endings to include, lower case with the dot.

    Raises:
      UserError: A folder may not be listed.
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
    """Returns all image files below a folder, sorted; errors as `scan_folder`."""
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
    """Decodes files in threads, in order; files that cannot be read are reported instead of raising an error.

    The images share one type. By default it is uint8 if all files are, uint16 if all files are, float32 as stored if
    all are floating point, and otherwise float32 with black at 0 and white at 1. Floating-point files among integer
    ones have no common scale with them and are reported as unreadable.

    Args:
      paths: The n files.
      height: Height of the result in pixels.
      width: Width of the result in pixels.
      channels: Channels of the result; 0: 3 if any image has colour, otherwise 1.
      fit: `stretch` or `letterbox`, see `preprocess.fit_image`.
      progress: Whether to show a progress bar on standard error.
      like: (type, low, high) of the images that a detector was trained on, such as `("uint8", 0, 255)`; the result
        has this type.

    Returns:
      Images `[m, height, width, channels]`; their indices into `paths`, int64 `[m]`; (path, reason) of each of the
      n - m other files; and (black, white) of the common type, None for floating point as stored.
    """
    with contextlib.closing(read_ahead(lambda path: decode_file(path, height, width, fit), paths)) as read:
        return stack_decoded(paths, list(progress_bar(read, len(paths), progress)), height, width, channels, like)


def decode_each(paths: Sequence[str | Path], height: int, width: int, fit: str) -> Generator[Decoded, None, None]:
    """Yields `decode_file` of each file: fitted to the size, with its own type and channels.

    Close the iterator as that of `read_ahead`.
    """
    return read_ahead(lambda path: decode_file(path, height, width, fit), paths)


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
    """Yields `decode_files` of every `block` files while the next ones are decoded.

    Each block has its own common type, and its indices begin at 0. Close the iterator as that of `read_ahead`.
    """
    with contextlib.closing(
        read_ahead(lambda path: decode_file(path, height, width, fit), paths, block, workers)
    ) as read:
        for i in range(0, len(paths), block):
            yield stack_decoded(
                paths[i : i + block], list(itertools.islice(read, block)), height, width, channels, like
            )


def read_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], ahead: int = 256, workers: int = WORKERS
) -> Generator[Result, None, None]:
    """Yields a function's result for each item in order, computed ahead in threads; a single item without threads.

    Exceptions are raised at the place of their item. The threads end with the iterator: close it if it may be left
    early (`contextlib.closing`), which waits for the items being computed. Until then no warnings are shown.

    Args:
      function: Function of an item.
      items: The items.
      ahead: Most items that are computed, or being computed, and not yet taken; it bounds memory.
      workers: Number of threads.
    """
    rest = iter(items)
    first = list(itertools.islice(rest, 2))
    if len(first) < 2:  # nothing to compute ahead: a thread would cost more than a small file
        with ignore_warnings():
            yield from map(function, first)
        return
    rest = itertools.chain(first, rest)
    with ignore_warnings(), ThreadPoolExecutor(workers, "read") as pool:
        try:
            pending = collections.deque(pool.submit(function, item) for item in itertools.islice(rest, ahead))
            while pending:
                result = pending.popleft().result()
                pending.extend(pool.submit(function, item) for item in itertools.islice(rest, 1))
                yield result
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def decode_file(path: Source, height: int, width: int, fit: str) -> Decoded:
    """Decodes one image file to `[height, width, c]` with its (black, white), or returns why it cannot be read."""
    try:
        array, span = read_source(path, (height, width))
        return fit_image(array, height, width, 0, fit), span
    except UserError as error:
        return str(error)


def stack_decoded(
    paths: Sequence[str | Path],
    decoded: Sequence[Decoded],
    height: int,
    width: int,
    channels: int,
    like: tuple[str, float, float] | None,
) -> tuple[np.ndarray, np.ndarray, list[tuple[str, str]], Span]:
    """Converts decoded files to a common type and stacks them; arguments and result as those of `decode_files`."""
    readable = [item for item in decoded if not isinstance(item, str)]
    channels = channels or max((array.shape[2] for array, _ in readable), default=1)
    dtype, scaled, raw = common_type(readable, like)
    images, kept, problems = [], [], []
    for i, item in enumerate(decoded):
        try:
            if isinstance(item, str):
                raise UserError(item)
            images.append(to_channels(convert_type(*item, dtype, scaled, raw), channels))
            kept.append(i)
        except UserError as error:
            problems.append((shown(paths[i]), str(error)))
    stacked = np.stack(images) if images else np.empty((0, height, width, channels), np.dtype(dtype))
    white = 1.0 if dtype == "float32" else float(np.iinfo(dtype).max)
    return stacked, np.array(kept, np.int64), problems, (0.0, white) if scaled else None


def common_type(
    images: Sequence[tuple[np.ndarray, Span]], like: tuple[str, float, float] | None
) -> tuple[str, bool, bool]:
    """Returns the common dtype of images, whether integer pixels can be scaled to it, and whether floats are taken."""
    if like is not None:
        # Integers can be scaled to floating-point data from 0 to 1, but not to those of any other range.
        return like[0], like[0] != "float32" or tuple(like[1:]) == (0, 1), like[0] == "float32"
    integers = {array.dtype.name for array, span in images if span is not None}
    return (min(integers) if len(integers) == 1 else "float32"), bool(integers), not integers


def convert_type(array: np.ndarray, span: Span, dtype: str, scaled: bool, raw: bool) -> np.ndarray:
    """Converts one image to a common type.

    Args:
      array: Image `[H, W, C]`.
      span: Its (black, white), None for floating point.
      dtype: Type of the result, as are `scaled` and `raw` from `common_type`.
      scaled: Whether integer pixels are scaled to `dtype`.
      raw: Whether floating-point pixels are kept as stored.

    Raises:
      UserError: The image has no common scale with the type.
    """
    if span is None:
        if not raw:
            raise UserError(f"floating-point or 32-bit pixels, expected {dtype}: they have no common scale")
        return array
    if not scaled:
        raise UserError(f"{array.dtype} pixels, expected floating point: they have no common scale")
    if array.dtype == dtype:
        return array
    unit = (array.astype(np.float32) - span[0]) / (span[1] - span[0])
    return unit if dtype == "float32" else np.rint(unit * np.iinfo(dtype).max).astype(dtype)


def progress_bar(items: Iterator[Any], total: int, progress: bool) -> Iterator[Any]:
    """Shows a progress bar on standard error while items are taken, if `progress` and tqdm is installed."""
    if not progress:
        return items
    try:
        from tqdm import tqdm
    except ImportError:
        return items
    return iter(tqdm(items, "reading", total, unit="image", leave=False, disable=None))
