"""The networks of GANomaly as Linen modules: Encoder, Decoder, Generator, Discriminator; and an Autoencoder.

They take three kinds of input, which share all code but the layers themselves: images [B, H, W, C], windows of rows
[B, T, D] and single rows [B, D]. Maps are halved until the head covers what is left: of images until the smaller side
is 4, with H and W powers of two from 16 to 256, square or not; of windows at least twice and until at most 4 steps are
left, for any T from 4. A row has no steps, and its layers are dense. No layer has a bias, as in the authors' code.

`features` is the number of channels of the first layer, which each halving doubles (for windows and rows up to 8 times
`features`). `dtype` is the dtype of the linear layers (None for `param_dtype`); parameters, batch norm and the results
of a network have `param_dtype`.

With `anomalib` the networks are those of anomalib's Ganomaly, to score with its weights: its encoders pad the first
convolution by 4 (the original by 1), so that the maps have odd sides, and the decoder's extra layers are leaky.

References:
  Section 3.2 of arXiv 1805.06725; the layers are those of the authors' code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from ganomaly_jax.model import convolution, row_layers
from ganomaly_jax.model.layers import BatchNorm, Layer, Replicas

SIDES = (16, 32, 64, 128, 256)
"""Sides that an image may have, in pixels."""
MIN_WINDOW = 4
"""Least number of rows in a window."""


class _LayerSet(NamedTuple):
    """The linear layers for inputs of one rank."""

    downsample: Callable[[Array, Array], Array]
    upsample: Callable[[Array, Array], Array]
    convolve: Callable[[Array, Array], Array]
    collapse: Callable[[Array, Array], Array]
    expand: Callable[[Array, Array], Array]
    size: tuple[int, ...]
    """Spatial size of the kernels of `downsample` and `upsample`."""
    extra_size: tuple[int, ...]
    """Spatial size of the kernels of `convolve`."""
    trunk_name: str
    """Name of the trunk's parameters, which stored detectors rely on."""


_dense = row_layers.dense
_LAYERS = {
    3: _LayerSet(
        convolution.downsample,
        convolution.upsample,
        convolution.convolve,
        convolution.collapse,
        convolution.expand,
        (4, 4),
        (3, 3),
        "pyramid",
    ),
    2: _LayerSet(
        row_layers.downsample,
        row_layers.upsample,
        row_layers.convolve,
        row_layers.collapse,
        row_layers.expand,
        (4,),
        (3,),
        "trunk",
    ),
    1: _LayerSet(_dense, _dense, _dense, _dense, _dense, (), (), "trunk"),
}
_MAX_ROW_WIDTH = 8
"""Channels of the last layer over those of the first, at most, for rows and windows, which may be long."""


def halvings(height: int, width: int) -> int:
    """Returns how often the encoder halves an image: until the smaller side is 4."""
    return min(height, width).bit_length() - 3


def _map_sizes(shape: Sequence[int]) -> list[tuple[int, ...]]:
    """Returns the spatial sizes of the maps, from that of an input of `shape` to the one that the head covers."""
    if len(shape) == 3:
        height, width, _ = shape
        return [(height >> i, width >> i) for i in range(halvings(height, width) + 1)]
    if len(shape) == 2:
        return [(steps,) for steps in row_layers.halved_lengths(shape[0])]
    return [(), (), ()]


def _widths(shape: Sequence[int], features: int) -> list[int]:
    """Returns the channels after each halving of an input of `shape`."""
    doublings = range(len(_map_sizes(shape)) - 1)
    return [features * (2**i if len(shape) == 3 else min(2**i, _MAX_ROW_WIDTH)) for i in doublings]


def _leaky_relu(x: Array) -> Array:
    """Applies the LeakyReLU of the encoder."""
    return nn.leaky_relu(x, negative_slope=0.2)


