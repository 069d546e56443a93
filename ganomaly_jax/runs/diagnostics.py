"""Diagnostics of a training from its history: curves, and sentences about problems."""

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

# At this accuracy nearly all logits are far from 0, where the loss and its gradients are flat.
HAS_WON = 0.99
# The best linear reconstruction has the variance that it explains: below a quarter, three quarters of the differences
# between normal images are missing.
NEARLY_THE_SAME = 0.25
# A latent that uses less than a tenth of its dimensions could be a tenth as long, or has collapsed.
COLLAPSED = 0.1


def problems(records: Iterable[Mapping[str, Any]], latent_size: int) -> list[str]:
    """Describes the problems at the end of a training.

    Args:
      records: records of `history.jsonl`.
      latent_size: dimensions of the latent.

    Returns:
      A sentence per problem; empty for a healthy training.
    """
    records = list(records)
    sentences = []
    if records and isinstance(records[-1].get(STOPPED), str):
        sentences.append(records[-1][STOPPED])
    measured = curves(records)
    if ACCURACY in measured:
        steps, values = measured[ACCURACY]
        since = len(values)
        while since and values[since - 1] >= HAS_WON:
            since -= 1
        if since < len(values):
            sentences.append(
                f"The discriminator has told {values[-1]:.0%} of real and reconstructed images apart since step "
                f"{steps[since]:,}: its loss no longer trains the generator."
            )
    if VARIANCE in measured and (ratio := measured[VARIANCE][1][-1]) < NEARLY_THE_SAME:
        sentences.append(f"The reconstructions have collapsed: they vary only {ratio:.0%} as much as the inputs.")
    if RANK in measured:
        images = next((r[IMAGES] for r in reversed(records) if isinstance(r.get(IMAGES), int)), latent_size + 1)
        if (rank := measured[RANK][1][-1]) < COLLAPSED * min(latent_size, images - 1):
            sentences.append(f"The latent code uses only about {rank:.0f} of its {latent_size} dimensions.")
    return sentences


def curves(records: Iterable[Mapping[str, Any]]) -> dict[str, tuple[Sequence[int], Sequence[float]]]:
    """Returns (steps, values) of each of `CURVES` in the records; of two values for one step the later."""
    found: dict[str, dict[int, float]] = {name: {} for name in CURVES}
    for record in records:
        for name, values in found.items():
            value = record.get(name)
            if isinstance(value, int | float) and math.isfinite(value):
                values[record["step"]] = float(value)
    return {name: (sorted(v), [v[step] for step in sorted(v)]) for name, v in found.items() if v}
