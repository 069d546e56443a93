"""What every detector is: four pure functions over a state of arrays."""

from __future__ import annotations

from typing import Any, Protocol

import flax.struct
from jax import Array


@flax.struct.dataclass
class TrainState:
    """Arrays only, so that saving, sharding, donating and counting are `jax.tree.map`.

    `params`, `batch_stats` and `opt_state` are dicts keyed by network (`generator`, `discriminator`; `autoencoder`).
    """

    step: Array
    params: dict[str, Any]
    batch_stats: dict[str, Any]
    opt_state: dict[str, Any]


class Detector(Protocol):
    """The interface of design; implementations are final frozen dataclasses, no base class."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(H, W, C) of one input."""

    @property
    def axis_name(self) -> str | None:
        """The mapped axis that `update` averages over; None where it sees the whole batch."""

    @property
    def losses(self) -> tuple[str, ...]:
        """Names of the scalar metrics of `update`, in the order in which they are told."""

    def init(self, key: Array) -> TrainState:
        """Fresh weights from a PRNG key."""

    def update(self, state: TrainState, x: Array, key: Array | None = None) -> tuple[TrainState, dict[str, Array]]:
        """One training step on a batch x [B, ...] in [-1, 1]; the state after it and scalar metrics. Pure."""

    def variables(self, state: TrainState) -> dict[str, Any]:
        """The part of the state that scoring needs, no copy."""

    def score(self, variables: dict[str, Any], x: Array) -> Array:
        """Scores [B] float32, higher is more anomalous; each depends on its own image alone."""

    def outputs(self, variables: dict[str, Any], x: Array) -> dict[str, Array]:
        """What one forward pass gives, all that scores are made of. Pure.

        `x_hat`, the latent `z` [B, N], `difference` [B, ...], of which `score` is the size, and what else there is; `x`
        where it is not x itself that is reconstructed.
        """

    def reconstruct(self, variables: dict[str, Any], x: Array) -> Array:
        """What the detector takes x [B, ...] for, of x's shape and range."""

    def recompute_batch_stats(self, variables: dict[str, Any], batches: Array) -> dict[str, Any]:
        """The variables with batch norm's statistics taken afresh, of `batches` [n, B, ...] in [-1, 1]."""

    def examined(self, state: TrainState) -> Any:
        """The part of the state that `examine` needs, no copy."""

    def examine(self, examined: Any, x: Array) -> dict[str, Array]:
        """What tells how a training fares, on normal x [B, ...] in [-1, 1]: `x_hat` and `z`, as they score. Pure.

        Where there is a discriminator also its logits `real` and `fake` [B] of x and x_hat, as in training.
        """