def _downsample_odd(x: Array, kernel: Array) -> Array:
    """Applies `convolution.downsample` to maps that may have odd sides: [B, h, w, C] to [B, h // 2, w // 2, F]."""
    _, height, width, _ = x.shape
    even = jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
    return convolution.downsample(even, kernel)[:, : height // 2, : width // 2]


class Trunk(nn.Module):
    """The encoder without its head: inputs [B, ..., C] to feature maps, which the head covers with one kernel.

    Those are [B, h, w, F] for images, the smaller of h and w being 4, [B, t, F] with t at most 4 for windows, and
    [B, F] for rows.
    """

    features: int
    extra_layers: int = 0
    replicas: Replicas | None = None
    param_dtype: Any = jnp.float32
    dtype: Any = None
    anomalib: bool = False

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Returns the feature maps; `train` normalises by batch statistics."""
        layers, types = _LAYERS[x.ndim - 1], (self.param_dtype, self.dtype)
        first, *widths = _widths(x.shape[1:], self.features)
        downsample = _downsample_odd if self.anomalib else layers.downsample
        if self.anomalib:
            x = jnp.pad(x, ((0, 0), (3, 3), (3, 3), (0, 0)))

        def norm(x: Array, name: str) -> Array:
            return _leaky_relu(BatchNorm(self.replicas, param_dtype=self.param_dtype, name=f"{name}_norm")(x, train))

        x = _leaky_relu(Layer(downsample, layers.size, first, *types, name="initial")(x))
        for i in range(self.extra_layers):
            name = f"extra_{i}"
            x = norm(Layer(layers.convolve, layers.extra_size, first, *types, name=name)(x), name)
        for i, width in enumerate(widths):
            name = f"down_{i}"
            x = norm(Layer(downsample, layers.size, width, *types, name=name)(x), name)
        return x


def _head(maps: Array, features: int, types: tuple[Any, Any], name: str = "head") -> Array:
    """Applies a linear layer that covers the whole maps [B, ..., C]: [B, features] in the first of `types`."""
    layer = Layer(_LAYERS[maps.ndim - 1].collapse, maps.shape[1:-1], features, *types, name=name)
    return layer(maps)


class Encoder(nn.Module):
    """Inputs x [B, ...] to latents z [B, latent_size]; the head is linear."""

    latent_size: int
    features: int
    extra_layers: int = 0
    replicas: Replicas | None = None
    param_dtype: Any = jnp.float32
    dtype: Any = None
    anomalib: bool = False

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Returns z; `train` normalises by batch statistics."""
        types = (self.param_dtype, self.dtype)
        sizes = (self.features, self.extra_layers, self.replicas)
        maps = Trunk(*sizes, *types, self.anomalib, name=_LAYERS[x.ndim - 1].trunk_name)(x, train)
        return _head(maps, self.latent_size, types).astype(self.param_dtype)


class Decoder(nn.Module):
    """Latents z [B, N] to x_hat [B, *shape]: images in [-1, 1] (tanh), rows and windows without bounds.

    Differs from the paper: rows and windows have a linear output instead of tanh, since sensors have no bounds.
    """

    shape: tuple[int, ...]
    features: int
    extra_layers: int = 0
    replicas: Replicas | None = None
    param_dtype: Any = jnp.float32
    dtype: Any = None
    anomalib: bool = False

    @nn.compact
    def __call__(self, z: Array, train: bool) -> Array:
        """Returns x_hat; `train` normalises by batch statistics."""
        layers, types = _LAYERS[len(self.shape)], (self.param_dtype, self.dtype)
        smallest, *sizes = reversed(_map_sizes(self.shape))
        first, *widths = reversed(_widths(self.shape, self.features))

        def norm(x: Array, name: str, activation: Callable[[Array], Array] = nn.relu) -> Array:
            return activation(BatchNorm(self.replicas, param_dtype=self.param_dtype, name=f"{name}_norm")(x, train))

        def upsample(x: Array, width: int, size: tuple[int, ...], name: str) -> Array:
            x = Layer(layers.upsample, layers.size, width, *types, name=name)(x)
            # A window of an odd length was rounded up when it was halved.
            return x if x.shape[1:-1] == size else x[:, : size[0]]

        x = norm(Layer(layers.expand, smallest, first, *types, name="head")(z), "head")
        for i, width in enumerate(widths):
            x = norm(upsample(x, width, sizes[i], f"up_{i}"), f"up_{i}")
        for i in range(self.extra_layers):
            name = f"extra_{i}"
            x = Layer(layers.convolve, layers.extra_size, self.features, *types, name=name)(x)
            x = norm(x, name, _leaky_relu if self.anomalib else nn.relu)
        x = upsample(x, self.shape[-1], sizes[-1], "final").astype(self.param_dtype)
        return jnp.tanh(x) if len(self.shape) == 3 else x


class Generator(nn.Module):
    """Encoder, decoder and second encoder: x [B, *shape] to x_hat [B, *shape], z [B, N] and z_hat [B, N]."""

    shape: tuple[int, ...]
    latent_size: int
    features: int
    extra_layers: int = 0
    replicas: Replicas | None = None
    param_dtype: Any = jnp.float32
    dtype: Any = None
    anomalib: bool = False

    def setup(self) -> None:
        """Creates the three networks; the second encoder has the shape of the first and its own weights."""
        sizes = (self.features, self.extra_layers, self.replicas, self.param_dtype, self.dtype, self.anomalib)
        self.encoder = Encoder(self.latent_size, *sizes)
        self.decoder = Decoder(self.shape, *sizes)
        self.reencoder = Encoder(self.latent_size, *sizes)

    def __call__(self, x: Array, train: bool) -> tuple[Array, Array, Array]:
        """Returns x_hat, z and z_hat; `train` normalises by batch statistics."""
        z = self.encoder(x, train)
        x_hat = self.decoder(z, train)
        return x_hat, z, self.reencoder(x_hat, train)


class Autoencoder(nn.Module):
    """Encoder and decoder: x [B, *shape] to x_hat [B, *shape] and z [B, N]."""

    shape: tuple[int, ...]
    latent_size: int
    features: int
    extra_layers: int = 0
    replicas: Replicas | None = None
    param_dtype: Any = jnp.float32
    dtype: Any = None

    def setup(self) -> None:
        """Creates the two networks."""
        sizes = (self.features, self.extra_layers, self.replicas, self.param_dtype, self.dtype)
        self.encoder = Encoder(self.latent_size, *sizes)
        self.decoder = Decoder(self.shape, *sizes)

    def __call__(self, x: Array, train: bool) -> tuple[Array, Array]:
        """Returns x_hat and z; `train` normalises by batch statistics."""
        z = self.encoder(x, train)
        return self.decoder(z, train), z


class Discriminator(nn.Module):
    """Inputs x [B, ...] to features (those of `Trunk`) and logits [B]; sigmoid(logits) is the probability of real.

    With `embedding_size` E there is a third result, [B, E], of a second linear head.
    """

    features: int
    extra_layers: int = 0
    replicas: Replicas | None = None
    param_dtype: Any = jnp.float32
    dtype: Any = None
    embedding_size: int = 0

    @nn.compact
    def __call__(self, x: Array, train: bool) -> tuple[Array, ...]:
        """Returns features, logits and perhaps embeddings; `train` normalises by batch statistics."""
        types = (self.param_dtype, self.dtype)
        trunk = Trunk(self.features, self.extra_layers, self.replicas, *types, name=_LAYERS[x.ndim - 1].trunk_name)
        maps = trunk(x, train)
        logits = _head(maps, 1, types)[:, 0].astype(self.param_dtype)
        if not self.embedding_size:
            return maps, logits
        return maps, logits, _head(maps, self.embedding_size, types, "embedding").astype(self.param_dtype)
