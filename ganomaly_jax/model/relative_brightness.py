"""A detector of brightness relative to the mean of the image, insensitive to lamp, exposure or current."""

from __future__ import annotations

import dataclasses
from typing import Any

import chex
import jax.numpy as jnp
from jax import Array

from ganomaly_jax.model.protocol import Detector, TrainState

# Added to the mean light (in [0, 1]), so that nearly black images are not amplified.
_DARK = 0.02
# Upper bound of relative reconstructions: 99 times the mean brightness.
_MAX_RELATIVE = 0.98


def mean_brightness(x: Array) -> Array:
    """Returns the mean brightness [B, 1, 1, 1] of images [B, H, W, C] in [-1, 1], as light from 0 to 1 plus `_DARK`."""
    return (jnp.mean(x, axis=(1, 2, 3), keepdims=True) + 1) / 2 + _DARK


def to_relative(x: Array) -> Array:
    """Converts images to their contrast with their mean: (v - m) / (v + m) of the light v and its mean m.

    A third of the mean and three times the mean are equally far from 0, and nothing is clipped. Twice the light gives
    the same image, up to `_DARK`.

    Args:
      x: images [B, H, W, C] in [-1, 1].

    Returns:
      Images [B, H, W, C] in [-1, 1).

    References:
      The response of a photoreceptor adapted to m: Naka and Rushton, J. Physiol. 185, 1966.
    """
    chex.assert_rank(x, 4)
    light, mean = (x + 1) / 2, mean_brightness(x)
    return (light - mean) / (light + mean)


def to_absolute(relative: Array, x: Array) -> Array:
    """Inverts `to_relative`, with the mean brightness of x: `relative` [B, H, W, C] to images in [-1, 1]."""
    chex.assert_equal_shape([relative, x])
    relative = jnp.clip(relative, -1, _MAX_RELATIVE)
    light = mean_brightness(x) * (1 + relative) / (1 - relative)
    return jnp.clip(2 * light - 1, -1, 1)


@dataclasses.dataclass(frozen=True)
class RelativeBrightness:
    """Wraps a detector of images, which is given `to_relative` images.

    Scores are computed from the relative images (`outputs["x"]`); reconstructions are returned with the brightness of
    their own image, so that maps and pictures can be compared with the input.

    Attributes:
      network: the wrapped detector.
    """

    network: Detector

    @property
    def shape(self) -> tuple[int, ...]:
        """Returns the shape of one image, (H, W, C)."""
        return self.network.shape

    @property
    def axis_name(self) -> str | None:
        """Returns the mapped axis of the wrapped detector."""
        return self.network.axis_name

    @property
    def losses(self) -> tuple[str, ...]:
        """Returns the names of the losses of `update`."""
        return self.network.losses

    def init(self, key: Array) -> TrainState:
        """Returns a state of the wrapped detector."""
        return self.network.init(key)

    def update(self, state: TrainState, x: Array, key: Array | None = None) -> tuple[TrainState, dict[str, Array]]:
        """Takes one step of the wrapped detector on relative images."""
        return self.network.update(state, to_relative(x), key)

    def variables(self, state: TrainState) -> dict[str, Any]:
        """Returns the variables of the wrapped detector."""
        return self.network.variables(state)

    def score(self, variables: dict[str, Any], x: Array) -> Array:
        """Returns the wrapped detector's scores [B] of relative images."""
        return self.network.score(variables, to_relative(x))

    def outputs(self, variables: dict[str, Any], x: Array) -> dict[str, Array]:
        """Returns the wrapped detector's outputs, and as `x` the relative images [B, H, W, C]."""
        relative = to_relative(x)
        return self.network.outputs(variables, relative) | {"x": relative}

    def reconstruct(self, variables: dict[str, Any], x: Array) -> Array:
        """Returns x_hat [B, H, W, C] in [-1, 1], with the brightness of x."""
        return to_absolute(self.network.reconstruct(variables, to_relative(x)), x)

    def recompute_batch_stats(self, variables: dict[str, Any], batches: Array) -> dict[str, Any]:
        """Returns the variables with batch-norm statistics computed afresh on relative `batches` [n, B, H, W, C]."""
        relative = to_relative(batches.reshape(-1, *batches.shape[2:]))
        return self.network.recompute_batch_stats(variables, relative.reshape(batches.shape))

    def diagnostic_variables(self, state: TrainState) -> Any:
        """Returns those of the wrapped detector."""
        return self.network.diagnostic_variables(state)

    def diagnostics(self, variables: Any, x: Array) -> dict[str, Array]:
        """Returns those of the wrapped detector, with `x_hat` in the brightness of x."""
        values = self.network.diagnostics(variables, to_relative(x))
        return values | {"x_hat": to_absolute(values["x_hat"], x)}
