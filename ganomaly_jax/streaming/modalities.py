"""Streams by modality."""

from __future__ import annotations

from ganomaly_jax.core.errors import UserError
from ganomaly_jax.scoring.scorer import Scorer
from ganomaly_jax.streaming import inputs

OPENERS = {"images": inputs.open_folder, "rows": inputs.open_lines}
"""Functions that open the source of a stream, by `Modality.name`; other modalities have no streams."""


def open_source(scorer: Scorer, source: str, once: bool) -> inputs.Source:
    """Opens the source of `ganomaly monitor`.

    Args:
      scorer: the detector.
      source: `-` for standard input, or a path.
      once: end at the end of the source instead of waiting for more.

    Raises:
      UserError: the source does not exist or is not of the detector's modality, or there are no streams of that.
    """
    check(scorer)
    return OPENERS[scorer.modality.name](source, once)


def check(scorer: Scorer) -> None:
    """Checks that there are streams of the detector's modality.

    Raises:
      UserError: there are none.
    """
    if scorer.modality.name not in OPENERS:
        raise UserError(
            f"monitor takes rows of sensors and folders of images, but this is a detector of {scorer.words.kind}: "
            "use `ganomaly predict`"
        )
