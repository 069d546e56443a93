"""Converts images of any size to the input of the networks.

`fit_image` sets size and channels on the host. `to_unit`, which scales the values, and `all_finite` are pure JAX and
part of every compiled program and export. JAX is imported on use, so that decoding files does not wait for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ganomaly_jax.core.errors import UserError

if TYPE_CHECKING:
    import jax

SENSOR_LIMIT = 20.0
"""Limit at which scaled sensor values are clipped, in units of half the range from low to high."""


def fit_image(image: np.ndarray, height: int, width: int, channels: int, fit: str = "stretch") -> np.ndarray:
    """Fits one image to the size and channels of the network.

    Resizing is antialiased, as `PIL.Image.resize` with BILINEAR; integers are rounded. A pixel that is not finite makes
    all pixels that depend on it not finite.

    Args:
      image: Image `[h, w, c]`, uint8, uint16 or float32, of any range.
      height: Height of the result in pixels.
      width: Width of the result in pixels.
      channels: Channels of the result, see `to_channels`; 0: those of the image.
      fit: `stretch`; or `letterbox`, which keeps the aspect ratio, centres the image and repeats its border pixels
        around it (a black frame would be an edge that training images of the right shape do not have).

    Returns:
      Image `[height, width, channels]` of the same type.

    Raises:
      UserError: The shape, type or number of channels cannot be used, or `fit` is unknown.
    """
    if image.ndim != 3 or 0 in image.shape:
        raise UserError(f"an image of shape {image.shape}: expected [height, width, channels], none of them 0")
    if image.dtype not in (np.uint8, np.uint16, np.float32):
        raise UserError(f"an image of type {image.dtype}: expected uint8, uint16 or float32")
    h, w = image.shape[:2]
    if fit == "letterbox":
        scale = min(height / h, width / w)
        inner = min(height, max(1, round(h * scale))), min(width, max(1, round(w * scale)))
        top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
        around = ((top, height - inner[0] - top), (left, width - inner[1] - left), (0, 0))
        image = np.pad(_resize(image, *inner), around, mode="edge")
    elif fit == "stretch":
        image = _resize(image, height, width)
    else:
        raise UserError(f"data.fit={fit!r}: expected 'stretch' or 'letterbox'")
    return to_channels(image, channels or image.shape[2])


def to_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """Converts the channels of an image: one channel is repeated, three become luminance.

    Args:
      image: Image `[..., c]`.
      channels: Channels of the result.

    Returns:
      Image `[..., channels]` of the same type.

    Raises:
      UserError: The conversion is neither from 1 channel nor from 3 to 1.

    References:
      Recommendation ITU-R BT.601, the weights of red, green and blue.
    """
    given = image.shape[-1]
    if given == channels:
        return image
    if given == 1:
        return np.repeat(image, channels, axis=-1)
    if (given, channels) != (3, 1):
        raise UserError(
            f"image has {given} channels, expected {channels}: only conversions from 1 channel and from 3 to 1 are "
            "supported"
        )
    if image.dtype.kind == "f":
        return (image @ np.array([0.299, 0.587, 0.114], np.float32))[..., None].astype(image.dtype)
    # Pillow's fixed-point weights, which add up to 65536: sums of 16-bit pixels just fit into 32 bits.
    total = image.astype(np.uint32) @ np.array([19595, 38470, 7471], np.uint32)
    return ((total + 0x8000) >> 16)[..., None].astype(image.dtype)


def to_unit(x: Any, low: Any, high: Any) -> jax.Array:
    """Scales raw values to the range of the networks; a pure function.

    Args:
      x: Images, or rows of sensors `[..., D]`, of any number type.
      low: Value that becomes -1: a number for images, D values for rows.
      high: Value that becomes +1, as `low`.

    Returns:
      Scaled values, float32 of the same shape, clipped to [-1, 1]; rows are clipped to
      [-SENSOR_LIMIT, SENSOR_LIMIT], so that values far from normal remain so. NaN stays NaN.
    """
    import jax.numpy as jnp

    x, low, high = (jnp.asarray(value, jnp.float32) for value in (x, low, high))
    if low.ndim:
        # The centre is subtracted first, since sensor values may be far from 0.
        return jnp.clip((x - (low + high) / 2) / ((high - low) / 2), -SENSOR_LIMIT, SENSOR_LIMIT)
    return jnp.clip(2 * (x - low) / (high - low) - 1, -1, 1)


def all_finite(x: Any) -> jax.Array:
    """Returns whether each item of x `[B, ...]` has finite values only, bool `[B]`; a pure function."""
    import jax.numpy as jnp

    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):  # as jnp.isfinite, whose ONNX operator does not take integers
        return jnp.ones(x.shape[:1], bool)
    return jnp.isfinite(x).all(axis=tuple(range(1, x.ndim)))


def _resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes an image `[h, w, c]` to `[height, width, c]`, bilinear and antialiased."""
    if image.shape[:2] == (height, width):
        return image
    from PIL import Image

    size, bilinear = (width, height), Image.Resampling.BILINEAR
    if image.dtype == np.uint8 and image.shape[2] == 3:
        return np.asarray(Image.fromarray(image).resize(size, bilinear))
    planes = (np.ascontiguousarray(image[..., c]) for c in range(image.shape[2]))
    if image.dtype == np.uint8:
        return np.stack([np.asarray(Image.fromarray(plane).resize(size, bilinear)) for plane in planes], axis=-1)
    # Mode F, 32-bit floating point, is the only one that Pillow resizes without loss of depth.
    resized = [np.asarray(Image.fromarray(plane.astype(np.float32)).resize(size, bilinear)) for plane in planes]
    stacked = np.stack(resized, axis=-1)
    return stacked if image.dtype == np.float32 else np.clip(np.rint(stacked), 0, 65535).astype(np.uint16)
