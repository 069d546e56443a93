"""Resuming a training: its latest or its best checkpoint, and the sentence for one that lost another process."""

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
    """Returns the state of the latest checkpoint, and the state of early stopping with it.

    Args:
      workdir: the run's folder.
      fresh: the state to begin with where there is no checkpoint.
      fall_back: pass over checkpoints that are damaged, and say so.
      log: takes a line for each of those.

    Raises:
      DamagedError: the latest one is damaged, or with `fall_back` all of them.
    """
    root = workdir / layout.CHECKPOINTS
    if not checkpoint.steps(root):
        return fresh, EarlyStopping()
    if not fall_back:
        _, state, meta = checkpoint.restore(root, fresh)
        return state, EarlyStopping.from_meta(meta)
    step, state, meta, damaged = checkpoint.restore_latest_good(root, fresh)
    for sentence in damaged:
        log(f"note: {sentence}; passed over, the training resumes from step {step:,}")
    return state, EarlyStopping.from_meta(meta)


def best(workdir: Path, last: TrainState, log: Log) -> TrainState:
    """Returns the kept state with the smallest loss on the calibration images, the last one where there are none."""
    step = checkpoint.best(workdir / layout.CHECKPOINTS)
    if step is None:
        log("note: there is no calibration part to choose a step by: the last one is taken")
        return last
    log(f"the detector is that of step {step:,}, which reconstructs the calibration part best")
    return checkpoint.restore(workdir / layout.CHECKPOINTS, last, step)[1]


@contextmanager
def lost_process_named(workdir: Path) -> Iterator[None]:
    """Turns what the devices say when another process is gone into one sentence.

    Raises:
      ProcessLostError: naming the checkpoint to resume from.
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
