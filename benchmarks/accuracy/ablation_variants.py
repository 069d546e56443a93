"""The changes of ablation.py, one at a time against one base. What the package has is a field of its detector; the rest
is here, and nowhere else."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from ganomaly_jax.core.config import Model
from ganomaly_jax.model import convolution, corruption, layers, networks
from ganomaly_jax.model.ganomaly import Ganomaly
from ganomaly_jax.model.protocol import Detector, TrainState
from ganomaly_jax.model.relative_brightness import RelativeBrightness
from ganomaly_jax.scoring import scores
from ganomaly_jax.training import augment

AVERAGE = 0.99
"""Of the base's weights, and so of all variants."""
MASK, SHIFT = 0.25, 2
_CORRUPTION = 0xAB1


class SkipGenerator(nn.Module):
    """As `networks.Generator`, with every map of the encoder beside the decoder's of its size.

    In the manner of Skip-GANomaly (Akcay et al. 2019, arXiv 1901.08954), which has no second encoder: here it stays,
    so that the score is the same.
    """

    shape: tuple[int, ...]
    latent_size: int
    features: int

    @nn.compact
    def __call__(self, x: Array, train: bool) -> tuple[Array, Array, Array]:
        count = networks.halvings(*self.shape[:2])
        size = (self.shape[0] >> count, self.shape[1] >> count)
        wide = [self.features * 2**i for i in range(count)]
        maps = [nn.leaky_relu(layers.Layer(convolution.downsample, (4, 4), wide[0], name="down_0")(x), 0.2)]
        for i in range(1, count):
            halved = layers.Layer(convolution.downsample, (4, 4), wide[i], name=f"down_{i}")(maps[-1])
            maps.append(nn.leaky_relu(layers.BatchNorm(name=f"down_{i}_norm")(halved, train), 0.2))
        z = layers.Layer(convolution.collapse, size, self.latent_size, name="z")(maps[-1])
        y = layers.Layer(convolution.expand, size, wide[-1], name="head")(z)
        y = nn.relu(layers.BatchNorm(name="head_norm")(y, train))
        for i in reversed(range(1, count)):
            beside = jnp.concatenate([y, maps[i]], axis=-1)
            y = layers.Layer(convolution.upsample, (4, 4), wide[i - 1], name=f"up_{i}")(beside)
            y = nn.relu(layers.BatchNorm(name=f"up_{i}_norm")(y, train))
        beside = jnp.concatenate([y, maps[0]], axis=-1)
        x_hat = jnp.tanh(layers.Layer(convolution.upsample, (4, 4), self.shape[-1], name="final")(beside))
        z_hat = networks.Encoder(self.latent_size, self.features, name="reencoder")(x_hat, train)
        return x_hat, z, z_hat


@dataclasses.dataclass(frozen=True)
class Skipping(Ganomaly):
    """GANomaly with skip connections."""

    @property
    def generator(self) -> Any:
        return SkipGenerator(self.shape, self.latent_size, self.features)


@dataclasses.dataclass(frozen=True)
class _Shown:
    """A generator that is given `seen` in place of the image."""

    network: Any
    seen: Array

    def apply(self, variables: Any, _: Array, **more: Any) -> Any:
        return self.network.apply(variables, self.seen, **more)


@dataclasses.dataclass(frozen=True)
class Corrupting(Ganomaly):
    """GANomaly whose generator is trained to reconstruct clean images from corrupted ones.

    Settled and scored on images as they are.
    """

    noise: float = 0.0
    mask: float = 0.0
    seen: Any = None
    """What the generator is shown in the step that is being traced."""

    @property
    def generator(self) -> Any:
        made = super().generator
        return made if self.seen is None else _Shown(made, self.seen)

    def gradients(self, state: TrainState, x: Array) -> Any:
        if self.seen is not None:
            return super().gradients(state, x)
        key = jax.random.fold_in(jax.random.key(_CORRUPTION), state.step)
        seen = corruption.corrupt(key, x, self.noise, self.mask)
        return dataclasses.replace(self, seen=seen).gradients(state, x)


def normed(params: Any) -> Any:
    """Divides kernels [..., C_in, C_out] by their largest singular value, as matrices of C_out columns (Miyato et al.
    2018); the singular vector is exact, and as there no gradient goes through it."""

    def one(path: Any, leaf: Array) -> Array:
        if path[-1].key != "kernel":
            return leaf
        matrix = leaf.reshape(-1, leaf.shape[-1])
        first = lax.stop_gradient(jnp.linalg.eigh(matrix.T @ matrix)[1][:, -1])
        return leaf / jnp.maximum(jnp.linalg.norm(matrix @ first), 1e-12)

    return jax.tree_util.tree_map_with_path(one, params)


@dataclasses.dataclass(frozen=True)
class _Normed:
    """A network that computes with `normed` kernels; those of its state stay as they are."""

    network: Any

    def init(self, *given: Any, **more: Any) -> Any:
        return self.network.init(*given, **more)

    def apply(self, variables: Any, x: Array, **more: Any) -> Any:
        return self.network.apply(variables | {"params": normed(variables["params"])}, x, **more)


@dataclasses.dataclass(frozen=True)
class Spectral(Ganomaly):
    """GANomaly with spectral norm of all kernels of the discriminator, whose batch norm stays."""

    @property
    def discriminator(self) -> Any:
        return _Normed(super().discriminator)


def quarters(x: Array) -> Array:
    """Rotates square images x [B, H, H, C] by 0 to 3 quarter turns, [4 B, H, H, C]."""
    return jnp.concatenate([jnp.rot90(x, k, axes=(1, 2)) for k in range(4)])


