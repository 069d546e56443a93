"""What a stream of each modality is."""

from __future__ import annotations

from ganomaly_jax.core.errors import UserError
from ganomaly_jax.scoring.scorer import Scorer
from ganomaly_jax.streaming import inputs

OPENERS = {"images": inputs.opened_folder, "rows": inputs.opened_lines}
"""What opens the source of a stream, by `Modality.name`; the others have no streams."""


def opened(scorer: Scorer, source: str, once: bool) -> inputs.Source:
    """Opens what `monitor SOURCE` names as a stream of what the detector takes.

    Raises:
      UserError: nothing there, not what the detector takes, or a detector of something that has no streams.
    """
    check(scorer)
    return OPENERS[scorer.modality.name](source, once)


def check(scorer: Scorer) -> None:
    """Refuses a detector of something that has no streams.

    Raises:
      UserError: naming what it takes.
    """
    if scorer.modality.name not in OPENERS:
        raise UserError(
            f"monitor watches rows of sensors and folders of images, and this is a detector of {scorer.words.kind}: "
            "`ganomaly predict` judges recordings"
        )
