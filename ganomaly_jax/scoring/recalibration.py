"""Setting a new threshold for a trained detector, without training."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np

from ganomaly_jax.core import calls, sealed_folder, validation
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data import datasets, lazy, sources, splits
from ganomaly_jax.data.images.value_range import Range
from ganomaly_jax.runs import layout, lock, resolution, run_folder
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
    by: groups.GroupSource | None = None,
    value_range: Range | None = None,
) -> Scorer:
    """Recomputes the threshold of a detector and writes it back atomically.

    Args:
      workdir: a run's folder or a detector folder.
      source: data as in `data.source`, whose normal items replace the calibration items; empty: the stored calibration
        scores are used.
      arrays: images, or (images, labels), in place of a source.
      false_positive_rate: the rate that sets the threshold, as in `config.Evaluate`. At most one of this and the next
        three is given; with none, the rule stays as it was.
      quantile: the quantile of the calibration scores that becomes the threshold.
      tail: the false-positive rate to which a fitted tail is extrapolated.
      threshold: the threshold itself.
      review: the rate of the review band, 0 for none; None: as before.
      by: groups that get thresholds of their own: a CSV file with the columns path and group, or one name per image of
        the data (of the run's own data if there is no other); None: the groups stay, unless there are new normal items.
      value_range: range of floating-point images for a detector of integer pixels, as in calling a `Scorer`.

    Returns:
      The scorer as written.

    Raises:
      UserError: there is no detector, more than one rule or a value out of range was given, the data hold no normal
        item that can be scored, or the folder cannot be written.
      DamagedError: the detector is damaged.
    """
    calls.expect_folder(workdir, "gj.recalibrate('runs/mine', false_positive_rate=0.001)")
    arrays_call = "gj.recalibrate('runs/mine', arrays=images)"
    calls.expect(calls.PATH, f"a folder or file of normal data; arrays are {arrays_call}", source=source)
    rules = {"false_positive_rate": false_positive_rate, "quantile": quantile, "tail": tail, "threshold": threshold}
    calls.expect((*calls.NUMBER, type(None)), "a number", **rules, review=review)
    settings = _threshold_settings(false_positive_rate, quantile, tail, threshold)
    with lock.held("recalibrate", workdir):
        return _recalibrate(Path(workdir), source, arrays, settings, review, by, value_range)


def _recalibrate(
    workdir: Path,
    source: str,
    arrays: Any,
    settings: dict[str, Any],
    review: float | None,
    by: groups.GroupSource | None,
    value_range: Range | None,
) -> Scorer:
    detector = scorer.load(workdir).with_range(value_range)
    items = detector.words.items
    evaluate = dataclasses.replace(detector.config.evaluate, **settings)
    if review is not None:
        evaluate = dataclasses.replace(evaluate, review=review)
    resolved = dataclasses.replace(detector.config, evaluate=evaluate)
    validation.check_stored(resolved)
    if source or arrays is not None:
        dataset, chosen = _normals(detector, source, arrays)
        scores = detector(lazy.select(dataset.images, chosen))
        chosen, scores = chosen[np.isfinite(scores)], scores[np.isfinite(scores)]
        if not len(chosen):
            raise UserError(
                f"no normal {detector.words.item} of {dataset.name} can be scored: they have "
                f"{detector.words.not_finite}"
            )
        provenance = detector.provenance | {"calibrated_on": dataset.name}
        normals = lazy.select(dataset.images, chosen)
        detector = build.calibrated(dataclasses.replace(detector, config=resolved, provenance=provenance), normals)
        sentence = f"{detector.calibration.source}; from {dataset.name}, not checked for items used in training"
        detector = dataclasses.replace(detector, calibration=dataclasses.replace(detector.calibration, source=sentence))
        if by is not None:
            detector = _grouped(detector, scores, groups.of_images(by, dataset.paths, source)[chosen])
    else:
        result = calibration.by(np.asarray(detector.variables["calibration"]), evaluate, items)
        if build.TRAINED_ON in detector.calibration.source:
            result = dataclasses.replace(result, source=f"{result.source}; {items} {build.TRAINED_ON}")
        result = dataclasses.replace(result, groups=detector.calibration.groups)
        detector = dataclasses.replace(detector, config=resolved, calibration=result)
        if by is not None:
            run = resolution.resolve(detector.config, progress=True)
            before = run_folder.stored_environment(workdir).get("data_hash")
            if before is None:
                raise UserError(f"{workdir} is not a run's folder: pass normal items with --data")
            now = datasets.content_hash(run.dataset)
            datasets.check_unchanged(run.dataset.name, before, now, "Pass normal items with --data")
            scores = detector(lazy.select(run.dataset.images, run.split.calibration))
            names = groups.of_images(by, run.dataset.paths, run.config.data.source)[run.split.calibration]
            detector = _grouped(detector, scores, names)
    _check_groups(detector)
    provenance = detector.provenance | {scorer.RECALIBRATED: True}
    detector = dataclasses.replace(detector, provenance=provenance, value_range=None)
    detector.save(workdir / layout.DETECTOR if sealed_folder.exists(workdir / layout.DETECTOR) else workdir)
    return detector


def _threshold_settings(
    false_positive_rate: float | None, quantile: float | None, tail: float | None, threshold: float | None
) -> dict[str, Any]:
    """Returns the values of `config.Evaluate` that change.

    Raises:
      UserError: more than one rule is given.
    """
    rules: dict[str, tuple[float | None, dict[str, Any]]] = {
        "false_positive_rate": (false_positive_rate, {"threshold_by": "rate"}),
        "quantile": (quantile, {"threshold_by": "quantile"}),
        "tail": (tail, {"threshold_by": "tail", "false_positive_rate": tail}),
        "threshold": (threshold, {"threshold_by": "given"}),
    }
    names = [name for name, (value, _) in rules.items() if value is not None]
    if len(names) > 1:
        raise UserError(f"{' and '.join(names)} exclude each other: expected one way to set the threshold")
    for name in names:
        value, changes = rules[name]
        return changes if name == "tail" else changes | {name: value}
    return {}


def _grouped(detector: Scorer, scores: np.ndarray, names: np.ndarray) -> Scorer:
    scores_by_group = groups.calibrated(scores, names)
    if not scores_by_group:
        raise UserError("no calibration image is in a group: each group needs some to set its threshold")
    return dataclasses.replace(detector, calibration=dataclasses.replace(detector.calibration, groups=scores_by_group))


def _check_groups(detector: Scorer) -> None:
    for name in detector.calibration.groups:
        try:
            calibration.of_group(detector.calibration, name, detector.config.evaluate)
        except UserError as error:
            raise UserError(f"group {name}: {error}") from None


def _normals(detector: Scorer, source: str, arrays: Any) -> tuple[datasets.Dataset, np.ndarray]:
    """Returns a data set and the indices of its normal items."""
    resolved = detector.reading(source) if arrays is None else dataclasses.replace(detector.config.data, source=source)
    dataset = sources.read(resolved, arrays, progress=True)
    # New normal images seldom come with the class that was abnormal in training.
    normal = splits.normal_classes(dataset, resolved.abnormal if resolved.abnormal in dataset.classes else "")
    return dataset, np.flatnonzero([dataset.classes[i] in normal for i in dataset.labels])
