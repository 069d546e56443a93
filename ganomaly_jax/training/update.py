"""Updates of a trained detector with new normal images or rows, kept only if the new detector is not worse."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ganomaly_jax.core import atomic_folders, calls, config, config_values, sealed_folder, validation
from ganomaly_jax.core.config import Config
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data import datasets, lazy, modalities, sources, splits
from ganomaly_jax.data.datasets import Dataset
from ganomaly_jax.data.formats import mixture
from ganomaly_jax.data.formats.mixture import Part
from ganomaly_jax.data.splits import Split
from ganomaly_jax.evaluation import acceptance
from ganomaly_jax.runs import checkpoint as runs_checkpoint
from ganomaly_jax.runs import layout, lock, resolution, run_folder, sealed_pytree, sweep
from ganomaly_jax.runs.resolution import Run
from ganomaly_jax.scoring import scorer as scoring_scorer
from ganomaly_jax.scoring.scorer import Scorer
from ganomaly_jax.training import trainer
from ganomaly_jax.training.state import Log

# The share of old images among the training images of an update, and its length as a share of the old run's steps.
REPLAY, LENGTH = 0.5, 0.1


@dataclasses.dataclass(frozen=True, eq=False)
class Update:
    """The result of an update."""

    kept: bool
    """Whether the new detector was accepted. If not, it is in the folder `refused` of the new run."""
    reasons: tuple[str, ...]
    """Why it was refused, one sentence per reason; empty if it was accepted."""
    lines: tuple[str, ...]
    """The comparison of the old and the new detector as text, line by line."""
    figures: dict[str, Any]
    """The comparison as numbers, see `acceptance.compare`."""


@dataclasses.dataclass(frozen=True, eq=False)
class _Parent:
    """The finished run that is updated, with its data."""

    scorer: Scorer
    run: Run
    checkpoint: Path
    """The checkpoint that the detector was made from."""
    data_hash: str


def update(
    workdir: str | os.PathLike[str],
    source: str,
    out: str | os.PathLike[str],
    replay: float = REPLAY,
    margin: float = acceptance.MARGIN,
    change: Callable[[Config], None] = lambda settings: None,
    old_source: str = "",
    log: Log = print,
) -> Update:
    """Continues the training of a detector with new normal images and a replay of old ones, in a new run folder.

    The weights and the optimiser continue from the checkpoint that the detector was made from. The new detector is
    calibrated on the calibration images of both, compared with the old one on images that neither was trained on, and
    kept only if it is not worse (`acceptance.decide`). The old run is not modified. Called again with the same
    arguments, it resumes an unfinished update or returns the result of a finished one.

    Args:
      workdir: the folder of a finished run of one model.
      source: the new images, as in `data.source`, split as in a training; only normal ones are trained on.
      out: the folder of the new run.
      replay: share of old images among the training images, in [0, 1).
      margin: how much worse the new detector may be, in [0, 1], see `acceptance.decide`.
      change: changes the configuration of the training in place. By default `train.steps` is a tenth of the old run's,
        but at least one epoch, and all else is as it was.
      old_source: where the old data are now, if not where the run's `config.json` says.
      log: called with each line that is printed.

    Returns:
      Whether the new detector was kept, why not, and the comparison.

    Raises:
      UserError: `workdir` is not a finished run of one model, the old data have changed, the new data do not fit or
        have no new normal images, `out` holds another run, or an argument is out of range.
      DivergedError: as in `trainer.train`.
      DamagedError: as in `trainer.train`.
      StoppedError: as in `trainer.train`.
    """
    call = "gj.update('runs/mine', 'NEW', 'runs/newer')"
    calls.expect(calls.PATH, f"a path, as in {call}", workdir=workdir, source=source, out=out)
    call = "gj.update('runs/mine', 'NEW', 'runs/newer')"
    calls.expect(calls.PATH, f"a path, as in {call}", workdir=workdir, source=source, out=out)
    workdir, out = Path(workdir), Path(out)
    if not 0 <= replay < 1:
        raise UserError(f"replay={replay}: expected the share of old images, at least 0 and below 1, such as {REPLAY}")
    if not 0 <= margin <= 1:
        raise UserError(f"margin={margin}: expected from 0 to 1, such as {acceptance.MARGIN}")
    if out.resolve() == workdir.resolve():
        raise UserError(f"--out {out} is the run to update, which is not modified: expected another folder")
    with lock.held("update", out, create=True):
        return _update(workdir, source, out, replay, margin, change, old_source, log)


def _update(
    workdir: Path,
    source: str,
    out: Path,
    replay: float,
    margin: float,
    change: Callable[[Config], None],
    old_source: str,
    log: Log,
) -> Update:
    parent = _parent(workdir, old_source)
    new, settings_of_new = _new(parent, source)
    scaling, kind = parent.run.scaling, parent.run.words.items
    cut = parent.run.modality.split(new, settings_of_new, parent.run.config.seed)
    split, known = _fresh(parent, new, cut)
    if known:
        log(f"note: {known} {kind} of {new.name} are among the old ones and are left out")
    parts = _parts(parent, new, settings_of_new, split, replay)
    replayed, old_count = len(parts[0].train), len(parent.run.split.train)
    log(f"trained on: {len(split.train):,} new normal {kind}, {replayed:,} of {old_count:,} old ones replayed")
    settings = _settings(parent, sum(len(part.train) for part in parts), change, log)
    settings.data.source = str(out / mixture.NAME)
    lineage = {
        "parent": workdir.resolve().name,
        "parent_data_hash": parent.data_hash,
        "parent_step": parent.scorer.provenance["step"],
        "checkpoint_hash": hashlib.sha256((parent.checkpoint / sealed_folder.MANIFEST).read_bytes()).hexdigest(),
        "new_data": source,
        "new_data_hash": parts[1].content_hash,
        "replay": replay,
    }
    finished = _opened(out, lineage, settings)
    if finished is not None:
        log(f"this update is already finished, see {out / layout.UPDATE}")
        return finished
    mixed = mixture.join(parts, [parent.run.dataset, new], str(out / mixture.NAME), scaling)
    scorer, words, in_time = parent.scorer, parent.run.words, parent.run.modality.in_time
    _begin(out, lineage, parts, parent, settings)
    del parent, new
    candidate = trainer.train(settings, out, mixed, log, into=layout.CANDIDATE)
    figures = acceptance.compare(scorer, candidate, mixed, mixture.origins(parts))
    reasons = acceptance.decide(figures, margin, words)
    lines = acceptance.describe(figures, str(workdir), source, words)
    if in_time:
        lines.append(
            f"note: {kind} that are close in time are alike, so they carry less evidence than their number says"
        )
    _settle(out, lineage, figures, margin, reasons, lines)
    return Update(not reasons, tuple(reasons), tuple(lines), figures)


def _parent(workdir: Path, old_source: str) -> _Parent:
    """Returns the finished run to start from, with its data."""
    if team := sweep.read_members(workdir):
        first = sweep.member_folder(workdir, team[0])
        raise UserError(
            f"{workdir} holds {len(team)} members, which share their checkpoints ({first} has none of its own): "
            "expected the folder of a run of one model"
        )
    settings = run_folder.stored_config(workdir)
    if settings is None:
        raise UserError(f"no run in {workdir}: expected the --workdir of a finished `ganomaly train`")
    if not sealed_folder.exists(workdir / layout.DETECTOR):
        refused = (workdir / layout.REFUSED).is_dir()
        why = "holds an update that was refused" if refused else "holds a run that is not finished"
        do = "use the run that it was made from" if refused else "run `ganomaly train` again to finish it first"
        raise UserError(f"{workdir} {why}: {do}")
    scorer = scoring_scorer.load(workdir)
    root = workdir / layout.CHECKPOINTS
    step, steps = scorer.provenance.get("step"), runs_checkpoint.steps(root)
    if step not in steps:
        raise UserError(
            f"{workdir} has no checkpoint of step {step}, from which its detector was made, so there is nothing to "
            "train further: expected a run of `ganomaly train` with its checkpoints/"
        )
    if steps[-1] > step and scorer.config.train.choose == "last":
        raise UserError(
            f"the training in {workdir} has reached step {steps[-1]:,}, but its detector is that of step {step:,}: "
            "run `ganomaly train` again to finish it first"
        )
    resolved = dataclasses.replace(scorer.config, data=dataclasses.replace(settings.data))
    resolved.data.source = old_source or settings.data.source
    if not resolved.data.source:
        raise UserError(
            f"{workdir} was trained on arrays, which it does not contain: save them to a file (npz) and name it with "
            "--old-data"
        )
    run = resolution.resolve(resolved, progress=True)
    before, now = run_folder.stored_environment(workdir).get("data_hash"), datasets.content_hash(run.dataset)
    datasets.check_unchanged(run.dataset.name, before, now, "Name the unchanged ones with --old-data")
    if not run.modality.mixes:
        raise UserError(
            f"{workdir} is a detector of {run.words.kind}: only detectors of images and rows can be updated; train a "
            "new one on all data"
        )
    return _Parent(scorer, run, root / f"{step:08d}", now)


def _new(parent: _Parent, source: str) -> tuple[Dataset, config.Data]:
    """Returns the new images, read like the old ones, and the settings that they were read with."""
    old = parent.run.config.data
    share = old.calibration or config.Data.calibration
    settings = dataclasses.replace(old, source=source, limit=0, calibration=share)
    settings.columns = parent.scorer.reading(source).columns
    dataset = sources.read(settings, progress=True)
    if dataset.modality != parent.run.dataset.modality:
        kind = modalities.named(dataset.modality).words(settings).kind
        raise UserError(f"{dataset.name} holds {kind}, the detector takes {parent.run.words.kind}")
    dataset = parent.run.modality.as_part(dataset, settings, parent.run.scaling)
    if old.abnormal not in dataset.classes:  # new normal images rarely come with the abnormal class
        settings.abnormal = ""
    if dataset.images.shape[1:] != parent.run.dataset.images.shape[1:]:
        size, expected = dataset.images.shape[1:], parent.run.dataset.images.shape[1:]
        raise UserError(f"{dataset.name} has items of size {size}: expected {expected}, the size the detector takes")
    if dataset.images.dtype != parent.scorer.dtype:
        raise UserError(
            f"{dataset.name} has {dataset.images.dtype} values, the detector was trained on {parent.scorer.dtype}: "
            f"convert them as the old {parent.run.words.items} were"
        )
    return dataset, settings


def _fresh(parent: _Parent, new: Dataset, split: Split) -> tuple[Split, int]:
    """Returns the split without the images that are in any part of the old run, and the number of those."""
    old = parent.run.split
    used = np.concatenate([old.train, old.calibration, old.test])
    known = {datasets.image_hash(image) for block in lazy.blocks(parent.run.dataset.images, used) for image in block}
    is_new = np.array([datasets.image_hash(image) not in known for block in lazy.blocks(new.images) for image in block])
    labels = split.labels[is_new[split.test]]
    train, calibration, test = (part[is_new[part]] for part in (split.train, split.calibration, split.test))
    if len(train) < 1 or len(calibration) < 1:
        raise UserError(
            f"{new.name} has {len(train)} normal {parent.run.words.items} to train on and "
            f"{len(calibration)} to calibrate with that are not in the old run ({int((~is_new).sum())} are): "
            "expected at least one of each; an update is worthwhile from some hundreds on"
        )
    return dataclasses.replace(split, train=train, calibration=calibration, test=test, labels=labels), int(
        (~is_new).sum()
    )


def _parts(parent: _Parent, new: Dataset, settings: config.Data, split: Split, replay: float) -> list[Part]:
    """Returns the parts of the mixture: the old run with the replayed images, and the new images."""
    old = parent.run
    count = min(round(replay / (1 - replay) * len(split.train)), len(old.split.train))
    drawn = np.random.default_rng((old.config.seed, 3)).permutation(len(old.split.train))[:count]
    replayed = old.split.train[np.sort(drawn)]
    normal = splits.normal_classes(old.dataset, old.config.data.abnormal)
    return [
        Part(old.config.data, parent.data_hash, normal, replayed, old.split.calibration, old.split.test),
        Part(
            settings,
            datasets.content_hash(new),
            splits.normal_classes(new, settings.abnormal),
            split.train,
            split.calibration,
            split.test,
        ),
    ]


def _settings(parent: _Parent, images: int, change: Callable[[Config], None], log: Log) -> Config:
    """Returns the configuration of the continued training."""
    old = parent.run.config
    settings = copy.deepcopy(old)
    settings.data = dataclasses.replace(settings.data, abnormal="", limit=0)
    if parent.run.scaling is None:  # otherwise the mixture holds the scaling of each sensor
        settings.data.low, settings.data.high = parent.scorer.low, parent.scorer.high
    if settings.evaluate.threshold_by == "given":
        settings.evaluate.threshold_by = "rate"
        log("note: the old threshold was a fixed number, which does not carry over to new weights: it is set by rate")
    settings.train.batch_size = min(settings.train.batch_size, images)
    epoch = images // settings.train.batch_size
    settings.train.steps = max(round(LENGTH * resolution.total_steps(old, len(parent.run.split.train))), epoch)
    before = copy.deepcopy(settings)
    change(settings)
    if settings.train.epochs != before.train.epochs and settings.train.steps == before.train.steps:
        settings.train.steps = 0
    fixed = ("model.", "data.", "members.", "evaluate.score")
    old_values, values = (config_values.flatten(config_values.to_dict(c)) for c in (before, settings))
    changed = [key for key in values if values[key] != old_values[key] and key.startswith(fixed)]
    if changed:
        raise UserError(
            f"{changed[0]}={values[changed[0]]!r}: an update keeps the network, its data and its score as they are"
        )
    validation.check(settings)
    return settings


def _opened(out: Path, lineage: dict[str, Any], settings: Config) -> Update | None:
    """Returns the result of this update if it is finished, None if it is new or unfinished.

    Raises:
      UserError: the folder holds something else.
    """
    if out.exists() and (not out.is_dir() or any(path.name != lock.NAME for path in out.iterdir())):
        stored = run_folder.stored_environment(out).get(run_folder.LINEAGE)
        if stored is None:
            raise UserError(f"{out} does not hold an update: expected a new folder, or that of this update")
        differs = [f"{key} is {stored.get(key)!r} there, {value!r} here" for key, value in lineage.items()
                   if stored.get(key) != value]  # fmt: skip
        if differs:
            raise UserError(f"{out} holds another update: {'; '.join(differs)}; use another --out")
        before = run_folder.stored_config(out)
        changed = [] if before is None else config_values.differences(before, settings)
        if changed:
            raise UserError(
                f"{out} holds this update with another configuration: {'; '.join(changed)}; use another --out"
            )
        if (out / layout.UPDATE).exists():
            stored = json.loads((out / layout.UPDATE).read_text(encoding="utf-8"))
            _moved(out, stored["kept"])
            return Update(stored["kept"], tuple(stored["reasons"]), tuple(stored["lines"]), stored["figures"])
    return None


def _begin(out: Path, lineage: dict[str, Any], parts: list[Part], parent: _Parent, settings: Config) -> None:
    """Writes the lineage and the mixture of the update, and the old state as the checkpoint of step 0."""
    if run_folder.LINEAGE not in run_folder.stored_environment(out):
        run_folder.write_json(out / layout.ENVIRONMENT, {run_folder.LINEAGE: lineage})
    run_folder.write_json(out / mixture.NAME, mixture.to_dict(parts, parent.run.scaling))
    if not runs_checkpoint.steps(out / layout.CHECKPOINTS):
        like = jax.eval_shape(parent.scorer.detector.network.init, jax.random.key(0))
        state, _ = sealed_pytree.read(parent.checkpoint, like)
        state = dataclasses.replace(state, step=np.zeros((), np.int32))
        runs_checkpoint.save(
            out / layout.CHECKPOINTS, 0, state, {"config": config_values.to_dict(settings)}, settings.train.keep
        )


def _settle(
    out: Path,
    lineage: dict[str, Any],
    figures: dict[str, Any],
    margin: float,
    reasons: list[str],
    lines: list[str],
) -> None:
    """Writes the decision, then moves the new detector into place, or into `refused`."""
    decision = {"kept": not reasons, "reasons": reasons, "margin": margin, "lines": lines, "figures": figures}
    run_folder.write_json(out / layout.UPDATE, decision | {run_folder.LINEAGE: lineage})
    _moved(out, not reasons)


def _moved(out: Path, kept: bool) -> None:
    """Moves the candidate into place, if an earlier call has not done it already."""
    target = out / (layout.DETECTOR if kept else layout.REFUSED)
    if (out / layout.CANDIDATE).is_dir():
        atomic_folders.move_into_place(out / layout.CANDIDATE, target)
        shutil.rmtree(out / layout.CANDIDATE, ignore_errors=True)
