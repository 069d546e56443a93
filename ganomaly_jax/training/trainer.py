"""Training of one model, or of many together."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ganomaly_jax.core import config, config_values, validation
from ganomaly_jax.core.config import Config, Mesh, Train
from ganomaly_jax.core.errors import ProcessLostError, UserError
from ganomaly_jax.data import datasets, lazy, sources, splits
from ganomaly_jax.data.images import preprocess
from ganomaly_jax.model import registry
from ganomaly_jax.model.protocol import Detector, TrainState
from ganomaly_jax.parallel import processes, sharding
from ganomaly_jax.report import image_grids
from ganomaly_jax.runs import checkpoint, diagnostics, history, layout, resolution, run_folder, sweep
from ganomaly_jax.runs.resolution import Run
from ganomaly_jax.scoring.scorer import Scorer
from ganomaly_jax.training import augment, cost, finalize, health, input_pipeline, loop
from ganomaly_jax.training.health import EarlyStopping
from ganomaly_jax.training.input_pipeline import Feed
from ganomaly_jax.training.loop import Course, Log, Program
from ganomaly_jax.training.train_step import STEPS_A_CALL, make_chunk, make_members_chunk

_PICTURED = 16


def train(
    settings: Config,
    workdir: str | os.PathLike[str],
    arrays: Any = None,
    log: Log = print,
    fall_back: bool = False,
    into: str = layout.DETECTOR,
) -> Scorer:
    """Train a detector in the folder `workdir`, or go on with the one in it, and calibrate it.

    Args:
      settings: what to train, see `config.Config`.
      workdir: the run's folder; made where it does not exist. An unfinished run of the same configuration and data
        goes on from its last checkpoint, bit for bit as if it had never stopped.
      arrays: in place of `data.source`: images [N, H, W(, C)] or (images, labels), labels 0 normal, 1 anomalous.
      say: takes the few lines that are printed.
      fall_back: where the last checkpoint is damaged, go on from the one before it, and say so.
      into: the name in `workdir` that the detector gets.

    Among several processes (`hosts.start`) all call this with the same arguments on the same data, and share the file
    system that `workdir` is on; process 0 prints and writes, all of them write checkpoints.

    Returns:
      The calibrated scorer, which `load(workdir)` reads again.

    Raises:
      UserError: configuration, data or folder that cannot be used, or not the same in all processes.
      DivergedError: a loss or weight became NaN or infinite; the last finite checkpoint is kept.
      DamagedError: the checkpoint to go on from is damaged.
      StoppedError: SIGINT or SIGTERM came; the state is saved.
      ProcessLostError: another process is gone.
    """
    if config.has_members(settings):
        raise UserError("the configuration asks for several members: train_members(config, workdir) trains them")
    workdir = Path(workdir)
    mesh = sharding.global_mesh(settings.mesh.devices)
    if settings.data.tile and processes.is_distributed():
        raise UserError("data.tile works within one process: wanted data.tile=0, or no --distributed")
    if not processes.is_primary():
        log = _silent
    this = resolution.resolve(settings, arrays, mesh.size, processes.is_primary(), processes.is_distributed())
    if this.dataset.recordings and processes.is_distributed():
        raise UserError("recordings are trained on within one process: wanted no --distributed")
    sharding.check_batch_size(this.config.train.batch_size, mesh)
    _check_mesh(this.config, mesh)
    log = _in_words(this, log)
    data_hash = datasets.content_hash(this.dataset)
    processes.check_same(configuration=_comparable(this.config), data=data_hash)
    processes.run_on_primary(lambda: _open(workdir, this, data_hash))
    detector = registry.from_config(this.config, None if this.config.mesh.shard_from else sharding.axis_name(mesh))
    state, waiting = _restored(workdir, jax.jit(detector.init)(jax.random.key(this.config.seed)), fall_back, log)
    course = Course(resolution.of_inputs(this), workdir)
    parameters = {name: sum(leaf.size for leaf in jax.tree.leaves(p)) / 1e6 for name, p in state.params.items()}
    sizes = " + ".join(f"{count:.1f} M {name}" for name, count in parameters.items())
    step, what = int(state.step), "tiles" if this.config.data.tile else "images"
    log(splits.describe(this.dataset, this.split))
    for note in this.notes:
        log(note)
    log(
        f"{sharding.describe(mesh)} | {course.images:,} {what} {_size(course.run)} | parameters {sizes} | "
        f"{course.total:,} steps of {this.config.train.batch_size}{f', from step {step:,}' if step else ''}"
    )
    with _others(workdir):
        if step < course.total and waiting.over(this.config.train.patience):
            log(f"no step is left: train.patience={this.config.train.patience} has ended this training before")
        elif step < course.total:
            with _memory(this.config, mesh.size), input_pipeline.opened(course, mesh, step) as fed:
                if fed.note:
                    log(fed.note)
                state = sharding.place(state, sharding.state_shardings(state, mesh, this.config.mesh.shard_from))
                program = _alone(course, detector, mesh, state, fed, log)
                draw = _make_picture(course.run, workdir / layout.PICTURES, detector)
                at = np.array([step])
                state = loop.advance([course], workdir, this.config, program, state, at, draw, waiting, log)
        if this.config.train.choose == "best":
            state = _best(workdir, state, log)
        variables = sharding.to_host(detector.variables(state))
        environment = run_folder.environment(this, data_hash, workdir)
        made = finalize.finish(course, this, variables, int(state.step), environment, log, into)
    for sentence in diagnostics.words(history.read(workdir / layout.HISTORY), this.config.model.latent_size):
        log(f"note: {sentence}")
    return made


def train_members(
    settings: Config, workdir: str | os.PathLike[str], arrays: Any = None, log: Log = print, fall_back: bool = False
) -> dict[str, Scorer | None]:
    """Train several independent detectors together: every class of `members.classes` abnormal in turn, times seeds.

    One data set lies on the device for all of them. Over several devices they are dealt out. Each has a run's folder
    of its own, `workdir/members/NAME`, and computes what it would compute alone; the checkpoints are of all together.
    Arguments, resuming and errors are those of `train`.

    Returns:
      {name: calibrated scorer}; None for a member that diverged, which does not stop the others.

    Raises:
      UserError, DamagedError, StoppedError: as `train`; too many members for the memory.
      DivergedError: every one of them diverged.
    """
    validation.check(settings)
    if not config.has_members(settings):
        raise UserError("members.classes and members.seeds are empty: train(config, workdir) trains one model")
    if processes.is_distributed():
        raise UserError("members are dealt out over the devices of one process: wanted one model, or no --distributed")
    if settings.train.choose != Train.choose:
        raise UserError("train.choose is for one model: the checkpoints of members are of all together")
    if settings.mesh.shard_from or settings.mesh.transform != Mesh.transform or settings.mesh.batch_norm_group:
        raise UserError("mesh.transform, mesh.batch_norm_group and mesh.shard_from are for one model, not for members")
    workdir = Path(workdir)
    dataset = sources.read(settings.data, arrays, progress=True)
    team = sweep.expand(settings, dataset)
    if isinstance(dataset.images, lazy.LazyImages):
        dataset = dataclasses.replace(dataset, images=dataset.images[:])
    mesh = sharding.member_mesh(len(team), settings.mesh.devices)
    courses = [
        Course(resolution.resolve(sweep.settings_of(settings, one), dataset), sweep.folder(workdir, one), one.name)
        for one in team
    ]
    resolved = _resolved(settings, [course.run for course in courses])
    detector = registry.from_config(courses[0].run.config)
    cost.check_members(detector, len(team), mesh.size, dataset.images.nbytes)
    data_hash = datasets.content_hash(dataset)
    run_folder.open_workdir(workdir, resolved, data_hash)
    sweep.write(workdir, team)
    environments = [_open(course.folder, course.run, data_hash) for course in courses]
    run_folder.write_json(workdir / layout.ENVIRONMENT, environments[0])
    keys = jnp.stack([jax.random.key(one.seed) for one in team])
    state, _ = _restored(workdir, jax.jit(jax.vmap(detector.init))(keys), fall_back, log)
    at = np.array(state.step)
    for note in courses[0].run.notes:
        log(note)
    steps = [course.total for course in courses]
    log(
        f"{len(team)} member{'s' if len(team) > 1 else ''}: {', '.join(one.name for one in team)}\n"
        f"{sharding.describe(mesh)} | {len(dataset.images):,} images {_size(courses[0].run)} for all | {min(steps):,} "
        f"to {max(steps):,} steps of {resolved.train.batch_size} a member{f', from {at.min():,}' if at.any() else ''}"
    )
    if (at < steps).any():
        with _memory(resolved, 1):
            state = sharding.shard_members(_filled(state, mesh.size), mesh)
            program = _together(courses, detector, mesh, state, log)
            state = loop.advance(courses, workdir, resolved, program, state, at, None, EarlyStopping(), log)
    variables, steps_done = jax.device_get((detector.variables(state), state.step))
    alive = np.asarray(jax.vmap(loop.finite)(state))

    def finish(m: int) -> Scorer:
        own = jax.tree.map(lambda leaf: leaf[m], variables)
        return finalize.finish(courses[m], courses[m].run, own, int(steps_done[m]), environments[m], log)

    return {course.name: finish(m) if alive[m] else None for m, course in enumerate(courses)}


def _resolved(settings: Config, runs: Sequence[Run]) -> Config:
    """The configuration of all members together: what the data have filled in, and is the same for all."""
    sizes = {this.config.train.batch_size for this in runs}
    if len(sizes) > 1:
        raise UserError(
            f"the smallest training part of a member has {min(sizes)} images, fewer than a batch of "
            f"{settings.train.batch_size}: --config.train.batch_size={min(sizes)} is one that every member can fill"
        )
    resolved = copy.deepcopy(settings)
    data_of_first = runs[0].config.data
    for name in ("kind", "window", "height", "width", "channels"):
        setattr(resolved.data, name, getattr(data_of_first, name))
    resolved.train.batch_size = sizes.pop()
    if resolved.members.classes:
        resolved.data.abnormal = ""
    return resolved


def _open(folder: Path, this: Run, data_hash: str) -> dict[str, Any]:
    run_folder.open_workdir(folder, this.config, data_hash)
    environment = run_folder.environment(this, data_hash, folder)
    run_folder.write_json(folder / layout.ENVIRONMENT, environment)
    return environment


def _restored(workdir: Path, fresh: TrainState, fall_back: bool, log: Log) -> tuple[TrainState, EarlyStopping]:
    """What the latest checkpoint holds, or with `fall_back` the latest that is whole; `fresh` where there is none."""
    root = workdir / layout.CHECKPOINTS
    if not checkpoint.steps(root):
        return fresh, EarlyStopping()
    if not fall_back:
        _, state, meta = checkpoint.restore(root, fresh)
        return state, loop.waiting_of(meta)
    step, state, meta, damaged = checkpoint.restore_latest_good(root, fresh)
    for sentence in damaged:
        log(f"note: {sentence}; passed over, the training goes on from step {step:,}")
    return state, loop.waiting_of(meta)


def _best(workdir: Path, last: TrainState, log: Log) -> TrainState:
    """The kept state with the smallest loss on the calibration images, the last one where nothing is known of that."""
    step = checkpoint.best(workdir / layout.CHECKPOINTS)
    if step is None:
        log("note: there are no calibration images to choose a step by: the last one is taken")
        return last
    log(f"the detector is that of step {step:,}, which reconstructs the calibration images best")
    return checkpoint.restore(workdir / layout.CHECKPOINTS, last, step)[1]


def _check_mesh(settings: Config, mesh: Any) -> None:
    """Refuse ways of spreading a step that do not go together."""
    sharding.check_batch_norm_group(settings.mesh.batch_norm_group, mesh)
    if settings.mesh.transform == "pmap" and processes.is_distributed():
        raise UserError("mesh.transform='pmap' works within one process: wanted 'shard_map', which works among several")
    if settings.mesh.shard_from and (settings.mesh.transform == "pmap" or settings.mesh.batch_norm_group):
        raise UserError(
            "mesh.shard_from lets the compiler part the whole step, with batch norm over the whole batch: wanted "
            "mesh.transform='shard_map' and mesh.batch_norm_group=0 beside it"
        )


def _comparable(settings: Config) -> str:
    """What all processes have to have in common; the data may lie elsewhere in each, and are compared by themselves."""
    values = config_values.to_dict(settings)
    values["data"]["source"] = ""
    return json.dumps(values)


def _in_words(this: Run, log: Log) -> Log:
    return lambda line: log(config.in_words(this.config.data, line))


def _silent(_: str) -> None:
    pass


def _size(this: Run) -> str:
    return "x".join(map(str, this.dataset.images.shape[1:]))


@contextmanager
def _memory(settings: Config, devices: int) -> Iterator[None]:
    """An error of the device for want of memory as one sentence."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        # XLA's CPU says the second.
        if not any(words in str(error) for words in ("RESOURCE_EXHAUSTED", "Out of memory")):
            raise
        raise cost.out_of_memory(settings, devices) from None


