"""The interface of detectors: pure functions of a state of arrays."""

from __future__ import annotations

from typing import Any, Protocol

import flax.struct
from jax import Array


@flax.struct.dataclass
class TrainState:
    """State of a training: arrays only, so that saving, sharding and donating it are `jax.tree.map`.

    Attributes:
      step: number of finished steps, int32 scalar.
      params: parameters by network (`generator`, `discriminator`; `autoencoder`).
      batch_stats: running statistics of batch norm by network.
      opt_state: optimizer states by network, and what else a detector carries along.
    """

    step: Array
    params: dict[str, Any]
    batch_stats: dict[str, Any]
    opt_state: dict[str, Any]


class Detector(Protocol):
    """Interface of a detector. Implementations are frozen dataclasses without a base class."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Returns the shape of one input: (H, W, C), (T, D) or (D,)."""

    @property
    def axis_name(self) -> str | None:
        """Returns the mapped axis that `update` averages over; None if it sees the global batch."""

    @property
    def losses(self) -> tuple[str, ...]:
        """Names of the scalar metrics of `update`, in the order in which they are shown."""

    def init(self, key: Array) -> TrainState:
        """Returns a state with fresh weights, drawn from a PRNG key."""

    def update(self, state: TrainState, x: Array, key: Array | None = None) -> tuple[TrainState, dict[str, Array]]:
        """Takes one training step. Pure.

        Args:
          state: the state before the step.
          x: batch [B, *shape] in [-1, 1].
          key: PRNG key of the step; None to derive it from the state.

        Returns:
          The state after the step and the scalar losses before it, by name.
        """

    def variables(self, state: TrainState) -> dict[str, Any]:
        """Returns the part of the state that scoring needs, without copying."""

    def score(self, variables: dict[str, Any], x: Array) -> Array:
        """Returns scores [B] float32; higher is more anomalous. Each depends on its own input only."""

    def outputs(self, variables: dict[str, Any], x: Array) -> dict[str, Array]:
        """Returns the results of one forward pass, from which every score is computed. Pure.

        Returns:
          `x_hat` [B, *shape], the latent `z` [B, N], `difference` [B, ...] whose size is `score`, further ones by
          detector, and `x` if the reconstruction is of a transformed x.
        """

    def reconstruct(self, variables: dict[str, Any], x: Array) -> Array:
        """Returns the reconstruction of x [B, *shape], in its range."""

    def recompute_batch_stats(self, variables: dict[str, Any], batches: Array) -> dict[str, Any]:
        """Returns the variables with batch-norm statistics computed afresh on `batches` [n, B, *shape] in [-1, 1]."""

    def diagnostic_variables(self, state: TrainState) -> Any:
        """Returns the part of the state that `diagnostics` needs, without copying."""

    def diagnostics(self, variables: Any, x: Array) -> dict[str, Array]:
        """Returns what shows how a training fares on normal inputs x [B, *shape] in [-1, 1]. Pure.

        Args:
          variables: those of `diagnostic_variables`.
          x: normal inputs.

        Returns:
          `x_hat` and `z` as in scoring; with a discriminator its logits `real` and `fake` [B] of x and x_hat, as in
          training.
        """
