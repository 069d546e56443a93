"""What the tests share: a small network, its configuration, generated images."""

import jax
import jax.numpy as jnp
import numpy as np

from ganomaly_jax.core.config import Config
from ganomaly_jax.model.ganomaly import Ganomaly

TINY = Ganomaly((16, 16, 1), latent_size=4, features=4)


def blobs(n, seed, anomalous=False):
    """Generated images [n, 16, 16, 1] uint8: a soft horizontal bar at a random height; anomalous ones are vertical."""
    random = np.random.default_rng(seed)
    at = random.uniform(4, 12, n)
    grid = np.arange(16)
    bars = np.exp(-0.5 * ((grid[None, :] - at[:, None]) / 1.5) ** 2) * 220
    images = np.repeat(bars[:, :, None], 16, axis=2)
    if anomalous:
        images = images.transpose(0, 2, 1)
    return np.clip(images + random.normal(0, 8, images.shape), 0, 255).astype(np.uint8)[..., None]


def tiny_config(**train_values):
    """A configuration of the size of `TINY` that trains in a second once compiled."""
    config = Config()
    config.data.height = config.data.width = 16
    config.model.latent_size = config.model.features = 4
    config.mesh.devices = 1
    config.train.batch_size = 8
    config.train.picture_every = 0
    config.optimizer.learning_rate = 1e-3  # at 2e-3 it takes a lucky seed for `trained` to separate
    for name, value in train_values.items():
        setattr(config.train, name, value)
    return config


# Half a unit in the last place of 1.0 in float32: the largest relative error of one rounding.
ROUNDING = 2.0**-24


def roundings(variables):
    """Returns k, the float32 roundings that lie between the latents of two programs of the same networks.

    Each output of a layer is a sum of n products, n the inputs that reach it (all axes of the kernel but the last). In
    another order, or with fused multiply-adds, it is rounded n times in another way. Independent roundings of one size
    add up as a random walk, over the terms of a sum and over the layers: k = sqrt(sum over the layers of n), in units
    of the largest term. It is an upper estimate: XLA sums in blocks. Measured between batches of 1 and 256 on one CPU:
    6 where k is 26 (16x16x1, 4 features), 37 where it is 152 (32x32x1, 64 features).
    """
    kernels = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"]) if "kernel" in str(path)]
    return float(sum(np.prod(kernel.shape[:-1]) for kernel in kernels)) ** 0.5


def score_tolerance(detector, variables, x, score="squared"):
    """Returns the absolute error [B] that rounding may give the scores of x.

    GANomaly's `squared` is the mean of (z - z_hat)^2 over N latents that are nearly equal. With an error e of standard
    deviation d = k eps |z| in each difference, |z| the largest of the batch and k from `roundings`, it moves by

        2 / N sum((z - z_hat) e) + mean(e^2), of standard deviation 2 sqrt(score / N) d, and about d^2.

    Four standard deviations are allowed. So the tolerance is relative to the latents and not to the score: where z and
    z_hat agree to 1 %, a rounding of z is a hundred times as large beside the score.

    `pixel` is the mean of |x - x_hat|, which moves by as much as x_hat does: d with the largest of x and x_hat for z.

    Args:
      detector: a GANomaly of images or rows.
      variables: what `detector.outputs` takes.
      x: float32 [B, ...] in [-1, 1].
      score: what `evaluate.score` names.
    """
    assert score in ("squared", "pixel")
    found = detector.outputs(variables, x)
    rounding = roundings(variables) * ROUNDING
    if score == "pixel":
        return np.full(len(x), 4 * rounding * max(float(jnp.abs(leaf).max()) for leaf in (x, found["x_hat"])))
    z, z_hat = np.asarray(found["z"], np.float64), np.asarray(found["z_hat"], np.float64)
    d = rounding * max(np.abs(z).max(), np.abs(z_hat).max())
    return 4 * (2 * np.sqrt(np.square(z - z_hat).mean(-1) / z.shape[-1]) * d + d**2)


def assert_within(found, wanted, tolerance):
    """Asserts that no value is further from the one expected than its own tolerance; all [B]."""
    error = np.abs(np.asarray(found, np.float64) - np.asarray(wanted, np.float64))
    assert error.shape == np.shape(tolerance)
    assert (error <= tolerance).all(), f"{error} apart, where rounding explains {tolerance}"


def assert_scores_close(scorer, images, found, wanted):
    """Asserts that scores [B] of raw images are those wanted, up to what rounding explains (`score_tolerance`).

    For the scores of two programs: another batch size, an export, another way of compiling. One program gives the same
    bits, which is for `assert_array_equal`.
    """
    x, (score,) = scorer.unit(jnp.asarray(images)), scorer.parts
    assert_within(found, wanted, score_tolerance(scorer.detector.network, scorer.variables["detector"], x, score))