@dataclasses.dataclass(frozen=True)
class Rotating(Ganomaly):
    """GANomaly whose discriminator has a second head, which says by how many quarters an image was turned.

    Its cross-entropy is added to the discriminator's loss with weight 1, and is a score (Golan and El-Yaniv 2018).
    """

    @property
    def discriminator(self) -> Any:
        return super().discriminator.clone(embedding_size=4)

    def _rotation(self, variables: Any, x: Array, train: bool) -> tuple[Array, Any]:
        """Computes the cross-entropy [B], the mean over the four rotations, and batch norm's statistics."""
        (*_, logits), moved = self.discriminator.apply(variables, quarters(x), train=train, mutable=["batch_stats"])
        right = jnp.repeat(jnp.arange(4), len(x))
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, right)
        return losses.reshape(4, -1).mean(axis=0), moved["batch_stats"]

    def gradients(self, state: TrainState, x: Array) -> Any:
        grads, stats, metrics = super().gradients(state, x)
        old = state.batch_stats["discriminator"]

        def loss(params: Any) -> Array:
            return self._rotation({"params": params, "batch_stats": old}, x, train=True)[0].mean()

        own = jax.grad(loss)(state.params["discriminator"])
        return grads | {"discriminator": jax.tree.map(jnp.add, grads["discriminator"], own)}, stats, metrics

    def variables(self, state: TrainState) -> dict[str, Any]:
        own = {
            "params": state.opt_state["average"]["discriminator"],
            "batch_stats": state.batch_stats["discriminator"],
        }
        return super().variables(state) | {"discriminator": own}

    def recompute_batch_stats(self, variables: dict[str, Any], batches: Array) -> dict[str, Any]:
        scorer = variables["discriminator"]
        empty = scorer | {"batch_stats": jax.tree.map(jnp.zeros_like, scorer["batch_stats"])}
        found = lax.map(lambda x: self._rotation(empty, x, train=True)[1], batches)
        fresh = jax.tree.map(lambda leaf: leaf.mean(axis=0) / (1 - layers.BatchNorm.momentum), found)
        return super().recompute_batch_stats(variables, batches) | {"discriminator": scorer | {"batch_stats": fresh}}

    def outputs(self, variables: dict[str, Any], x: Array) -> dict[str, Array]:
        found = super().outputs(variables, x)
        return found | {"rotation": self._rotation(variables["discriminator"], x, train=False)[0]}


class Variant(NamedTuple):
    """One change of the training."""

    words: str
    change: Callable[[dict[str, Any], int], Detector]
    """From the base's arguments and the number of steps."""
    augmentation: Callable[[Array, Array], Array] | None = None


def _with(kind: Any = Ganomaly, **changed: Any) -> Callable[[dict[str, Any], int], Detector]:
    return lambda given, steps: kind(**given | changed)


def _cosine(given: dict[str, Any], steps: int) -> Ganomaly:
    schedule: Any = optax.cosine_decay_schedule(Ganomaly.learning_rate, steps)
    return Ganomaly(**given, learning_rate=schedule)


BASE = "base"
VARIANTS = {
    BASE: Variant("GANomaly with averaged weights and settled statistics", _with()),
    "no_discriminator": Variant("no discriminator: adversarial weight 0", _with(adversarial_weight=0.0)),
    "encoder_10": Variant("encoder weight 10 in place of 1", _with(encoder_weight=10.0)),
    "latent_16": Variant("latent of 16", _with(latent_size=16)),
    "contrast": Variant("contrast of the discriminator's embedding", _with(contrast_weight=1.0)),
    "cosine": Variant("learning rate falling to 0 as a cosine", _cosine),
    "shifts": Variant(f"shifts of up to {SHIFT} pixels, and flips", _with(), augment.make(0, SHIFT, True)),
    "exposure": Variant(
        "brightness relative to the image's mean", _with(lambda **given: RelativeBrightness(Ganomaly(**given)))
    ),
    "masked": Variant(f"masked input: {MASK:.0%} of the patches hidden", _with(Corrupting, mask=MASK)),
    "noisy": Variant(f"noisy input: deviation {Model.noise}", _with(Corrupting, noise=Model.noise)),
    "skip": Variant("skip connections", _with(Skipping)),
    "spectral": Variant("spectral norm of the discriminator", _with(Spectral)),
    "rotation": Variant("rotation head on the discriminator", _with(Rotating)),
}


@functools.cache
def detector(name: str, shape: tuple[int, int, int], latent: int, features: int, steps: int) -> Detector:
    """Returns the detector of a variant; the same object for the same arguments, so that programs are reused."""
    given = {"shape": shape, "latent_size": latent, "features": features, "average": AVERAGE}
    return VARIANTS[name].change(given, steps)


PLAIN = ("squared", "pixel")
LATENT = ("latent_neighbours", "latent_density", "latent_angle")
_EMBEDDED = "embedding_angle"


def described(made: Detector, variables: dict[str, Any], x: Array) -> dict[str, Array]:
    """Computes what scores are made of from x [B, H, W, C] in [-1, 1]: `PLAIN` [B], z, and what else there is."""
    outputs = {"x": x} | made.outputs(variables, x)
    kept = {name: outputs[name] for name in ("z", "embedding", "rotation") if name in outputs}
    return kept | {name: scores.PARTS[name](outputs, {}) for name in PLAIN}


def nearness(fitted: dict[str, Any], z: Array, embedding: bool) -> dict[str, Array]:
    """Scores latents z [B, L], or embeddings, against the training images' (`statistics.fit`): [B]."""
    output, names = ("embedding", (_EMBEDDED,)) if embedding else ("z", LATENT)
    return {name: scores.PARTS[name]({output: z}, {output: fitted}) for name in names}
