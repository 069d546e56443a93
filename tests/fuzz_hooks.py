"""Bodies for tests/deploy/test_http_fuzz.py: images, or nearly so, beside the bytes that schemathesis makes."""

import io

import numpy as np
import schemathesis
from hypothesis import strategies
from PIL import Image


def files():
    """Small image files of several formats and depths, and what is left of them once some were cut."""
    random = np.random.default_rng(0)
    made = []
    for size in ((16, 16), (1, 40), (33, 20)):
        grey = Image.fromarray(random.integers(0, 255, size, np.uint8))
        deep = Image.fromarray(random.integers(0, 65535, size, np.uint16))
        floating = Image.fromarray(np.full(size, np.nan, np.float32))
        for image, form in (
            (grey, "PNG"),
            (grey.convert("RGBA"), "PNG"),
            (grey.convert("CMYK"), "JPEG"),
            (grey, "GIF"),
        ):
            made.append(saved(image, form))
        made += [saved(deep, "PNG"), saved(floating, "TIFF")]
    return made + [whole[: len(whole) // 2] for whole in made[::3]]


def saved(image, form):
    kept = io.BytesIO()
    image.save(kept, form)
    return kept.getvalue()


for kind in ("application/octet-stream", "image/*"):
    schemathesis.openapi.media_type(
        kind, strategies.sampled_from(files()) | strategies.binary(min_size=1, max_size=200)
    )
