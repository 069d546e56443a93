"""Another threshold for a trained detector, in seconds: no training, the weights stay as they are."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np

from ganomaly_jax.core import validation
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data import datasets, lazy, sources, splits
from ganomaly_jax.runs import layout, resolution, run_folder
from ganomaly_jax.scoring import build, calibration, groups, scorer
from ganomaly_jax.scoring.scorer import Scorer


def recalibrate(
    workdir: str | os.PathLike[str],
    source: str = "",
    arrays: Any = None,
    false_positive_rate: float | None = None,
    quantile: float | None = None,
    tail: float | None = None,
    threshold: float | None = None,
    review: float | None = None,
    by: groups.Given | None = None,
) -> Scorer:
    """Recomputes the threshold of a detector and writes it back atomically.

    Args:
      workdir: a run's folder or a detector folder.
      source: images as `data.source`, whose normal ones take the place of the calibration images; empty: the
        calibration scores that the detector holds.
      arrays: images, or (images, labels), in place of a source.
      false_positive_rate, quantile, tail, threshold: one of them at most, as in `config.Evaluate`, where `tail` is the
        rate that the fit is asked for; none: as before.
      review: rate of the review band, 0 for none; None: as before.
      by: groups that get thresholds of their own, a CSV file of `path,group` or a name for each image of the data (the
        run's own where no other is given); None: those there were, unless there are new normal images.

    Returns:
      The scorer as written.

    Raises:
      UserError: no detector there, more than one way, values out of range, data without a normal image that can be
        scored, or a folder that cannot be written.
      DamagedError: the detector is damaged.
    """
    settings = _asked(false_positive_rate, quantile, tail, threshold)
    made = scorer.load(workdir)
    items = made.words.items
    evaluate = dataclasses.replace(made.config.evaluate, **settings)
    if review is not None:
        evaluate = dataclasses.replace(evaluate, review=review)
    resolved = dataclasses.replace(made.config, evaluate=evaluate)
    validation.check(resolved)
    if source or arrays is not None:
        dataset, chosen = _normals(made, source, arrays)
        scores = made(lazy.select(dataset.images, chosen))
        chosen, scores = chosen[np.isfinite(scores)], scores[np.isfinite(scores)]
        if not len(chosen):
            raise UserError(
                f"no normal {made.words.item} of {dataset.name} can be scored: they have {made.words.not_finite}"
            )
        provenance = made.provenance | {"calibrated_on": dataset.name}
        normals = lazy.select(dataset.images, chosen)
        made = build.calibrated(dataclasses.replace(made, config=resolved, provenance=provenance), normals)
        source_of = f"{made.calibration.source}; they are of {dataset.name}: whether any was trained on is not checked"
        made = dataclasses.replace(made, calibration=dataclasses.replace(made.calibration, source=source_of))
        if by is not None:
            made = _grouped(made, scores, groups.of_images(by, dataset.paths, source)[chosen])
    else:
        found = calibration.by(np.asarray(made.variables["calibration"]), evaluate, items)
        if build.TRAINED_ON in made.calibration.source:
            found = dataclasses.replace(found, source=f"{found.source}; {items} {build.TRAINED_ON}")
        found = dataclasses.replace(found, groups=made.calibration.groups)
        made = dataclasses.replace(made, config=resolved, calibration=found)
        if by is not None:
            this = resolution.resolve(made.config, progress=True)
            before = run_folder.stored_environment(Path(workdir)).get("data_hash")
            if before is None:
                raise UserError(f"{workdir} is not the folder of a run: name normal items with --data")
            now = datasets.content_hash(this.dataset)
            datasets.check_unchanged(this.dataset.name, before, now, "Name normal ones with --data")
            scores = made(lazy.select(this.dataset.images, this.split.calibration))
            names = groups.of_images(by, this.dataset.paths, this.config.data.source)[this.split.calibration]
            made = _grouped(made, scores, names)
    _check_groups(made)
    made = dataclasses.replace(made, provenance=made.provenance | {scorer.RECALIBRATED: True})
    folder = Path(workdir)
    made.save(folder / layout.DETECTOR if (folder / layout.DETECTOR).is_dir() else folder)
    return made


def _asked(
    false_positive_rate: float | None, quantile: float | None, tail: float | None, threshold: float | None
) -> dict[str, Any]:
    """Returns the keys of `config.Evaluate` that change."""
    ways: dict[str, tuple[float | None, dict[str, Any]]] = {
        "false_positive_rate": (false_positive_rate, {"threshold_by": "rate"}),
        "quantile": (quantile, {"threshold_by": "quantile"}),
        "tail": (tail, {"threshold_by": "tail", "false_positive_rate": tail}),
        "threshold": (threshold, {"threshold_by": "given"}),
    }
    given = [name for name, (value, _) in ways.items() if value is not None]
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)} are given: expected one way to set the threshold")
    for name in given:
        value, changes = ways[name]
        return changes if name == "tail" else changes | {name: value}
    return {}


def _grouped(made: Scorer, scores: np.ndarray, names: np.ndarray) -> Scorer:
    found = groups.calibrated(scores, names)
    if not found:
        raise UserError("no calibration image is in a group: each group needs some, to set its threshold by")
    return dataclasses.replace(made, calibration=dataclasses.replace(made.calibration, groups=found))


def _check_groups(made: Scorer) -> None:
    for name in made.calibration.groups:
        try:
            calibration.of_group(made.calibration, name, made.config.evaluate)
        except UserError as error:
            raise UserError(f"group {name}: {error}") from None


def _normals(made: Scorer, source: str, arrays: Any) -> tuple[datasets.Dataset, np.ndarray]:
    """Returns a data set and which of its items are normal."""
    resolved = made.reading(source) if arrays is None else dataclasses.replace(made.config.data, source=source)
    dataset = sources.read(resolved, arrays, progress=True)
    # Fresh normal images seldom come with the class that was abnormal in the training.
    normal = splits.normal_classes(dataset, resolved.abnormal if resolved.abnormal in dataset.classes else "")
    return dataset, np.flatnonzero([dataset.classes[i] in normal for i in dataset.labels])
