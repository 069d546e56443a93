"""The end of a training: from weights to a calibrated detector in the run's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from ganomaly_jax.core.errors import DamagedError, UserError
from ganomaly_jax.data import lazy
from ganomaly_jax.data.images import preprocess
from ganomaly_jax.model import registry
from ganomaly_jax.model.protocol import Detector
from ganomaly_jax.runs import layout
from ganomaly_jax.runs.resolution import Run
from ganomaly_jax.scoring import build, scorer, tile_adapter
from ganomaly_jax.scoring.scorer import Scorer
from ganomaly_jax.training.loop import Course, Log

# Batches that batch norm's statistics are taken from for averaged weights.
_SETTLED = 20


def finish(
    course: Course,
    this: Run,
    variables: Any,
    step: int,
    environment: dict[str, Any],
    log: Log,
    into: str = layout.DETECTOR,
) -> Scorer:
    """Calibrate a trained model on the images of `this`, and write the detector into the run's folder.

    One of these very weights whose threshold `ganomaly recalibrate` has set stays as it is.
    """
    before = _recalibrated(course.folder / into)
    if before is not None and before.provenance.get("step") == step and before.config.seed == this.config.seed:
        log(
            f"note: the threshold {before.threshold:.6g} that `ganomaly recalibrate` has set is kept; "
            f"`ganomaly recalibrate --workdir {course.folder}` sets another"
        )
        return before
    if before is not None:
        log(
            f"note: the threshold that `ganomaly recalibrate` had set was for the weights of step "
            f"{before.provenance.get('step')}; those of step {step} are calibrated as configured"
        )
    chosen = this.split.calibration if len(this.split.calibration) else this.split.train
    made = build.make(
        tile_adapter.from_config(this.config),
        _with_recomputed_batch_stats(course.run, registry.from_config(this.config), jax.device_put(variables)),
        this.config,
        this.pixels,
        lazy.select(this.dataset.images, this.split.train),
        lazy.select(this.dataset.images, chosen),
        trained_on=not len(this.split.calibration),
        provenance={"step": int(step), **environment},
        columns=this.dataset.columns,
    )
    made.save(course.folder / into)
    return made


def _recalibrated(folder: Path) -> Scorer | None:
    """The detector in this folder where `ganomaly recalibrate` has set its threshold."""
    if not folder.is_dir():
        return None
    try:
        before = scorer.load(folder)
    except (UserError, DamagedError):  # it is written again
        return None
    return before if before.provenance.get(scorer.RECALIBRATED) else None


def _with_recomputed_batch_stats(this: Run, detector: Detector, variables: Any) -> Any:
    """Averaged weights with batch norm's statistics of some training batches."""
    size = this.config.train.batch_size
    count = min(_SETTLED, len(this.split.train) // size)
    if not this.config.optimizer.average or not count:
        return variables
    drawn = np.random.default_rng(this.config.seed).permutation(this.split.train)[: count * size]
    raw = this.dataset.images[np.sort(drawn)].reshape(count, size, *detector.shape)
    unit = jax.jit(lambda v, raw: detector.recompute_batch_stats(v, preprocess.to_unit(raw, *this.pixels[1:])))
    return unit(variables, raw)
