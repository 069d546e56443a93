"""What a stream is compared with: ranges of the sensors, how long they stand still, latents of the calibration part."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data import datasets, lazy, sources, splits
from ganomaly_jax.runs import resolution, run_folder
from ganomaly_jax.scoring import inference
from ganomaly_jax.scoring.scorer import Scorer
from ganomaly_jax.streaming import drift, sensor_checks
from ganomaly_jax.streaming.sensor_checks import Normal

_ROWS = 50_000
# Rows that ranges are taken from at most.
_WITHOUT = 10
# Standard deviations from the centre that count as the range where no data are there.


@dataclasses.dataclass(frozen=True, eq=False)
class Reference:
    """Of a detector: `normal` of its sensors (of images: of none), `latents` [m, L], None where there are none.

    `scores` [n] are those of other normal items, None: the calibration scores of the detector serve.
    """

    normal: Normal
    latents: np.ndarray | None
    scores: np.ndarray | None = None
    notes: tuple[str, ...] = ()


def learn(scorer: Scorer, workdir: Path, source: str = "") -> Reference:
    """From the run's own data, or from `source`, normal items in its place.

    Where the run's data cannot be read, ranges come from the scaling alone and there are no latents; a note says so.

    Raises:
      UserError: `source` cannot be read, or has nothing normal.
    """
    try:
        items, every = _of_source(scorer, source) if source else _of_run(scorer, workdir)
    except UserError as error:
        if source:
            raise
        return Reference(
            _without(scorer),
            None,
            None,
            (
                f"the run's data are not there ({str(error)[:200]}): ranges of sensors are taken from their scaling, "
                "and drift of latents is not tested; --normals DATA gives normal items",
            ),
        )
    normal = _normal(scorer, items, every)
    calibration = items[1]
    scores = None
    if source:
        scores = scorer(calibration)
        scores = scores[np.isfinite(scores)]
    if not scorer.detector.has_latent:
        return Reference(
            normal, None, scores, ("images in tiles have no latent of their own: its drift is not tested",)
        )
    if len(calibration) < drift.LEAST:
        note = f"{len(calibration)} calibration items: drift of latents needs {drift.LEAST}"
        return Reference(normal, None, scores, (note,))
    return Reference(normal, _latents(scorer, calibration), scores)


def _without(scorer: Scorer) -> Normal:
    low, high = (np.atleast_1d(np.asarray(side, np.float64)) for side in (scorer.low, scorer.high))
    centre, spread = (low + high) / 2, (high - low) / 2
    d = len(scorer.feature_names)
    if not d:
        return Normal(np.zeros(0), np.zeros(0), np.zeros(0, np.int64))
    return Normal(centre - _WITHOUT * spread, centre + _WITHOUT * spread, np.zeros(d, np.int64))


def _of_run(scorer: Scorer, workdir: Path) -> tuple[tuple[Any, Any], int]:
    """((trained on, calibrated with), items from one to the next that shares no row)."""
    before = run_folder.stored_environment(workdir).get("data_hash")
    if before is None:
        raise UserError(f"{workdir} is no run's folder")
    this = resolution.resolve(scorer.config)
    datasets.check_unchanged(this.dataset.name, before, datasets.content_hash(this.dataset), "Name them with --normals")
    parts = tuple(lazy.select(this.dataset.images, part) for part in (this.split.train, this.split.calibration))
    return (parts[0], parts[1]), _apart(scorer)


def _of_source(scorer: Scorer, source: str) -> tuple[tuple[Any, Any], int]:
    settings = scorer.reading(source)
    dataset = sources.read(settings)
    normal = splits.normal_classes(dataset, settings.abnormal if settings.abnormal in dataset.classes else "")
    chosen = np.flatnonzero([dataset.classes[i] in normal for i in dataset.labels])
    if not len(chosen):
        raise UserError(f"--normals {source}: nothing in it is normal")
    return (lazy.select(dataset.images, chosen),) * 2, _apart(scorer)


def _apart(scorer: Scorer) -> int:
    return -(-scorer.input_shape[0] // scorer.config.data.stride) if len(scorer.input_shape) == 2 else 1


def _normal(scorer: Scorer, items: tuple[Any, Any], every: int) -> Normal:
    d = len(scorer.feature_names)
    if not d:
        return _without(scorer)
    parts = [np.asarray(part[:_ROWS][::every], np.float64).reshape(-1, d)[-_ROWS:] for part in items]
    both = np.concatenate(parts)
    seen = np.isfinite(both).any(0)
    fallback = _without(scorer)
    low, high = fallback.low.copy(), fallback.high.copy()
    low[seen], high[seen] = np.nanmin(both[:, seen], axis=0), np.nanmax(both[:, seen], axis=0)
    low, high = low.astype(np.float32).astype(np.float64), high.astype(np.float32).astype(np.float64)
    runs = np.max([sensor_checks.longest_runs(part) for part in parts if len(part) > 1] or [np.zeros(d)], axis=0)
    constant = ~(low < high)
    # A sensor that never moved may move by its unit.
    low[constant], high[constant] = low[constant] - 1, high[constant] + 1
    return Normal(low, high, np.where(constant, -1, np.maximum(runs, 0)).astype(np.int64))


def _latents(scorer: Scorer, items: Any) -> np.ndarray:
    network = scorer.detector.network
    encode = jax.jit(lambda variables, x: network.outputs(variables, x)["z"])
    chosen = np.unique(np.linspace(0, len(items) - 1, min(len(items), drift.REFERENCE)).astype(int))
    size, found = inference.BUCKETS[-1], []
    for block in inference.blocks(scorer.detector, scorer.pixels, lazy.select(items, chosen)):
        found.append(np.asarray(encode(scorer.variables["detector"], inference.pad(block, size)))[: len(block)])
    z = np.concatenate(found)
    return z[np.isfinite(z).all(1)]
