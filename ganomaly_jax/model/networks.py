"""The networks of GANomaly as Linen modules: Encoder, Decoder, Generator, Discriminator.

Images are [B, H, W, C] in [-1, 1] with H and W powers of two from 16 to 256, square or not: maps are halved until the
smaller side is 4 and the head covers what is left. No layer has a bias (section 4 and the authors' code).

With `anomalib` they are those of anomalib's Ganomaly, for its weights alone: its encoders pad the first convolution by
4 (the original by 1), so that the maps have odd sides, and the decoder's extra layers are leaky.

`dtype` is what the layers compute in (None: `param_dtype`). Parameters, batch norm and all that comes out of a network
have `param_dtype`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax

from ganomaly_jax.model import convolution

SIDES = (16, 32, 64, 128, 256)
_kernel_init = nn.initializers.normal(0.02)


def _scale_init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    return 1.0 + 0.02 * jax.random.normal(key, shape, dtype)


def halvings(height: int, width: int) -> int:
    """How often the encoder halves the map: until the smaller side is 4."""
    return min(height, width).bit_length() - 3


class Replicas(NamedTuple):
    """The mapped axis along which replicas lie, and how many neighbours pool their statistics (0: all of them)."""

    axis: str
    group: int = 0

    def mean(self, x: Array) -> Array:
        """Over the replicas of the own group."""
        size = lax.axis_size(self.axis)
        groups = [list(range(i, i + self.group)) for i in range(0, size, self.group)] if self.group else None
        return lax.pmean(x, self.axis, axis_index_groups=groups)


class Layer(nn.Module):
    """One of the functions of `convolution` with its kernel [h, w, C_in, features], computed in `dtype`."""

    function: Any
    size: tuple[int, ...]
    features: int
    param_dtype: Any = jnp.float32
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (*self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", _kernel_init, shape, self.param_dtype)
        dtype = self.param_dtype if self.dtype is None else self.dtype
        return self.function(x.astype(dtype), kernel.astype(dtype))


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last, with PyTorch's running statistics.

    running <- 0.9 running + 0.1 batch, the batch variance unbiased there (n / (n - 1)) and biased in the normalisation;
    Flax's own keeps the biased one. With `replicas` the statistics are those of the batch of a whole group, and the
    running ones move by their mean over all groups, so that every replica holds the same.
    """

    replicas: Replicas | None = None
    momentum: float = 0.9
    epsilon: float = 1e-5
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
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
        # Subtracted first: folding the mean into the bias rounds more, and values near 0 cross the kink of the ReLU.
        return (x - mean) * (scale * lax.rsqrt(var + self.epsilon)) + bias


def _leaky_relu(x: Array) -> Array:
    return nn.leaky_relu(x, negative_slope=0.2)