@contextmanager
def _others(workdir: Path) -> Iterator[None]:
    """What the devices say when another process has gone, as one sentence."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not processes.is_distributed():
            raise
        kept = checkpoint.steps(workdir / layout.CHECKPOINTS)
        last = f"the last checkpoint is that of step {kept[-1]:,}" if kept else "there is no checkpoint yet"
        raise ProcessLostError(
            f"another process of this training is gone, or cannot be reached ({str(error).partition(chr(10))[0]}); "
            f"{last}: start all processes again to go on from there"
        ) from None


def _alone(course: Course, detector: Detector, mesh: Any, state: TrainState, fed: Feed, log: Log) -> Program:
    """One model, each batch spread over the devices, of which each gets the images of its own places only."""
    this = course.run
    settings, axes = this.config, (0, 1, None)
    augmentation = augment.make(settings.seed, settings.train.shift, settings.train.flip, detector.axis_name)
    pixels = this.pixels[1:]
    if settings.mesh.shard_from:
        lies = sharding.state_shardings(state, mesh, settings.mesh.shard_from)
        steps = make_chunk(detector, *pixels, augmentation, sharding.take_local_rows(mesh), sharding.constrain(lies))
        chunk = sharding.partitioned(steps, mesh, lies, axes)
    else:
        steps = make_chunk(detector, *pixels, augmentation)
        chunk = sharding.data_parallel(steps, mesh, (None, *axes), donate=0, transform=settings.mesh.transform)

    def steps_of(step: int, count: int) -> tuple[Array, Array]:
        return sharding.shard_batch(fed.index(step, count), mesh, 1), sharding.replicate(np.int32(count), mesh)

    compiled = _compile(chunk, state, (fed.like, *steps_of(int(state.step), 1)), log)

    def advance(state: TrainState, at: np.ndarray, counts: np.ndarray) -> tuple[TrainState, Array]:
        step, count = int(at[0]), int(counts[0])
        state, losses = compiled(state, fed.images(step, count), *steps_of(step, count))
        return state, losses[None]

    finite = lambda state: np.asarray(loop.finite(state))[None]  # noqa: E731
    return Program(advance, finite, lambda state: state, detector.losses, _look([course]), fed.most)


def _look(courses: Sequence[Course], together: bool = False) -> Callable[[TrainState], list[dict[str, Any]]]:
    """What is measured of each model at images of its calibration part, or where there is none of its training part."""
    samples = []
    for course in courses:
        this, held_out = course.run, len(course.run.split.calibration) > 0
        chosen = (this.split.calibration if held_out else this.split.train)[: health.MOST_IMAGES]
        samples.append(health.Sample(this.dataset.images[chosen], *this.pixels[1:], held_out))
    return health.measurer(registry.from_config(courses[0].run.config), samples, together)


def _together(courses: Sequence[Course], detector: Detector, mesh: Any, state: TrainState, log: Log) -> Program:
    """Many models, dealt out over the devices, on one data set."""
    team, slots = len(courses), len(state.step)
    images = sharding.replicate(courses[0].run.dataset.images, mesh)
    # A slot that only fills up the devices repeats the last member and takes no step.
    ranges = np.array([course.run.pixels[1:] for course in courses], np.float32)
    seeds = np.array([course.run.config.seed for course in courses], np.uint32)
    own = sharding.shard_members(_filled((ranges, seeds), mesh.size), mesh)
    settings = courses[0].run.config.train
    steps = make_members_chunk(detector, lambda seed: augment.make(seed, settings.shift, settings.flip))
    chunk = sharding.member_parallel(steps, mesh, (True, False, True, True, True, True), donate=0)

    def arguments(at: np.ndarray, counts: np.ndarray) -> tuple[Any, ...]:
        index = np.zeros((slots, STEPS_A_CALL, settings.batch_size), np.int32)
        for m, course in enumerate(courses):
            index[m] = course.run.split.train[course.index(at[m], counts[m])]
        each = np.zeros(slots, np.int32)
        each[:team] = counts
        return images, *sharding.shard_members((index, each), mesh), *own

    compiled = _compile(chunk, state, arguments(np.zeros(team, int), np.ones(team, int)), log)
    finite = jax.jit(jax.vmap(loop.finite))
    return Program(
        lambda state, at, counts: compiled(state, *arguments(at, counts)),
        lambda state: np.asarray(finite(state))[:team],
        lambda state: jax.tree.map(lambda leaf: leaf[:team], state),
        detector.losses,
        _look(courses, together=True),
    )


def _filled(tree: Any, devices: int) -> Any:
    """A leading axis of members filled up to a multiple of the devices by repeating the last one."""

    def fill(leaf: Any) -> np.ndarray:
        leaf = np.asarray(leaf)
        return np.concatenate([leaf, np.repeat(leaf[-1:], -len(leaf) % devices, axis=0)])

    return jax.tree.map(fill, tree)


def _compile(chunk: Any, state: TrainState, arguments: Sequence[Any], log: Log) -> Any:
    begin = time.monotonic()
    compiled = chunk.lower(state, *arguments).compile()
    log(f"compiled in {time.monotonic() - begin:.1f} s")
    return compiled


def _make_picture(this: Run, folder: Path, detector: Detector) -> Callable[[int, TrainState], None] | None:
    """`picture(epoch, state)` writes x and x_hat of some calibration images; compiled once for all epochs.

    None where no pictures are wanted or Pillow is absent, and of rows of sensors. Of sound low bands are below.
    """
    if not this.config.train.picture_every or this.dataset.spans is not None or importlib.util.find_spec("PIL") is None:
        return None
    chosen = this.split.calibration if len(this.split.calibration) else this.split.train
    raw = this.dataset.images[chosen[:_PICTURED]]

    @jax.jit
    def both(variables: Any, raw: Array) -> tuple[Array, Array]:
        x = preprocess.to_unit(raw, *this.pixels[1:])
        return x, detector.reconstruct(variables, x)

    def picture(epoch: int, state: TrainState) -> None:
        variables = sharding.to_host(detector.variables(state))
        if not processes.is_primary():
            return
        x, x_hat = map(np.asarray, both(variables, raw))
        if this.dataset.recordings:
            x, x_hat = x[:, ::-1], x_hat[:, ::-1]
        image_grids.save(image_grids.grid(x, x_hat), folder / f"epoch_{epoch:04d}.png")

    return picture
