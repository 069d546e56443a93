"""A detector that sees how bright an image is beside its own mean, so that lamp, exposure or current do not count."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax import Array

from ganomaly_jax.model.protocol import Detector, TrainState

# Of a range of 1: what is as dark as that is not made brighter.
_DARK = 0.02
# What a reconstruction is at most: 99 times as bright as the mean.
_MOST = 0.98


def level(x: Array) -> Array:
    """Mean brightness [B, 1, 1, 1], from `_DARK` on, of images x [B, H, W, C] in [-1, 1], whose light is 0 to 1."""
    return (jnp.mean(x, axis=(1, 2, 3), keepdims=True) + 1) / 2 + _DARK


def relative(x: Array) -> Array:
    """Images x [B, H, W, C] in [-1, 1] as (v - m) / (v + m) of their light v and its mean m, in [-1, 1) as well.

    A third of the mean and three times the mean are as far from 0, and nothing is clipped (the response of a receptor
    that has adapted to m, Naka and Rushton 1966). Twice the light is the same image, but for `_DARK`.
    """
    light, mean = (x + 1) / 2, level(x)
    return (light - mean) / (light + mean)


def absolute(seen: Array, x: Array) -> Array:
    """What `relative` makes `seen` of, under the mean brightness of x: [B, H, W, C] in [-1, 1]."""
    seen = jnp.clip(seen, -1, _MOST)
    light = level(x) * (1 + seen) / (1 - seen)
    return jnp.clip(2 * light - 1, -1, 1)


@dataclasses.dataclass(frozen=True)
class RelativeBrightness:
    """`network`, a detector of images, as one of `relative` images.

    All that a score is made of is what the network sees, `outputs["x"]` too; reconstructions are given back under
    the brightness that each image has, so that maps and pictures compare like with like.
    """

    network: Detector

    @property
    def shape(self) -> tuple[int, ...]:
        return self.network.shape

    @property
    def axis_name(self) -> str | None:
        return self.network.axis_name

    @property
    def losses(self) -> tuple[str, ...]:
        return self.network.losses

    def init(self, key: Array) -> TrainState:
        return self.network.init(key)

    def update(self, state: TrainState, x: Array, key: Array | None = None) -> tuple[TrainState, dict[str, Array]]:
        return self.network.update(state, relative(x), key)

    def variables(self, state: TrainState) -> dict[str, Any]:
        return self.network.variables(state)

    def score(self, variables: dict[str, Any], x: Array) -> Array:
        return self.network.score(variables, relative(x))

    def outputs(self, variables: dict[str, Any], x: Array) -> dict[str, Array]:
        """Those of the network, and `x` [B, H, W, C] as it sees them."""
        seen = relative(x)
        return self.network.outputs(variables, seen) | {"x": seen}

    def reconstruct(self, variables: dict[str, Any], x: Array) -> Array:
        return absolute(self.network.reconstruct(variables, relative(x)), x)

    def recompute_batch_stats(self, variables: dict[str, Any], batches: Array) -> dict[str, Any]:
        seen = relative(batches.reshape(-1, *batches.shape[2:]))
        return self.network.recompute_batch_stats(variables, seen.reshape(batches.shape))

    def examined(self, state: TrainState) -> Any:
        return self.network.examined(state)

    def examine(self, examined: Any, x: Array) -> dict[str, Array]:
        found = self.network.examine(examined, relative(x))
        return found | {"x_hat": absolute(found["x_hat"], x)}
