"""The state of a training, which the loop advances and hooks read and change."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax import Array

from ganomaly_jax.core.config import Config
from ganomaly_jax.core.errors import DivergedError
from ganomaly_jax.model.protocol import TrainState
from ganomaly_jax.runs import checkpoint, layout
from ganomaly_jax.training.early_stopping import EarlyStopping
from ganomaly_jax.training.train_step import STEPS_A_CALL
from ganomaly_jax.training.training_run import TrainingRun

Log = Callable[[str], None]


@dataclasses.dataclass(frozen=True, eq=False)
class CompiledSteps:
    """The compiled training step of one model, or of all members of a sweep, with the functions that go with it."""

    advance: Callable[[TrainState, np.ndarray, np.ndarray], tuple[TrainState, Array]]
    """`advance(state, first, counts)` runs counts[m] steps of model m, which has done first[m]. It returns the new
    state and the losses, float32 [models, steps, L]."""
    finite: Callable[[TrainState], np.ndarray]
    """`finite(state)`: whether all numbers in the state of each model are finite, bool [models]."""
    kept: Callable[[TrainState], TrainState]
    """`kept(state)`: the part of the state that checkpoints keep."""
    measure: Callable[[TrainState], list[dict[str, Any]]]
    """`measure(state)`: the health of each model, see `health.make_measure`."""
    losses: Sequence[str]
    """Names of the L losses."""
    max_steps: int = STEPS_A_CALL
    """Most steps that one call may run."""


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """Steps that the device has been given; their losses may not be computed yet."""

    step: int
    """The training's step after the call."""
    first: np.ndarray
    """Steps that each model had done before the call, int [models]."""
    counts: np.ndarray
    """Steps of each model in the call, int [models]."""
    losses: Array
    """The losses before each step, float32 [models, steps, L]."""


@dataclasses.dataclass(eq=False)
class Training:
    """The models that one loop trains, and how far each has been trained.

    Attributes:
      totals: number of steps of each model's training, int [models].
      last_step: the largest of them.
      alive: False for a model that has diverged, which takes no more steps, bool [models].
      step: the number of steps done by the model that has done the fewest; those ahead of it wait.
    """

    runs: Sequence[TrainingRun]
    workdir: Path
    config: Config
    """The configuration that checkpoints keep."""
    compiled: CompiledSteps
    state: TrainState
    steps: np.ndarray
    """Number of steps that each model has done, int [models]."""
    early_stopping: EarlyStopping
    log: Log

    def __post_init__(self) -> None:
        self.totals = np.array([run.total_steps for run in self.runs])
        self.last_step = int(self.totals.max())
        self.alive = self.compiled.finite(self.state).copy()
        self.steps = np.where(self.alive, self.steps, self.totals)
        self.step = int(self.steps[self.steps < self.totals].min(initial=self.last_step))
        self._measured: tuple[int, list[dict[str, Any]]] = (-1, [])

    @property
    def is_sweep(self) -> bool:
        """Returns whether these are members of a sweep, which continue when one of them diverges."""
        return len(self.runs) > 1 or bool(self.runs[0].name)

    @property
    def has_stopped_early(self) -> bool:
        """Returns whether training ended early because the loss on held-out images did not improve."""
        return self.step < self.last_step and self.early_stopping.is_over(self.config.train.patience)

    def advance(self, length: int) -> Call:
        """Starts the next `length` steps on the device, without waiting for their result."""
        counts = np.clip(np.minimum(self.step + length, self.totals) - self.steps, 0, length)
        first = self.steps.copy()
        self.state, losses = self.compiled.advance(self.state, first, counts)
        self.steps += counts
        self.step += length
        return Call(self.step, first, counts, losses)

    def health(self) -> list[dict[str, Any]]:
        """Returns the health of each model at this step; it is measured once per step."""
        if self._measured[0] != self.step:
            self._measured = (self.step, self.compiled.measure(self.state))
        return self._measured[1]

    def drop(self, model: int, step: int, reason: str) -> None:
        """Ends the training of a model that has diverged.

        Args:
          model: its index.
          step: the step at which it diverged.
          reason: a sentence fragment that says how.

        Raises:
          DivergedError: no other model is left.
        """
        if not self.is_sweep:
            raise self._diverged(step, reason)
        self.alive[model], self.steps[model] = False, self.totals[model]
        self.log(f"member {self.runs[model].name} diverged at step {step:,}: {reason}; the others continue")
        if not self.alive.any():
            raise self._diverged(step, "that was the last member")

    def _diverged(self, step: int, reason: str) -> DivergedError:
        kept = checkpoint.steps(self.workdir / layout.CHECKPOINTS)
        last = (
            f"the last finite checkpoint is that of step {kept[-1]:,}" if kept else "there is no checkpoint before it"
        )
        return DivergedError(
            f"training diverged at step {step:,}: {reason}; {last}. Lower --config.optimizer.learning_rate, or check "
            "the data for extreme values"
        )
