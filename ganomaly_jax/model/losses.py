"""The three losses that GANomaly is made of (section 3.3 of arXiv 1805.06725), and one more. Each returns a scalar."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax, nn


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


def contrast(a: Array, b: Array, temperature: float, axis_name: str | None = None) -> Array:
    """How well the embeddings a and b [B, E] of two views of the same images find each other in the batch.

    Mean cross-entropy, in both directions, of picking the other view of one's own image by cosine / temperature among
    those of all images (InfoNCE, the loss of SimCLR, Chen et al. 2020, with the other view's batch as negatives). Over
    a mapped axis all devices' images are picked from, and the mean over the devices is the loss of the whole batch.
    """
    a, b = (v * lax.rsqrt(jnp.sum(jnp.square(v), axis=-1, keepdims=True) + 1e-6) for v in (a, b))
    all_a, all_b, own = a, b, jnp.arange(len(a))[:, None]
    if axis_name is not None:
        all_a, all_b = (lax.all_gather(v, axis_name, tiled=True) for v in (a, b))
        own += lax.axis_index(axis_name) * len(a)
    picked = [nn.log_softmax(one @ other.T / temperature) for one, other in ((a, all_b), (b, all_a))]
    return -jnp.mean(jnp.stack([jnp.take_along_axis(log, own, axis=1) for log in picked]))
