"""The range of floating-point images given to a detector that was trained on integer pixels.

Floating-point images have no inherent scale. `value_range=(low, high)` states the values of black and white. Without
it, an image with a negative value is taken to be in [-1, 1]; an image whose values all lie in [0, 1] is ambiguous and
refused. Each image is checked on its own, so its score never depends on its batch.
"""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np

from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data.lazy import Images, LazyImages

Range = tuple[float, float]
"""(low, high): the values of black and white."""
UNIT: Range = (-1.0, 1.0)
"""The range of the networks' inputs."""


def checked(value_range: Any, dtype: str) -> Range | None:
    """Returns a range as two floats, or None for None.

    Args:
      value_range: the range that a caller gave, or None.
      dtype: type of the detector's training images.

    Raises:
      UserError: it is not a range, or the detector was trained on floats, whose range is known.
    """
    if value_range is None:
        return None
    try:
        low, high = (float(value) for value in value_range if isinstance(value, numbers.Real))
    except (TypeError, ValueError):
        low, high = 0.0, 0.0
    if not (low < high and np.isfinite([low, high]).all()):
        raise UserError(f"value_range={value_range!r}: expected two numbers, low < high, such as (0, 1) or (-1, 1)")
    if np.dtype(dtype).kind != "u":
        raise UserError(
            f"value_range={value_range!r} applies to detectors of integer pixels; this one was trained on {dtype} "
            "and expects values on the scale of its training data"
        )
    return low, high


def scaled(x: Any, value_range: Range) -> Any:
    """Returns floating-point values scaled from a range to [-1, 1]; works on arrays of NumPy and JAX."""
    low, high = value_range
    return x if value_range == UNIT else 2 * (x - low) / (high - low) - 1


def to_unit(x: np.ndarray, value_range: Range | None) -> np.ndarray:
    """Returns floating-point images as float32 in [-1, 1], by the rule above.

    Args:
      x: images `[B, H, W, C]` of any floating-point type. Images with NaN are accepted and get the verdict `invalid`.
      value_range: the range of the values, if it is known.

    Raises:
      UserError: an image is out of range, or could be in either.
    """
    x = x.astype(np.float32)
    axes = tuple(range(1, x.ndim))
    lows, highs = np.fmin.reduce(x, axis=axes), np.fmax.reduce(x, axis=axes)  # they ignore NaN
    low, high = value_range or UNIT
    outside = np.flatnonzero((lows < low) | (highs > high))
    if len(outside):
        i = outside[0]
        raise UserError(
            f"floating-point image {i} has values from {lows[i]:g} to {highs[i]:g}: expected {_words((low, high))}. "
            "This detector was trained on integer pixels: pass integer images, or state the range with "
            "value_range=(low, high)"
        )
    if value_range is not None:
        return scaled(x, value_range)
    unclear = np.flatnonzero((lows >= 0) & ~np.isnan(x).any(axis=axes))
    if len(unclear):
        i = unclear[0]
        raise UserError(
            f"floating-point image {i} has values from {lows[i]:g} to {highs[i]:g}, which could be in [0, 1] or in "
            "[-1, 1]: state the range with value_range=(0, 1) or value_range=(-1, 1)"
        )
    return x


def images_to_unit(images: Images, value_range: Range) -> Images:
    """Returns floating-point images `[N, H, W, C]`, in memory or read on demand, scaled to [-1, 1]; others unchanged.

    Raises:
      UserError: an image is out of range.
    """
    if images.dtype.kind != "f":
        return images
    if not isinstance(images, LazyImages):
        return to_unit(images, value_range)
    read = images.read
    return LazyImages(
        lambda indices: to_unit(read(indices), value_range), images.shape, np.dtype(np.float32), images.keep
    )


def _words(value_range: Range) -> str:
    return f"[{value_range[0]:g}, {value_range[1]:g}]"
