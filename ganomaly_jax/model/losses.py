"""Losses of GANomaly and of the contrastive option; each returns a scalar.

References:
  Section 3.3 of arXiv 1805.06725.
"""

from __future__ import annotations

import chex
import jax.numpy as jnp
from jax import Array, lax, nn


def l1(a: Array, b: Array) -> Array:
    """Computes the mean absolute difference of two arrays: the contextual loss (equation 2).

    Differs from the paper: the mean over all elements instead of a norm, as in the authors' code; the weights 1, 50, 1
    belong to means.
    """
    chex.assert_equal_shape([a, b])  # otherwise one would be broadcast, silently
    return jnp.mean(jnp.abs(a - b))


def l2(a: Array, b: Array) -> Array:
    """Computes the mean squared difference of two arrays: the adversarial and encoder losses (equations 1, 3).

    Differs from the paper: the mean over all elements instead of a norm, as in the authors' code.
    """
    chex.assert_equal_shape([a, b])
    return jnp.mean(jnp.square(a - b))


def mean_square(difference: Array) -> Array:
    """Computes the mean squared difference of each item: [B, ...] -> [B]."""
    return jnp.mean(jnp.square(difference), axis=tuple(range(1, difference.ndim)))


def mean_absolute(difference: Array) -> Array:
    """Computes the mean absolute difference of each item: [B, ...] -> [B]."""
    return jnp.mean(jnp.abs(difference), axis=tuple(range(1, difference.ndim)))


DISTANCES = {"squared": mean_square, "l1": mean_absolute}
"""Distances that a detector's own score may be, by their name in `evaluate.score`: sizes of its `difference`."""


def binary_cross_entropy(logits: Array, real: bool) -> Array:
    """Computes the mean binary cross-entropy of sigmoid(logits) against labels that are all real or all fake.

    Args:
      logits: [B].
      real: True for the label 1 (real), False for 0 (fake).

    Returns:
      Scalar; each term is at most 100, as in PyTorch, which clamps logarithms at -100.
    """
    chex.assert_rank(logits, 1)
    # softplus(-l) = -log(sigmoid(l)) without the overflow of either.
    terms = jnp.logaddexp(-logits if real else logits, 0.0)
    return jnp.mean(jnp.minimum(terms, 100.0))


def info_nce(a: Array, b: Array, temperature: float, axis_name: str | None = None) -> Array:
    """Computes the InfoNCE loss between the embeddings of two views of the same images, in both directions.

    The cross-entropy of identifying the other view of an image among those of all images in the batch, by cosine
    similarity over temperature.

    Args:
      a: embeddings of the first views, [B, E].
      b: embeddings of the second views, [B, E].
      temperature: divides the similarities.
      axis_name: mapped axis over which the images of all devices are negatives; the mean over the devices is the loss
        of the global batch.

    Returns:
      Scalar.

    References:
      SimCLR, Chen et al. 2020, arXiv 2002.05709; here only the batch of the other view supplies negatives.
    """
    chex.assert_rank([a, b], 2)
    chex.assert_equal_shape([a, b])
    a, b = (v * lax.rsqrt(jnp.sum(jnp.square(v), axis=-1, keepdims=True) + 1e-6) for v in (a, b))
    all_a, all_b, positives = a, b, jnp.arange(len(a))[:, None]
    if axis_name is not None:
        all_a, all_b = (lax.all_gather(v, axis_name, tiled=True) for v in (a, b))
        positives += lax.axis_index(axis_name) * len(a)
    log_probabilities = [nn.log_softmax(query @ keys.T / temperature) for query, keys in ((a, all_b), (b, all_a))]
    return -jnp.mean(jnp.stack([jnp.take_along_axis(log, positives, axis=1) for log in log_probabilities]))