def _halved(x: Array, kernel: Array) -> Array:
    """`convolution.downsample` of maps that may have odd sides, [B, h, w, C] to [B, h // 2, w // 2, F]."""
    _, height, width, _ = x.shape
    even = jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
    return convolution.downsample(even, kernel)[:, : height // 2, : width // 2]


class Pyramid(nn.Module):
    """The encoder without its head: images [B, H, W, C] to features [B, h, w, F], the smaller of h and w being 4."""

    features: int
    extra_layers: int = 0
    replicas: Replicas | None = None
    param_dtype: Any = jnp.float32
    dtype: Any = None
    anomalib: bool = False

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        types = (self.param_dtype, self.dtype)
        channels = self.features
        count = halvings(*x.shape[1:3])
        halve = _halved if self.anomalib else convolution.downsample
        if self.anomalib:
            x = jnp.pad(x, ((0, 0), (3, 3), (3, 3), (0, 0)))
        x = _leaky_relu(Layer(halve, (4, 4), channels, *types, name="initial")(x))
        for i in range(self.extra_layers):
            x = Layer(convolution.convolve, (3, 3), channels, *types, name=f"extra_{i}")(x)
            x = _leaky_relu(BatchNorm(self.replicas, param_dtype=self.param_dtype, name=f"extra_{i}_norm")(x, train))
        for i in range(count - 1):
            channels *= 2
            x = Layer(halve, (4, 4), channels, *types, name=f"down_{i}")(x)
            x = _leaky_relu(BatchNorm(self.replicas, param_dtype=self.param_dtype, name=f"down_{i}_norm")(x, train))
        return x


class Encoder(nn.Module):
    """Images [B, H, W, C] to latents z [B, latent_size]; the head is linear."""

    latent_size: int
    features: int
    extra_layers: int = 0
    replicas: Replicas | None = None
    param_dtype: Any = jnp.float32
    dtype: Any = None
    anomalib: bool = False

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        types = (self.param_dtype, self.dtype)
        sizes = (self.features, self.extra_layers, self.replicas)
        maps = Pyramid(*sizes, *types, self.anomalib, name="pyramid")(x, train)
        size = (maps.shape[1], maps.shape[2])
        z = Layer(convolution.collapse, size, self.latent_size, *types, name="head")(maps)
        return z.astype(self.param_dtype)


class Decoder(nn.Module):
    """Latents z [B, N] to images x_hat of `shape` (H, W, C) in [-1, 1] (tanh)."""

    shape: tuple[int, ...]
    features: int
    extra_layers: int = 0
    replicas: Replicas | None = None
    param_dtype: Any = jnp.float32
    dtype: Any = None
    anomalib: bool = False

    @nn.compact
    def __call__(self, z: Array, train: bool) -> Array:
        types = (self.param_dtype, self.dtype)
        height, width, image_channels = self.shape
        count = halvings(height, width)
        channels = self.features * 2 ** (count - 1)
        size = (height >> count, width >> count)
        x = Layer(convolution.expand, size, channels, *types, name="head")(z)
        x = nn.relu(BatchNorm(self.replicas, param_dtype=self.param_dtype, name="head_norm")(x, train))
        for i in range(count - 1):
            channels //= 2
            x = Layer(convolution.upsample, (4, 4), channels, *types, name=f"up_{i}")(x)
            x = nn.relu(BatchNorm(self.replicas, param_dtype=self.param_dtype, name=f"up_{i}_norm")(x, train))
        active = _leaky_relu if self.anomalib else nn.relu
        for i in range(self.extra_layers):
            x = Layer(convolution.convolve, (3, 3), channels, *types, name=f"extra_{i}")(x)
            x = active(BatchNorm(self.replicas, param_dtype=self.param_dtype, name=f"extra_{i}_norm")(x, train))
        x = Layer(convolution.upsample, (4, 4), image_channels, *types, name="final")(x)
        return jnp.tanh(x.astype(self.param_dtype))


class Generator(nn.Module):
    """Encoder, decoder, encoder: x [B, H, W, C] to (x_hat of x's shape, z [B, N], z_hat [B, N])."""

    shape: tuple[int, ...]
    latent_size: int
    features: int
    extra_layers: int = 0
    replicas: Replicas | None = None
    param_dtype: Any = jnp.float32
    dtype: Any = None
    anomalib: bool = False

    def setup(self) -> None:
        sizes = (self.features, self.extra_layers, self.replicas, self.param_dtype, self.dtype, self.anomalib)
        self.encoder = Encoder(self.latent_size, *sizes)
        self.decoder = Decoder(self.shape, *sizes)
        self.reencoder = Encoder(self.latent_size, *sizes)

    def __call__(self, x: Array, train: bool) -> tuple[Array, Array, Array]:
        z = self.encoder(x, train)
        x_hat = self.decoder(z, train)
        return x_hat, z, self.reencoder(x_hat, train)


def coders(shape: tuple[int, int, int], latent_size: int, *sizes: Any) -> tuple[nn.Module, nn.Module]:
    """Encoder and decoder of inputs of `shape`; `sizes` from `features` to `dtype`, in the order of both."""
    return Encoder(latent_size, *sizes), Decoder(shape, *sizes)


class Autoencoder(nn.Module):
    """Encoder, decoder: x [B, *shape] to (x_hat of x's shape, z [B, latent_size])."""

    shape: tuple[int, int, int]
    latent_size: int
    features: int
    extra_layers: int = 0
    replicas: Replicas | None = None
    param_dtype: Any = jnp.float32
    dtype: Any = None

    def setup(self) -> None:
        sizes = (self.features, self.extra_layers, self.replicas, self.param_dtype, self.dtype)
        self.encoder, self.decoder = coders(self.shape, self.latent_size, *sizes)

    def __call__(self, x: Array, train: bool) -> tuple[Array, Array]:
        z = self.encoder(x, train)
        return self.decoder(z, train), z


class Discriminator(nn.Module):
    """x [B, H, W, C] to (features [B, h, w, F], logits [B]); sigmoid(logits) is the probability of being real.

    With `embedding_size` E a third output, [B, E], of a second linear head.
    """

    features: int
    extra_layers: int = 0
    replicas: Replicas | None = None
    param_dtype: Any = jnp.float32
    dtype: Any = None
    embedding_size: int = 0

    @nn.compact
    def __call__(self, x: Array, train: bool) -> tuple[Array, ...]:
        types = (self.param_dtype, self.dtype)
        maps = Pyramid(self.features, self.extra_layers, self.replicas, *types, name="pyramid")(x, train)
        size = (maps.shape[1], maps.shape[2])
        logits = Layer(convolution.collapse, size, 1, *types, name="head")(maps)[:, 0].astype(self.param_dtype)
        if not self.embedding_size:
            return maps, logits
        embedding = Layer(convolution.collapse, size, self.embedding_size, *types, name="embedding")(maps)
        return maps, logits, embedding.astype(self.param_dtype)
