"""One image file as an array: what is decoded how, and the reason in words where it cannot be read."""

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
from ganomaly_jax.data.images import reduction

Span = tuple[float, float] | None
"""The pixel values that are black and white by the file's type; None for floating point and 32-bit integers."""
MAX_PIXELS = 64_000_000
# Pillow holds a pointer for each row.
MAX_SIDE = 1_000_000
# From here on a file is read at reduced size where the wanted one is known, and one such file at a time.
LARGE = 4_000_000
# Their decoders need 16, 6 and up to 12 bytes a pixel, where the others do with 4.
_MAX_PIXELS_OF = {"WebP": 12_000_000, "progressive JPEG": 40_000_000, "TIFF in one piece": 24_000_000}

_FORMATS = ("PNG", "JPEG", "BMP", "DIB", "TIFF", "WEBP", "GIF", "PPM")
_MAGIC = re.compile(rb"\x89PNG|\xff\xd8\xff|BM|II[*+]\0|MM\0[*+]|GIF8|RIFF....WEBP|P[1-6]\s", re.DOTALL)
_large_files = threading.Lock()


Source = str | Path | io.BytesIO
"""An image file: its name, or what is in it."""


def read_image(path: str | Path, target: tuple[int, int] | None = None) -> tuple[np.ndarray, Span]:
    """Reads the first image of a PNG, JPEG, BMP, TIFF, WebP, GIF or PNM file.

    The type is told from the content, not from the name. EXIF orientation is applied; alpha is composited over black;
    palettes, CMYK and other colour spaces become RGB, a palette of greys grey; 1 bit becomes 0 and 255; 12-bit grey is
    spread over 16 bits. 16-bit colour comes as its upper 8 bits, which is all that Pillow gives.

    Args:
      path: the file.
      target: (height, width) that it will be resized to; a picture of more than 4 million pixels is then decoded at
        a fraction of its size, at least twice the target's longer side, which bounds memory and changes little. Of
        extreme proportions (a short side of less than that, and more than 8 million pixels or 65,536 in the long
        side) it is brought below these, whatever becomes of the short side.

    Returns:
      `[h, w, c]`, c 1 or 3, uint8, uint16 or float32, and the values that are black and white by its type
      ((0, 255), (0, 65535)), or None for floating point and 32-bit integers.

    Raises:
      UserError: one line that starts with what is wrong: no such file, a directory, permission denied, empty, not an
        image, damaged, more than 64 million pixels (WebP 12, progressive JPEG 40, TIFF compressed in one piece 24)
        or 1 million in a side.
    """
    with quiet():
        try:
            return read_source(path, target)
        except UserError as error:
            raise UserError(f"{error}: {shown(path)}") from None


def image_size(path: Source) -> tuple[int, int] | None:
    """Returns (height, width) from the header, as stored; None if it cannot be read."""
    from PIL import Image

    try:
        with quiet(), _opened(path) as file, Image.open(file, formats=_FORMATS) as image:
            return image.height, image.width
    except Exception:
        return None


def image_header(path: str | Path) -> tuple[int, int, str] | None:
    """Returns (height, width, Pillow's mode) from the header, as stored; None if it cannot be read."""
    from PIL import Image

    try:
        with quiet(), _opened(path) as file, Image.open(file, formats=_FORMATS) as image:
            return image.height, image.width, image.mode
    except Exception:
        return None


def shown(path: Any) -> str:
    """Returns a printable form of a path, whatever bytes are in its name."""
    return os.fsdecode(path).encode("utf-8", "backslashreplace").decode("utf-8")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Ignores warnings; used around a pool, never inside its threads, since filters belong to the process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def reason_of(error: OSError) -> str:
    known = {errno.ENOENT: "no such file", errno.EACCES: "permission denied", errno.ELOOP: "a loop of symbolic links"}
    return known.get(error.errno or 0) or (error.strerror or str(error)).lower()


def _opened(path: Source) -> IO[bytes]:
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
    from PIL import Image, UnidentifiedImageError

    with _opened(path) as file:
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
            what = "damaged image: its header cannot be read" if is_image else "not an image"
            raise UserError(f"{what} (expected PNG, JPEG, BMP, TIFF, WebP, GIF or PNM)") from None
        except MemoryError:
            raise UserError("out of memory while it was decoded") from None
        except Exception as error:
            # Pillow's readers raise almost anything on damaged files: struct.error, SyntaxError, KeyError, ...
            if isinstance(error, OSError) and error.errno:
                raise UserError(reason_of(error)) from None
            detail = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"damaged image: {detail[:200]}") from None


