"""Evaluating a detector on its test set: metrics.json, predictions.csv, pictures and report.html."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np

from ganomaly_jax.core import calls, config, sealed_folder, validation
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.core.progress import Progress
from ganomaly_jax.data import datasets, lazy, sources, splits
from ganomaly_jax.data.images.value_range import UNIT, Range, images_to_unit
from ganomaly_jax.evaluation import baselines, curves, group_metrics, pixel_metrics, predictions
from ganomaly_jax.evaluation import metrics as evaluation_metrics
from ganomaly_jax.parallel import processes
from ganomaly_jax.report import figures, modalities, run_report
from ganomaly_jax.runs import diagnostics, history, layout, lock, outputs, resolution, run_folder, sweep
from ganomaly_jax.runs.resolution import Run
from ganomaly_jax.scoring import calibration, inference
from ganomaly_jax.scoring import groups as scoring_groups
from ganomaly_jax.scoring import scorer as scoring_scorer
from ganomaly_jax.scoring.judgement import Judgement
from ganomaly_jax.scoring.scorer import Scorer

# Below this AUROC a warning says that the detector does not separate the classes.
_SEPARATES = 0.6


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """Holds the results of an evaluation."""

    metrics: dict[str, Any]
    """The contents of metrics.json."""
    folder: Path
    """The folder with the results."""
    page: Path | None
    """`report.html`; None if matplotlib or jinja2 is not installed, or nothing could be scored."""
    misses: list[figures.Case]
    """The worst false positives, then the worst false negatives, the worst first."""


def evaluate(
    workdir: str | os.PathLike[str],
    source: str = "",
    arrays: Any = None,
    false_positive_rate: float | None = None,
    own: datasets.Dataset | None = None,
    judged: Judgement | None = None,
    by: scoring_groups.GroupSource | None = None,
    baselines: str | None = None,
    combine: str | None = None,
    out: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    value_range: Range | None = None,
) -> Evaluation:
    """Evaluates a run and writes metrics.json, predictions.csv, pictures and report.html.

    Results on the run's own test set are written to the run's folder, those on other data to `evaluations/NAME` in it,
    named after the data (`arrays` for arrays).

    Scores use running statistics, so that each depends on its own item alone. Nothing is chosen on the test data.

    Args:
      workdir: the run's folder.
      source: other data to test on, as in `data.source`; empty: the test part of the run's own data.
      arrays: images, or (images, labels), in place of a source.
      false_positive_rate: sets another threshold than the training did, from the same calibration scores.
      own: the run's own data if they are loaded already; None: they are read from `data.source` again.
      judged: the result of `judge_together` on the run's own test set; None: it is scored here.
      by: groups to compute metrics for: a CSV file with the columns path and group, or one name per image of the data.
      baselines: names of statistical baselines to compare with, as in `evaluate.baselines`; None: as configured.
      combine: how they are combined, as in `evaluate.combine`; None: as configured.
      out: another folder for the results.
      overwrite: whether results of other data, or in `out`, may be overwritten.
      value_range: range of floating-point images for a detector of integer pixels, as in calling a `Scorer`.

    Returns:
      The evaluation.

    Raises:
      UserError: the folder holds no finished run, the data cannot be used, or the results would overwrite others.
      DamagedError: the detector is damaged.
    """
    calls.expect_folder(workdir, "gj.evaluate('runs/mine')")
    wanted = "a folder or file of data; arrays are gj.evaluate('runs/mine', arrays=(images, labels))"
    calls.expect(calls.PATH, wanted, source=source)
    workdir = Path(workdir)
    scorer = _at_rate(scoring_scorer.load(workdir), false_positive_rate)
    changes: dict[str, Any] = {k: v for k, v in (("baselines", baselines), ("combine", combine)) if v is not None}
    settings = dataclasses.replace(scorer.config, evaluate=dataclasses.replace(scorer.config.evaluate, **changes))
    validation.check_stored(settings)
    scorer = dataclasses.replace(scorer, config=settings)
    folder = workdir
    if out is not None or source or arrays is not None:
        folder = outputs.evaluation_folder(workdir, os.fspath(source)) if out is None else Path(out)
        outputs.refuse_existing([folder], overwrite)
    with lock.held("evaluate", folder, create=True):
        scorer, this = scorer.with_range(value_range), _data(workdir, scorer, source, arrays, own)
        if scorer.value_range is not None:
            unit = images_to_unit(this.dataset.images, scorer.value_range)
            this = dataclasses.replace(this, dataset=dataclasses.replace(this.dataset, images=unit))
            scorer = scorer.with_range(UNIT)
        return evaluate_run(workdir, scorer, this, judged, by, own, folder)


def judge_together(scorer: Scorer, run: Run) -> Judgement:
    """Judges the test set of a run in all processes of its training, each one part of it; all processes must call it.

    Parts consist of whole blocks, so that the scores equal those of a single process.

    Args:
      scorer: the detector.
      run: the run; its test part is judged.

    Returns:
      The judgement of the whole test part, the same in all processes.

    Raises:
      UserError: an item cannot be read, in this or another process.
    """

    def part() -> bytes:
        size = inference.BUCKETS[-1]
        mine = processes.local_range(-(-len(run.split.test) // size))
        chosen = run.split.test[mine.start * size : mine.stop * size]
        if not len(chosen):
            return b""
        judged = scorer.judge(lazy.select(run.dataset.images, chosen), progress=processes.is_primary())
        return np.stack([judged.scores, judged.p_values], axis=1).astype(np.float32).tobytes()

    scores, p_values = np.frombuffer(b"".join(processes.all_gather_bytes(part)), np.float32).reshape(-1, 2).T
    return Judgement(scores, p_values, calibration.verdicts(scores, scorer.threshold, scorer.calibration.review))


def evaluate_members(
    workdir: str | os.PathLike[str], false_positive_rate: float | None = None, own: datasets.Dataset | None = None
) -> dict[str, Evaluation | None]:
    """Evaluates every member of a sweep, each in its folder.

    Args:
      workdir: the folder of the sweep.
      false_positive_rate: as in `evaluate`.
      own: as in `evaluate`.

    Returns:
      The evaluations by the name of the member; None for a member that diverged.

    Raises:
      UserError: as in `evaluate`, or the folder holds no members.
    """
    calls.expect_folder(workdir, "gj.evaluate_members('runs/table')")
    workdir = Path(workdir)
    members = sweep.read_members(workdir)
    if not members:
        raise UserError(f"{workdir} holds no members: expected the --workdir of a training with --config.members")
    if own is None:
        settings = run_folder.stored_config(workdir)
        own = sources.read((settings or config.Config()).data, progress=True)
    _check_unchanged(workdir, own)
    evaluations: dict[str, Evaluation | None] = {}
    folders = [sweep.member_folder(workdir, member) for member in members]
    with lock.held("evaluate", workdir, *folders), Progress(len(members), 0, "member") as progress:
        for done, (member, folder) in enumerate(zip(members, folders, strict=True), 1):
            if sealed_folder.exists(folder / layout.DETECTOR):
                scorer = _at_rate(scoring_scorer.load(folder), false_positive_rate)
                evaluations[member.name] = evaluate_run(folder, scorer, resolution.resolve(scorer.config, own))
            else:
                evaluations[member.name] = None
            progress.update(done, member.name)
    return evaluations


def _at_rate(scorer: Scorer, rate: float | None) -> Scorer:
    if rate is None:
        return scorer
    calls.expect(calls.NUMBER, "a rate between 0 and 1", false_positive_rate=rate)
    if not 0 < rate < 1:
        raise UserError(f"false_positive_rate={rate}: expected a rate between 0 and 1")
    settings = dataclasses.replace(scorer.config.evaluate, threshold_by="rate", false_positive_rate=rate)
    at_rate = calibration.by(np.asarray(scorer.variables["calibration"]), settings, scorer.words.items)
    return dataclasses.replace(scorer, calibration=dataclasses.replace(at_rate, groups=scorer.calibration.groups))


def evaluate_run(
    workdir: Path,
    scorer: Scorer,
    this: Run,
    judged: Judgement | None = None,
    by: scoring_groups.GroupSource | None = None,
    own: datasets.Dataset | None = None,
    out: Path | None = None,
) -> Evaluation:
    """Evaluates a resolved run as `evaluate` does.

    Args:
      workdir: the run's folder.
      scorer: the detector.
      this: the run; its test part is scored.
      judged: as in `evaluate`.
      by: as in `evaluate`.
      own: the run's own data, needed if `this` holds other data and baselines are configured; None: they are read.
      out: the folder to write to; None: that of the run.

    Returns:
      The evaluation.

    Raises:
      UserError: as in `evaluate`.
    """
    out = workdir if out is None else out
    images = lazy.select(this.dataset.images, this.split.test)
    if not len(images):
        raise UserError(f"the test set is empty: pass {scorer.words.items} to test on with --data")
    names = None
    if by is not None:
        names = scoring_groups.of_images(by, this.dataset.paths, this.config.data.source)[this.split.test]
    judged = scorer.judge(images, progress=True) if judged is None else judged
    labels = this.split.labels
    paths, times = [this.dataset.paths[i] for i in this.split.test], this.dataset.times_of(this.split.test)
    values = _metrics(this, scorer, judged, labels)
    values |= pixel_metrics.figures(scorer, images, paths, labels)
    values |= _baseline_metrics(workdir, this, scorer, judged, images, own)
    if names is not None:
        valid, seed = np.isfinite(judged.scores), this.config.seed
        values["groups"] = group_metrics.figures(scorer, judged.scores[valid], labels[valid], names[valid], seed)
        judged = scoring_groups.judge_by(scorer, judged, names)
    records = list(history.read(workdir / layout.HISTORY))
    values["health"] = {name: measured[-1] for name, (_, measured) in diagnostics.curves(records).items()}
    values["warnings"] += diagnostics.problems(records, scorer.config.model.latent_size)
    run_folder.write_json(out / layout.METRICS, values)
    reasons = [scorer.words.not_finite if verdict == calibration.INVALID else "" for verdict in judged.verdicts]
    predictions.write(out / layout.PREDICTIONS, paths, labels.tolist(), judged, reasons, times)
    misses = _misses(this, scorer, judged, labels)
    written = _report(workdir, out, this, scorer, judged, labels, misses, values)
    return Evaluation(values, out, written, misses)


def _baseline_metrics(
    workdir: Path, this: Run, scorer: Scorer, judged: Judgement, images: lazy.Images, own: datasets.Dataset | None
) -> dict[str, Any]:
    """Returns the entries of `metrics.json` about the configured baselines; empty if there are none."""
    settings = scorer.config.evaluate
    if not settings.baselines:
        return {}
    # Baselines are fitted to the run's own training part, which a run on other test data does not have.
    training = this if len(this.split.train) else _data(workdir, scorer, "", None, own)
    chosen = training.split.calibration if len(training.split.calibration) else training.split.train
    comparison = baselines.compare(
        scorer,
        lazy.select(training.dataset.images, training.split.train),
        lazy.select(training.dataset.images, chosen),
        images,
        this.split.labels,
        settings.baselines,
        settings.combine,
        settings.components,
        seed=this.config.seed,
        scores=judged.scores,
    )
    return {
        "baselines": comparison.figures,
        "combinations": comparison.combinations,
        "baselines_notes": comparison.notes,
    }


def _data(workdir: Path, scorer: Scorer, source: str, arrays: Any, own: datasets.Dataset | None) -> Run:
    settings = scorer.config
    if not source and arrays is None:
        this = resolution.resolve(settings, own, progress=True)
        _check_unchanged(workdir, this.dataset)
        return this
    resolved = scorer.reading(source) if arrays is None else dataclasses.replace(settings.data, source=source)
    dataset = sources.load(resolved, arrays, True)
    normal = splits.normal_classes(dataset, settings.data.abnormal)
    parts = dataset.parts
    test = np.arange(len(dataset.images)) if parts is None or not (parts == 1).any() else np.flatnonzero(parts == 1)
    labels = np.array([dataset.classes[i] not in normal for i in dataset.labels[test]], np.int64)
    none = np.array([], np.int64)
    split = splits.Split(none, none, test, labels, f"{len(test)} {scorer.words.items} of {source or 'the arrays'}")
    return Run(dataclasses.replace(settings, data=resolved), dataset, split, (), scorer.detector.network)


def _check_unchanged(workdir: Path, dataset: datasets.Dataset) -> None:
    before, now = run_folder.stored_environment(workdir).get("data_hash"), datasets.content_hash(dataset)
    advice = "Pass them with --data to test on all of them as they are now"
    datasets.check_unchanged(dataset.name, before, now, advice)


def _metrics(this: Run, scorer: Scorer, judged: Judgement, labels: np.ndarray) -> dict[str, Any]:
    valid = np.isfinite(judged.scores)
    values: dict[str, Any] = evaluation_metrics.summary(labels[valid], judged.scores[valid], scorer.threshold)
    classes = this.dataset.labels[this.split.test]
    per_class = {}
    for index in np.unique(classes[labels == 1]):
        chosen = valid & ((labels == 0) | (classes == index))
        per_class[this.dataset.classes[index]] = evaluation_metrics.summary(
            labels[chosen], judged.scores[chosen], None
        )["auroc"]
    values |= {
        "per_class": per_class,
        "threshold": scorer.threshold,
        "threshold_source": scorer.calibration.source,
        "promised_false_positive_rate": scorer.calibration.rate,
        "n_invalid": int((~valid).sum()),
        "n_unreadable": len(this.dataset.problems),
        "seed": this.config.seed,
        "step": scorer.provenance.get("step"),
        "score": scorer.config.evaluate.score,
        "protocol": f"{this.split.protocol}; running statistics, last step",
    }
    values["items"] = scorer.words.items
    values["warnings"] = _warnings(this, scorer, judged, labels, values)
    return values


def _warnings(this: Run, scorer: Scorer, judged: Judgement, labels: np.ndarray, values: dict[str, Any]) -> list[str]:
    """Returns the warnings of the evaluation, a sentence each."""
    warnings, items = [], scorer.words.items
    auroc = values["auroc"]
    if auroc is None:
        missing = "anomalous" if not values["n_anomalous"] else "normal"
        warnings.append(f"AUROC and average precision are undefined: the test set has no {missing} {items}.")
    elif auroc < _SEPARATES:
        warnings.append(
            f"The detector does not separate anomalous from normal {items}: AUROC {auroc:.3f} (chance is 0.5). "
            "Do not use it as it is."
        )
    rate, size = scorer.calibration.rate, len(scorer.variables["calibration"])
    parts = {"normal test": judged.scores[labels == 0]}
    if len(this.split.calibration):
        parts["calibration"] = scorer(lazy.select(this.dataset.images, this.split.calibration))
    for name, scores in parts.items():
        flagged, n = int((scores > scorer.threshold).sum()), len(scores)
        if n and flagged / n > calibration.allowed(rate, n, size):
            warnings.append(
                f"{flagged} of {n} {name} {items} are flagged: {flagged / n:.1%}, not the promised {rate:.1%}. "
                f"They differ from the {items} that the threshold was set on: recalibrate on {items} like these."
            )
    if values["n_invalid"]:
        invalid = f"{values['n_invalid']} test {items} have {scorer.words.not_finite}"
        warnings.append(f"{invalid} and are left out of all metrics.")
    if this.dataset.problems:
        path, reason = this.dataset.problems[0]
        warnings.append(f"{len(this.dataset.problems)} files could not be read, such as {path}: {reason}")
    return warnings


def _misses(this: Run, scorer: Scorer, judged: Judgement, labels: np.ndarray) -> list[figures.Case]:
    scores = np.where(np.isfinite(judged.scores), judged.scores, np.nan)
    most = this.config.evaluate.worst
    false_positives = [i for i in np.argsort(-scores) if labels[i] == 0 and scores[i] > scorer.threshold][:most]
    false_negatives = [i for i in np.argsort(scores) if labels[i] == 1 and scores[i] <= scorer.threshold][:most]
    chosen = [*false_positives, *false_negatives]
    if not chosen:
        return []
    x, x_hat = scorer.reconstruct(this.dataset.images[this.split.test[chosen]])
    draw = modalities.of(scorer).case(scorer)
    return [
        figures.Case(
            name=this.dataset.paths[this.split.test[i]],
            kind="false negative" if labels[i] else "false positive",
            x=x[k],
            x_hat=x_hat[k],
            score=float(judged.scores[i]),
            p_value=float(judged.p_values[i]),
            threshold=scorer.threshold,
            verdict=judged.verdicts[i],
            label=int(labels[i]),
            draw=draw,
        )
        for k, i in enumerate(chosen)
    ]


def _report(
    workdir: Path,
    out: Path,
    this: Run,
    scorer: Scorer,
    judged: Judgement,
    labels: np.ndarray,
    misses: list[figures.Case],
    values: dict[str, Any],
) -> Path | None:
    if not np.isfinite(judged.scores).any():
        return None
    examples = out / layout.PICTURES / "examples.png"
    try:
        modalities.of(scorer).examples(examples, modalities.Tested(this, scorer, judged, labels))
        scored = curves.scored(labels, judged.scores, scorer.threshold)
        return run_report.write(workdir, misses, scored, scorer.residual_max, out)
    except ImportError as error:
        values["warnings"].append(str(error))
        return None
