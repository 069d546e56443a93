"""The words of a modality that messages are made of."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Words:
    """Words of a modality for messages."""

    item: str
    """One item, such as `image`."""
    items: str
    """Plural of `item`."""
    kind: str
    """Kind of data: `images`, `rows of sensors` or `sound`."""
    not_finite: str = "missing or infinite values"
    """Values that make an item invalid."""
    same: str = "the same in every value"
    """In what respect copies of an item are equal."""


IMAGES = Words("image", "images", "images", "NaN or infinite pixels", "the same to the pixel at the network's size")
