"""Pictures of inputs and their reconstructions, drawn during training."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array

from ganomaly_jax.data.images import preprocess
from ganomaly_jax.model.protocol import TrainState
from ganomaly_jax.parallel import processes, sharding
from ganomaly_jax.report import image_grids, modalities
from ganomaly_jax.runs.resolution import Run

_COUNT = 16


def make_draw(run: Run, folder: Path) -> Callable[[int, TrainState], None] | None:
    """Makes the function that saves pictures of some calibration images and their reconstructions.

    Args:
      run: the run that is trained.
      folder: where `epoch_NNNN.png` are written, by the primary process.

    Returns:
      `draw(epoch, state)`, compiled once for all epochs; None if `train.picture_every` is 0, Pillow is not installed,
      or the modality has no pictures.
    """
    drawing = modalities.named(run.dataset.modality)
    if not (run.config.train.picture_every and drawing.epochs) or importlib.util.find_spec("PIL") is None:
        return None
    chosen = run.split.calibration if len(run.split.calibration) else run.split.train
    raw = run.dataset.images[chosen[:_COUNT]]

    @jax.jit
    def reconstruct(variables: Any, raw: Array) -> tuple[Array, Array]:
        x = preprocess.to_unit(raw, *run.pixels[1:])
        return x, run.detector.reconstruct(variables, x)

    def draw(epoch: int, state: TrainState) -> None:
        variables = sharding.to_host(run.detector.variables(state))
        if not processes.is_primary():
            return
        x, x_hat = map(np.asarray, reconstruct(variables, raw))
        grid = image_grids.grid(drawing.upright(x), drawing.upright(x_hat))
        image_grids.save(grid, folder / f"epoch_{epoch:04d}.png")

    return draw
