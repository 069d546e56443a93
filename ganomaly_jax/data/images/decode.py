"""Decoding of a single image file, with a readable reason where that is impossible."""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import os
import re
import stat
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from ganomaly_jax.core.errors import UserError
from ganomaly_jax.core.printable import LONGEST, printable
from ganomaly_jax.data.images import reduction

Span = tuple[float, float] | None
"""Pixel values (black, white) that the file's type implies; None for floating point and 32-bit integers."""
MAX_PIXELS = 64_000_000
# Pillow holds a pointer for each row.
MAX_SIDE = 1_000_000
# Larger files are decoded one at a time, and at a reduced size where the target size is known.
LARGE = 4_000_000
# These decoders need 16, 6 and up to 12 bytes a pixel; all others need 4.
_MAX_PIXELS_OF = {"WebP": 12_000_000, "progressive JPEG": 40_000_000, "TIFF in one piece": 24_000_000}

_FORMATS = ("PNG", "JPEG", "BMP", "DIB", "TIFF", "WEBP", "GIF", "PPM")
_MAGIC = re.compile(rb"\x89PNG|\xff\xd8\xff|BM|II[*+]\0|MM\0[*+]|GIF8|RIFF....WEBP|P[1-6]\s", re.DOTALL)
_large_files = threading.Lock()


Source = str | Path | io.BytesIO
"""An image file: its path, or its content."""


def read_image(path: str | Path, target: tuple[int, int] | None = None) -> tuple[np.ndarray, Span]:
    """Reads the first image of a PNG, JPEG, BMP, TIFF, WebP, GIF or PNM file.

    The file type is determined by the content, not by the name. EXIF orientation is applied, and alpha is composited
    over black. Palettes, CMYK and other colour spaces become RGB, and palettes of greys become grey. One-bit images
    become 0 and 255, and 12-bit grey is scaled to 16 bits. Of 16-bit colour only the upper 8 bits are read, since
    Pillow provides no more.

    Args:
      path: Path of the file.
      target: (height, width) in pixels that the image will be resized to. An image of more than 4 million pixels is
        then decoded at a fraction of its size, at least twice the target's longer side, which bounds memory and
        changes little. An elongated image (a shorter side below that, and more than 8 million pixels or 65,536
        pixels along the longer side) is reduced below these limits, however short its shorter side becomes.

    Returns:
      Pixels `[h, w, c]` with c = 1 or 3, uint8, uint16 or float32; and (black, white) as implied by the type,
      (0, 255) or (0, 65535), or None for floating point and 32-bit integers.

    Raises:
      UserError: The file does not exist, is a directory, may not be read, is empty, is not an image, is damaged, or
        has more than 64 million pixels (WebP: 12, progressive JPEG: 40, TIFF compressed in one piece: 24) or more
        than 1 million pixels along a side. The message is one line that starts with the reason.
    """
    with ignore_warnings():
        try:
            return read_source(path, target)
        except UserError as error:
            raise UserError(f"{error}: {shown(path)}") from None


def image_size(path: Source) -> tuple[int, int] | None:
    """Returns the stored (height, width) in pixels from an image's header, or None if it cannot be read."""
    from PIL import Image

    try:
        with ignore_warnings(), _open(path) as file, Image.open(file, formats=_FORMATS) as image:
            return image.height, image.width
    except Exception:
        return None


def image_header(path: str | Path) -> tuple[int, int, str] | None:
    """Returns the stored (height, width, Pillow mode) from an image's header, or None if it cannot be read."""
    from PIL import Image

    try:
        with ignore_warnings(), _open(path) as file, Image.open(file, formats=_FORMATS) as image:
            return image.height, image.width, image.mode
    except Exception:
        return None


def shown(path: Any) -> str:
    """Returns a printable form of a path, whatever bytes its name contains."""
    return printable(os.fsdecode(path), LONGEST)


