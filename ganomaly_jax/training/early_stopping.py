"""Early stopping: a training ends when the loss on held-out images has not improved for a while."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from ganomaly_jax.core.errors import DamagedError

# Key in a checkpoint's metadata. It and the keys below it are those of version 0.1.0, whose runs can be resumed.
_META = "waiting"


@dataclasses.dataclass(frozen=True)
class EarlyStopping:
    """The smallest loss so far, the step that had it, and how many checks have passed without improvement since."""

    best_loss: float | None = None
    best_step: int = 0
    checks: int = 0

    def after(self, step: int, loss: float) -> EarlyStopping:
        """Returns the state after one more check; NaN, the loss without held-out images, does not count as a check."""
        if math.isfinite(loss) and (self.best_loss is None or loss < self.best_loss):
            return EarlyStopping(loss, step, 0)
        return self if math.isnan(loss) else dataclasses.replace(self, checks=self.checks + 1)

    def is_over(self, patience: int) -> bool:
        """Returns whether a training with this patience (in checks) ends; with patience 0 it never does."""
        return 0 < patience <= self.checks

    def sentence(self, step: int, total_steps: int) -> str:
        """Returns a sentence that says when and why the training stopped, and how to continue it."""
        return (
            f"Training stopped early at step {step:,} of {total_steps:,}: the loss on the calibration part has not "
            f"improved in {self.checks} checks since step {self.best_step:,}, where it was {self.best_loss:.4g}. "
            "Set train.patience=0 to continue."
        )

    def to_meta(self) -> dict[str, Any]:
        """Returns the entry of a checkpoint's metadata."""
        return {_META: {"smallest": self.best_loss, "step": self.best_step, "looks": self.checks}}

    @staticmethod
    def from_meta(meta: dict[str, Any]) -> EarlyStopping:
        """Returns the state in a checkpoint's metadata, or the initial state if there is none.

        Raises:
          DamagedError: it is not a result of `to_meta`.
        """
        match meta.get(_META, EarlyStopping().to_meta()[_META]):
            case {"smallest": None | float() | int() as loss, "step": int(step), "looks": int(checks)}:
                return EarlyStopping(loss, step, checks)
            case other:
                raise DamagedError(
                    f"the state of early stopping in the checkpoint is {other!r:.100}; choose another checkpoint"
                )
