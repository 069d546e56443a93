"""The weights of the networks: how they are drawn and averaged."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array


def init_network(key: Array, network: Any, shape: tuple[int, ...], dtype: Any) -> tuple[Any, Any]:
    """Draws the weights of a network for inputs of `shape` (see `reinitialize`), and creates its running statistics."""
    x = jax.ShapeDtypeStruct((1, *shape), dtype)
    shapes = jax.eval_shape(functools.partial(network.init, train=False), key, x)
    batch_stats = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.full(leaf.shape, path[-1].key == "var", leaf.dtype), shapes["batch_stats"]
    )
    return reinitialize(key, shapes["params"]), batch_stats


def reinitialize(key: Array, params: Any) -> Any:
    """Draws weights for a pytree of arrays or shapes: kernels N(0, 0.02), batch-norm scales N(1, 0.02), biases 0."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    # A single draw for all of them: one random generator per array takes ten times as long to compile.
    draws = 0.02 * jax.random.normal(key, (sum(leaf.size for _, leaf in leaves),), leaves[0][1].dtype)
    fresh, begin = [], 0
    for path, leaf in leaves:
        part = draws[begin : begin + leaf.size].reshape(leaf.shape)
        begin += leaf.size
        name = path[-1].key
        fresh.append(jnp.zeros_like(part) if name == "bias" else 1 + part if name == "scale" else part)
    return jax.tree_util.tree_unflatten(structure, fresh)


def moving_average(decay: float | Array, step: Array, old: Any, new: Any) -> Any:
    """Returns the exponential moving average of weights after one more step.

    The decay is at most (1 + step) / (10 + step), so that a short training forgets its initial weights.

    Args:
      decay: share of the old average that is kept.
      step: steps before this one, int32 scalar.
      old: pytree of the averages.
      new: pytree of the current weights.
    """
    decay = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda a, b: (decay * a + (1 - decay) * b).astype(a.dtype), old, new)
