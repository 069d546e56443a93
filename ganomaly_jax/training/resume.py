"""Resuming a training from its latest or best checkpoint, and the message when another process is lost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax

from ganomaly_jax.core.errors import ProcessLostError
from ganomaly_jax.model.protocol import TrainState
from ganomaly_jax.parallel import processes
from ganomaly_jax.runs import checkpoint, layout
from ganomaly_jax.training.early_stopping import EarlyStopping
from ganomaly_jax.training.state import Log


def latest(workdir: Path, fresh: TrainState, fall_back: bool, log: Log) -> tuple[TrainState, EarlyStopping]:
    """Returns the training state and the state of early stopping of the latest checkpoint.

    Args:
      workdir: the run's folder.
      fresh: the initial state, returned if there is no checkpoint.
      fall_back: whether to skip damaged checkpoints, with a note for each.
      log: called with each note.

    Raises:
      DamagedError: the latest checkpoint is damaged, or with `fall_back` all of them.
    """
    root = workdir / layout.CHECKPOINTS
    if not checkpoint.steps(root):
        return fresh, EarlyStopping()
    if not fall_back:
        _, state, meta = checkpoint.restore(root, fresh)
        return state, EarlyStopping.from_meta(meta)
    step, state, meta, damaged = checkpoint.restore_latest_good(root, fresh)
    for sentence in damaged:
        log(f"note: {sentence}; skipped, training resumes from step {step:,}")
    return state, EarlyStopping.from_meta(meta)


def best(workdir: Path, last: TrainState, log: Log) -> TrainState:
    """Returns the state of the checkpoint with the smallest loss on the calibration images.

    Args:
      workdir: the run's folder.
      last: the state after the last step, returned if there are no calibration images.
      log: called with a line that names the step.
    """
    step = checkpoint.best(workdir / layout.CHECKPOINTS)
    if step is None:
        log("note: there is no calibration part to choose a step by: the last one is used")
        return last
    log(f"the detector is that of step {step:,}, which reconstructs the calibration part best")
    return checkpoint.restore(workdir / layout.CHECKPOINTS, last, step)[1]


@contextmanager
def lost_process_named(workdir: Path) -> Iterator[None]:
    """Turns the error of the devices when another process is lost into one sentence.

    Args:
      workdir: the run's folder.

    Raises:
      ProcessLostError: another process is gone; names the checkpoint to resume from.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not processes.is_distributed():
            raise
        kept = checkpoint.steps(workdir / layout.CHECKPOINTS)
        last = f"the last checkpoint is that of step {kept[-1]:,}" if kept else "there is no checkpoint yet"
        raise ProcessLostError(
            f"another process of this training is gone, or cannot be reached ({str(error).partition(chr(10))[0]}); "
            f"{last}: start all processes again to resume from there"
        ) from None
