"""Another threshold for a trained detector, in seconds: no training, the weights stay as they are."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np

from ganomaly_jax import calibration, config, data, lazy, scorer, sources
from ganomaly_jax.errors import UserError
from ganomaly_jax.scorer import Scorer


def recalibrate(
    workdir: str | os.PathLike[str],
    source: str = "",
    arrays: Any = None,
    false_positive_rate: float | None = None,
    quantile: float | None = None,
    tail: float | None = None,
    threshold: float | None = None,
    review: float | None = None,
) -> Scorer:
    """Set the threshold of a detector anew and write it back, whole or not at all.

    Args:
      workdir: a run's folder or a detector folder.
      source: images as `data.source`, whose normal ones take the place of the calibration images; empty: the
        calibration scores that the detector holds.
      arrays: images, or (images, labels), in place of a source.
      false_positive_rate, quantile, tail, threshold: one of them at most, as in `config.Evaluate`, where `tail` is the
        rate that the fit is asked for; none: as before.
      review: rate of the review band, 0 for none; None: as before.

    Returns:
      The scorer as written.

    Raises:
      UserError: no detector there, more than one way, values out of range, data without a normal image that can be
        scored, or a folder that cannot be written.
      DamagedError: the detector is damaged.
    """
    settings = _asked(false_positive_rate, quantile, tail, threshold)
    made = scorer.load(workdir)
    evaluate = dataclasses.replace(made.config.evaluate, **settings)
    if review is not None:
        evaluate = dataclasses.replace(evaluate, review=review)
    resolved = dataclasses.replace(made.config, evaluate=evaluate)
    config.check(resolved)
    if source or arrays is not None:
        normals, name = _normals(made, source, arrays)
        provenance = made.provenance | {"calibrated_on": name}
        made = scorer.make(
            made.detector, made.variables["detector"], resolved, made.pixels, _valid(made, normals), False, provenance
        )
    else:
        found = calibration.by(np.asarray(made.variables["calibration"]), evaluate)
        if scorer.TRAINED_ON in made.calibration.source:
            found = dataclasses.replace(found, source=f"{found.source}; {scorer.TRAINED_ON}")
        made = dataclasses.replace(made, config=resolved, calibration=found)
    folder = Path(workdir)
    made.save(folder / scorer.FOLDER if (folder / scorer.FOLDER).is_dir() else folder)
    return made


def _asked(
    false_positive_rate: float | None, quantile: float | None, tail: float | None, threshold: float | None
) -> dict[str, Any]:
    """The keys of `config.Evaluate` to change."""
    ways: dict[str, tuple[float | None, dict[str, Any]]] = {
        "false_positive_rate": (false_positive_rate, {"threshold_by": "rate"}),
        "quantile": (quantile, {"threshold_by": "quantile"}),
        "tail": (tail, {"threshold_by": "tail", "false_positive_rate": tail}),
        "threshold": (threshold, {"threshold_by": "given"}),
    }
    given = [name for name, (value, _) in ways.items() if value is not None]
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)} are given: wanted one way to set the threshold")
    for name in given:
        value, changes = ways[name]
        return changes if name == "tail" else changes | {name: value}
    return {}


def _normals(made: Scorer, source: str, arrays: Any) -> tuple[lazy.Images, str]:
    """The normal images of a source, and what it is called."""
    resolved = dataclasses.replace(made.config.data, source=source)
    dataset = sources.read(resolved, arrays, progress=True)
    # Fresh normal images seldom come with the class that was abnormal in the training.
    normal = data.normal_classes(dataset, resolved.abnormal if resolved.abnormal in dataset.classes else "")
    chosen = np.flatnonzero([dataset.classes[i] in normal for i in dataset.labels])
    if not len(chosen):
        raise UserError(f"{dataset.name} has no normal images: a detector is calibrated on normal ones")
    return lazy.select(dataset.images, chosen), dataset.name


def _valid(made: Scorer, normals: lazy.Images) -> lazy.Images:
    """Those that can be scored.

    Raises:
      UserError: none.
    """
    finite = np.flatnonzero(np.isfinite(made(normals)))
    if not len(finite):
        raise UserError(f"none of {len(normals)} normal images can be scored: they have NaN or infinite pixels")
    return normals if len(finite) == len(normals) else lazy.select(normals, finite)


def run(given: Any) -> int:
    """The verb `recalibrate`: parsed arguments in, what happened on standard output, the exit code back."""
    before = scorer.load(given.workdir).threshold
    made = recalibrate(
        given.workdir,
        given.data,
        None,
        given.false_positive_rate,
        given.quantile,
        given.tail,
        given.threshold,
        given.review,
    )
    print(f"threshold {before:.6g} -> {made.threshold:.6g}: {made.calibration.source}")
    print(f"written into {given.workdir}; `ganomaly evaluate` gives the figures at this threshold")
    return 0
