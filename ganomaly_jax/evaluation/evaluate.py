"""How good a detector is on its test set: metrics.json, predictions.csv, and what the report shows."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ganomaly_jax.core import atomic_files, config, validation
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.core.progress import Progress
from ganomaly_jax.data import datasets, lazy, sources, splits
from ganomaly_jax.evaluation import baselines, curves, group_metrics, pixel_metrics
from ganomaly_jax.evaluation import metrics as evaluation_metrics
from ganomaly_jax.parallel import processes
from ganomaly_jax.report import figures, modalities, run_report
from ganomaly_jax.runs import diagnostics, history, layout, resolution, run_folder, sweep
from ganomaly_jax.runs.resolution import Run
from ganomaly_jax.scoring import calibration, inference
from ganomaly_jax.scoring import groups as scoring_groups
from ganomaly_jax.scoring import scorer as scoring_scorer
from ganomaly_jax.scoring.scorer import Judgement, Scorer

# Below this AUROC a sentence says that the detector does not separate.
_SEPARATES = 0.6


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """Holds the results of an evaluation."""

    metrics: dict[str, Any]
    page: Path | None
    """`report.html`; None where matplotlib or jinja2 is not installed, or nothing could be scored."""
    misses: list[figures.Case]
    """The worst false positives and false negatives, worst first."""


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
) -> Evaluation:
    """Scores the test set of a run; writes metrics.json, predictions.csv, pictures and report.html to its folder.

    Scores use running statistics only: each depends on its own image alone. Nothing is chosen on the test data.

    Args:
      workdir: the run's folder.
      source: other data to test on, as `data.source`; empty: the test part of the run's own.
      arrays: images, or (images, labels), in place of a source.
      false_positive_rate: sets another threshold than that of the training, from the same calibration scores.
      own: the run's own data where they are loaded already; otherwise they are read from `data.source` again.
      judged: what `judge_together` said of the run's own test set; otherwise it is scored here.
      by: groups to give the figures for, a CSV file of `path,group` or a name for each image of the data.
      baselines: names of statistical baselines to compare with, as `evaluate.baselines`; None: as configured.
      combine: how they are combined, as `evaluate.combine`; None: as configured.

    Raises:
      UserError: no finished run there, or data that cannot be used.
      DamagedError: the detector is damaged.
    """
    workdir = Path(workdir)
    scorer = _at_rate(scoring_scorer.load(workdir), false_positive_rate)
    asked: dict[str, Any] = {"baselines": baselines, "combine": combine}
    asked = {name: given for name, given in asked.items() if given is not None}
    settings = dataclasses.replace(scorer.config, evaluate=dataclasses.replace(scorer.config.evaluate, **asked))
    validation.check(settings)
    scorer = dataclasses.replace(scorer, config=settings)
    return evaluate_run(workdir, scorer, _data(workdir, scorer, source, arrays, own), judged, by, own)


def judge_together(scorer: Scorer, run: Run) -> Judgement:
    """Scores the test set of a run in all processes of its training, each its part; all of them call it.

    Parts are of whole blocks, so that the scores are those of one process.

    Raises:
      UserError: images that cannot be read, also in another process.
    """

    def part() -> bytes:
        size = inference.BUCKETS[-1]
        mine = processes.local_range(-(-len(run.split.test) // size))
        chosen = run.split.test[mine.start * size : mine.stop * size]
        if not len(chosen):
            return b""
        found = scorer.judge(lazy.select(run.dataset.images, chosen), progress=processes.is_primary())
        return np.stack([found.scores, found.p_values], axis=1).astype(np.float32).tobytes()

    scores, p_values = np.frombuffer(b"".join(processes.all_gather_bytes(part)), np.float32).reshape(-1, 2).T
    return Judgement(scores, p_values, calibration.verdicts(scores, scorer.threshold, scorer.calibration.review))


def evaluate_members(
    workdir: str | os.PathLike[str], false_positive_rate: float | None = None, own: datasets.Dataset | None = None
) -> dict[str, Evaluation | None]:
    """Evaluates every member of a sweep, each in its folder.

    Returns the metrics by name, None for members that diverged.

    Args:
      workdir: folder of the sweep.
      false_positive_rate: as in `evaluate`.
      own: as in `evaluate`.

    Returns:
      What was found, by the name of the member; None for one that diverged.

    Raises:
      UserError: as `evaluate`, or the folder holds no members.
    """
    workdir = Path(workdir)
    team = sweep.read_members(workdir)
    if not team:
        raise UserError(f"{workdir} holds no members: expected the --workdir of a training with --config.members")
    if own is None:
        settings = run_folder.stored_config(workdir)
        own = sources.read((settings or config.Config()).data, progress=True)
    _check_unchanged(workdir, own)
    found: dict[str, Evaluation | None] = {}
    with Progress(len(team), 0, "member") as progress:
        for done, one in enumerate(team, 1):
            folder = sweep.member_folder(workdir, one)
            if (folder / layout.DETECTOR).is_dir():
                scorer = _at_rate(scoring_scorer.load(folder), false_positive_rate)
                found[one.name] = evaluate_run(folder, scorer, resolution.resolve(scorer.config, own))
            else:
                found[one.name] = None
            progress.update(done, one.name)
    return found


def _at_rate(scorer: Scorer, rate: float | None) -> Scorer:
    if rate is None:
        return scorer
    if not 0 < rate < 1:
        raise UserError(f"false_positive_rate={rate}: expected a rate between 0 and 1")
    asked = dataclasses.replace(scorer.config.evaluate, threshold_by="rate", false_positive_rate=rate)
    found = calibration.by(np.asarray(scorer.variables["calibration"]), asked, scorer.words.items)
    return dataclasses.replace(scorer, calibration=dataclasses.replace(found, groups=scorer.calibration.groups))


def evaluate_run(
    workdir: Path,
    scorer: Scorer,
    this: Run,
    judged: Judgement | None = None,
    by: scoring_groups.GroupSource | None = None,
    own: datasets.Dataset | None = None,
) -> Evaluation:
    """Scores the test part of a resolved run and writes what was found, as `evaluate` does, into the run's folder.

    Args:
      workdir: the run's folder.
      scorer: the detector.
      this: the run; its test part is scored.
      judged: as in `evaluate`.
      by: as in `evaluate`.
      own: the run's own data, where `this` holds other data and baselines are configured.
    """
    images = lazy.select(this.dataset.images, this.split.test)
    if not len(images):
        raise UserError(f"the test set is empty: give --data with {scorer.words.items} to test on")
    names = None
    if by is not None:
        names = scoring_groups.of_images(by, this.dataset.paths, this.config.data.source)[this.split.test]
    judged = scorer.judge(images, progress=True) if judged is None else judged
    labels = this.split.labels
    paths = [this.dataset.paths[i] for i in this.split.test]
    values = _metrics(this, scorer, judged, labels)
    values |= pixel_metrics.figures(scorer, images, paths, labels)
    values |= _beside(workdir, this, scorer, judged, images, own)
    if names is not None:
        valid = np.isfinite(judged.scores)
        seed = this.config.seed
        values["groups"] = group_metrics.figures(scorer, judged.scores[valid], labels[valid], names[valid], seed)
        judged = scoring_groups.judge_by(scorer, judged, names)
    records = list(history.read(workdir / layout.HISTORY))
    values["health"] = {name: measured[-1] for name, (_, measured) in diagnostics.curves(records).items()}
    values["warnings"] += diagnostics.problems(records, scorer.config.model.latent_size)
    run_folder.write_json(workdir / layout.METRICS, values)
    reasons = [scorer.words.not_finite if verdict == calibration.INVALID else "" for verdict in judged.verdicts]
    write_predictions(workdir / layout.PREDICTIONS, paths, labels.tolist(), judged, reasons)
    misses = _misses(this, scorer, judged, labels)
    written = _report(workdir, this, scorer, judged, labels, misses, values)
    return Evaluation(values, written, misses)


def _beside(
    workdir: Path, this: Run, scorer: Scorer, judged: Judgement, images: lazy.Images, own: datasets.Dataset | None
) -> dict[str, Any]:
    """Returns the entries of `metrics.json` about the baselines that the configuration requests."""
    asked = scorer.config.evaluate
    if not asked.baselines:
        return {}
    # Other test data come without the run's own, which the baselines are fitted to.
    mine = this if len(this.split.train) else _data(workdir, scorer, "", None, own)
    chosen = mine.split.calibration if len(mine.split.calibration) else mine.split.train
    found = baselines.compare(
        scorer,
        lazy.select(mine.dataset.images, mine.split.train),
        lazy.select(mine.dataset.images, chosen),
        images,
        this.split.labels,
        asked.baselines,
        asked.combine,
        asked.components,
        seed=this.config.seed,
        scores=judged.scores,
    )
    return {"baselines": found.figures, "combinations": found.combinations, "baselines_notes": found.notes}


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
    split = splits.Split(none, none, test, labels, f"all images of {source or 'the arrays'}")
    return Run(dataclasses.replace(settings, data=resolved), dataset, split, (), scorer.detector.network)


def _check_unchanged(workdir: Path, dataset: datasets.Dataset) -> None:
    before, now = run_folder.stored_environment(workdir).get("data_hash"), datasets.content_hash(dataset)
    advice = "Name them with --data to test on all of them as they are now"
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
    """Returns plain sentences about what a user must not overlook."""
    said, items = [], scorer.words.items
    auroc = values["auroc"]
    if auroc is None:
        missing = "anomalous" if not values["n_anomalous"] else "normal"
        said.append(f"AUROC and average precision are not defined: the test set has no {missing} {items}.")
    elif auroc < _SEPARATES:
        said.append(
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
            said.append(
                f"{flagged} of {n} {name} {items} are flagged: {flagged / n:.1%}, not the promised {rate:.1%}. "
                f"They differ from the {items} that the threshold was set on; recalibrate it on {items} like these."
            )
    if values["n_invalid"]:
        invalid = f"{values['n_invalid']} test {items} have {scorer.words.not_finite}"
        said.append(f"{invalid} and are left out of all figures.")
    if this.dataset.problems:
        path, reason = this.dataset.problems[0]
        said.append(f"{len(this.dataset.problems)} files could not be read, such as {path}: {reason}")
    return said


def write_predictions(
    path: Path, paths: Sequence[str], labels: Sequence[int | None], judged: Judgement, reasons: Sequence[str]
) -> None:
    """Writes `predictions.csv`, one row per item.

    The columns are path, label (0 normal, 1 anomalous, empty if unknown), score, p_value, verdict, and the reason of a
    verdict `invalid`, whose score and p-value are empty.

    The columns are path, label (0 normal, 1 anomalous, empty where unknown), score, p_value, verdict, and the reason of
    a verdict `invalid`, whose score and p-value are empty.

    Raises:
      UserError: it cannot be written.
    """
    text = io.StringIO()
    # A hostile file name may hold bytes that are no text.
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("path", "label", "score", "p_value", "verdict", "reason"))
    for name, label, score, p_value, verdict, reason in zip(
        paths, labels, judged.scores.tolist(), judged.p_values.tolist(), judged.verdicts, reasons, strict=True
    ):
        numbers = ("", "") if not math.isfinite(score) else (f"{score:.9g}", f"{p_value:.6g}")
        shown = name.encode("utf-8", "backslashreplace").decode("utf-8")
        rows.writerow((shown, "" if label is None else label, *numbers, verdict, reason))
    atomic_files.write_text(path, text.getvalue())


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
    this: Run,
    scorer: Scorer,
    judged: Judgement,
    labels: np.ndarray,
    misses: list[figures.Case],
    values: dict[str, Any],
) -> Path | None:
    if not np.isfinite(judged.scores).any():
        return None
    examples = workdir / layout.PICTURES / "examples.png"
    try:
        modalities.of(scorer).examples(examples, modalities.Tested(this, scorer, judged, labels))
        scored = curves.scored(labels, judged.scores, scorer.threshold)
        return run_report.write(workdir, misses, scored, scorer.residual_max)
    except ImportError as error:
        values["warnings"].append(str(error))
        return None
