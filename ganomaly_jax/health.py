"""The health of a training: measured on normal images, told in plain words, and when it has gone on for long enough."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ganomaly_jax import losses, preprocess, sharding
from ganomaly_jax.checkpoint import LOSS
from ganomaly_jax.detector import Detector, TrainState

ACCURACY, VARIANCE, RANK = "discriminator_accuracy", "reconstruction_variance", "latent_rank"
CURVES = {
    LOSS: "calibration loss",
    ACCURACY: "discriminator\naccuracy",
    VARIANCE: "variance,\n$\\hat{x}$ over $x$",
    RANK: "effective rank\nof the latent",
}
IMAGES, STOPPED = "images", "stopped"
# Images that are measured: enough for the rank of a latent of 100, and no more than four batches of the paper.
MOST_IMAGES = 256
# Steps between two looks where epochs are shorter: a look costs about as much as one or two steps of 64 images.
LEAST_STEPS = 100

# Of so many logits on the right side of 0 nearly all lie far from it: the loss is flat there, and so are its gradients.
HAS_WON = 0.99
# The best linear reconstruction has the variance that it explains: below a quarter, three quarters of what tells one
# normal image from another are missing.
NEARLY_THE_SAME = 0.25
# A latent that uses less than a tenth of its room could be a tenth as long, or has collapsed.
COLLAPSED = 0.1


def accuracy(real: Array, fake: Array) -> Array:
    """Share of logits on the right side of 0: `real` [B] above, `fake` [B] below, both batches weighing the same."""
    return 0.5 * (jnp.mean(real > 0) + jnp.mean(fake < 0))


def variance_ratio(x: Array, x_hat: Array) -> Array:
    """How much x_hat varies from image to image over how much x does: the variances [B, ...] -> over B, summed."""
    return jnp.sum(jnp.var(x_hat, axis=0)) / jnp.sum(jnp.var(x, axis=0))


def effective_rank(z: np.ndarray) -> float:
    """Dimensions that z [B, N] uses, from 1 to min(N, B - 1): exp of the entropy of the eigenvalues of its covariance.

    The eigenvalues are normalised to sum 1 (Roy and Vetterli, The effective rank, EUSIPCO 2007). 0 where all are 0.
    """
    centred = z.astype(np.float64) - z.mean(axis=0, dtype=np.float64)
    # Those of the covariance but for a factor, which goes with the sum.
    values = np.linalg.svd(centred, compute_uv=False) ** 2
    if not values.sum() > 0:
        return 0.0
    shares = values / values.sum()
    shares = shares[shares > 0]
    return float(np.exp(-np.sum(shares * np.log(shares))))


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """Normal images that a model is looked at with."""

    raw: np.ndarray
    """[B, H, W, C], of which `low` becomes -1 and `high` +1."""
    low: float
    high: float
    held_out: bool
    """Whether it is not trained on them: only then is their loss told."""


def looker(
    detector: Detector, samples: Sequence[Sample], together: bool = False
) -> Callable[[TrainState], list[dict[str, Any]]]:
    """`look(state)`: what is measured of each model at its sample, but for what is not finite.

    With `together` every array of the state has a leading axis of models, at least as many as there are samples.
    """

    @jax.jit
    def measured(examined: Any, raw: Array, low: Array, high: Array) -> tuple[dict[str, Array], Array]:
        x = preprocess.to_unit(raw, low, high)
        seen = detector.examine(examined, x)
        found = {LOSS: losses.l1(x, seen["x_hat"]), VARIANCE: variance_ratio(x, seen["x_hat"])}
        if "real" in seen:
            found[ACCURACY] = accuracy(seen["real"], seen["fake"])
        return found, seen["z"]

    def look(state: TrainState) -> list[dict[str, Any]]:
        # Put together by all processes; each then computes for itself.
        whole = sharding.whole(detector.examined(state))
        looks = []
        for m, sample in enumerate(samples):
            own = jax.tree.map(operator.itemgetter(m), whole) if together else whole
            found, z = measured(own, sample.raw, np.float32(sample.low), np.float32(sample.high))
            values = {name: float(value) for name, value in found.items() if sample.held_out or name != LOSS}
            if np.isfinite(z).all():
                values[RANK] = effective_rank(np.asarray(z))
            finite = {name: value for name, value in values.items() if math.isfinite(value)}
            looks.append(finite | {IMAGES: len(sample.raw), "of": "calibration" if sample.held_out else "training"})
        return looks

    return look


def interval(asked: int, epoch_steps: int) -> int:
    """Steps between two looks: as asked, otherwise an epoch, and `LEAST_STEPS` where that is shorter."""
    return asked or max(epoch_steps, LEAST_STEPS)


@dataclasses.dataclass(frozen=True)
class Waiting:
    """How long the loss on held-out images has not become smaller. In the meta of every checkpoint, as a dict."""

    smallest: float | None = None
    step: int = 0
    """Of the smallest."""
    looks: int = 0
    """Since then."""

    def after(self, step: int, loss: float) -> Waiting:
        """With one more look; a loss that is NaN, for want of held-out images, is none."""
        if math.isfinite(loss) and (self.smallest is None or loss < self.smallest):
            return Waiting(loss, step, 0)
        return self if math.isnan(loss) else dataclasses.replace(self, looks=self.looks + 1)

    def over(self, patience: int) -> bool:
        """Whether a training with this patience, 0 for endless, ends."""
        return 0 < patience <= self.looks

    def sentence(self, step: int, total: int) -> str:
        """When and why it stopped, and what to do to go on."""
        return (
            f"The training stopped early, at step {step:,} of {total:,}: the loss on the calibration images has not "
            f"become smaller in {self.looks} looks since step {self.step:,}, where it was {self.smallest:.4g}. "
            "train.patience=0 goes on from here."
        )


def words(records: Iterable[Mapping[str, Any]], latent_size: int) -> list[str]:
    """Plain sentences about what is not well at the end of a training, from the records of its history."""
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
                f"The discriminator tells real from reconstructed images in {values[-1]:.0%} of cases since step "
                f"{steps[since]:,}: its loss no longer teaches the generator."
            )
    if VARIANCE in looks and (ratio := looks[VARIANCE][1][-1]) < NEARLY_THE_SAME:
        said.append(
            f"Reconstructions vary {ratio:.0%} as much as the inputs: nearly the same picture comes out for all."
        )
    if RANK in looks:
        images = next((r[IMAGES] for r in reversed(records) if isinstance(r.get(IMAGES), int)), latent_size + 1)
        if (rank := looks[RANK][1][-1]) < COLLAPSED * min(latent_size, images - 1):
            said.append(f"The latent uses about {rank:.0f} of {latent_size} dimensions.")
    return said


def curves(records: Iterable[Mapping[str, Any]]) -> dict[str, tuple[Sequence[int], Sequence[float]]]:
    """(steps, values) of each of `CURVES` that the records of a history hold; of two for one step the later."""
    found: dict[str, dict[int, float]] = {name: {} for name in CURVES}
    for record in records:
        for name, values in found.items():
            value = record.get(name)
            if isinstance(value, int | float) and math.isfinite(value):
                values[record["step"]] = float(value)
    return {name: (sorted(v), [v[step] for step in sorted(v)]) for name, v in found.items() if v}