@contextlib.contextmanager
def ignore_warnings() -> Iterator[None]:
    """Ignores warnings within a block.

    Warning filters belong to the whole process: use this around a pool of threads, never inside its threads.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def reason_of(error: OSError) -> str:
    """Returns the reason for an operating-system error as a lower-case phrase, such as "permission denied"."""
    known = {errno.ENOENT: "no such file", errno.EACCES: "permission denied", errno.ELOOP: "a loop of symbolic links"}
    return known.get(error.errno or 0) or (error.strerror or str(error)).lower()


def _open(path: Source) -> IO[bytes]:
    """Opens an image file for reading, or raises a UserError that says why that is impossible."""
    if isinstance(path, io.BytesIO):
        if not path.getbuffer().nbytes:
            raise UserError("empty file (0 bytes)")
        return path
    try:
        info = os.stat(path)
        if stat.S_ISDIR(info.st_mode):
            raise UserError("a directory, not an image file")
        if not stat.S_ISREG(info.st_mode):  # opening a named pipe would wait for ever
            raise UserError("not a regular file")
        if not info.st_size:
            raise UserError("empty file (0 bytes)")
        return open(path, "rb")
    except OSError as error:
        raise UserError(reason_of(error)) from None
    except ValueError as error:  # a NUL in the name
        if isinstance(error, UserError):
            raise
        raise UserError(f"not a file name: {error}") from None


def read_source(path: Source, target: tuple[int, int] | None) -> tuple[np.ndarray, Span]:
    """Reads an image from a path or from its content; otherwise as `read_image`, but errors do not name the file."""
    from PIL import Image, UnidentifiedImageError

    with _open(path) as file:
        try:
            is_image = bool(_MAGIC.match(file.read(16)))
            file.seek(0)
            return _decode(file, target)
        except UserError:
            raise
        except Image.DecompressionBombError as error:
            number = re.search(r"\d+", str(error))
            raise _too_large(int(number[0]) if number else 2 * MAX_PIXELS) from None
        except UnidentifiedImageError:
            reason = "damaged image: its header cannot be read" if is_image else "not an image"
            raise UserError(f"{reason} (expected PNG, JPEG, BMP, TIFF, WebP, GIF or PNM)") from None
        except MemoryError:
            raise UserError("out of memory while decoding") from None
        except Exception as error:
            # Pillow raises almost any exception for damaged files: struct.error, SyntaxError, KeyError, ...
            if isinstance(error, OSError) and error.errno:
                raise UserError(reason_of(error)) from None
            detail = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"damaged image: {detail[:200]}") from None


def _too_large(pixels: int, size: str = "", limit: int = MAX_PIXELS, kind: str = "") -> UserError:
    """Returns the error for an image with more pixels than the limit of its kind."""
    allowed = f"the limit{kind and ' for ' + kind} is {limit // 10**6} million"
    return UserError(f"too large: {size}{pixels / 1e6:.0f} million pixels; {allowed}")


def _decode(file: IO[bytes], target: tuple[int, int] | None) -> tuple[np.ndarray, Span]:
    """Decodes an open image file as `read_image` describes."""
    from PIL import Image

    image = Image.open(file, formats=_FORMATS)
    pixels, progressive = image.width * image.height, "progressive" in image.info
    tags = getattr(image, "tag_v2", {})
    kind = "progressive JPEG" if progressive else "WebP" if image.format == "WEBP" else _kind_of_tiff(image, tags)
    limit = _MAX_PIXELS_OF.get(kind, MAX_PIXELS)
    if max(image.size) > MAX_SIDE:
        raise UserError(f"too large: {image.width} x {image.height}; the limit is {MAX_SIDE:,} pixels along a side")
    if pixels > limit:
        raise _too_large(pixels, f"{image.width} x {image.height}, ", limit, kind)
    side = 2 * max(target) if target and pixels > LARGE else 0
    if side:
        image.draft(None, (side, side))  # decodes JPEG at 1/2, 1/4 or 1/8; has no effect on other formats
    large = image.width * image.height > LARGE or (progressive and pixels > LARGE)
    bits, inverted = tags.get(258), tags.get(262) == 0
    with _large_files if large else contextlib.nullcontext():
        image.load()
        factor = reduction.reduction_factor(image.size, side) if side else 1
        array = _pixels(image) if factor < 2 else reduction.average_blocks(image, factor, _pixels)
    array, span = _normalise_depth(array, image.format or "", bits, inverted)
    return np.ascontiguousarray(_upright(array, image)), span


def _pixels(image: Any) -> np.ndarray:
    """Returns a loaded Pillow image as `[h, w, c]` with c = 1 or 3: uint8, uint16, int32 or float32."""
    mode = image.mode
    if mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)[..., None]
    if mode in ("I", "F"):
        return np.asarray(image)[..., None]
    if mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        with_alpha = np.asarray(image.convert("LA" if mode in ("1", "L", "LA", "La") else "RGBA"))
        colour, alpha = with_alpha[..., :-1].astype(np.uint16), with_alpha[..., -1:]
        return ((colour * alpha + 127) // 255).astype(np.uint8)
    if mode not in ("L", "RGB"):
        palette = np.array(image.getpalette() or [0, 1, 2]).reshape(-1, 3)
        image = image.convert("L" if mode == "1" or (palette == palette[:, :1]).all() else "RGB")
    array = np.asarray(image)
    return array if array.ndim == 3 else array[..., None]


def _kind_of_tiff(image: Any, tags: Any) -> str:
    """Returns the key in `_MAX_PIXELS_OF` for a compressed TIFF of very large strips or tiles, otherwise ""."""
    if image.format != "TIFF" or tags.get(259, 1) == 1:
        return ""
    width, height = tags.get(322, image.width), tags.get(323, tags.get(278, image.height))
    return "TIFF in one piece" if width * min(height, image.height) > LARGE else ""


def _normalise_depth(array: np.ndarray, file_format: str, bits: Any, inverted: bool) -> tuple[np.ndarray, Span]:
    """Converts decoded pixels to uint8, uint16 or float32 and returns them with (black, white)."""
    if array.dtype == np.uint8:
        return array, (0.0, 255.0)
    if array.dtype == np.int32 and file_format in ("PNG", "PPM"):  # 16 bits, as some versions of Pillow return them
        array = array.astype(np.uint16)
    if array.dtype == np.uint16:
        if bits == (12,):
            array = array << 4 | array >> 8
        # Pillow inverts 8-bit TIFF files with "white is zero", but not 16-bit ones.
        return (65535 - array if inverted else array), (0.0, 65535.0)
    return array.astype(np.float32), None


def _upright(array: np.ndarray, image: Any) -> np.ndarray:
    """Rotates and mirrors an array as the image's EXIF orientation asks for."""
    try:
        orientation = image.getexif().get(274, 1)
    except Exception:  # the image may be intact although its EXIF data are damaged
        return array
    turned: dict[int, Callable[[np.ndarray], np.ndarray]] = {
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: functools.partial(np.rot90, k=-1),
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: functools.partial(np.rot90, k=1),
    }
    return turned.get(orientation, lambda a: a)(array)
