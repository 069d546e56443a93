"""The state of a training: what the loop advances, and what its hooks read and change."""

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
    """The compiled training step of one model, or of all members of a sweep, and what belongs to it."""

    advance: Callable[[TrainState, np.ndarray, np.ndarray], tuple[TrainState, Array]]
    """`advance(state, first, counts)`: runs counts[m] steps of model m, which has done first[m]. Returns the new state
    and the losses, [models, steps, L]."""
    finite: Callable[[TrainState], np.ndarray]
    """Whether all weights of each model are finite, bool [models]."""
    kept: Callable[[TrainState], TrainState]
    """The part of the state that checkpoints keep."""
    measure: Callable[[TrainState], list[dict[str, Any]]]
    """The health of each model at some normal images, see `health.make_measure`."""
    losses: Sequence[str]
    """Names of the L losses."""
    max_steps: int = STEPS_A_CALL
    """Steps that one call may run."""


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """Steps that were given to the device, whose losses may not be computed yet."""

    step: int
    """The step after it."""
    first: np.ndarray
    """int [models]: steps that each model had done before."""
    counts: np.ndarray
    """int [models]: steps of each."""
    losses: Array
    """float32 [models, steps, L]."""


@dataclasses.dataclass(eq=False)
class Training:
    """The models that one loop trains, and how far each is.

    `config` is the configuration that checkpoints keep. A model that is not `alive` has diverged and takes no step.
    """

    runs: Sequence[TrainingRun]
    workdir: Path
    config: Config
    compiled: CompiledSteps
    state: TrainState
    steps: np.ndarray
    """int [models]: steps that each model has done."""
    early_stopping: EarlyStopping
    log: Log

    def __post_init__(self) -> None:
        self.totals = np.array([run.total_steps for run in self.runs])
        self.last_step = int(self.totals.max())
        self.alive = self.compiled.finite(self.state).copy()
        self.steps = np.where(self.alive, self.steps, self.totals)
        # That of the model that has done the fewest; those ahead of it wait.
        self.step = int(self.steps[self.steps < self.totals].min(initial=self.last_step))
        self._measured: tuple[int, list[dict[str, Any]]] = (-1, [])

    @property
    def is_sweep(self) -> bool:
        """Returns True for members of a sweep, which continue when one of them diverges."""
        return len(self.runs) > 1 or bool(self.runs[0].name)

    @property
    def has_stopped_early(self) -> bool:
        """Returns True if it ended early because the loss on held-out images did not improve."""
        return self.step < self.last_step and self.early_stopping.is_over(self.config.train.patience)

    def advance(self, length: int) -> Call:
        """Gives the device the next `length` steps, and waits for nothing."""
        counts = np.clip(np.minimum(self.step + length, self.totals) - self.steps, 0, length)
        first = self.steps.copy()
        self.state, losses = self.compiled.advance(self.state, first, counts)
        self.steps += counts
        self.step += length
        return Call(self.step, first, counts, losses)

    def health(self) -> list[dict[str, Any]]:
        """Returns the health of each model at this step, measured once."""
        if self._measured[0] != self.step:
            self._measured = (self.step, self.compiled.measure(self.state))
        return self._measured[1]

    def drop(self, model: int, step: int, reason: str) -> None:
        """Ends the training of a model that has diverged.

        Raises:
          DivergedError: no other model is left.
        """
        if not self.is_sweep:
            raise self._diverged(step, reason)
        self.alive[model], self.steps[model] = False, self.totals[model]
        self.log(f"member {self.runs[model].name} diverged at step {step:,}: {reason}; the others go on")
        if not self.alive.any():
            raise self._diverged(step, "the last member's")

    def _diverged(self, step: int, reason: str) -> DivergedError:
        kept = checkpoint.steps(self.workdir / layout.CHECKPOINTS)
        last = (
            f"the last finite checkpoint is that of step {kept[-1]:,}" if kept else "there is no checkpoint before it"
        )
        return DivergedError(
            f"training diverged at step {step:,}: {reason}; {last}. Lower --config.optimizer.learning_rate, or look "
            "for extreme pixel values in the data"
        )
