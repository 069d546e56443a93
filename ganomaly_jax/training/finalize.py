"""The end of a training: from weights to a calibrated detector in the run's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from ganomaly_jax.core.errors import DamagedError, UserError
from ganomaly_jax.data import lazy
from ganomaly_jax.data.images import preprocess
from ganomaly_jax.runs.resolution import Run
from ganomaly_jax.scoring import adapters, build, scorer
from ganomaly_jax.scoring.scorer import Scorer
from ganomaly_jax.training.state import Log
from ganomaly_jax.training.training_run import TrainingRun

# Batches that batch norm's statistics are taken from for averaged weights.
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

    One of these very weights whose threshold `ganomaly recalibrate` has set stays as it is.

    Args:
      run: with the images as they are scored.
      training_run: with the images as the network takes them, such as their tiles.
      variables: what scoring needs of its state, numpy arrays.
      step: the step of these weights.
      environment: what `env.json` holds, for the provenance.
      log: takes notes.
      folder: the detector's folder.
    """
    before = _recalibrated(folder)
    if before is not None and before.provenance.get("step") == step and before.config.seed == run.config.seed:
        log(
            f"note: the threshold {before.threshold:.6g} that `ganomaly recalibrate` has set is kept; "
            f"`ganomaly recalibrate --workdir {training_run.folder}` sets another"
        )
        return before
    if before is not None:
        log(
            f"note: the threshold that `ganomaly recalibrate` had set was for the weights of step "
            f"{before.provenance.get('step')}; those of step {step} are calibrated as configured"
        )
    chosen = run.split.calibration if len(run.split.calibration) else run.split.train
    made = build.make(
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
    made.save(folder)
    return made


def _recalibrated(folder: Path) -> Scorer | None:
    """Returns the detector in this folder where `ganomaly recalibrate` has set its threshold."""
    if not folder.is_dir():
        return None
    try:
        before = scorer.load(folder)
    except (UserError, DamagedError):  # it is written again
        return None
    return before if before.provenance.get(scorer.RECALIBRATED) else None


def _with_recomputed_batch_stats(run: Run, variables: Any) -> Any:
    """Returns the variables; averaged weights with batch norm's statistics of some training batches."""
    detector, size = run.detector, run.config.train.batch_size
    count = min(_BATCHES, len(run.split.train) // size)
    if not run.config.optimizer.average or not count:
        return variables
    drawn = np.random.default_rng(run.config.seed).permutation(run.split.train)[: count * size]
    raw = run.dataset.images[np.sort(drawn)].reshape(count, size, *detector.shape)
    recompute = jax.jit(lambda v, raw: detector.recompute_batch_stats(v, preprocess.to_unit(raw, *run.pixels[1:])))
    return recompute(variables, raw)
