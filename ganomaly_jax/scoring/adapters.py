"""What a scorer scores with: a network's detector behind one interface, whole inputs or tiles of them. Pure.

Nobody asks which adapter it is: each has the detector, its preprocessing, a score, a reconstruction with its map, and a
latent where there is one an item.
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

# Tiles that a network is given at once, so that memory does not grow with the size of the images.
AT_ONCE = 256
# Images of up to so many tiles are scored together where the size of the batch is not known, in an export.
_FEW = 16


class Adapter(Protocol):
    """What a scorer scores raw items with. Hashable, so that equal ones share what is compiled."""

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
        """Returns scores `[B]` of preprocessed x, where `of_inputs(detector, x)` gives that of a network's inputs."""

    def explained(self, variables: dict[str, Any], x: Array) -> tuple[Array, Array]:
        """Returns x_hat and the residual map of preprocessed x; `variables` are the detector's.

        x_hat is as x; the map is `[B, H, W]` of `[B, H, W, C]`, and |x - x_hat| of other shapes.
        """


@dataclasses.dataclass(frozen=True)
class WholeDetector:
    """Scores whole inputs with a detector of just these."""

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

    `combine` says how the score of an image follows from its tiles': `max`, `mean`, or a share such as `0.9`, the
    quantile that so many of them do not exceed.
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
        """Returns the tiles' scores, combined, see `Adapter.score`."""
        found = _each(lambda tiles: of_inputs(self.network, tiles), tiling.cut(x, self.grid))
        if self.combine == "max":
            return jnp.max(found, axis=1)
        return jnp.mean(found, axis=1) if self.combine == "mean" else jnp.quantile(found, float(self.combine), axis=1)

    def explained(self, variables: dict[str, Any], x: Array) -> tuple[Array, Array]:
        """Returns what is put together from the tiles, the mean where they overlap, see `Adapter.explained`."""
        x_hat, values = _each(lambda tiles: _explained(self.network, variables, tiles), tiling.cut(x, self.grid))
        return tiling.stitch(x_hat, self.grid), tiling.stitch(values[..., None], self.grid)[..., 0]


def from_config(config: Config) -> Adapter:
    """Builds the network that a resolved configuration describes, and returns it as one that scores raw items."""
    return of_network(registry.from_config(config), config)


def of_network(network: Detector, config: Config) -> Adapter:
    """Returns a network as one that scores raw items, as a resolved configuration describes them."""
    data = config.data
    preprocessing = modalities.of(data).preprocessing(data)
    if data.tile:
        return TiledDetector(network, preprocessing, data.overlap, data.tile_score)
    return WholeDetector(network, preprocessing)


def tiles_of(data: Data) -> int:
    """Returns how many inputs of the network one item becomes; `data` with all sizes."""
    grid = images_modality.grid(data)
    return grid.count if grid else 1


def _explained(network: Detector, variables: dict[str, Any], x: Array) -> tuple[Array, Array]:
    x_hat = network.reconstruct(variables, x)
    return x_hat, residual_map.residual_map(x, x_hat) if x.ndim == 4 else jnp.abs(x - x_hat)


def _each(function: Callable[[Array], Any], tiles: Array) -> Any:
    """Applies `function` to tiles [B, n, side, side, C], as many at once as memory allows: [B, n, ...].

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
