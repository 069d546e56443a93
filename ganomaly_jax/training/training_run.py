"""One model of a training: its data, its folder, its length, and the images of each step."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import numpy as np

from ganomaly_jax.data import batch_order
from ganomaly_jax.runs import resolution
from ganomaly_jax.runs.resolution import Run
from ganomaly_jax.training.train_step import STEPS_A_CALL


@dataclasses.dataclass(frozen=True, eq=False)
class TrainingRun:
    """A resolved run and the folder that it writes to; `name` tells the members of a sweep apart."""

    run: Run
    folder: Path
    name: str = ""

    @property
    def image_count(self) -> int:
        """Returns the number of images (rows, windows, tiles) in the training part."""
        return len(self.run.split.train)

    @property
    def total_steps(self) -> int:
        """Returns the number of steps of the whole training."""
        return resolution.total_steps(self.run.config, self.image_count)

    @property
    def steps_per_epoch(self) -> int:
        """Returns the number of full batches in the training part."""
        return self.image_count // self.run.config.train.batch_size

    @functools.cached_property
    def places(self) -> np.ndarray:
        """Returns the training images from which each position of a batch draws, int64 [B, image_count // B]."""
        return batch_order.columns(self.run.config.seed, self.image_count, self.run.config.train.batch_size)

    def rows(self, step: int, count: int) -> np.ndarray:
        """Returns which column of `places` each position of a batch takes.

        Args:
          step: the first step.
          count: number of steps.

        Returns:
          int32 [STEPS_A_CALL, B], zeros from row `count` on.
        """
        settings = self.run.config
        rows = np.zeros((STEPS_A_CALL, settings.train.batch_size), np.int32)
        rows[:count] = batch_order.batch_rows(settings.seed, self.image_count, settings.train.batch_size, step, count)
        return rows

    def index(self, step: int, count: int) -> np.ndarray:
        """Returns `rows(step, count)` as indices into the training part, int32 [STEPS_A_CALL, B]."""
        return self.places[np.arange(len(self.places)), self.rows(step, count)].astype(np.int32)
