"""Scans many image files: which can be read, and which type and channels they share. Pixels are not kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data.images import decode
from ganomaly_jax.data.images import files as image_files
from ganomaly_jax.data.images.files import Decoded
from ganomaly_jax.data.images.preprocess import to_channels


@dataclasses.dataclass(frozen=True)
class PixelFormat:
    """Type and channels that all images of a folder are converted to."""

    dtype: str
    """`uint8`, `uint16` or `float32`."""
    scaled: bool
    """Whether integer pixels can be scaled to `dtype`, see `files.convert_type`."""
    raw: bool
    """Whether floating-point pixels are kept as stored."""
    channels: int

    @property
    def span(self) -> tuple[float, float] | None:
        """Returns the pixel values (black, white), or None for floating point as stored."""
        white = 1.0 if self.dtype == "float32" else float(np.iinfo(self.dtype).max)
        return (0.0, white) if self.scaled else None


def common_format(formats: Iterable[PixelFormat]) -> PixelFormat | None:
    """Returns the format that images of several formats are converted to, or None if there are none."""
    known = list(formats)
    if not known:
        return None
    integers = {one.dtype for one in known if one.scaled}
    dtype = integers.pop() if len(integers) == 1 else "float32"
    scaled = any(one.scaled for one in known)
    return PixelFormat(dtype, scaled, not scaled, max(one.channels for one in known))


def scan_images(
    paths: Sequence[Path],
    decoded: Iterator[Decoded],
    channels: int,
    pixel_format: PixelFormat | None,
    process: Callable[[np.ndarray], Any],
) -> tuple[PixelFormat | None, list[Any] | None, list[int], list[tuple[str, str]]]:
    """Passes each decoded image, converted to the common format, to a function.

    Args:
      paths: The n files.
      decoded: What `files.decode_each` yields for them.
      channels: Channels of the converted images; 0: 3 if any image has colour, otherwise 1.
      pixel_format: Format to convert to; None: that of the first image, for as long as it fits all the others.
      process: Function of an image `[H, W, C]`.

    Returns:
      The common format, None if no file could be read; the results of `process`, or None if a later image changed the
      format (scan again with the one returned); the indices of the files that could be read; and (path, reason) of
      each of the others.
    """
    results: list[Any] | None = []
    kept: list[int] = []
    problems: list[tuple[str, str]] = []
    examples: dict[tuple[Any, ...], tuple[np.ndarray, decode.Span]] = {}
    common, used = pixel_format, pixel_format
    for i, item in enumerate(decoded):
        try:
            if isinstance(item, str):
                raise UserError(item)
            array, span = item
            if pixel_format is None:
                examples.setdefault((array.dtype.name, span, array.shape[2]), (array, span))
                found = list(examples.values())
                most_channels = max(array.shape[2] for array, _ in found)
                common = PixelFormat(*image_files.common_type(found, None), channels or most_channels)
                used = used or common
                if common != used:
                    results = None
            if results is not None and used is not None:
                converted = image_files.convert_type(array, span, used.dtype, used.scaled, used.raw)
                results.append(process(to_channels(converted, used.channels)))
            kept.append(i)
        except UserError as error:
            problems.append((decode.shown(paths[i]), str(error)))
    return common, results, kept, problems
