"""The end of a training: calibrates the trained weights and writes the detector."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from ganomaly_jax.core import sealed_folder
from ganomaly_jax.core.errors import DamagedError, UserError
from ganomaly_jax.data import lazy
from ganomaly_jax.data.images import preprocess
from ganomaly_jax.runs.resolution import Run
from ganomaly_jax.scoring import adapters, build, scorer
from ganomaly_jax.scoring.scorer import Scorer
from ganomaly_jax.training.state import Log
from ganomaly_jax.training.training_run import TrainingRun

# Number of batches from which the statistics of batch norm are recomputed for averaged weights.
_BATCHES = 20


def finish(
    run: Run,
    training_run: TrainingRun,
    variables: Any,
    step: int,
    environment: dict[str, Any],
    log: Log,
    folder: Path,
) -> Scorer:
    """Calibrates a trained model and writes the detector.

    A detector in `folder` with the same weights whose threshold was set by `ganomaly recalibrate` is left as it is.

    Args:
      run: the run, with the images as they are scored.
      training_run: the run with the images as the network takes them, such as tiles of them.
      variables: the part of the state that scoring needs, NumPy arrays.
      step: the step of these weights.
      environment: the contents of `env.json`, for the provenance.
      log: called with each note for the user.
      folder: where the detector is written.

    Returns:
      The calibrated scorer, as written.
    """
    before = _recalibrated(folder)
    if before is not None and before.provenance.get("step") == step and before.config.seed == run.config.seed:
        log(
            f"note: the threshold {before.threshold:.6g} set by `ganomaly recalibrate` is kept; to set another: "
            f"`ganomaly recalibrate --workdir {training_run.folder}`"
        )
        return before
    if before is not None:
        log(
            f"note: the threshold set by `ganomaly recalibrate` was for the weights of step "
            f"{before.provenance.get('step')}; those of step {step} are calibrated as configured"
        )
    chosen = run.split.calibration if len(run.split.calibration) else run.split.train
    detector = build.make(
        adapters.of_network(run.detector, run.config),
        _with_recomputed_batch_stats(training_run.run, jax.device_put(variables)),
        run.config,
        run.pixels,
        lazy.select(run.dataset.images, run.split.train),
        lazy.select(run.dataset.images, chosen),
        trained_on=not len(run.split.calibration),
        provenance={"step": int(step), **environment},
        feature_names=run.dataset.feature_names,
    )
    detector.save(folder)
    return detector


def _recalibrated(folder: Path) -> Scorer | None:
    """Returns the detector in a folder if its threshold was set by `ganomaly recalibrate`, None otherwise."""
    if not sealed_folder.exists(folder):
        return None
    try:
        before = scorer.load(folder)
    except (UserError, DamagedError):  # it will be overwritten
        return None
    return before if before.provenance.get(scorer.RECALIBRATED) else None


def _with_recomputed_batch_stats(run: Run, variables: Any) -> Any:
    """Returns the variables; for averaged weights, with batch norm's statistics recomputed from training batches."""
    detector, size = run.detector, run.config.train.batch_size
    count = min(_BATCHES, len(run.split.train) // size)
    if not run.config.optimizer.average or not count:
        return variables
    drawn = np.random.default_rng(run.config.seed).permutation(run.split.train)[: count * size]
    raw = run.dataset.images[np.sort(drawn)].reshape(count, size, *detector.shape)
    recompute = jax.jit(lambda v, raw: detector.recompute_batch_stats(v, preprocess.to_unit(raw, *run.pixels[1:])))
    return recompute(variables, raw)