def _too_large(pixels: int, size: str = "", most: int = MAX_PIXELS, kind: str = "") -> UserError:
    limit = f"at most {most // 10**6} million are read{kind and ' of ' + kind}"
    return UserError(f"too large: {size}{pixels / 1e6:.0f} million pixels, {limit}")


def _decode(file: IO[bytes], target: tuple[int, int] | None) -> tuple[np.ndarray, Span]:
    from PIL import Image

    image = Image.open(file, formats=_FORMATS)
    pixels, progressive = image.width * image.height, "progressive" in image.info
    tags = getattr(image, "tag_v2", {})
    kind = "progressive JPEG" if progressive else "WebP" if image.format == "WEBP" else _kind_of_tiff(image, tags)
    most = _MAX_PIXELS_OF.get(kind, MAX_PIXELS)
    if max(image.size) > MAX_SIDE:
        raise UserError(f"too large: {image.width} x {image.height}, at most {MAX_SIDE:,} pixels a side are read")
    if pixels > most:
        raise _too_large(pixels, f"{image.width} x {image.height}, ", most, kind)
    side = 2 * max(target) if target and pixels > LARGE else 0
    if side:
        image.draft(None, (side, side))  # JPEG is decoded at 1/2, 1/4 or 1/8; nothing happens to other formats
    large = image.width * image.height > LARGE or (progressive and pixels > LARGE)
    bits, inverted = tags.get(258), tags.get(262) == 0
    with _large_files if large else contextlib.nullcontext():
        image.load()
        step = reduction.step(image.size, side) if side else 1
        array = _pixels(image) if step < 2 else reduction.reduced(image, step, _pixels)
    array, span = _depth(array, image.format or "", bits, inverted)
    return np.ascontiguousarray(_upright(array, image)), span


def _pixels(image: Any) -> np.ndarray:
    """Returns a loaded Pillow image as `[h, w, c]`, c 1 or 3: uint8, uint16, int32 or float32."""
    mode = image.mode
    if mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)[..., None]
    if mode in ("I", "F"):
        return np.asarray(image)[..., None]
    if mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        both = np.asarray(image.convert("LA" if mode in ("1", "L", "LA", "La") else "RGBA"))
        colour, alpha = both[..., :-1].astype(np.uint16), both[..., -1:]
        return ((colour * alpha + 127) // 255).astype(np.uint8)
    if mode not in ("L", "RGB"):
        palette = np.array(image.getpalette() or [0, 1, 2]).reshape(-1, 3)
        image = image.convert("L" if mode == "1" or (palette == palette[:, :1]).all() else "RGB")
    array = np.asarray(image)
    return array if array.ndim == 3 else array[..., None]


def _kind_of_tiff(image: Any, tags: Any) -> str:
    """Returns the name of the limit of a compressed TIFF with very large strips or tiles."""
    if image.format != "TIFF" or tags.get(259, 1) == 1:
        return ""
    width, height = tags.get(322, image.width), tags.get(323, tags.get(278, image.height))
    return "TIFF in one piece" if width * min(height, image.height) > LARGE else ""


def _depth(array: np.ndarray, form: str, bits: Any, inverted: bool) -> tuple[np.ndarray, Span]:
    if array.dtype == np.uint8:
        return array, (0.0, 255.0)
    if array.dtype == np.int32 and form in ("PNG", "PPM"):  # their 16 bits, as some versions of Pillow give them
        array = array.astype(np.uint16)
    if array.dtype == np.uint16:
        if bits == (12,):
            array = array << 4 | array >> 8
        # Pillow leaves 16-bit TIFF with "white is zero" as it is, where it turns 8-bit round.
        return (65535 - array if inverted else array), (0.0, 65535.0)
    return array.astype(np.float32), None


def _upright(array: np.ndarray, image: Any) -> np.ndarray:
    try:
        orientation = image.getexif().get(274, 1)
    except Exception:  # damaged EXIF says nothing about the picture
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
