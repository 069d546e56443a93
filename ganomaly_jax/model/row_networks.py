"""The networks of GANomaly for rows of sensors: dense layers for [B, D], convolutions along time for [B, T, D].

The same interface as those of `networks.py`: the generator gives x_hat, z and z_hat, the discriminator features and
logits; batch norm, its replicas and the way weights are drawn are the same.

Windows are halved in time, doubling the features up to eight times, twice at least and until at most 4 steps are left;
the decoder goes the same way back, so that any T from 4 on works. The convolutions are written as products of matrices,
four or three shifted copies beside each other: their gradients are products as well, and fast on every platform.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from ganomaly_jax.model.networks import BatchNorm, Layer, Replicas

LEAST_WINDOW = 4
_MOST_TIMES = 8
"""Features of the last layer over those of the first, at most: windows may be long."""


def lengths(steps: int) -> tuple[int, ...]:
    """How long the maps are, from the window's T down to what the head covers: (20, 10, 5, 3)."""
    found = [steps]
    while found[-1] > 4 or len(found) < 3:  # two at least: the first has no batch norm
        found.append(-(-found[-1] // 2))
    return tuple(found)


def dense(x: Array, kernel: Array) -> Array:
    """[B, C] by [C, F]."""
    return x @ kernel


def collapse(x: Array, kernel: Array) -> Array:
    """[B, t, C] by [t, C, F] to [B, F]: all that is left of a window."""
    rows = kernel.shape[0] * kernel.shape[1]  # not the batch, whose size an export does not know
    return x.reshape(-1, rows) @ kernel.reshape(rows, -1)


def expand(z: Array, kernel: Array) -> Array:
    """[B, N] by [t, N, F] to [B, t, F], the reverse of `collapse`."""
    steps, size, features = kernel.shape
    return (z @ kernel.transpose(1, 0, 2).reshape(size, -1)).reshape(-1, steps, features)


def convolve(x: Array, kernel: Array) -> Array:
    """[B, T, C] by [3, C, F] to [B, T, F], zeros beyond the ends."""
    padded, steps = jnp.pad(x, ((0, 0), (1, 1), (0, 0))), x.shape[1]
    beside = jnp.concatenate([padded[:, i : i + steps] for i in range(3)], axis=-1)
    return beside @ kernel.reshape(-1, kernel.shape[-1])


def downsample(x: Array, kernel: Array) -> Array:
    """[B, T, C] by [4, C, F] to [B, ceil(T / 2), F]: every second place, zeros beyond the ends."""
    steps = -(-x.shape[1] // 2)
    padded = jnp.pad(x, ((0, 0), (1, 1 + x.shape[1] % 2), (0, 0)))
    beside = jnp.concatenate([padded[:, i : i + 2 * steps - 1 : 2] for i in range(4)], axis=-1)
    return beside @ kernel.reshape(-1, kernel.shape[-1])


def upsample(x: Array, kernel: Array) -> Array:
    """[B, t, C] by [4, C, F] to [B, 2 t, F]: the transpose of `downsample`, place 2 i from x[i] and x[i - 1]."""
    steps = x.shape[1]
    padded = jnp.pad(x, ((0, 0), (1, 1), (0, 0)))
    before, here, after = (padded[:, i : i + steps] for i in range(3))
    even = here @ kernel[1] + before @ kernel[3]
    odd = here @ kernel[2] + after @ kernel[0]
    return jnp.stack([even, odd], axis=2).reshape(-1, 2 * steps, kernel.shape[-1])


def _leaky_relu(x: Array) -> Array:
    return nn.leaky_relu(x, negative_slope=0.2)


class Trunk(nn.Module):
    """The encoder without its head: rows [B, D] to features [B, 2 F], windows [B, T, D] to [B, t, C], t at most 4."""

    features: int
    extra_layers: int = 0
    replicas: Replicas | None = None
    param_dtype: Any = jnp.float32
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        types, window = (self.param_dtype, self.dtype), x.ndim == 3
        channels = self.features
        down, down_size = (downsample, (4,)) if window else (dense, ())
        same, same_size = (convolve, (3,)) if window else (dense, ())
        depth = len(lengths(x.shape[1])) - 2 if window else 1

        def norm(name: str, y: Array) -> Array:
            return _leaky_relu(BatchNorm(self.replicas, param_dtype=self.param_dtype, name=f"{name}_norm")(y, train))

        x = _leaky_relu(Layer(down, down_size, channels, *types, name="initial")(x))
        for i in range(self.extra_layers):
            x = norm(f"extra_{i}", Layer(same, same_size, channels, *types, name=f"extra_{i}")(x))
        for i in range(depth):
            channels = min(2 * channels, _MOST_TIMES * self.features)
            x = norm(f"down_{i}", Layer(down, down_size, channels, *types, name=f"down_{i}")(x))
        return x


class Encoder(nn.Module):
    """Rows [B, D] or windows [B, T, D] to latents z [B, latent_size]; the head is linear."""

    latent_size: int
    features: int
    extra_layers: int = 0
    replicas: Replicas | None = None
    param_dtype: Any = jnp.float32
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        types = (self.param_dtype, self.dtype)
        y = Trunk(self.features, self.extra_layers, self.replicas, *types, name="trunk")(x, train)
        return _head(y, self.latent_size, types).astype(self.param_dtype)


class Decoder(nn.Module):
    """Latents z [B, N] to x_hat of `shape` (D,) or (T, D).

    Differs from the paper: the output is linear instead of tanh, since the values of sensors have no bounds.
    """

    shape: tuple[int, ...]
    features: int
    extra_layers: int = 0
    replicas: Replicas | None = None
    param_dtype: Any = jnp.float32
    dtype: Any = None

    @nn.compact
    def __call__(self, z: Array, train: bool) -> Array:
        types, window = (self.param_dtype, self.dtype), len(self.shape) == 2
        steps = lengths(self.shape[0])[::-1] if window else (0, 0, 0)
        # Of the encoder's layers, the last first.
        widths = [min(2**i, _MOST_TIMES) * self.features for i in range(len(steps) - 1)][::-1]
        same, same_size = (convolve, (3,)) if window else (dense, ())

        def norm(name: str, y: Array) -> Array:
            return nn.relu(BatchNorm(self.replicas, param_dtype=self.param_dtype, name=f"{name}_norm")(y, train))

        def up(y: Array, width: int, to: int, name: str) -> Array:
            if not window:
                return Layer(dense, (), width, *types, name=name)(y)
            return Layer(upsample, (4,), width, *types, name=name)(y)[:, :to]

        first = Layer(expand, (steps[0],), widths[0], *types, name="head") if window else None
        x = norm("head", first(z) if first else Layer(dense, (), widths[0], *types, name="head")(z))
        for i, width in enumerate(widths[1:]):
            x = norm(f"up_{i}", up(x, width, steps[i + 1], f"up_{i}"))
        for i in range(self.extra_layers):
            x = norm(f"extra_{i}", Layer(same, same_size, self.features, *types, name=f"extra_{i}")(x))
        return up(x, self.shape[-1], self.shape[0], "final").astype(self.param_dtype)


class Generator(nn.Module):
    """Encoder, decoder, encoder: x [B, D] or [B, T, D] to (x_hat of x's shape, z [B, N], z_hat [B, N])."""

    shape: tuple[int, ...]
    latent_size: int
    features: int
    extra_layers: int = 0
    replicas: Replicas | None = None
    param_dtype: Any = jnp.float32
    dtype: Any = None

    def setup(self) -> None:
        sizes = (self.features, self.extra_layers, self.replicas, self.param_dtype, self.dtype)
        self.encoder = Encoder(self.latent_size, *sizes)
        self.decoder = Decoder(self.shape, *sizes)
        self.reencoder = Encoder(self.latent_size, *sizes)

    def __call__(self, x: Array, train: bool) -> tuple[Array, Array, Array]:
        z = self.encoder(x, train)
        x_hat = self.decoder(z, train)
        return x_hat, z, self.reencoder(x_hat, train)


class Autoencoder(nn.Module):
    """Encoder, decoder: x [B, D] or [B, T, D] to (x_hat of x's shape, z [B, N])."""

    shape: tuple[int, ...]
    latent_size: int
    features: int
    extra_layers: int = 0
    replicas: Replicas | None = None
    param_dtype: Any = jnp.float32
    dtype: Any = None

    def setup(self) -> None:
        sizes = (self.features, self.extra_layers, self.replicas, self.param_dtype, self.dtype)
        self.encoder = Encoder(self.latent_size, *sizes)
        self.decoder = Decoder(self.shape, *sizes)

    def __call__(self, x: Array, train: bool) -> tuple[Array, Array]:
        z = self.encoder(x, train)
        return self.decoder(z, train), z


class Discriminator(nn.Module):
    """x [B, D] or [B, T, D] to (features [B, ...], logits [B]); sigmoid(logits) is the probability of being real."""

    features: int
    extra_layers: int = 0
    replicas: Replicas | None = None
    param_dtype: Any = jnp.float32
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> tuple[Array, Array]:
        types = (self.param_dtype, self.dtype)
        y = Trunk(self.features, self.extra_layers, self.replicas, *types, name="trunk")(x, train)
        return y, _head(y, 1, types)[:, 0].astype(self.param_dtype)


def _head(y: Array, size: int, types: tuple[Any, Any]) -> Array:
    function, steps = (collapse, y.shape[1:2]) if y.ndim == 3 else (dense, ())
    return Layer(function, steps, size, *types, name="head")(y)
