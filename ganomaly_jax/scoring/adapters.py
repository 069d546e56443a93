"""Adapters from raw items to a network's inputs: whole inputs, or tiles of images, behind one interface. Pure.

Callers never check which adapter they hold: each has the network's detector, its preprocessing, a score, a
reconstruction with its residual map, and tells whether an item has a single latent.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import Array, lax

from ganomaly_jax.core.config import Config, Data
from ganomaly_jax.data import modalities
from ganomaly_jax.data.images import modality as images_modality
from ganomaly_jax.data.images import tiling
from ganomaly_jax.data.lazy import Images
from ganomaly_jax.data.modality import Preprocessing
from ganomaly_jax.model import registry
from ganomaly_jax.model.protocol import Detector
from ganomaly_jax.scoring import residual_map

# Tiles that a network scores at once, so that memory does not grow with the size of the images.
AT_ONCE = 256
# In an export the batch size is symbolic: images of up to this many tiles are then scored together.
_FEW = 16


class Adapter(Protocol):
    """Scores raw items with a network's detector. Hashable, so that equal adapters share compiled programs."""

    @property
    def network(self) -> Detector:
        """Returns the detector of the network's inputs."""

    @property
    def preprocessing(self) -> Preprocessing:
        """Returns the function from raw items to `[B, ...]` float32 in [-1, 1]."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Returns the shape of one raw item."""

    @property
    def has_latent(self) -> bool:
        """Returns True if an item has exactly one latent."""

    def inputs(self, items: Images) -> Images:
        """Returns items `[N, ...]` as the network takes them, in memory or read on demand."""

    def score(self, of_inputs: Callable[[Detector, Array], Array], x: Array) -> Array:
        """Returns the scores `[B]` of preprocessed items x; `of_inputs(detector, x)` scores inputs of the network."""

    def explained(self, variables: dict[str, Any], x: Array) -> tuple[Array, Array]:
        """Returns the reconstruction x_hat and the residual map of preprocessed items x.

        Args:
          variables: the variables of the detector.
          x: `[B, ...]` float32 in [-1, 1].

        Returns:
          x_hat, shaped as x, and the map: `[B, H, W]` for images `[B, H, W, C]`, |x - x_hat| for other shapes.
        """


@dataclasses.dataclass(frozen=True)
class WholeDetector:
    """Scores items that are inputs of the network as they are."""

    network: Detector
    preprocessing: Preprocessing
    has_latent: bool = True

    @property
    def shape(self) -> tuple[int, ...]:
        """Returns the shape of one raw item."""
        return self.preprocessing.shape

    def inputs(self, items: Images) -> Images:
        """Returns the items themselves."""
        return items

    def score(self, of_inputs: Callable[[Detector, Array], Array], x: Array) -> Array:
        """Returns the scores of the inputs, see `Adapter.score`."""
        return of_inputs(self.network, x)

    def explained(self, variables: dict[str, Any], x: Array) -> tuple[Array, Array]:
        """Returns reconstruction and map of the inputs, see `Adapter.explained`."""
        return _explained(self.network, variables, x)


@dataclasses.dataclass(frozen=True)
class TiledDetector:
    """Scores images with a detector of their tiles.

    Attributes:
      network: the detector of tiles.
      preprocessing: the preprocessing of whole images.
      overlap: the share of a tile's side by which neighbouring tiles overlap.
      combine: how the tiles' scores make the score of the image: `max`, `mean`, or a quantile such as `0.9`.
      has_latent: False, since an image has a latent for each tile.
    """

    network: Detector
    preprocessing: Preprocessing
    overlap: float
    combine: str
    has_latent: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Returns the shape of one image, (H, W, C)."""
        return self.preprocessing.shape

    @property
    def grid(self) -> tiling.Grid:
        """Returns the positions of the tiles."""
        return tiling.grid(self.shape[0], self.shape[1], self.network.shape[0], self.overlap)

    def inputs(self, items: Images) -> Images:
        """Returns all tiles of the images, see `tiling.lazy_tiles`."""
        return tiling.lazy_tiles(items, self.grid)

    def score(self, of_inputs: Callable[[Detector, Array], Array], x: Array) -> Array:
        """Returns the combined scores of the tiles of each image, see `Adapter.score`."""
        scores = _map_tiles(lambda tiles: of_inputs(self.network, tiles), tiling.cut(x, self.grid))
        if self.combine == "max":
            return jnp.max(scores, axis=1)
        return jnp.mean(scores, axis=1) if self.combine == "mean" else jnp.quantile(scores, float(self.combine), axis=1)

    def explained(self, variables: dict[str, Any], x: Array) -> tuple[Array, Array]:
        """Returns reconstruction and map stitched from the tiles, averaged where they overlap, see `Adapter`."""
        x_hat, values = _map_tiles(lambda tiles: _explained(self.network, variables, tiles), tiling.cut(x, self.grid))
        return tiling.stitch(x_hat, self.grid), tiling.stitch(values[..., None], self.grid)[..., 0]


def from_config(config: Config) -> Adapter:
    """Builds the detector that a resolved configuration describes and wraps it as an adapter for raw items."""
    return of_network(registry.from_config(config), config)


def of_network(network: Detector, config: Config) -> Adapter:
    """Wraps a network's detector as an adapter for the raw items that a resolved configuration describes."""
    data = config.data
    preprocessing = modalities.of(data).preprocessing(data)
    if data.tile:
        return TiledDetector(network, preprocessing, data.overlap, data.tile_score)
    return WholeDetector(network, preprocessing)


def tiles_of(data: Data) -> int:
    """Returns how many inputs of the network one item becomes; `data` must be resolved, with all sizes set."""
    grid = images_modality.grid(data)
    return grid.count if grid else 1


def _explained(network: Detector, variables: dict[str, Any], x: Array) -> tuple[Array, Array]:
    x_hat = network.reconstruct(variables, x)
    return x_hat, residual_map.residual_map(x, x_hat) if x.ndim == 4 else jnp.abs(x - x_hat)


def _map_tiles(function: Callable[[Array], Any], tiles: Array) -> Any:
    """Applies `function` to tiles [B, n, side, side, C], at most `AT_ONCE` at a time, and returns [B, n, ...].

    Gradients rematerialise the activations instead of storing them.
    """
    batch, count = tiles.shape[:2]
    known = isinstance(batch, int)
    if (known and batch * count <= AT_ONCE) or (not known and count <= _FEW):
        outputs = function(tiles.reshape(-1, *tiles.shape[2:]))
        return jax.tree.map(lambda leaf: leaf.reshape(batch, count, *leaf.shape[1:]), outputs)
    rematerialised = jax.checkpoint(function)
    if count <= AT_ONCE:
        return lax.map(rematerialised, tiles)

    def one_tile(tile: Array) -> Any:
        return jax.tree.map(lambda leaf: leaf[0], rematerialised(tile[None]))

    return lax.map(lambda image_tiles: lax.map(one_tile, image_tiles, batch_size=AT_ONCE), tiles)
