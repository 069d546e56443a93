"""Pictures of images, their reconstructions and residuals, with Pillow and NumPy only.

The residual is |x - x_hat|, mean over channels, on a colour scale that the caller fixes, so that a residual has the
same colour in every picture.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ganomaly_jax.core.atomic_files import replacing
from ganomaly_jax.core.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

GAP = 4
LEAST_SIDE, MOST_SIDE = 96, 384
INK, GREY = (30, 30, 30), (90, 90, 90)
PAPER = 240  # not white: X-ray images are, and their edges would be lost

# Seventeen colours of matplotlib's `inferno` (CC0), dark for no residual: as bright as the residual is large.
_INFERNO = (
    "000004 0b0724 210c4a 3d0965 57106e 71196e 8a226a a32c61 bc3754"
    " d04545 e35933 f1711f f98c0a fcaa0f f9c932 f2e865 fcffa4"
)
_ANCHORS = np.array([list(bytes.fromhex(colour)) for colour in _INFERNO.split()])
COLOURS = np.stack([np.interp(np.linspace(0, 16, 256), range(17), channel) for channel in _ANCHORS.T], axis=1)
COLOURS = COLOURS.round().astype(np.uint8)
"""[256, 3] uint8, the colours of a residual from 0 to the scale's end."""


def grid(x: np.ndarray, x_hat: np.ndarray, columns: int = 8) -> Image.Image:
    """Draws inputs, each above its reconstruction.

    Args:
      x: [N, H, W, C] in [-1, 1]; 3 channels are drawn in colour, any other number as the grey of their mean.
      x_hat: as x.
      columns: the number of pairs side by side.

    Returns:
      A Pillow image, in which small images are enlarged by a whole factor to at least 96 pixels.

    Raises:
      UserError: x and x_hat have different shapes, are empty, or are not floating point.
    """
    top, bottom = _images(x, x_hat)
    columns = min(max(columns, 1), len(top))
    slices = [slice(start, start + columns) for start in range(0, len(top), columns)]
    return _sheet([("", [("input", top[part]), ("reconstruction", bottom[part])]) for part in slices])


def titled_grid(sections: Sequence[tuple[str, np.ndarray, np.ndarray]], residual_max: float) -> Image.Image:
    """Draws rows of inputs, reconstructions and residual maps for each section, with one colour bar.

    Args:
      sections: (title, x [N, H, W, C] in [-1, 1], x_hat as x); N may differ from section to section.
      residual_max: the residual at the end of the colour scale, at most 2; larger residuals get the last colour.

    Returns:
      A Pillow image.

    Raises:
      UserError: as in `grid`, or there are no sections, or residual_max is not above 0.
    """
    if not sections:
        raise UserError("no sections to draw: expected at least one (title, x, x_hat)")
    drawn = []
    for title, x, x_hat in sections:
        top, bottom = _images(x, x_hat)
        maps = heat(residual(x, x_hat), residual_max)
        drawn.append((_ascii(one_line(title)), [("input", top), ("reconstruction", bottom), ("residual", maps)]))
    return _sheet(drawn, residual_max)


def residual(x: np.ndarray, x_hat: np.ndarray) -> np.ndarray:
    """Returns |x - x_hat|, mean over channels: [..., H, W, C] in [-1, 1] to [..., H, W] float32 in 0..2."""
    return np.mean(np.abs(np.asarray(x, np.float32) - np.asarray(x_hat, np.float32)), axis=-1)


def heat(values: np.ndarray, residual_max: float) -> np.ndarray:
    """Converts residuals [...] to colours [..., 3] uint8 on the scale 0..residual_max.

    NaN and values above the scale get the last colour.

    Raises:
      UserError: residual_max is not a finite number above 0.
    """
    if not (np.isfinite(residual_max) and residual_max > 0):
        raise UserError(f"residual_max={residual_max!r}: expected a finite number above 0, the end of the colour scale")
    share = np.nan_to_num(np.asarray(values, np.float32) / np.float32(residual_max), nan=1.0)
    return COLOURS[np.round(255 * np.clip(share, 0, 1)).astype(np.uint8)]


def to_rgb(x: np.ndarray) -> np.ndarray:
    """Converts images [..., H, W, C] in [-1, 1] to [..., H, W, 3] uint8.

    Three channels are drawn in colour, any other number as the grey of their mean. Values out of range are clipped, and
    NaN becomes mid-grey.
    """
    x = np.nan_to_num(np.asarray(x, np.float32), nan=0.0, posinf=1.0, neginf=-1.0)
    if x.shape[-1] != 3:
        x = np.repeat(x.mean(axis=-1, keepdims=True), 3, axis=-1)
    return np.round((np.clip(x, -1, 1) + 1) * 127.5).astype(np.uint8)


