"""From an image of any size to the network's input: size and channels on the host, the range inside the program.

`fit_image` runs on the host, once an image. `to_unit` and `finite` are pure JAX and part of every compiled program
and of the export; jax is imported where it is used, so that decoding files does not wait for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ganomaly_jax.core.errors import UserError

if TYPE_CHECKING:
    import jax

FAR = 20.0
"""Where the values of sensors are clipped, in units of what half the range from low to high is."""


def fit_image(image: np.ndarray, height: int, width: int, channels: int, fit: str = "stretch") -> np.ndarray:
    """Fits one image to the size and channels of the network.

    Args:
      image: `[h, w, c]` uint8, uint16 or float32, any range.
      height: pixels of the result.
      width: pixels of the result.
      channels: channels of the result, see `to_channels`; 0 keeps those of the image.
      fit: `stretch`, or `letterbox`: the aspect ratio is kept, the image is centred and the rest is filled by
        repeating its border pixels (a black frame would be an edge that no training image of the right shape has).

    Returns:
      `[height, width, channels]`, of the image's type. Resized as `PIL.Image.resize` does with BILINEAR, which
      is antialiased; integers are rounded. A non-finite pixel makes every pixel that it reaches non-finite.

    Raises:
      UserError: a shape, type or channel count that cannot be used, or an unknown `fit`.
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
    """Converts `[..., c]` to `[..., channels]` of the same dtype: one is repeated, three become ITU-R 601 luminance.

    Raises:
      UserError: any other change of the number of channels.
    """
    have = image.shape[-1]
    if have == channels:
        return image
    if have == 1:
        return np.repeat(image, channels, axis=-1)
    if (have, channels) != (3, 1):
        raise UserError(f"an image of {have} channels where {channels} are expected: only 1 to N and 3 to 1 are known")
    if image.dtype.kind == "f":
        return (image @ np.array([0.299, 0.587, 0.114], np.float32))[..., None].astype(image.dtype)
    # Pillow's own fixed-point weights, which add up to 65536: 16-bit pixels just fit into 32 bits.
    total = image.astype(np.uint32) @ np.array([19595, 38470, 7471], np.uint32)
    return ((total + 0x8000) >> 16)[..., None].astype(image.dtype)


def to_unit(x: Any, low: Any, high: Any) -> jax.Array:
    """Scales pixel values to the range of the networks.

    Args:
      x: `[...]` of any number type.
      low: the pixel value that becomes -1; or one for each sensor, D of them, of rows `[..., D]`.
      high: the value that becomes +1, as `low`.

    Returns:
      float32 of the same shape in [-1, 1]; values beyond low and high are clipped, NaN stays NaN. Of rows in
      [-FAR, FAR]: a sensor far from normal stays so.
    """
    import jax.numpy as jnp

    x, low, high = (jnp.asarray(value, jnp.float32) for value in (x, low, high))
    if low.ndim:
        # Subtracted first: a sensor may lie far from 0.
        return jnp.clip((x - (low + high) / 2) / ((high - low) / 2), -FAR, FAR)
    return jnp.clip(2 * (x - low) / (high - low) - 1, -1, 1)


def finite(x: Any) -> jax.Array:
    """Returns bool `[B]` for `[B, ...]` of any dtype: True if no pixel of the image is NaN or infinite."""
    import jax.numpy as jnp

    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):  # as jnp.isfinite does, but ONNX knows no such question of integers
        return jnp.ones(x.shape[:1], bool)
    return jnp.isfinite(x).all(axis=tuple(range(1, x.ndim)))


def _resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    if image.shape[:2] == (height, width):
        return image
    from PIL import Image

    size, bilinear = (width, height), Image.Resampling.BILINEAR
    if image.dtype == np.uint8 and image.shape[2] == 3:
        return np.asarray(Image.fromarray(image).resize(size, bilinear))
    planes = (np.ascontiguousarray(image[..., c]) for c in range(image.shape[2]))
    if image.dtype == np.uint8:
        return np.stack([np.asarray(Image.fromarray(plane).resize(size, bilinear)) for plane in planes], axis=-1)
    # Mode F, 32-bit floating point: the only one that Pillow resizes without loss of depth.
    resized = [np.asarray(Image.fromarray(plane.astype(np.float32)).resize(size, bilinear)) for plane in planes]
    stacked = np.stack(resized, axis=-1)
    return stacked if image.dtype == np.float32 else np.clip(np.rint(stacked), 0, 65535).astype(np.uint16)
