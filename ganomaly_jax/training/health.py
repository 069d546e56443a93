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

# Most images that are measured: enough for the rank of a latent of size 100, and no more than four batches of 64.
MOST_IMAGES = 256
# Fewest steps between two checks if epochs are shorter: a check costs as much as one or two steps of 64 images.
LEAST_STEPS = 100


def accuracy(real: Array, fake: Array) -> Array:
    """Computes the balanced accuracy, in [0, 1], of the discriminator from its logits for real and fake images, [B]."""
    return 0.5 * (jnp.mean(real > 0) + jnp.mean(fake < 0))


def variance_ratio(x: Array, x_hat: Array) -> Array:
    """Computes the total variance of the reconstructions x_hat [B, ...] over B, relative to that of x [B, ...]."""
    return jnp.sum(jnp.var(x_hat, axis=0)) / jnp.sum(jnp.var(x, axis=0))


def effective_rank(z: np.ndarray) -> float:
    """Computes how many dimensions the latents z [B, N] use: from 1 to min(N, B - 1), or 0 if z is constant.

    It is the exponential of the entropy of the covariance's eigenvalues, normalised to sum 1.

    References:
      Roy and Vetterli, The effective rank: A measure of effective dimensionality, EUSIPCO 2007.
    """
    centred = z.astype(np.float64) - z.mean(axis=0, dtype=np.float64)
    # The eigenvalues of the covariance up to a factor, which cancels in the normalisation.
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
    """[B, H, W, C], unscaled."""
    low: float
    """Raw value that is scaled to -1."""
    high: float
    """Raw value that is scaled to +1."""
    held_out: bool
    """Whether the model is not trained on them. The loss is measured only on held-out images."""


def sample(run: Run) -> Sample:
    """Returns the first images of a run's calibration part, or of its training part if there is no other."""
    held_out = len(run.split.calibration) > 0
    chosen = (run.split.calibration if held_out else run.split.train)[:MOST_IMAGES]
    return Sample(run.dataset.images[chosen], *run.pixels[1:], held_out)


def make_measure(
    detector: Detector, samples: Sequence[Sample], stacked: bool = False
) -> Callable[[TrainState], list[dict[str, Any]]]:
    """Makes the function that measures the health of each model.

    It measures the contextual loss on held-out images, the variance ratio of the reconstructions, the effective rank
    of the latent and the accuracy of the discriminator. Values that are not finite are left out.

    Args:
      detector: the detector of all models.
      samples: the images of each model.
      stacked: whether every array of the state has a leading axis of models, at least as many as there are samples.

    Returns:
      `measure(state)`, which returns one dict per model, as it is written to `history.jsonl`.
    """

    @jax.jit
    def diagnose(variables: Any, raw: Array, low: Array, high: Array) -> tuple[dict[str, Array], Array]:
        x = preprocess.to_unit(raw, low, high)
        outputs = detector.diagnostics(variables, x)
        values = {LOSS: losses.l1(x, outputs["x_hat"]), VARIANCE: variance_ratio(x, outputs["x_hat"])}
        if "real" in outputs:
            values[ACCURACY] = accuracy(outputs["real"], outputs["fake"])
        return values, outputs["z"]

    def measure_one(variables: Any, sample: Sample) -> dict[str, Any]:
        computed, z = diagnose(variables, sample.raw, np.float32(sample.low), np.float32(sample.high))
        values = {name: float(value) for name, value in computed.items() if sample.held_out or name != LOSS}
        if np.isfinite(z).all():
            values[RANK] = effective_rank(np.asarray(z))
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        return finite | {IMAGES: len(sample.raw), "of": "calibration" if sample.held_out else "training"}

    def measure(state: TrainState) -> list[dict[str, Any]]:
        # All processes take part in collecting the variables; each then computes for itself.
        variables = sharding.to_host(detector.diagnostic_variables(state))
        if not stacked:
            return [measure_one(variables, samples[0])]
        return [measure_one(jax.tree.map(operator.itemgetter(m), variables), own) for m, own in enumerate(samples)]

    return measure


def interval(every: int, steps_per_epoch: int) -> int:
    """Returns the steps between two checks: `every`, or if it is 0 one epoch, but at least `LEAST_STEPS`."""
    return every or max(steps_per_epoch, LEAST_STEPS)
