"""Training health, read from the history of a run: curves, and sentences about what went wrong."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ganomaly_jax.runs.checkpoint import LOSS

ACCURACY, VARIANCE, RANK = "discriminator_accuracy", "reconstruction_variance", "latent_rank"
CURVES = {
    LOSS: "calibration loss",
    ACCURACY: "discriminator\naccuracy",
    VARIANCE: "variance,\n$\\hat{x}$ over $x$",
    RANK: "effective rank\nof the latent",
}
IMAGES, STOPPED = "images", "stopped"

# With so many logits on the right side of 0, nearly all lie far from it, where the loss and its gradients are flat.
HAS_WON = 0.99
# The best linear reconstruction has the variance that it explains: below a quarter, three quarters of what tells one
# normal image from another are missing.
NEARLY_THE_SAME = 0.25
# A latent code that uses less than a tenth of its dimensions could be a tenth as long, or has collapsed.
COLLAPSED = 0.1


def words(records: Iterable[Mapping[str, Any]], latent_size: int) -> list[str]:
    """Describes what is wrong at the end of a training, in plain sentences.

    Args:
      records: the records of `history.jsonl`.
      latent_size: dimensions of the latent code.

    Returns:
      A sentence for each problem; none for a healthy training.
    """
    records = list(records)
    said = []
    if records and isinstance(records[-1].get(STOPPED), str):
        said.append(records[-1][STOPPED])
    looks = curves(records)
    if ACCURACY in looks:
        steps, values = looks[ACCURACY]
        since = len(values)
        while since and values[since - 1] >= HAS_WON:
            since -= 1
        if since < len(values):
            said.append(
                f"The discriminator has told {values[-1]:.0%} of real and reconstructed images apart since step "
                f"{steps[since]:,}: its loss no longer trains the generator."
            )
    if VARIANCE in looks and (ratio := looks[VARIANCE][1][-1]) < NEARLY_THE_SAME:
        said.append(f"The reconstructions have collapsed: they vary only {ratio:.0%} as much as the inputs.")
    if RANK in looks:
        images = next((r[IMAGES] for r in reversed(records) if isinstance(r.get(IMAGES), int)), latent_size + 1)
        if (rank := looks[RANK][1][-1]) < COLLAPSED * min(latent_size, images - 1):
            said.append(f"The latent code uses only about {rank:.0f} of its {latent_size} dimensions.")
    return said


def curves(records: Iterable[Mapping[str, Any]]) -> dict[str, tuple[Sequence[int], Sequence[float]]]:
    """Returns (steps, values) of each of `CURVES` that the records of a history hold; of two for one step the later."""
    found: dict[str, dict[int, float]] = {name: {} for name in CURVES}
    for record in records:
        for name, values in found.items():
            value = record.get(name)
            if isinstance(value, int | float) and math.isfinite(value):
                values[record["step"]] = float(value)
    return {name: (sorted(v), [v[step] for step in sorted(v)]) for name, v in found.items() if v}
