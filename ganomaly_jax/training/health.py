"""The health of a training, measured on normal images."""

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
from ganomaly_jax.runs.resolution import Run

# Images that are measured: enough for the rank of a latent of 100, and no more than four batches of the paper.
MOST_IMAGES = 256
# Steps between two checks where epochs are shorter: a check costs about as much as one or two steps of 64 images.
LEAST_STEPS = 100


def accuracy(real: Array, fake: Array) -> Array:
    """Returns the share of logits on the right side of 0, `real` [B] above, `fake` [B] below; both weigh the same."""
    return 0.5 * (jnp.mean(real > 0) + jnp.mean(fake < 0))


def variance_ratio(x: Array, x_hat: Array) -> Array:
    """Returns how much x_hat [B, ...] varies from image to image, relative to x: variances over B, summed."""
    return jnp.sum(jnp.var(x_hat, axis=0)) / jnp.sum(jnp.var(x, axis=0))


def effective_rank(z: np.ndarray) -> float:
    """Returns how many dimensions z [B, N] uses, from 1 to min(N, B - 1); 0 where z is constant.

    It is exp of the entropy of the eigenvalues of the covariance, normalised to sum 1.

    References:
      Roy and Vetterli, The effective rank: A measure of effective dimensionality, EUSIPCO 2007.
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
    """Normal images on which the health of a model is measured."""

    raw: np.ndarray
    """[B, H, W, C], of which `low` becomes -1 and `high` +1."""
    low: float
    high: float
    held_out: bool
    """Whether the model is not trained on them. Their loss is measured only then."""


def sample(run: Run) -> Sample:
    """Returns images of the calibration part of a run, or of its training part where it has no other."""
    held_out = len(run.split.calibration) > 0
    chosen = (run.split.calibration if held_out else run.split.train)[:MOST_IMAGES]
    return Sample(run.dataset.images[chosen], *run.pixels[1:], held_out)


def make_measure(
    detector: Detector, samples: Sequence[Sample], stacked: bool = False
) -> Callable[[TrainState], list[dict[str, Any]]]:
    """Makes `measure(state)`, which returns the health of each model at its sample.

    What is measured is the loss at held-out images, how much the reconstructions vary, the effective rank of the
    latent, and the accuracy of the discriminator; what is not finite is left out.

    Args:
      detector: the models' detector.
      samples: of each model.
      stacked: whether every array of the state has a leading axis of models, at least as many as there are samples.
    """

    @jax.jit
    def diagnose(variables: Any, raw: Array, low: Array, high: Array) -> tuple[dict[str, Array], Array]:
        x = preprocess.to_unit(raw, low, high)
        seen = detector.diagnostics(variables, x)
        found = {LOSS: losses.l1(x, seen["x_hat"]), VARIANCE: variance_ratio(x, seen["x_hat"])}
        if "real" in seen:
            found[ACCURACY] = accuracy(seen["real"], seen["fake"])
        return found, seen["z"]

    def measure_one(variables: Any, sample: Sample) -> dict[str, Any]:
        found, z = diagnose(variables, sample.raw, np.float32(sample.low), np.float32(sample.high))
        values = {name: float(value) for name, value in found.items() if sample.held_out or name != LOSS}
        if np.isfinite(z).all():
            values[RANK] = effective_rank(np.asarray(z))
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        return finite | {IMAGES: len(sample.raw), "of": "calibration" if sample.held_out else "training"}

    def measure(state: TrainState) -> list[dict[str, Any]]:
        # Put together by all processes; each then computes for itself.
        whole = sharding.to_host(detector.diagnostic_variables(state))
        if not stacked:
            return [measure_one(whole, samples[0])]
        return [measure_one(jax.tree.map(operator.itemgetter(m), whole), own) for m, own in enumerate(samples)]

    return measure


def interval(every: int, steps_per_epoch: int) -> int:
    """Returns the steps between two checks: as configured, otherwise an epoch, and at least `LEAST_STEPS`."""
    return every or max(steps_per_epoch, LEAST_STEPS)
