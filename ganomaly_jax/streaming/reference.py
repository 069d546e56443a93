"""Reference for a stream: ranges of the sensors, how long they stay constant, and latents of normal items."""

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
from ganomaly_jax.streaming.sensor_checks import NormalRanges

_MAX_ROWS = 50_000
# Rows from which ranges are computed, at most.
_DEVIATIONS = 10
# Standard deviations from the centre that are the range if there are no data.


@dataclasses.dataclass(frozen=True, eq=False)
class Reference:
    """Normal behaviour of a detector's inputs.

    Attributes:
      normal: ranges of the sensors; empty for images.
      latents: latents [m, L] of the calibration part, or None.
      scores: scores [n] of other normal items; None to use the detector's calibration scores.
      notes: what the user should know.
    """

    normal: NormalRanges
    latents: np.ndarray | None
    scores: np.ndarray | None = None
    notes: tuple[str, ...] = ()


def learn(scorer: Scorer, workdir: Path, source: str = "") -> Reference:
    """Learns the reference from the run's own data, or from normal items in `source`.

    If the run's data cannot be read, ranges are derived from the scaling and there are no latents; a note says so.

    Args:
      scorer: the detector.
      workdir: folder of the run.
      source: normal data instead of the run's own; empty for none.

    Raises:
      UserError: `source` cannot be read or has no normal items.
    """
    try:
        items, every = _items_of_source(scorer, source) if source else _items_of_run(scorer, workdir)
    except UserError as error:
        if source:
            raise
        return Reference(
            _ranges_from_scaling(scorer),
            None,
            None,
            (
                f"the run's data cannot be read ({str(error)[:200]}): ranges of sensors follow from their scaling, "
                "and drift of latents is not tested; pass normal data with --normals",
            ),
        )
    normal = _normal_ranges(scorer, items, every)
    calibration = items[1]
    scores = None
    if source:
        scores = scorer(calibration)
        scores = scores[np.isfinite(scores)]
    if not scorer.detector.has_latent:
        return Reference(normal, None, scores, ("tiled images have no single latent: drift of latents is not tested",))
    if len(calibration) < drift.MIN_SCORES:
        note = f"{len(calibration)} calibration items: drift of latents is not tested, which needs {drift.MIN_SCORES}"
        return Reference(normal, None, scores, (note,))
    return Reference(normal, _latents(scorer, calibration), scores)


def _ranges_from_scaling(scorer: Scorer) -> NormalRanges:
    """Returns wide ranges that follow from the scaling alone."""
    low, high = (np.atleast_1d(np.asarray(side, np.float64)) for side in (scorer.low, scorer.high))
    centre, spread = (low + high) / 2, (high - low) / 2
    d = len(scorer.feature_names)
    if not d:
        return NormalRanges(np.zeros(0), np.zeros(0), np.zeros(0, np.int64))
    return NormalRanges(centre - _DEVIATIONS * spread, centre + _DEVIATIONS * spread, np.zeros(d, np.int64))


def _items_of_run(scorer: Scorer, workdir: Path) -> tuple[tuple[Any, Any], int]:
    """Returns the training and calibration items of the run, and the stride between items that share no row."""
    before = run_folder.stored_environment(workdir).get("data_hash")
    if before is None:
        raise UserError(f"{workdir} is not the folder of a run")
    this = resolution.resolve(scorer.config)
    datasets.check_unchanged(this.dataset.name, before, datasets.content_hash(this.dataset), "Name them with --normals")
    parts = tuple(lazy.select(this.dataset.images, part) for part in (this.split.train, this.split.calibration))
    return (parts[0], parts[1]), _disjoint_stride(scorer)


def _items_of_source(scorer: Scorer, source: str) -> tuple[tuple[Any, Any], int]:
    """Returns the normal items of `source` in place of both parts, and the stride between items that share no row."""
    settings = scorer.reading(source)
    dataset = sources.read(settings)
    normal = splits.normal_classes(dataset, settings.abnormal if settings.abnormal in dataset.classes else "")
    chosen = np.flatnonzero([dataset.classes[i] in normal for i in dataset.labels])
    if not len(chosen):
        raise UserError(f"--normals {source}: no normal items in it")
    return (lazy.select(dataset.images, chosen),) * 2, _disjoint_stride(scorer)


def _disjoint_stride(scorer: Scorer) -> int:
    """Returns the number of items from one to the next that shares no row with it."""
    return -(-scorer.input_shape[0] // scorer.config.data.stride) if len(scorer.input_shape) == 2 else 1


def _normal_ranges(scorer: Scorer, items: tuple[Any, Any], every: int) -> NormalRanges:
    """Returns the ranges of the sensors, and how long they stayed constant, in training and calibration items."""
    d = len(scorer.feature_names)
    if not d:
        return _ranges_from_scaling(scorer)
    parts = [np.asarray(part[:_MAX_ROWS][::every], np.float64).reshape(-1, d)[-_MAX_ROWS:] for part in items]
    both = np.concatenate(parts)
    seen = np.isfinite(both).any(0)
    fallback = _ranges_from_scaling(scorer)
    low, high = fallback.low.copy(), fallback.high.copy()
    low[seen], high[seen] = np.nanmin(both[:, seen], axis=0), np.nanmax(both[:, seen], axis=0)
    low, high = low.astype(np.float32).astype(np.float64), high.astype(np.float32).astype(np.float64)
    runs = np.max([sensor_checks.longest_runs(part) for part in parts if len(part) > 1] or [np.zeros(d)], axis=0)
    constant = ~(low < high)
    # A sensor that never changed may change by 1.
    low[constant], high[constant] = low[constant] - 1, high[constant] + 1
    return NormalRanges(low, high, np.where(constant, -1, np.maximum(runs, 0)).astype(np.int64))


def _latents(scorer: Scorer, items: Any) -> np.ndarray:
    """Returns the latents of evenly chosen items."""
    network = scorer.detector.network
    encode = jax.jit(lambda variables, x: network.outputs(variables, x)["z"])
    chosen = np.unique(np.linspace(0, len(items) - 1, min(len(items), drift.MAX_REFERENCE)).astype(int))
    size, found = inference.BUCKETS[-1], []
    for block in inference.blocks(scorer.detector, scorer.pixels, lazy.select(items, chosen)):
        found.append(np.asarray(encode(scorer.variables["detector"], inference.pad(block, size)))[: len(block)])
    z = np.concatenate(found)
    return z[np.isfinite(z).all(1)]
