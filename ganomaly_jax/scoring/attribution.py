"""Residual maps of images, and the contribution of each pixel to the score by integrated gradients."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ganomaly_jax.core import calls
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data.images.value_range import UNIT, Range
from ganomaly_jax.scoring import inference
from ganomaly_jax.scoring.residual_map import Region
from ganomaly_jax.scoring.scorer import Scorer

# Points of the straight path along which gradients are integrated.
STEPS = 64


@dataclasses.dataclass(frozen=True, eq=False)
class Maps:
    """Holds the residual maps of n images."""

    x: np.ndarray
    """The images, [n, H, W, C] float32 in [-1, 1]."""
    x_hat: np.ndarray
    """Their reconstructions, shaped as `x`."""
    values: np.ndarray
    """[n, H, W] float32 in 0..2, `residual_map.residual_map` of both."""


@dataclasses.dataclass(frozen=True, eq=False)
class Attribution:
    """Holds the contribution of each pixel of n images to the score, relative to a baseline."""

    values: np.ndarray
    """[n, H, W, C] float32; they sum to `scores - baseline_scores`, up to the error of numerical integration."""
    scores: np.ndarray
    """[n] float32, the scores of the images."""
    baseline_scores: np.ndarray
    """[n] float32, the scores of their baselines."""


def residual_maps(scorer: Scorer, images: Any, value_range: Range | None = None) -> Maps:
    """Returns the residual maps of images.

    Args:
      scorer: a detector of images.
      images: an array or paths, as accepted by calling the scorer.
      value_range: as in calling the scorer.

    Returns:
      The maps, NaN for an invalid image.

    Raises:
      UserError: as raised by calling the scorer.
    """
    calls.expect(Scorer, "a gj.Scorer, as in gj.residual_maps(gj.load('runs/mine'), images)", scorer=scorer)
    scorer = scorer.with_range(value_range)
    if not hasattr(images, "dtype"):
        scorer = dataclasses.replace(scorer, value_range=UNIT)  # in which files are read beside one that cannot be
        images = scorer.read([images] if isinstance(images, (str, Path)) else images)[0]
    size = min(inference.BUCKETS[2], scorer.block)
    blocks = [scorer.explained(images[i : i + size]) for i in range(0, max(len(images), 1), size)]
    return Maps(*(np.concatenate([block[i] for block in blocks]) for i in range(3)))


def gradient(scorer: Scorer, x: np.ndarray) -> np.ndarray:
    """Returns the gradient of the score with respect to each pixel.

    Args:
      scorer: a detector of images.
      x: [n, H, W, C] float32 in [-1, 1].

    Returns:
      [n, H, W, C] float32.
    """
    x = _as_unit(scorer, x, "gj.gradient")
    slope, _ = _programs(scorer)
    return np.stack([np.asarray(slope(scorer.variables, image[None]))[0] for image in x])


def integrated_gradients(scorer: Scorer, x: np.ndarray, baseline: np.ndarray | None = None) -> Attribution:
    """Returns the contribution of each pixel to the score, by integrated gradients.

    The gradient of the score, through `Scorer.function`, is integrated along the straight line from the baseline to the
    image (Gauss-Legendre, `STEPS` points) and multiplied by their difference, so that the contributions add up to the
    difference of the scores.

    Args:
      scorer: a detector of images.
      x: [n, H, W, C] float32 in [-1, 1].
      baseline: shaped as `x`; None: the reconstruction of each image, so that the contributions show what makes the
        image more anomalous than its reconstruction.

    Returns:
      The contributions, and the scores of images and baselines.

    References:
      Sundararajan, Taly and Yan 2017, "Axiomatic Attribution for Deep Networks".
    """
    x = _as_unit(scorer, x, "gj.integrated_gradients")
    if baseline is None:
        baseline = _reconstruction(scorer, x)
    baseline = np.broadcast_to(np.asarray(baseline, np.float32), x.shape)
    _, path = _programs(scorer)
    results = [tuple(map(np.asarray, path(scorer.variables, x[i], baseline[i]))) for i in range(len(x))]
    values, scores, baseline_scores = (np.stack(column) for column in zip(*results, strict=True))
    return Attribution(values, scores, baseline_scores)


def _as_unit(scorer: Scorer, x: Any, name: str) -> np.ndarray:
    """Returns images in [-1, 1] as float32, or raises a `UserError` that shows the right call."""
    call = f"{name}(scorer, gj.residual_maps(scorer, images).x)"
    calls.expect(Scorer, f"a gj.Scorer, as in {call}", scorer=scorer)
    found = np.asarray(x)
    if found.dtype.kind not in "fiu" or found.shape[1:] != scorer.input_shape or (np.abs(found) > 1).any():
        raise UserError(
            f"x has the type {found.dtype} and the shape {found.shape}: expected "
            f"[n, {', '.join(map(str, scorer.input_shape))}] in [-1, 1], as in {call}"
        )
    return found.astype(np.float32)


def _reconstruction(scorer: Scorer, x: np.ndarray) -> np.ndarray:
    scorer = dataclasses.replace(scorer, value_range=UNIT)
    return np.concatenate([scorer.reconstruct(_pixels(scorer, image[None]))[1] for image in x])


def _pixels(scorer: Scorer, x: Any) -> Any:
    """Rescales images in [-1, 1] to the range in which the scorer expects floating-point images."""
    return x if scorer.dtype != "float32" else scorer.low + (x + 1) / 2 * (scorer.high - scorer.low)


@functools.lru_cache(maxsize=2)
def _programs(scorer: Scorer) -> tuple[Callable[..., Array], Callable[..., tuple[Array, Array, Array]]]:
    """Returns the gradient of the score for [n, H, W, C] and the integrated gradients of one image, both compiled."""
    function, _ = scorer.function()

    def score(variables: Any, x: Array) -> Array:
        return function(variables, _pixels(scorer, x))

    slope = jax.grad(lambda x, variables: score(variables, x).sum())
    nodes, weights = np.polynomial.legendre.leggauss(STEPS)
    along = jnp.asarray((nodes + 1) / 2, jnp.float32)[:, None, None, None]
    share = jnp.asarray(weights / 2, jnp.float32)[:, None, None, None]

    def path(variables: Any, x: Array, baseline: Array) -> tuple[Array, Array, Array]:
        slopes = slope(baseline + along * (x - baseline), variables)
        ends = score(variables, jnp.stack([x, baseline]))
        return (x - baseline) * (share * slopes).sum(0), ends[0], ends[1]

    return jax.jit(lambda variables, x: slope(x, variables)), jax.jit(path)


def in_file(region: Region, scorer: Scorer, height: int, width: int) -> tuple[int, int, int, int]:
    """Returns (left, top, width, height) of a region in pixels of the image file.

    Args:
      region: a region in pixels of the network's input.
      scorer: the detector.
      height: the height of the file's image in pixels, upright.
      width: the width of the file's image in pixels.
    """
    rows, columns, _ = scorer.input_shape
    inner = (rows, columns)
    if scorer.config.data.fit == "letterbox":
        scale = min(rows / height, columns / width)
        inner = min(rows, max(1, round(height * scale))), min(columns, max(1, round(width * scale)))
    top, left = (rows - inner[0]) // 2, (columns - inner[1]) // 2
    y, x = height / inner[0], width / inner[1]
    ends = np.clip(
        [
            (region.left - left) * x,
            (region.top - top) * y,
            (region.left + region.width - left) * x,
            (region.top + region.height - top) * y,
        ],
        0,
        [width, height, width, height],
    )
    first, last = np.floor(ends[:2]).astype(int), np.ceil(ends[2:]).astype(int)
    return int(first[0]), int(first[1]), int(last[0] - first[0]), int(last[1] - first[1])
