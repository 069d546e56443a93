"""What one of the data is called: the words that sentences for users are made of."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Words:
    """The modality's own words, which sentences for users are made of."""

    item: str
    items: str
    kind: str
    """What a source holds or a detector takes: `images`, `rows of sensors`, `sound`."""
    not_finite: str = "missing or infinite values"
    """Why an item is invalid."""
    same: str = "the same in every value"
    """How a copy of an item is like it."""


IMAGES = Words("image", "images", "images", "NaN or infinite pixels", "the same to the pixel at the network's size")
