"""GANomaly: the detector of Akcay, Atapour-Abarghouei and Breckon (ACCV 2018, arXiv 1805.06725)."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from ganomaly_jax.core.config import Config, Evaluate, Loss, Mesh, Model, Optimizer, input_shape
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.model import contrastive_views, networks, row_networks
from ganomaly_jax.model import losses as model_losses
from ganomaly_jax.model.protocol import TrainState

# Below this loss the discriminator has won outright and is drawn afresh (the authors' `reinit_d`).
_DISCRIMINATOR_HAS_WON = 1e-5
# Apart from the keys that draw weights, which follow from the step as well.
_VIEWS = 0x51E
# Mean and standard deviation of each colour, of pixels from 0 to 1, by which anomalib scales what goes in.
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclasses.dataclass(frozen=True)
class Ganomaly:
    """Detector for images of `shape` (H, W, C): H and W powers of two from 16 to 256, any C.

    Or for rows of D sensors, `shape` (D,), and windows of T of them, (T, D), T from 4 on: [B, D] and [B, T, D] as
    `preprocess.to_unit` scales them. The networks are those of `sequences.py` then, everything else is the same.

    Images are [B, H, W, C] floating point in [-1, 1], the range of the decoder's tanh. `axis_name` names the mapped
    axis when `update` runs once a device under `shard_map` or `pmap`: gradients and metrics are averaged over it, and
    batch norm pools the batches of all devices, or with `batch_norm_group` of so many neighbours (1: each its own, so
    that a device's batch is normalised as the paper's is). With `compute_dtype` "bfloat16" the convolutions compute in
    that, otherwise in `param_dtype`, which parameters, statistics, losses, scores and x_hat have in any case.

    With `contrast_weight` the discriminator has a second head of `embedding_size` and learns to recognise two views of
    an image by it; with `average` the weights that score are moving averages. `network` "anomalib" is that of
    anomalib's Ganomaly with its scaling of the input, to score with its weights: colour, square, 32 or more.

    Raises:
      UserError: a shape, size, score or type that cannot work.
    """

    shape: tuple[int, ...]
    latent_size: int = Model.latent_size
    features: int = Model.features
    extra_layers: int = Model.extra_layers
    adversarial_weight: float = Loss.adversarial
    contextual_weight: float = Loss.contextual
    encoder_weight: float = Loss.encoder
    contrast_weight: float = Loss.contrast
    temperature: float = Loss.temperature
    embedding_size: int = Model.embedding_size
    learning_rate: float = Optimizer.learning_rate
    beta1: float = Optimizer.beta1
    beta2: float = Optimizer.beta2
    epsilon: float = Optimizer.epsilon
    average: float = Optimizer.average
    score_distance: str = Evaluate.score
    axis_name: str | None = None
    batch_norm_group: int = Mesh.batch_norm_group
    param_dtype: Any = jnp.float32
    compute_dtype: str = Model.dtype
    network: str = Model.network

    def __post_init__(self) -> None:
        if len(self.shape) in (1, 2):
            self._check_rows()
        elif len(self.shape) != 3 or any(side not in networks.SIDES for side in self.shape[:2]) or self.shape[2] < 1:
            sides = ", ".join(map(str, networks.SIDES))
            raise UserError(
                f"shape {tuple(self.shape)}: wanted (height, width, channels), height and width each one of {sides} "
                "and at least one channel; resize the images, or let preprocess.fit_image do it"
            )
        for name, least in (("latent_size", 1), ("features", 1), ("extra_layers", 0), ("batch_norm_group", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name}={getattr(self, name)}: wanted at least {least}")
        if self.score_distance not in ("squared", "l1"):
            raise UserError(f"score_distance={self.score_distance!r}: wanted 'squared' or 'l1'")
        if self.compute_dtype not in ("float32", "bfloat16"):
            raise UserError(f"compute_dtype={self.compute_dtype!r}: wanted 'float32' or 'bfloat16'")
        if self.network not in ("original", "anomalib"):
            raise UserError(f"network={self.network!r}: wanted 'original' or 'anomalib'")
        if self.network == "anomalib" and (self.shape[0] != self.shape[1] or self.shape[0] < 32 or self.shape[2] != 3):
            raise UserError(
                f"shape {tuple(self.shape)} with the network of anomalib: wanted square, 32 or more, 3 channels; on "
                "others it gives several scores an image"
            )

    def _check_rows(self) -> None:
        if self.shape[-1] < 1 or (len(self.shape) == 2 and self.shape[0] < row_networks.LEAST_WINDOW):
            raise UserError(
                f"shape {tuple(self.shape)}: wanted (sensors,), or (rows, sensors) with at least "
                f"{row_networks.LEAST_WINDOW} rows in a window"
            )
        if self.contrast_weight or self.network != "original":
            raise UserError("loss.contrast (two views of an image) and network='anomalib' are for images, not for rows")

    @property
    def losses(self) -> tuple[str, ...]:
        return "adversarial", "contextual", "encoder", "generator", "discriminator"

    @property
    def generator(self) -> networks.Generator | row_networks.Generator:
        if len(self.shape) < 3:
            return row_networks.Generator(self.shape, self.latent_size, *self._sizes_and_types)
        made = networks.Generator(self.shape, self.latent_size, *self._sizes_and_types)
        return made.clone(anomalib=True) if self.network == "anomalib" else made

    @property
    def discriminator(self) -> networks.Discriminator | row_networks.Discriminator:
        if len(self.shape) < 3:
            return row_networks.Discriminator(*self._sizes_and_types)
        size = self.embedding_size if self.contrast_weight else 0
        return networks.Discriminator(*self._sizes_and_types).clone(embedding_size=size)

    @property
    def _sizes_and_types(self) -> tuple[Any, ...]:
        dtype = jnp.bfloat16 if self.compute_dtype == "bfloat16" else self.param_dtype
        replicas = networks.Replicas(self.axis_name, self.batch_norm_group) if self.axis_name else None
        return self.features, self.extra_layers, replicas, self.param_dtype, dtype

    @property
    def optimizer(self) -> optax.GradientTransformation:
        return optax.adam(self.learning_rate, self.beta1, self.beta2, self.epsilon)

    def init(self, key: Array) -> TrainState:
        """Weights as the paper draws them: kernels N(0, 0.02), batch-norm scales N(1, 0.02), biases 0."""
        params, batch_stats = {}, {}
        networks_of = {"generator": self.generator, "discriminator": self.discriminator}
        for (name, network), network_key in zip(networks_of.items(), jax.random.split(key), strict=True):
            params[name], batch_stats[name] = drawn(network_key, network, self.shape, self.param_dtype)
        return self.state(params, batch_stats)

    def state(self, params: dict[str, Any], batch_stats: dict[str, Any]) -> TrainState:
        """A state at step 0 with these weights and fresh optimisers."""
        opt_state: dict[str, Any] = {name: self.optimizer.init(p) for name, p in params.items()}
        if self.average:
            # A copy: a program that takes the state's memory over cannot do so twice.
            opt_state["average"] = jax.tree.map(jnp.array, params)
        return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, opt_state)

    def gradients(self, state: TrainState, x: Array) -> tuple[dict[str, Any], dict[str, Any], dict[str, Array]]:
        """Gradients of both networks at one and the same point, the moved running statistics, and the losses.

        The generator's loss does not reach the discriminator's weights nor the reverse (section 3.3).
        """
        self._check(x)
        if self.network != "original":
            raise UserError("network='anomalib' is there to score with its weights: train with 'original'")
        generator, discriminator = self.generator, self.discriminator
        params, stats = state.params, state.batch_stats

        def discriminate(d_params: Any, d_stats: Any, image: Array) -> tuple[tuple[Array, ...], Any]:
            variables = {"params": d_params, "batch_stats": d_stats}
            output, moved = discriminator.apply(variables, image, train=True, mutable=["batch_stats"])
            return output, moved["batch_stats"]

        # In training batch norm uses the batch alone, so the running statistics that go in change nothing that comes
        # out; and real and fake images are two batches, never pooled. XLA merges the passes that the two losses share.
        def generator_loss(g_params: Any) -> tuple[Array, Any]:
            variables = {"params": g_params, "batch_stats": stats["generator"]}
            (x_hat, z, z_hat), moved = generator.apply(variables, x, train=True, mutable=["batch_stats"])
            (real, *_), _ = discriminate(params["discriminator"], stats["discriminator"], x)
            (fake, *_), _ = discriminate(params["discriminator"], stats["discriminator"], x_hat)
            parts = {
                "adversarial": model_losses.l2(real, fake),
                "contextual": model_losses.l1(x, x_hat),
                "encoder": model_losses.l2(z, z_hat),
            }
            total = (
                self.adversarial_weight * parts["adversarial"]
                + self.contextual_weight * parts["contextual"]
                + self.encoder_weight * parts["encoder"]
            )
            return total, (parts | {"generator": total}, x_hat, moved["batch_stats"])

        def discriminator_loss(d_params: Any, x_hat: Array) -> tuple[Array, Any]:
            (_, real, *_), after_real = discriminate(d_params, stats["discriminator"], x)
            (_, fake, *_), after_fake = discriminate(d_params, after_real, x_hat)
            loss = 0.5 * (model_losses.real_or_fake(real, True) + model_losses.real_or_fake(fake, False))
            total = loss
            if self.contrast_weight:
                (*_, embedding), _ = discriminate(d_params, stats["discriminator"], self._views(x, state.step))
                one, other = jnp.split(embedding, 2)
                total += self.contrast_weight * model_losses.contrast(one, other, self.temperature, self.axis_name)
            return total, (loss, _moved_twice(stats["discriminator"], after_real, after_fake))

        (_, (metrics, x_hat, g_stats)), g_grads = jax.value_and_grad(generator_loss, has_aux=True)(params["generator"])
        (_, (d_loss, d_stats)), d_grads = jax.value_and_grad(discriminator_loss, has_aux=True)(
            params["discriminator"], lax.stop_gradient(x_hat)
        )
        grads = {"generator": g_grads, "discriminator": d_grads}
        metrics = metrics | {"discriminator": d_loss}
        if self.axis_name is not None:
            grads, metrics = lax.pmean((grads, metrics), self.axis_name)
        return grads, {"generator": g_stats, "discriminator": d_stats}, metrics

    def update(self, state: TrainState, x: Array, key: Array | None = None) -> tuple[TrainState, dict[str, Array]]:
        """One step of both networks on x [B, H, W, C] in [-1, 1].

        Returns the state after it and the losses before it, float scalars: `adversarial`, `contextual`, `encoder`,
        `generator` (their weighted sum), `discriminator`. `key` seeds the redrawing of a discriminator that has won;
        without one it follows from the step.
        """
        grads, batch_stats, metrics = self.gradients(state, x)
        params, opt_state = {}, {}
        for name, network_grads in grads.items():
            moves, opt_state[name] = self.optimizer.update(network_grads, state.opt_state[name], state.params[name])
            params[name] = optax.apply_updates(state.params[name], moves)
        if self.average:
            opt_state["average"] = averaged(self.average, state.step, state.opt_state["average"], params)
        if self.contrast_weight:
            # Differs from the paper: what the discriminator has learned of views is not thrown away.
            return TrainState(state.step + 1, params, batch_stats, opt_state), metrics
        if key is None:
            key = jax.random.fold_in(jax.random.key(0), state.step)
        params["discriminator"] = lax.cond(
            metrics["discriminator"] < _DISCRIMINATOR_HAS_WON,
            lambda p: redraw(key, p),
            lambda p: p,
            params["discriminator"],
        )
        return TrainState(state.step + 1, params, batch_stats, opt_state), metrics

    def variables(self, state: TrainState) -> dict[str, Any]:
        """What scoring needs, no copy: weights (averaged ones with `average`) and running statistics of the generator.

        With `contrast_weight` those of the discriminator as well, under `discriminator`.
        """
        params = state.opt_state["average"] if self.average else state.params
        own = {name: {"params": params[name], "batch_stats": state.batch_stats[name]} for name in params}
        return own["generator"] | ({"discriminator": own["discriminator"]} if self.contrast_weight else {})

    def recompute_batch_stats(self, variables: dict[str, Any], batches: Array) -> dict[str, Any]:
        """The variables with batch norm's statistics taken afresh: the mean of those of `batches` [n, B, H, W, C].

        Averaged weights have never run with the running statistics of the last ones. The embedding's are those of
        views, as in its training.
        """

        def fresh(network: Any, own: dict[str, Any], x: Array) -> Any:
            empty = jax.tree.map(jnp.zeros_like, own["batch_stats"])
            own = {"params": own["params"], "batch_stats": empty}
            _, moved = network.apply(own, x, train=True, mutable=["batch_stats"])
            return jax.tree.map(lambda leaf: leaf / (1 - networks.BatchNorm.momentum), moved["batch_stats"])

        def of(step: Array, x: Array) -> tuple[Any, Any]:
            stats = fresh(self.generator, variables, x)
            if not self.contrast_weight:
                return stats, {}
            return stats, fresh(self.discriminator, variables["discriminator"], self._views(x, step)[: len(x)])

        found = lax.map(lambda pair: of(*pair), (jnp.arange(len(batches)), batches))
        generator, discriminator = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), found)
        recomputed = variables | {"batch_stats": generator}
        if self.contrast_weight:
            recomputed["discriminator"] = variables["discriminator"] | {"batch_stats": discriminator}
        return recomputed

    def _views(self, x: Array, step: Array) -> Array:
        """Two views of each image, [2 B, H, W, C], drawn by the step and the place in the whole batch."""
        first = 0 if self.axis_name is None else lax.axis_index(self.axis_name) * len(x)
        keys = jax.random.split(jax.random.fold_in(jax.random.key(_VIEWS), step))
        return jnp.concatenate([contrastive_views.view(key, x, first) for key in keys])

    def score(self, variables: dict[str, Any], x: Array) -> Array:
        """A(x) [B] float: distance of z and z_hat, with running statistics, for x [B, H, W, C] in [-1, 1].

        Differs from the paper: `squared` (the default, as in the authors' code) is the mean over the latent of the
        squared difference; `l1` is the mean absolute difference, the paper's L1 norm (equation 5) over latent_size.
        """
        difference = self.outputs(variables, x)["difference"]
        distance = jnp.square(difference) if self.score_distance == "squared" else jnp.abs(difference)
        return jnp.mean(distance, axis=-1)

    def outputs(self, variables: dict[str, Any], x: Array) -> dict[str, Array]:
        """What one image is turned into, all that scores are made of (`scores.py`), with running statistics.

        `x_hat` [B, H, W, C], `z`, `z_hat` and `difference`, which is z - z_hat, [B, latent_size], and with
        `contrast_weight` `embedding` [B, embedding_size].
        """
        self._check(x)
        generator = {name: variables[name] for name in ("params", "batch_stats")}
        made: Any = self.generator.apply(generator, self._scaled(x), train=False)
        found = {"x_hat": self._pixels(made[0]), "z": made[1], "z_hat": made[2], "difference": made[1] - made[2]}
        if self.contrast_weight:
            judged: Any = self.discriminator.apply(variables["discriminator"], x, train=False)
            found["embedding"] = judged[2]
        return found

    def reconstruct(self, variables: dict[str, Any], x: Array) -> Array:
        """x_hat [B, H, W, C] in [-1, 1]."""
        return self.outputs(variables, x)["x_hat"]

    def examined(self, state: TrainState) -> Any:
        """The generator that scores, and the discriminator of the last step."""
        discriminator = {"params": state.params["discriminator"], "batch_stats": state.batch_stats["discriminator"]}
        return self.variables(state), discriminator

    def examine(self, examined: Any, x: Array) -> dict[str, Array]:
        """`x_hat` and `z` with running statistics, and the discriminator's logits `real` and `fake` [B].

        It sees real and reconstructed images as in training, each batch normalised by itself.
        """
        variables, discriminator = examined
        generated: Any = self.generator.apply(variables, x, train=False)
        x_hat, z = generated[:2]
        real, fake = (
            self.discriminator.apply(discriminator, images, train=True, mutable=["batch_stats"])[0][1]
            for images in (x, x_hat)
        )
        return {"x_hat": x_hat, "z": z, "real": real, "fake": fake}

    def _pixels(self, x_hat: Array) -> Array:
        """x_hat in [-1, 1], of what the network has given."""
        if self.network == "original":
            return x_hat
        mean, deviation = jnp.asarray(IMAGENET, x_hat.dtype)
        return jnp.clip(2 * (x_hat * deviation + mean) - 1, -1, 1)

    def _scaled(self, x: Array) -> Array:
        """x in [-1, 1] as the network was trained on it."""
        if self.network == "original":
            return x
        mean, deviation = jnp.asarray(IMAGENET, x.dtype)
        return ((x + 1) / 2 - mean) / deviation

    def _check(self, x: Array) -> None:
        if x.ndim != len(self.shape) + 1 or x.shape[1:] != tuple(self.shape):
            wanted = ", ".join(map(str, self.shape))
            raise UserError(f"input of shape {x.shape}: wanted [B, {wanted}], the shape this detector was made for")
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise UserError(f"images of type {x.dtype}: wanted floating point in [-1, 1]; see preprocess.to_unit")


def averaged(decay: float, step: Array, old: Any, new: Any) -> Any:
    """The moving average of weights after `step` steps and one more: what it was, `old`, and the weights now, `new`.

    It keeps at most (1 + step) / (10 + step) of what it was, so that what a short training began with is forgotten.
    """
    kept = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda a, b: (kept * a + (1 - kept) * b).astype(a.dtype), old, new)


def _moved_twice(before: Any, after_real: Any, after_fake: Any) -> Any:
    """Running statistics after x, x_hat, x, x_hat, from those before, after x and after x, x_hat.

    The original runs each discriminator pass twice a step (once for each loss), which moves them four times.
    """
    keep = networks.BatchNorm.momentum
    third = jax.tree.map(lambda s0, s1, s2: keep * s2 + (s1 - keep * s0), before, after_real, after_fake)
    return jax.tree.map(lambda s1, s2, s3: keep * s3 + (s2 - keep * s1), after_real, after_fake, third)


def drawn(key: Array, network: Any, shape: tuple[int, ...], dtype: Any) -> tuple[Any, Any]:
    """Weights, as `redraw` draws them, and running statistics of a network for inputs of `shape`."""
    x = jax.ShapeDtypeStruct((1, *shape), dtype)
    shapes = jax.eval_shape(functools.partial(network.init, train=False), key, x)
    batch_stats = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.full(leaf.shape, path[-1].key == "var", leaf.dtype), shapes["batch_stats"]
    )
    return redraw(key, shapes["params"]), batch_stats


def redraw(key: Array, params: Any) -> Any:
    """Weights of the same structure (arrays or shapes) drawn afresh: kernels N(0, 0.02), scales N(1, 0.02), zeros."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    # One draw for all: a generator for each weight costs ten times as long to compile.
    draws = 0.02 * jax.random.normal(key, (sum(leaf.size for _, leaf in leaves),), leaves[0][1].dtype)
    fresh, begin = [], 0
    for path, leaf in leaves:
        part = draws[begin : begin + leaf.size].reshape(leaf.shape)
        begin += leaf.size
        name = path[-1].key
        fresh.append(jnp.zeros_like(part) if name == "bias" else 1 + part if name == "scale" else part)
    return jax.tree_util.tree_unflatten(structure, fresh)


def from_config(config: Config, axis_name: str | None = None) -> Ganomaly:
    """The detector that a resolved configuration describes."""
    return Ganomaly(
        shape=input_shape(config.data),
        latent_size=config.model.latent_size,
        features=config.model.features,
        extra_layers=config.model.extra_layers,
        adversarial_weight=config.loss.adversarial,
        contextual_weight=config.loss.contextual,
        encoder_weight=config.loss.encoder,
        contrast_weight=config.loss.contrast,
        temperature=config.loss.temperature,
        embedding_size=config.model.embedding_size,
        learning_rate=config.optimizer.learning_rate,
        beta1=config.optimizer.beta1,
        beta2=config.optimizer.beta2,
        epsilon=config.optimizer.epsilon,
        average=config.optimizer.average,
        # Other scores are made of `outputs`, by scores.py.
        score_distance="l1" if config.evaluate.score == "l1" else Evaluate.score,
        axis_name=axis_name,
        batch_norm_group=config.mesh.batch_norm_group,
        compute_dtype=config.model.dtype,
        network=config.model.network,
    )
