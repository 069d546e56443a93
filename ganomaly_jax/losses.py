"""The three losses that GANomaly is made of (section 3.3 of arXiv 1805.06725). Each returns a scalar."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array


def l1(a: Array, b: Array) -> Array:
    """Mean absolute difference over all elements: the contextual loss, a and b of one shape."""
    return jnp.mean(jnp.abs(a - b))


def l2(a: Array, b: Array) -> Array:
    """Mean squared difference over all elements: the adversarial and the encoder loss.

    Differs from the paper: it writes norms; the authors' code takes means, and the weights 1, 50, 1 go with those.
    """
    return jnp.mean(jnp.square(a - b))


def real_or_fake(logits: Array, real: bool) -> Array:
    """Mean binary cross-entropy of sigmoid(logits) [B] against all-real or all-fake.

    Each term is at most 100, as in PyTorch, whose logarithm is clamped at -100.
    """
    # softplus(-l) = -log(sigmoid(l)) without the overflow of either.
    losses = jnp.logaddexp(-logits if real else logits, 0.0)
    return jnp.mean(jnp.minimum(losses, 100.0))
