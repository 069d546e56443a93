"""A denoising autoencoder (Vincent, Larochelle, Bengio and Manzagol, ICML 2008): the plain rival of GANomaly.

It is given corrupted inputs and taught to give back the clean ones. Of normal data alone it learns what those look
like, and what it cannot give back is anomalous. Encoder and decoder are those of GANomaly's generator.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from ganomaly_jax.core.config import Config, Evaluate, Mesh, Model, Optimizer
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.model import corruption, ganomaly, networks, row_networks
from ganomaly_jax.model import losses as model_losses
from ganomaly_jax.model.protocol import TrainState


@dataclasses.dataclass(frozen=True)
class DenoisingAutoencoder:
    """Detector for inputs of `shape`, those of `Ganomaly`, [B, *shape] floating point in [-1, 1] or, of rows, scaled.

    `noise` is the standard deviation of the Gaussian noise on what goes in, in units of that range, and `mask` the
    share of it that is hidden (`corruption.corrupt`); scoring corrupts nothing. `score_distance` is `squared` (mean
    squared error of the reconstruction) or `l1` (mean absolute error). `average`, `axis_name`, `batch_norm_group`,
    `param_dtype` and `compute_dtype` are as in `Ganomaly`.

    Raises:
      UserError: a shape, size, score, type or share that cannot work.
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
        _ = self._alike
        if not 0 <= self.noise < float("inf"):
            raise UserError(f"noise={self.noise}: wanted 0 or more, finite")
        if not 0 <= self.mask < 1:
            raise UserError(f"mask={self.mask}: wanted a share from 0 to below 1")

    @property
    def _alike(self) -> ganomaly.Ganomaly:
        """A GANomaly of the same sizes: what can work, and what inputs are taken, is one question for both."""
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
        return ("reconstruction",)

    @property
    def network(self) -> networks.Autoencoder | row_networks.Autoencoder:
        dtype = jnp.bfloat16 if self.compute_dtype == "bfloat16" else self.param_dtype
        replicas = networks.Replicas(self.axis_name, self.batch_norm_group) if self.axis_name else None
        sizes = (self.features, self.extra_layers, replicas, self.param_dtype, dtype)
        made: Any = networks.Autoencoder if len(self.shape) == 3 else row_networks.Autoencoder
        return made(self.shape, self.latent_size, *sizes)

    @property
    def optimizer(self) -> optax.GradientTransformation:
        return optax.adam(self.learning_rate, self.beta1, self.beta2, self.epsilon)

    def init(self, key: Array) -> TrainState:
        """Weights drawn as GANomaly's; `opt_state` also holds the seed of the corruption, a uint32."""
        params, batch_stats = ganomaly.drawn(key, self.network, self.shape, self.param_dtype)
        opt_state: dict[str, Any] = {
            "autoencoder": self.optimizer.init(params),
            # In the state, not in the detector: members share that, and each draws its own.
            "corruption": jax.random.bits(jax.random.fold_in(key, 1), (), jnp.uint32),
        }
        if self.average:
            # A copy: a program that takes the state's memory over cannot do so twice.
            opt_state["average"] = jax.tree.map(jnp.array, params)
        return TrainState(jnp.zeros((), jnp.int32), {"autoencoder": params}, {"autoencoder": batch_stats}, opt_state)

    def gradients(self, state: TrainState, x: Array, key: Array | None = None) -> tuple[Any, Any, dict[str, Array]]:
        """Gradients of the weights, the moved running statistics, and the loss; arguments as in `update`."""
        self._alike._check(x)
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
        """One step on clean x [B, *shape] in [-1, 1], which is corrupted here.

        Returns the state after it and the loss before it, `reconstruction`: the mean squared difference of the clean x
        and what comes out for the corrupted one. `key` seeds the corruption; without one it follows from the seed in
        the state, the step and the place in the whole batch.
        """
        grads, batch_stats, metrics = self.gradients(state, x, key)
        moves, moved = self.optimizer.update(grads, state.opt_state["autoencoder"], state.params["autoencoder"])
        params: Any = optax.apply_updates(state.params["autoencoder"], moves)
        opt_state = state.opt_state | {"autoencoder": moved}
        if self.average:
            opt_state["average"] = ganomaly.averaged(self.average, state.step, opt_state["average"], params)
        after = TrainState(state.step + 1, {"autoencoder": params}, {"autoencoder": batch_stats}, opt_state)
        return after, metrics

    def variables(self, state: TrainState) -> dict[str, Any]:
        """What scoring needs, no copy: weights (averaged ones with `average`) and running statistics."""
        params = state.opt_state["average"] if self.average else state.params["autoencoder"]
        return {"params": params, "batch_stats": state.batch_stats["autoencoder"]}

    def recompute_batch_stats(self, variables: dict[str, Any], batches: Array) -> dict[str, Any]:
        """The variables with batch norm's statistics taken afresh: the mean of those of clean `batches` [n, B, ...]."""

        def fresh(x: Array) -> Any:
            empty = jax.tree.map(jnp.zeros_like, variables["batch_stats"])
            own = {"params": variables["params"], "batch_stats": empty}
            _, moved = self.network.apply(own, x, train=True, mutable=["batch_stats"])
            return jax.tree.map(lambda leaf: leaf / (1 - networks.BatchNorm.momentum), moved["batch_stats"])

        return variables | {"batch_stats": jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), lax.map(fresh, batches))}

    def score(self, variables: dict[str, Any], x: Array) -> Array:
        """[B] float: the mean squared (or absolute) error of the reconstruction of each x [B, *shape] in [-1, 1]."""
        difference = self.outputs(variables, x)["difference"]
        distance = jnp.square(difference) if self.score_distance == "squared" else jnp.abs(difference)
        return jnp.mean(distance, axis=tuple(range(1, x.ndim)))

    def outputs(self, variables: dict[str, Any], x: Array) -> dict[str, Array]:
        """`x_hat` and `difference`, which is x - x_hat, [B, *shape], and `z` [B, latent_size]; nothing is corrupted."""
        self._alike._check(x)
        made: Any = self.network.apply(variables, x, train=False)
        return {"x_hat": made[0], "z": made[1], "difference": x - made[0]}

    def reconstruct(self, variables: dict[str, Any], x: Array) -> Array:
        """x_hat [B, *shape] in [-1, 1]."""
        return self.outputs(variables, x)["x_hat"]

    def examined(self, state: TrainState) -> Any:
        """That of scoring."""
        return self.variables(state)

    def examine(self, examined: Any, x: Array) -> dict[str, Array]:
        """`outputs`: there is no discriminator to look at."""
        return self.outputs(examined, x)


def from_config(config: Config, axis_name: str | None = None) -> DenoisingAutoencoder:
    """The detector that a resolved configuration describes."""
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
        # Other scores are made of `outputs`, by scores.py.
        score_distance="l1" if config.evaluate.score == "l1" else Evaluate.score,
        axis_name=axis_name,
        batch_norm_group=config.mesh.batch_norm_group,
        compute_dtype=config.model.dtype,
    )
