"""Building blocks of the networks: a linear layer without bias, and batch normalisation as in PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax

_kernel_init = nn.initializers.normal(0.02)


def _scale_init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """Draws batch-norm scales from N(1, 0.02)."""
    return 1.0 + 0.02 * jax.random.normal(key, shape, dtype)


class Replicas(NamedTuple):
    """The replicas of a network under `shard_map` or `pmap`.

    Attributes:
      axis: name of the mapped axis.
      group: number of neighbouring replicas that share batch statistics; 0 for all of them.
    """

    axis: str
    group: int = 0

    def mean(self, x: Array) -> Array:
        """Returns the mean of `x` over the replicas of this replica's group."""
        size = lax.axis_size(self.axis)
        groups = [list(range(i, i + self.group)) for i in range(0, size, self.group)] if self.group else None
        return lax.pmean(x, self.axis, axis_index_groups=groups)


class Layer(nn.Module):
    """A linear layer without bias, of a given function.

    Attributes:
      function: `function(x, kernel)`, one of those of `convolution` or `row_layers`.
      size: spatial size of the kernel, whose shape is [*size, C_in, features].
      features: output channels.
      param_dtype: dtype of the kernel.
      dtype: dtype of the computation; None for `param_dtype`.
    """

    function: Callable[[Array, Array], Array]
    size: tuple[int, ...]
    features: int
    param_dtype: Any = jnp.float32
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Applies the layer to [B, ..., C_in]."""
        shape = (*self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", _kernel_init, shape, self.param_dtype)
        dtype = self.param_dtype if self.dtype is None else self.dtype
        return self.function(x.astype(dtype), kernel.astype(dtype))


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last, with PyTorch's running statistics.

    running <- 0.9 running + 0.1 batch, with the unbiased batch variance (n / (n - 1)) here and the biased one in the
    normalisation; Flax's own module keeps the biased one.

    Attributes:
      replicas: if set, batch statistics are pooled over each group of replicas, and the running ones move by their mean
        over all groups, so that they are the same on every replica.
      momentum: share of the running statistics that is kept per step.
      epsilon: added to the variance.
      param_dtype: dtype of parameters, statistics and results.
    """

    replicas: Replicas | None = None
    momentum: float = 0.9
    epsilon: float = 1e-5
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Normalises [B, ..., C], by batch statistics with `train`, by running ones without."""
        x = x.astype(self.param_dtype)
        features = (x.shape[-1],)
        scale = self.param("scale", _scale_init, features, self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, features, self.param_dtype)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, features, self.param_dtype)
        running_var = self.variable("batch_stats", "var", jnp.ones, features, self.param_dtype)
        mean, var = running_mean.value, running_var.value
        if train:
            axes = tuple(range(x.ndim - 1))
            count = x.size // x.shape[-1]
            mean, var = jnp.mean(x, axes), jnp.var(x, axes)
            if self.replicas is not None:
                count *= self.replicas.group or lax.axis_size(self.replicas.axis)
                local = mean
                mean = self.replicas.mean(local)
                var = self.replicas.mean(var + jnp.square(local - mean))
            if not self.is_initializing():
                moments = lax.stop_gradient((mean, var * (count / (count - 1))))
                if self.replicas is not None and self.replicas.group:
                    moments = lax.pmean(moments, self.replicas.axis)
                keep = self.momentum
                running_mean.value = keep * running_mean.value + (1 - keep) * moments[0]
                running_var.value = keep * running_var.value + (1 - keep) * moments[1]
        # The mean is subtracted first: folded into the bias it rounds more, and values near 0 cross the ReLU's kink.
        return (x - mean) * (scale * lax.rsqrt(var + self.epsilon)) + bias


def stats_after_two_passes(before: Any, after_real: Any, after_fake: Any) -> Any:
    """Returns the running statistics after the passes x, x_hat, x, x_hat.

    The arguments are those before, after x, and after x and x_hat. The authors' code runs the discriminator twice a
    step on each batch, once per loss, and so moves them four times.
    """
    keep = BatchNorm.momentum
    third = jax.tree.map(lambda s0, s1, s2: keep * s2 + (s1 - keep * s0), before, after_real, after_fake)
    return jax.tree.map(lambda s1, s2, s3: keep * s3 + (s2 - keep * s1), after_real, after_fake, third)
