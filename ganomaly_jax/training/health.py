"""The health of a training: measured on normal images, told in plain words, and when it has gone on for long enough."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ganomaly_jax.data.images import preprocess
from ganomaly_jax.model import losses
from ganomaly_jax.model.protocol import Detector, TrainState
from ganomaly_jax.parallel import sharding
from ganomaly_jax.runs.checkpoint import LOSS
from ganomaly_jax.runs.diagnostics import ACCURACY, IMAGES, RANK, VARIANCE

# Images that are measured: enough for the rank of a latent of 100, and no more than four batches of the paper.
MOST_IMAGES = 256
# Steps between two looks where epochs are shorter: a look costs about as much as one or two steps of 64 images.
LEAST_STEPS = 100


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


def measurer(
    detector: Detector, samples: Sequence[Sample], together: bool = False
) -> Callable[[TrainState], list[dict[str, Any]]]:
    """`look(state)`: what is measured of each model at its sample, but for what is not finite.

    With `together` every array of the state has a leading axis of models, at least as many as there are samples.
    """

    @jax.jit
    def measured(variables: Any, raw: Array, low: Array, high: Array) -> tuple[dict[str, Array], Array]:
        x = preprocess.to_unit(raw, low, high)
        seen = detector.diagnostics(variables, x)
        found = {LOSS: losses.l1(x, seen["x_hat"]), VARIANCE: variance_ratio(x, seen["x_hat"])}
        if "real" in seen:
            found[ACCURACY] = accuracy(seen["real"], seen["fake"])
        return found, seen["z"]

    def look(state: TrainState) -> list[dict[str, Any]]:
        # Put together by all processes; each then computes for itself.
        whole = sharding.to_host(detector.diagnostic_variables(state))
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
class EarlyStopping:
    """How long the loss on held-out images has not become smaller. In the meta of every checkpoint, as a dict."""

    smallest: float | None = None
    step: int = 0
    """Of the smallest."""
    looks: int = 0
    """Since then."""

    def after(self, step: int, loss: float) -> EarlyStopping:
        """With one more look; a loss that is NaN, for want of held-out images, is none."""
        if math.isfinite(loss) and (self.smallest is None or loss < self.smallest):
            return EarlyStopping(loss, step, 0)
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
