"""GANomaly, the detector of Akcay, Atapour-Abarghouei and Breckon (ACCV 2018, arXiv 1805.06725)."""

from __future__ import annotations

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from ganomaly_jax.core import calls
from ganomaly_jax.core.config import Config, Evaluate, Loss, Mesh, Model, Optimizer, input_shape
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.model import contrastive_views, layers, networks, weights
from ganomaly_jax.model import losses as model_losses
from ganomaly_jax.model.protocol import TrainState

# Below this loss the discriminator has won and is reinitialised, as in the authors' code (`reinit_d`).
_DISCRIMINATOR_HAS_WON = 1e-5
# Differs from the seed of the keys that draw weights, which are derived from the step as well.
_VIEWS_SEED = 0x51E
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation per colour of pixels in [0, 1], by which anomalib scales its inputs."""


@dataclasses.dataclass(frozen=True)
class Ganomaly:
    """GANomaly for images, single rows and windows of rows.

    Attributes:
      shape: (H, W, C) of an image with H and W powers of two from 16 to 256; (D,) for rows of D sensors; (T, D) for
        windows of T >= 4 rows. Inputs are floating point; images in [-1, 1], the range of the decoder's tanh, rows and
        windows as scaled by `preprocess.to_unit`.
      latent_size: dimensions of z.
      features: channels of the first layer.
      extra_layers: additional 3x3 layers per network.
      adversarial_weight, contextual_weight, encoder_weight: weights of the generator's losses (equation 4).
      contrast_weight: weight of the contrastive loss of the discriminator, which then has a second head and learns to
        recognise two views of an image. Differs from the paper: it has no such loss, the default 0.
      temperature: temperature of the contrastive loss.
      embedding_size: outputs of the second head.
      learning_rate, beta1, beta2, epsilon: parameters of Adam.
      average: decay of a moving average of the weights, by which is scored; 0 for none, as in the paper.
      score_distance: `squared` or `l1`, see `score`.
      axis_name: mapped axis when `update` runs once per device under `shard_map` or `pmap`; gradients and metrics are
        averaged over it, and batch norm pools the batches of all devices.
      batch_norm_group: number of neighbouring devices that share batch statistics; 0 for all, 1 for none.
      param_dtype: dtype of parameters, statistics, losses, scores and x_hat.
      compute_dtype: `float32` (which stands for `param_dtype`) or `bfloat16`, the dtype of the convolutions.
      network: `original`, or `anomalib` for scoring with the weights of anomalib's Ganomaly, with its scaling of the
        input: square colour images of at least 32 pixels.

    Raises:
      UserError: a shape, size, score or dtype is invalid.
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
        calls.expect((tuple, list), "a shape, as in gj.Ganomaly(shape=(32, 32, 3))", shape=self.shape)
        if len(self.shape) in (1, 2):
            self._check_rows()
        elif len(self.shape) != 3 or any(side not in networks.SIDES for side in self.shape[:2]) or self.shape[2] < 1:
            raise UserError(
                f"shape {tuple(self.shape)}: expected (height, width, channels) with height and width in "
                f"{', '.join(map(str, networks.SIDES))} and at least one channel; resize the images"
            )
        for name, least in (("latent_size", 1), ("features", 1), ("extra_layers", 0), ("batch_norm_group", 0)):
            calls.expect(int, f"a whole number of at least {least}", **{name: getattr(self, name)})
            if getattr(self, name) < least:
                raise UserError(f"{name}={getattr(self, name)}: expected at least {least}")
        choices = {"score_distance": ("squared", "l1"), "compute_dtype": ("float32", "bfloat16")}
        for name, words in (choices | {"network": ("original", "anomalib")}).items():
            if getattr(self, name) not in words:
                raise UserError(f"{name}={getattr(self, name)!r}: expected {' or '.join(map(repr, words))}")
        if self.network == "anomalib" and (self.shape[0] != self.shape[1] or self.shape[0] < 32 or self.shape[2] != 3):
            raise UserError(
                f"shape {tuple(self.shape)} with network='anomalib': expected a square of at least 32 pixels with 3 "
                "channels; on other shapes this network gives several scores per image"
            )

    def _check_rows(self) -> None:
        """Raises a UserError if rows or windows of this shape, or options for images, cannot be used."""
        if self.shape[-1] < 1 or (len(self.shape) == 2 and self.shape[0] < networks.MIN_WINDOW):
            raise UserError(
                f"shape {tuple(self.shape)}: expected (sensors,), or (rows, sensors) with at least "
                f"{networks.MIN_WINDOW} rows in a window"
            )
        if self.contrast_weight or self.network != "original":
            raise UserError("loss.contrast and network='anomalib' are for images, not for rows")

    @property
    def losses(self) -> tuple[str, ...]:
        """Returns the names of the losses of `update`."""
        return "adversarial", "contextual", "encoder", "generator", "discriminator"

    @property
    def generator(self) -> networks.Generator:
        """Returns the generator as a Linen module."""
        anomalib = self.network == "anomalib"
        return networks.Generator(self.shape, self.latent_size, **self._network_options, anomalib=anomalib)

    @property
    def discriminator(self) -> networks.Discriminator:
        """Returns the discriminator as a Linen module."""
        embedding_size = self.embedding_size if self.contrast_weight else 0
        return networks.Discriminator(**self._network_options, embedding_size=embedding_size)

    @property
    def _network_options(self) -> dict[str, Any]:
        """Returns the fields that both networks share."""
        return {
            "features": self.features,
            "extra_layers": self.extra_layers,
            "replicas": layers.Replicas(self.axis_name, self.batch_norm_group) if self.axis_name else None,
            "param_dtype": self.param_dtype,
            "dtype": jnp.bfloat16 if self.compute_dtype == "bfloat16" else self.param_dtype,
        }

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """Returns the optimizer, Adam, which each network has of its own."""
        return optax.adam(self.learning_rate, self.beta1, self.beta2, self.epsilon)

    def init(self, key: Array) -> TrainState:
        """Draws the weights: kernels N(0, 0.02), batch-norm scales N(1, 0.02), biases 0, as in the authors' code."""
        params, batch_stats = {}, {}
        modules = {"generator": self.generator, "discriminator": self.discriminator}
        for (name, network), network_key in zip(modules.items(), jax.random.split(key), strict=True):
            params[name], batch_stats[name] = weights.init_network(network_key, network, self.shape, self.param_dtype)
        return self.state(params, batch_stats)

    def state(self, params: dict[str, Any], batch_stats: dict[str, Any]) -> TrainState:
        """Returns a state at step 0 with the given weights and fresh optimizers."""
        opt_state: dict[str, Any] = {name: self.optimizer.init(p) for name, p in params.items()}
        if self.average:
            # A copy, since a buffer cannot be donated twice.
            opt_state["average"] = jax.tree.map(jnp.array, params)
        return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, opt_state)

    def gradients(self, state: TrainState, x: Array) -> tuple[dict[str, Any], dict[str, Any], dict[str, Array]]:
        """Computes the gradients of both networks at the same point, before either is updated.

        The generator's loss does not reach the discriminator's weights, nor the reverse (section 3.3).

        Args:
          state: the state before the step.
          x: batch [B, *shape].

        Returns:
          Gradients and updated running statistics by network, and the losses as in `update`.
        """
        self.check_input(x)
        if self.network != "original":
            raise UserError("network='anomalib' can only score with imported weights; train with network='original'")
        generator, discriminator = self.generator, self.discriminator
        params, stats = state.params, state.batch_stats

        def discriminate(d_params: Any, d_stats: Any, image: Array) -> tuple[tuple[Array, ...], Any]:
            variables = {"params": d_params, "batch_stats": d_stats}
            output, moved = discriminator.apply(variables, image, train=True, mutable=["batch_stats"])
            return output, moved["batch_stats"]

        # In training, batch norm ignores the running statistics, and real and fake images are two batches that are
        # never pooled. XLA merges the passes that the two losses share.
        def generator_loss(g_params: Any) -> tuple[Array, Any]:
            variables = {"params": g_params, "batch_stats": stats["generator"]}
            (x_hat, z, z_hat), moved = generator.apply(variables, x, train=True, mutable=["batch_stats"])
            (real, *_), _ = discriminate(params["discriminator"], stats["discriminator"], x)
            (fake, *_), _ = discriminate(params["discriminator"], stats["discriminator"], x_hat)
            terms = {
                "adversarial": model_losses.l2(real, fake),
                "contextual": model_losses.l1(x, x_hat),
                "encoder": model_losses.l2(z, z_hat),
            }
            total = (
                self.adversarial_weight * terms["adversarial"]
                + self.contextual_weight * terms["contextual"]
                + self.encoder_weight * terms["encoder"]
            )
            return total, (terms | {"generator": total}, x_hat, moved["batch_stats"])

        def discriminator_loss(d_params: Any, x_hat: Array) -> tuple[Array, Any]:
            (_, real, *_), after_real = discriminate(d_params, stats["discriminator"], x)
            (_, fake, *_), after_fake = discriminate(d_params, after_real, x_hat)
            loss = 0.5 * (
                model_losses.binary_cross_entropy(real, True) + model_losses.binary_cross_entropy(fake, False)
            )
            total = loss
            if self.contrast_weight:
                (*_, embedding), _ = discriminate(d_params, stats["discriminator"], self._views(x, state.step))
                first, second = jnp.split(embedding, 2)
                total += self.contrast_weight * model_losses.info_nce(first, second, self.temperature, self.axis_name)
            return total, (loss, layers.stats_after_two_passes(stats["discriminator"], after_real, after_fake))

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
        """Takes one step of both networks.

        Args:
          state: the state before the step.
          x: batch [B, *shape].
          key: PRNG key for reinitialising a discriminator that has won; None to derive it from the step.

        Returns:
          The state after the step, and the losses before it as scalars: `adversarial`, `contextual`, `encoder`,
          `generator` (their weighted sum) and `discriminator`.
        """
        grads, batch_stats, metrics = self.gradients(state, x)
        params, opt_state = {}, {}
        for name, network_grads in grads.items():
            moves, opt_state[name] = self.optimizer.update(network_grads, state.opt_state[name], state.params[name])
            params[name] = optax.apply_updates(state.params[name], moves)
        if self.average:
            opt_state["average"] = weights.moving_average(self.average, state.step, state.opt_state["average"], params)
        if self.contrast_weight:
            # Differs from the paper: a discriminator with a contrastive loss is not reinitialised.
            return TrainState(state.step + 1, params, batch_stats, opt_state), metrics
        if key is None:
            key = jax.random.fold_in(jax.random.key(0), state.step)
        params["discriminator"] = lax.cond(
            metrics["discriminator"] < _DISCRIMINATOR_HAS_WON,
            lambda p: weights.reinitialize(key, p),
            lambda p: p,
            params["discriminator"],
        )
        return TrainState(state.step + 1, params, batch_stats, opt_state), metrics

    def variables(self, state: TrainState) -> dict[str, Any]:
        """Returns what scoring needs, without copying: (averaged) weights and running statistics of the generator.

        With `contrast_weight` those of the discriminator as well, under `discriminator`.
        """
        params = state.opt_state["average"] if self.average else state.params
        by_network = {name: {"params": params[name], "batch_stats": state.batch_stats[name]} for name in params}
        return by_network["generator"] | (
            {"discriminator": by_network["discriminator"]} if self.contrast_weight else {}
        )

    def recompute_batch_stats(self, variables: dict[str, Any], batches: Array) -> dict[str, Any]:
        """Returns the variables with batch-norm statistics computed afresh, as the mean over `batches` [n, B, *shape].

        Averaged weights need it: they were never run with the running statistics, which belong to the last weights.
        Those of the embedding are computed on views, as in training.
        """

        def batch_stats(network: Any, variables: dict[str, Any], x: Array) -> Any:
            zeros = jax.tree.map(jnp.zeros_like, variables["batch_stats"])
            from_zero = {"params": variables["params"], "batch_stats": zeros}
            _, moved = network.apply(from_zero, x, train=True, mutable=["batch_stats"])
            return jax.tree.map(lambda leaf: leaf / (1 - layers.BatchNorm.momentum), moved["batch_stats"])

        def of_batch(step: Array, x: Array) -> tuple[Any, Any]:
            stats = batch_stats(self.generator, variables, x)
            if not self.contrast_weight:
                return stats, {}
            return stats, batch_stats(self.discriminator, variables["discriminator"], self._views(x, step)[: len(x)])

        stats = lax.map(lambda pair: of_batch(*pair), (jnp.arange(len(batches)), batches))
        generator, discriminator = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), stats)
        recomputed = variables | {"batch_stats": generator}
        if self.contrast_weight:
            recomputed["discriminator"] = variables["discriminator"] | {"batch_stats": discriminator}
        return recomputed

    def _views(self, x: Array, step: Array) -> Array:
        """Returns two random views of each image, [2 B, H, W, C], by step and position in the global batch."""
        first = 0 if self.axis_name is None else lax.axis_index(self.axis_name) * len(x)
        keys = jax.random.split(jax.random.fold_in(jax.random.key(_VIEWS_SEED), step))
        return jnp.concatenate([contrastive_views.random_view(key, x, first) for key in keys])

    def score(self, variables: dict[str, Any], x: Array) -> Array:
        """Computes the anomaly score A(x) [B], the distance of z and z_hat, with running statistics (equation 5).

        Differs from the paper: `squared`, the default as in the authors' code, is the mean squared difference over the
        latent; `l1` is the mean absolute difference, which is the paper's L1 norm divided by latent_size.
        """
        return model_losses.DISTANCES[self.score_distance](self.outputs(variables, x)["difference"])

    def outputs(self, variables: dict[str, Any], x: Array) -> dict[str, Array]:
        """Returns the results of one forward pass with running statistics.

        Returns:
          `x_hat` [B, *shape], `z`, `z_hat` and `difference` = z - z_hat, [B, latent_size], and with `contrast_weight`
          `embedding` [B, embedding_size].
        """
        self.check_input(x)
        generator = {name: variables[name] for name in ("params", "batch_stats")}
        results: Any = self.generator.apply(generator, self._to_network_range(x), train=False)
        x_hat, z, z_hat = results
        chex.assert_equal_shape([x_hat, x])
        chex.assert_equal_shape([z, z_hat])
        outputs = {"x_hat": self._from_network_range(x_hat), "z": z, "z_hat": z_hat, "difference": z - z_hat}
        if self.contrast_weight:
            discriminated: Any = self.discriminator.apply(variables["discriminator"], x, train=False)
            outputs["embedding"] = discriminated[2]
        return outputs

    def reconstruct(self, variables: dict[str, Any], x: Array) -> Array:
        """Returns x_hat [B, *shape]; for images in [-1, 1]."""
        return self.outputs(variables, x)["x_hat"]

    def diagnostic_variables(self, state: TrainState) -> Any:
        """Returns the variables of scoring, and the discriminator of the last step."""
        discriminator = {"params": state.params["discriminator"], "batch_stats": state.batch_stats["discriminator"]}
        return self.variables(state), discriminator

    def diagnostics(self, variables: Any, x: Array) -> dict[str, Array]:
        """Returns `x_hat` and `z` with running statistics, and the discriminator's logits `real` and `fake` [B].

        As in training, real and reconstructed images are two batches, each normalised by its own statistics.
        """
        variables, discriminator = variables
        generated: Any = self.generator.apply(variables, x, train=False)
        x_hat, z = generated[:2]
        real, fake = (
            self.discriminator.apply(discriminator, images, train=True, mutable=["batch_stats"])[0][1]
            for images in (x, x_hat)
        )
        return {"x_hat": x_hat, "z": z, "real": real, "fake": fake}

    def _from_network_range(self, x_hat: Array) -> Array:
        """Converts the network's output to x_hat in [-1, 1]."""
        if self.network == "original":
            return x_hat
        mean, deviation = jnp.asarray(IMAGENET, x_hat.dtype)
        return jnp.clip(2 * (x_hat * deviation + mean) - 1, -1, 1)

    def _to_network_range(self, x: Array) -> Array:
        """Converts x in [-1, 1] to the range on which the network was trained."""
        if self.network == "original":
            return x
        mean, deviation = jnp.asarray(IMAGENET, x.dtype)
        return ((x + 1) / 2 - mean) / deviation

    def check_input(self, x: Array) -> None:
        """Raises a UserError if x is not floating point [B, *shape]."""
        if x.ndim != len(self.shape) + 1 or x.shape[1:] != tuple(self.shape):
            expected = ", ".join(map(str, self.shape))
            raise UserError(f"input of shape {x.shape}: expected [B, {expected}], the shape of this detector")
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise UserError(f"input of dtype {x.dtype}: expected floating point in [-1, 1]; see preprocess.to_unit")


def from_config(config: Config) -> Ganomaly:
    """Creates the detector that a resolved configuration describes."""
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
        # All other scores are computed from `outputs` (scoring/scores.py).
        score_distance="l1" if config.evaluate.score == "l1" else Evaluate.score,
        batch_norm_group=config.mesh.batch_norm_group,
        compute_dtype=config.model.dtype,
        network=config.model.network,
    )
