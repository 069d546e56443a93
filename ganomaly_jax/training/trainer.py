"""Training of one model, or of all members of a sweep together."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ganomaly_jax.core import calls, config_values, features, members, validation
from ganomaly_jax.core.config import Config, Mesh, Train, input_shape, score_parts
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data import datasets, lazy, sources
from ganomaly_jax.model import extractors
from ganomaly_jax.model.protocol import TrainState
from ganomaly_jax.parallel import processes, sharding
from ganomaly_jax.runs import diagnostics, history, layout, lock, resolution, run_folder, sweep
from ganomaly_jax.runs.resolution import Run
from ganomaly_jax.scoring.scorer import Scorer
from ganomaly_jax.training import cost, finalize, hooks, input_pipeline, loop, pictures, resume, step_programs
from ganomaly_jax.training.early_stopping import EarlyStopping
from ganomaly_jax.training.state import Log, Training
from ganomaly_jax.training.training_run import TrainingRun


def train(
    settings: Config,
    workdir: str | os.PathLike[str],
    arrays: Any = None,
    log: Log = print,
    fall_back: bool = False,
    into: str = layout.DETECTOR,
) -> Scorer:
    """Trains a detector in the folder `workdir`, or resumes the training in it, and calibrates it.

    With several processes (`processes.initialize`), every process calls this with the same arguments and data, and
    `workdir` is on a shared file system. Process 0 prints and writes; all of them write checkpoints.

    Args:
      settings: the configuration, see `config.Config`.
      workdir: the run's folder, created if it does not exist. An unfinished run of the same configuration and data is
        resumed from its last checkpoint, bit for bit as if it had never stopped.
      arrays: used instead of `data.source`: images [N, H, W(, C)] or (images, labels) with labels 0 for normal and 1
        for anomalous.
      log: called with each line that is printed.
      fall_back: whether to resume from an earlier checkpoint, with a note, if the last one is damaged.
      into: name of the detector's folder in `workdir`.

    Returns:
      The calibrated scorer; `load(workdir)` reads it again.

    Raises:
      UserError: the configuration, data or folder cannot be used, or differ between processes.
      DivergedError: a loss or weight became NaN or infinite; the last finite checkpoint is kept.
      DamagedError: the checkpoint to resume from is damaged.
      StoppedError: SIGINT or SIGTERM was received; the state is saved.
      ProcessLostError: another process is gone.
    """
    calls.expect_config(settings, "gj.train(config, 'runs/mine')")
    calls.expect_folder(workdir, "gj.train(config, 'runs/mine', arrays=images)")
    validation.check(settings)
    with locked(workdir):
        return train_run(resolve(settings, arrays), workdir, log, fall_back, into)


@contextlib.contextmanager
def locked(workdir: str | os.PathLike[str]) -> Iterator[None]:
    """Creates a run's folder and holds its lock in process 0; a collective.

    Raises:
      UserError: another training, update or evaluation writes to the folder.
    """
    with contextlib.ExitStack() as stack:
        processes.run_on_primary(lambda: stack.enter_context(lock.held("train", workdir, create=True)))
        yield


def resolve(settings: Config, arrays: Any = None) -> Run:
    """Resolves a checked configuration: reads the data, splits them and builds the detector of one model.

    Args:
      settings: a configuration that `validation.check` has accepted.
      arrays: as in `train`.

    Returns:
      The resolved run, which fits the devices and processes at hand.

    Raises:
      UserError: the configuration or the data cannot be used here; says what is expected instead.
    """
    if members.requested(settings):
        raise UserError("the configuration asks for several members: train_members(config, workdir) trains them")
    mesh = sharding.global_mesh(settings.mesh.devices)
    distributed = processes.is_distributed()
    if settings.data.tile and distributed:
        raise UserError("data.tile works within one process: expected data.tile=0, or no --distributed")
    sharding.check_batch_norm_group(settings.mesh.batch_norm_group, mesh)
    if settings.mesh.transform == "pmap" and distributed:
        raise UserError("mesh.transform='pmap' works within one process: expected 'shard_map' for several")
    if settings.mesh.shard_from and (settings.mesh.transform == "pmap" or settings.mesh.batch_norm_group):
        raise UserError(
            "with mesh.shard_from the compiler partitions the whole step, with batch norm over the whole batch: "
            "expected mesh.transform='shard_map' and mesh.batch_norm_group=0"
        )
    run = resolution.resolve_checked(settings, arrays, mesh.size, processes.is_primary(), distributed)
    if distributed and not run.modality.per_process:
        raise UserError(f"{run.words.kind} is trained on within one process: expected no --distributed")
    sharding.check_batch_size(run.config.train.batch_size, mesh)
    _check_features(run.config)
    return run


def _check_features(resolved: Config) -> None:
    """Checks the extractors that the score needs, see `extractors.check`."""
    for name in features.of_scores(score_parts(resolved)):
        extractors.check(name, input_shape(resolved.data))


def train_run(
    run: Run,
    workdir: str | os.PathLike[str],
    log: Log = print,
    fall_back: bool = False,
    into: str = layout.DETECTOR,
) -> Scorer:
    """Trains and calibrates the detector of a resolved run, in a folder that the caller has locked.

    Args:
      run: the resolved run, see `resolve`.
      workdir: as in `train`, like `log`, `fall_back` and `into`; so are the result and the errors.
    """
    workdir, settings = Path(workdir), run.config
    log = log if processes.is_primary() else _silent
    data_hash = datasets.content_hash(run.dataset)
    processes.check_same(configuration=_comparable(settings), data=data_hash)
    processes.run_on_primary(lambda: run_folder.open_run(workdir, run, data_hash))
    training_run, detector = TrainingRun(resolution.of_inputs(run), workdir), run.detector
    state, early_stopping = resume.latest(
        workdir, jax.jit(detector.init)(jax.random.key(settings.seed)), fall_back, log
    )
    _describe(run, training_run, state, log)
    with resume.lost_process_named(workdir):
        state = _trained(training_run, state, early_stopping, log)
        if settings.train.choose == "best":
            state = resume.best(workdir, state, log)
        variables = sharding.to_host(detector.variables(state))
        environment = run_folder.environment(run, data_hash, workdir)
        scorer = finalize.finish(run, training_run, variables, int(state.step), environment, log, workdir / into)
    for sentence in diagnostics.problems(history.read(workdir / layout.HISTORY), settings.model.latent_size):
        log(f"note: {sentence}")
    return scorer


def _trained(training_run: TrainingRun, state: TrainState, early_stopping: EarlyStopping, log: Log) -> TrainState:
    """Trains one model from a state to its last step."""
    run, step = training_run.run, int(state.step)
    settings = run.config
    if step >= training_run.total_steps:
        return state
    if early_stopping.is_over(settings.train.patience):
        log(f"nothing to train: this training was ended before by train.patience={settings.train.patience}")
        return state
    mesh = sharding.global_mesh(settings.mesh.devices)
    with cost.out_of_memory_named(settings, mesh.size), input_pipeline.opened(training_run, mesh, step) as feed:
        if feed.note:
            log(feed.note)
        state = sharding.place(state, sharding.state_shardings(state, mesh, settings.mesh.shard_from))
        compiled = step_programs.one_model(training_run, mesh, state, feed, log)
        draw = pictures.make_draw(run, training_run.folder / layout.PICTURES)
        every = settings.train.picture_every * training_run.steps_per_epoch
        training = Training(
            [training_run], training_run.folder, settings, compiled, state, np.array([step]), early_stopping, log
        )
        return loop.run(training, [hooks.SavePictures(every, draw)] if draw else [])


def _describe(run: Run, training_run: TrainingRun, state: TrainState, log: Log) -> None:
    """Prints the data, the devices, the size of the networks and the length of the training."""
    settings, step = run.config, int(state.step)
    parameters = {name: sum(leaf.size for leaf in jax.tree.leaves(p)) / 1e6 for name, p in state.params.items()}
    sizes = " + ".join(f"{count:.1f} M {name}" for name, count in parameters.items())
    what = "tiles" if settings.data.tile else run.words.items
    log(sources.describe(run.dataset, run.split))
    for note in run.notes:
        log(note)
    log(
        f"{sharding.describe(sharding.global_mesh(settings.mesh.devices))} | {training_run.image_count:,} {what} "
        f"{_size(training_run.run)} | parameters {sizes} | {training_run.total_steps:,} steps of "
        f"{settings.train.batch_size}{f', from step {step:,}' if step else ''}"
    )


def train_members(
    settings: Config, workdir: str | os.PathLike[str], arrays: Any = None, log: Log = print, fall_back: bool = False
) -> dict[str, Scorer | None]:
    """Trains several detectors together: each class of `members.classes` as the abnormal one, for each seed.

    They share one copy of the data set on each device, and are distributed over the devices. Each member has its own
    run folder, `workdir/members/NAME`, and computes what it would compute alone; checkpoints hold all of them.

    Args:
      settings: the configuration, with `members.classes` or `members.seeds`.
      workdir: the folder of the sweep, created or resumed as in `train`; `arrays`, `log` and `fall_back` likewise.

    Returns:
      {name: calibrated scorer}; None for a member that diverged, which does not stop the others.

    Raises:
      UserError: as in `train`, or the members do not fit into memory.
      DivergedError: all members diverged.
      DamagedError: as in `train`.
      StoppedError: as in `train`.
    """
    calls.expect_config(settings, "gj.train_members(config, 'runs/table')")
    calls.expect_folder(workdir, "gj.train_members(config, 'runs/table', arrays=images)")
    validation.check(settings)
    _check_members(settings)
    with locked(workdir):
        return _train_members(
            settings, Path(workdir), sources.read(settings.data, arrays, progress=True), log, fall_back
        )


def _train_members(
    settings: Config, workdir: Path, dataset: datasets.Dataset, log: Log, fall_back: bool
) -> dict[str, Scorer | None]:
    team = sweep.expand(settings, dataset)
    with lock.held("train", *(sweep.member_folder(workdir, member) for member in team), create=True):
        return _train_team(settings, workdir, dataset, team, log, fall_back)


def _train_team(
    settings: Config, workdir: Path, dataset: datasets.Dataset, team: list[sweep.Member], log: Log, fall_back: bool
) -> dict[str, Scorer | None]:
    if isinstance(dataset.images, lazy.LazyImages):
        dataset = dataclasses.replace(dataset, images=dataset.images[:])
    mesh = sharding.member_mesh(len(team), settings.mesh.devices)
    runs = [resolution.resolve_checked(sweep.member_config(settings, member), dataset) for member in team]
    training_runs = [
        TrainingRun(run, sweep.member_folder(workdir, member), member.name)
        for run, member in zip(runs, team, strict=True)
    ]
    resolved = _settings_of_all(settings, runs)
    _check_features(runs[0].config)
    detector = runs[0].detector
    cost.check_members(detector, len(team), mesh.size, dataset.images.nbytes)
    data_hash = datasets.content_hash(dataset)
    run_folder.open_workdir(workdir, resolved, data_hash)
    sweep.write_members(workdir, team)
    environments = [run_folder.open_run(member.folder, member.run, data_hash) for member in training_runs]
    run_folder.write_json(workdir / layout.ENVIRONMENT, environments[0])
    keys = jnp.stack([jax.random.key(member.seed) for member in team])
    state, _ = resume.latest(workdir, jax.jit(jax.vmap(detector.init))(keys), fall_back, log)
    steps, totals = np.array(state.step), [member.total_steps for member in training_runs]
    for note in runs[0].notes:
        log(note)
    items = runs[0].words.items
    log(
        f"{len(team)} member{'s' if len(team) > 1 else ''}: {', '.join(member.name for member in team)}\n"
        f"{sharding.describe(mesh)} | {len(dataset.images):,} {items} {_size(runs[0])} for all | {min(totals):,} to "
        f"{max(totals):,} steps of {resolved.train.batch_size} per member"
        f"{f', from step {steps.min():,}' if steps.any() else ''}"
    )
    if (steps < totals).any():
        with cost.out_of_memory_named(resolved, 1):
            state = sharding.shard_members(step_programs.fill(state, mesh.size), mesh)
            compiled = step_programs.members(training_runs, mesh, state, log)
            state = loop.run(Training(training_runs, workdir, resolved, compiled, state, steps, EarlyStopping(), log))
    variables, steps_done = jax.device_get((detector.variables(state), state.step))
    alive = np.asarray(jax.vmap(step_programs.is_finite)(state))

    def finish(m: int) -> Scorer:
        member = training_runs[m]
        weights, folder = jax.tree.map(lambda leaf: leaf[m], variables), member.folder / layout.DETECTOR
        return finalize.finish(member.run, member, weights, int(steps_done[m]), environments[m], log, folder)

    return {member.name: finish(m) if alive[m] else None for m, member in enumerate(training_runs)}


def _check_members(settings: Config) -> None:
    """Refuses settings that cannot be combined with members."""
    if not members.requested(settings):
        raise UserError("members.classes and members.seeds are empty: train(config, workdir) trains one model")
    if processes.is_distributed():
        raise UserError("members use the devices of one process: expected one model, or no --distributed")
    if settings.train.choose != Train.choose:
        raise UserError("train.choose is for one model: the checkpoints of members hold all of them")
    if settings.mesh.shard_from or settings.mesh.transform != Mesh.transform or settings.mesh.batch_norm_group:
        raise UserError("mesh.transform, mesh.batch_norm_group and mesh.shard_from are for one model, not for members")


def _settings_of_all(settings: Config, runs: Sequence[Run]) -> Config:
    """Returns the configuration of all members together, with values from the data that all of them share."""
    sizes = {run.config.train.batch_size for run in runs}
    if len(sizes) > 1:
        raise UserError(
            f"the smallest training part of a member has {min(sizes)} images, fewer than a batch of "
            f"{settings.train.batch_size}: use --config.train.batch_size={min(sizes)}, which every member can fill"
        )
    resolved = copy.deepcopy(settings)
    data_of_first = runs[0].config.data
    for name in ("kind", "window", "height", "width", "channels"):
        setattr(resolved.data, name, getattr(data_of_first, name))
    resolved.train.batch_size = sizes.pop()
    if resolved.members.classes:
        resolved.data.abnormal = ""
    return resolved


def _comparable(settings: Config) -> str:
    """Returns the configuration that processes compare, without the source: the data are compared by their hash."""
    values = config_values.to_dict(settings)
    values["data"]["source"] = ""
    return json.dumps(values)


def _silent(_: str) -> None:
    pass


def _size(run: Run) -> str:
    return "x".join(map(str, run.dataset.images.shape[1:]))
