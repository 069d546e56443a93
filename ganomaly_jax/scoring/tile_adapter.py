"""A detector of tiles as one of whole images, whose score, reconstruction and map are made of its tiles'. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from ganomaly_jax.core.config import Config, Data
from ganomaly_jax.data.images import tiling
from ganomaly_jax.data.lazy import Images
from ganomaly_jax.model import registry
from ganomaly_jax.model.protocol import Detector
from ganomaly_jax.scoring import residual_map, spectrogram_adapter
from ganomaly_jax.scoring.spectrogram_adapter import SpectrogramDetector

# Tiles that a network is given at once, so that memory does not grow with the size of the images.
AT_ONCE = 256
# Images of up to so many tiles are scored together where the size of the batch is not known, in an export.
_FEW = 16


@dataclasses.dataclass(frozen=True)
class TiledDetector:
    """What scores images of `shape` (H, W, C) with a detector of their tiles.

    `combine` says how the score of an image follows from its tiles': `max`, `mean`, or a share such as `0.9`, the
    quantile that so many of them do not exceed.
    """

    network: Detector
    shape: tuple[int, int, int]
    overlap: float
    combine: str

    @property
    def grid(self) -> tiling.Grid:
        return tiling.grid(*self.shape[:2], self.network.shape[0], self.overlap)


Judge = Detector | TiledDetector | SpectrogramDetector
"""What a scorer scores with."""


def from_config(config: Config) -> Judge:
    """What a resolved configuration describes."""
    if config.data.kind == "sound":
        return spectrogram_adapter.from_config(config)
    network, data = registry.from_config(config), config.data
    if not data.tile:
        return network
    return TiledDetector(network, (data.height, data.width, data.channels), data.overlap, data.tile_score)


def network(scorer: Judge) -> Detector:
    """The detector itself, of tiles, of spectrograms or of images."""
    return scorer.network if isinstance(scorer, TiledDetector | SpectrogramDetector) else scorer


def inputs(scorer: Judge, images: Images) -> Images:
    """Images as the network takes them: themselves, or all their tiles, see `tiling.items`; waveforms as they are."""
    return tiling.items(images, scorer.grid) if isinstance(scorer, TiledDetector) else images


def tiles_of(data: Data) -> int:
    """Inputs of the network that one image becomes; `data` with all sizes."""
    return tiling.grid(data.height, data.width, data.tile, data.overlap).count if data.tile else 1


def score(scorer: Judge, of_tiles: Callable[[Detector, Array], Array], x: Array) -> Array:
    """The score [B] of images x [B, H, W, C], where `of_tiles(detector, x)` gives that of a network's inputs. Pure."""
    if not isinstance(scorer, TiledDetector):
        return of_tiles(network(scorer), x)
    found = _each(lambda tiles: of_tiles(scorer.network, tiles), tiling.cut(x, scorer.grid))
    if scorer.combine == "max":
        return jnp.max(found, axis=1)
    return jnp.mean(found, axis=1) if scorer.combine == "mean" else jnp.quantile(found, float(scorer.combine), axis=1)


def explained(scorer: Judge, variables: dict[str, Any], x: Array) -> tuple[Array, Array]:
    """x_hat [B, H, W, C] and the residual map [B, H, W] of images x in [-1, 1]; `variables` are the detector's. Pure.

    The map of rows or windows of sensors, [B, D] or [B, T, D], is |x - x_hat|.

    Those of a tiled image are put together from its tiles', the mean where they overlap.
    """

    def one(tiles: Array) -> tuple[Array, Array]:
        x_hat = network(scorer).reconstruct(variables, tiles)
        return x_hat, residual_map.residual_map(tiles, x_hat) if tiles.ndim == 4 else jnp.abs(tiles - x_hat)

    if not isinstance(scorer, TiledDetector):
        return one(x)
    x_hat, values = _each(one, tiling.cut(x, scorer.grid))
    return tiling.stitch(x_hat, scorer.grid), tiling.stitch(values[..., None], scorer.grid)[..., 0]


def _each(function: Callable[[Array], Any], tiles: Array) -> Any:
    """`function` of tiles [B, n, side, side, C], each by itself, [B, n, ...]; so many at once as memory allows.

    A gradient works them out again instead of keeping what is between.
    """
    batch, count = tiles.shape[:2]
    known = isinstance(batch, int)
    if (known and batch * count <= AT_ONCE) or (not known and count <= _FEW):
        found = function(tiles.reshape(-1, *tiles.shape[2:]))
        return jax.tree.map(lambda leaf: leaf.reshape(batch, count, *leaf.shape[1:]), found)
    again = jax.checkpoint(function)
    if count <= AT_ONCE:
        return lax.map(again, tiles)

    def alone(tile: Array) -> Any:
        return jax.tree.map(lambda leaf: leaf[0], again(tile[None]))

    return lax.map(lambda own: lax.map(alone, own, batch_size=AT_ONCE), tiles)