def save(image: Image.Image, path: str | Path) -> None:
    """Writes an image atomically as a PNG.

    Raises:
      UserError: the file cannot be written.
    """
    with replacing(path) as temporary:
        image.save(temporary, format="PNG")


def one_line(text: str, most: int = 80) -> str:
    """Returns text as one printable line of at most `most` characters, leaving out the middle of longer text."""
    text = "".join(character if character.isprintable() else "?" for character in text)
    half = (most - 3) // 2
    return text if len(text) <= most else f"{text[: most - 3 - half]}...{text[-half:]}"


def ascii_line(text: str, most: int = 80) -> str:
    """Returns `one_line` of a text, limited to the characters of Pillow's built-in font."""
    return _ascii(one_line(text, most))


def _ascii(text: str) -> str:
    """Reduces text to the characters of Pillow's built-in font: accents are dropped, others become question marks."""
    plain = "".join(part for part in unicodedata.normalize("NFKD", text) if not unicodedata.combining(part))
    return plain.encode("ascii", "replace").decode()


def _images(x: np.ndarray, x_hat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Validates x and x_hat and converts them to [N, H, W, 3] uint8."""
    x, x_hat = np.asarray(x), np.asarray(x_hat)
    if x.ndim != 4 or x.shape != x_hat.shape or 0 in x.shape:
        raise UserError(f"x {x.shape} and x_hat {x_hat.shape}: expected two of one shape [N, H, W, C], none of them 0")
    for name, values in (("x", x), ("x_hat", x_hat)):
        if not np.issubdtype(values.dtype, np.floating):
            raise UserError(f"{name} of type {values.dtype}: expected floating point in [-1, 1]")
    return to_rgb(x), to_rgb(x_hat)


def _strip(images: np.ndarray) -> np.ndarray:
    """Places images [N, H, W, 3] side by side, enlarged by a whole factor.

    Sides become at least 96 pixels, unless another side would exceed 384.
    """
    least, most = sorted(images.shape[1:3])
    factor = max(1, min(-(-LEAST_SIDE // least), MOST_SIDE // most))
    images = images.repeat(factor, axis=1).repeat(factor, axis=2)
    spaced = np.pad(images, ((0, 0), (0, 0), (0, GAP), (0, 0)), constant_values=PAPER)
    return np.concatenate(list(spaced), axis=1)[:, :-GAP]


def _sheet(sections: list[tuple[str, list[tuple[str, np.ndarray]]]], residual_max: float | None = None) -> Image.Image:
    """Draws sections of (title, rows of (label, images [N, H, W, 3] uint8)), and a colour bar if there is a scale."""
    from PIL import Image, ImageDraw, ImageFont

    large, small = ImageFont.load_default(16), ImageFont.load_default(13)
    left = 5 * GAP + max(int(small.getlength(label)) for _, rows in sections for label, _ in rows)
    strips, texts = [], []
    y, width = 2 * GAP, 256 if residual_max else 0
    for title, rows in sections:
        if title:
            texts.append(((left, y), title, large, "la", INK))
            width = max(width, int(large.getlength(title)))
            y += 24
        for label, images in rows:
            strip = _strip(images)
            strips.append((y, strip))
            texts.append(((left - 2 * GAP, y + len(strip) // 2), label, small, "rm", GREY))
            width = max(width, strip.shape[1])
            y += len(strip) + GAP
        y += 2 * GAP
    if residual_max:
        strips.append((y, np.tile(COLOURS, (14, 1, 1))))
        texts.append(((left - 2 * GAP, y + 7), "residual", small, "rm", GREY))
        for share, anchor in ((0.0, "la"), (0.5, "ma"), (1.0, "ra")):
            texts.append(((left + int(256 * share), y + 18), f"{residual_max * share:.3g}", small, anchor, INK))
        texts.append(((left, y + 38), "|input - reconstruction|, mean over channels", small, "la", GREY))
        y += 60
    sheet = np.full((y, left + width + 2 * GAP, 3), PAPER, np.uint8)
    for top, strip in strips:
        sheet[top : top + len(strip), left : left + strip.shape[1]] = strip
    image = Image.fromarray(sheet)
    draw = ImageDraw.Draw(image)
    for place, text, font, anchor, colour in texts:
        draw.text(place, text, font=font, anchor=anchor, fill=colour)
    return image
