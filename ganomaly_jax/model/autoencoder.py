"""A denoising autoencoder, the plain baseline beside GANomaly.

It is trained on normal data to reconstruct clean inputs from corrupted ones; what it cannot reconstruct is anomalous.
Encoder and decoder are those of GANomaly's generator.

References:
  Vincent, Larochelle, Bengio and Manzagol, Extracting and composing robust features with denoising autoencoders,
  ICML 2008.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from ganomaly_jax.core.config import Config, Evaluate, Mesh, Model, Optimizer
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.model import corruption, ganomaly, layers, networks, weights
from ganomaly_jax.model import losses as model_losses
from ganomaly_jax.model.protocol import TrainState


@dataclasses.dataclass(frozen=True)
class DenoisingAutoencoder:
    """Denoising autoencoder for the same inputs as `Ganomaly`.

    Attributes:
      noise: standard deviation of the Gaussian noise on the training inputs, in units of their range.
      mask: share of the training inputs that is hidden in patches, see `corruption.corrupt`. Scoring corrupts nothing.
      score_distance: `squared` for the mean squared error of the reconstruction, `l1` for the mean absolute error.

    The other attributes are those of `Ganomaly`.

    Raises:
      UserError: a shape, size, score, dtype or share is invalid.
    """

    shape: tuple[int, ...]
    latent_size: int = Model.latent_size
    features: int = Model.features
    extra_layers: int = Model.extra_layers
    noise: float = Model.noise
    mask: float = Model.mask
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

    def __post_init__(self) -> None:
        _ = self._ganomaly
        if not 0 <= self.noise < float("inf"):
            raise UserError(f"noise={self.noise}: expected a finite number of at least 0")
        if not 0 <= self.mask < 1:
            raise UserError(f"mask={self.mask}: expected a share from 0 to below 1")

    @property
    def _ganomaly(self) -> ganomaly.Ganomaly:
        """Returns a GANomaly of the same sizes, which checks sizes and inputs for both."""
        return ganomaly.Ganomaly(
            self.shape,
            self.latent_size,
            self.features,
            self.extra_layers,
            score_distance=self.score_distance,
            batch_norm_group=self.batch_norm_group,
            compute_dtype=self.compute_dtype,
        )

    @property
    def losses(self) -> tuple[str, ...]:
        """Returns the name of the loss of `update`."""
        return ("reconstruction",)

    @property
    def network(self) -> networks.Autoencoder:
        """Returns the autoencoder as a Linen module."""
        dtype = jnp.bfloat16 if self.compute_dtype == "bfloat16" else self.param_dtype
        replicas = layers.Replicas(self.axis_name, self.batch_norm_group) if self.axis_name else None
        sizes = (self.features, self.extra_layers, replicas, self.param_dtype, dtype)
        return networks.Autoencoder(self.shape, self.latent_size, *sizes)

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """Returns the optimizer, Adam."""
        return optax.adam(self.learning_rate, self.beta1, self.beta2, self.epsilon)

    def init(self, key: Array) -> TrainState:
        """Draws the weights as in GANomaly; `opt_state` also holds the seed of the corruption, a uint32."""
        params, batch_stats = weights.init_network(key, self.network, self.shape, self.param_dtype)
        opt_state: dict[str, Any] = {
            "autoencoder": self.optimizer.init(params),
            # In the state rather than the detector, which members of a sweep share.
            "corruption": jax.random.bits(jax.random.fold_in(key, 1), (), jnp.uint32),
        }
        if self.average:
            # A copy, since a buffer cannot be donated twice.
            opt_state["average"] = jax.tree.map(jnp.array, params)
        return TrainState(jnp.zeros((), jnp.int32), {"autoencoder": params}, {"autoencoder": batch_stats}, opt_state)

    def gradients(self, state: TrainState, x: Array, key: Array | None = None) -> tuple[Any, Any, dict[str, Array]]:
        """Computes gradients, updated running statistics and the loss; arguments as in `update`."""
        self._ganomaly.check_input(x)
        if key is None:
            key = jax.random.fold_in(jax.random.key(state.opt_state["corruption"]), state.step)
        first = 0 if self.axis_name is None else lax.axis_index(self.axis_name) * len(x)
        corrupted = corruption.corrupt(key, x, self.noise, self.mask, first)

        def loss(params: Any) -> tuple[Array, Any]:
            variables = {"params": params, "batch_stats": state.batch_stats["autoencoder"]}
            (x_hat, _), moved = self.network.apply(variables, corrupted, train=True, mutable=["batch_stats"])
            return model_losses.l2(x, x_hat), moved["batch_stats"]

        (value, batch_stats), grads = jax.value_and_grad(loss, has_aux=True)(state.params["autoencoder"])
        metrics = {"reconstruction": value}
        if self.axis_name is not None:
            grads, metrics = lax.pmean((grads, metrics), self.axis_name)
        return grads, batch_stats, metrics

    def update(self, state: TrainState, x: Array, key: Array | None = None) -> tuple[TrainState, dict[str, Array]]:
        """Takes one step on clean inputs, which are corrupted here.

        Args:
          state: the state before the step.
          x: clean batch [B, *shape].
          key: PRNG key of the corruption; None to derive it from the seed in the state, the step and the position in
            the global batch.

        Returns:
          The state after the step, and the loss before it: `reconstruction`, the mean squared difference of the clean x
          and the reconstruction of the corrupted x.
        """
        grads, batch_stats, metrics = self.gradients(state, x, key)
        updates, optimizer_state = self.optimizer.update(
            grads, state.opt_state["autoencoder"], state.params["autoencoder"]
        )
        params: Any = optax.apply_updates(state.params["autoencoder"], updates)
        opt_state = state.opt_state | {"autoencoder": optimizer_state}
        if self.average:
            opt_state["average"] = weights.moving_average(self.average, state.step, opt_state["average"], params)
        after = TrainState(state.step + 1, {"autoencoder": params}, {"autoencoder": batch_stats}, opt_state)
        return after, metrics

    def variables(self, state: TrainState) -> dict[str, Any]:
        """Returns what scoring needs, without copying: (averaged) weights and running statistics."""
        params = state.opt_state["average"] if self.average else state.params["autoencoder"]
        return {"params": params, "batch_stats": state.batch_stats["autoencoder"]}

    def recompute_batch_stats(self, variables: dict[str, Any], batches: Array) -> dict[str, Any]:
        """Returns the variables with batch-norm statistics computed afresh on clean `batches` [n, B, *shape]."""

        def batch_stats(x: Array) -> Any:
            zeros = jax.tree.map(jnp.zeros_like, variables["batch_stats"])
            from_zero = {"params": variables["params"], "batch_stats": zeros}
            _, moved = self.network.apply(from_zero, x, train=True, mutable=["batch_stats"])
            return jax.tree.map(lambda leaf: leaf / (1 - layers.BatchNorm.momentum), moved["batch_stats"])

        stats = lax.map(batch_stats, batches)
        return variables | {"batch_stats": jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), stats)}

    def score(self, variables: dict[str, Any], x: Array) -> Array:
        """Computes scores [B]: the mean squared (or absolute) error of the reconstruction of each x [B, *shape]."""
        return model_losses.DISTANCES[self.score_distance](self.outputs(variables, x)["difference"])

    def outputs(self, variables: dict[str, Any], x: Array) -> dict[str, Array]:
        """Returns `x_hat`, `difference` = x - x_hat [B, *shape] and `z` [B, latent_size]; nothing is corrupted."""
        self._ganomaly.check_input(x)
        results: Any = self.network.apply(variables, x, train=False)
        x_hat, z = results
        chex.assert_equal_shape([x_hat, x])
        return {"x_hat": x_hat, "z": z, "difference": x - x_hat}

    def reconstruct(self, variables: dict[str, Any], x: Array) -> Array:
        """Returns x_hat [B, *shape]; for images in [-1, 1]."""
        return self.outputs(variables, x)["x_hat"]

    def diagnostic_variables(self, state: TrainState) -> Any:
        """Returns the variables of scoring."""
        return self.variables(state)

    def diagnostics(self, variables: Any, x: Array) -> dict[str, Array]:
        """Returns `outputs`; there is no discriminator."""
        return self.outputs(variables, x)


def from_config(config: Config) -> DenoisingAutoencoder:
    """Creates the detector that a resolved configuration describes."""
    return DenoisingAutoencoder(
        shape=ganomaly.from_config(config).shape,
        latent_size=config.model.latent_size,
        features=config.model.features,
        extra_layers=config.model.extra_layers,
        noise=config.model.noise,
        mask=config.model.mask,
        learning_rate=config.optimizer.learning_rate,
        beta1=config.optimizer.beta1,
        beta2=config.optimizer.beta2,
        epsilon=config.optimizer.epsilon,
        average=config.optimizer.average,
        # All other scores are computed from `outputs` (scoring/scores.py).
        score_distance="l1" if config.evaluate.score == "l1" else Evaluate.score,
        batch_norm_group=config.mesh.batch_norm_group,
        compute_dtype=config.model.dtype,
    )
