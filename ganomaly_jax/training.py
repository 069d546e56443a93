"""Training of one model, or of many together."""

from __future__ import annotations

import copy
import importlib.util
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

from ganomaly_jax import (
    augment,
    checkpoint,
    config,
    data,
    ganomaly,
    loop,
    members,
    pictures,
    plan,
    preprocess,
    run,
    scorer,
    sharding,
    sources,
)
from ganomaly_jax.chunk import STEPS_A_CALL, make_chunk, make_members_chunk
from ganomaly_jax.config import Config
from ganomaly_jax.detector import Detector, TrainState
from ganomaly_jax.errors import UserError
from ganomaly_jax.loop import CHECKPOINTS, Course, Program, Say
from ganomaly_jax.run import Run
from ganomaly_jax.scorer import Scorer

_PICTURED = 16


def train(settings: Config, workdir: str | os.PathLike[str], arrays: Any = None, say: Say = print) -> Scorer:
    """Train a detector in the folder `workdir`, or go on with the one in it, and calibrate it.

    Args:
      settings: what to train, see `config.Config`.
      workdir: the run's folder; made where it does not exist. An unfinished run of the same configuration and data
        goes on from its last checkpoint, bit for bit as if it had never stopped.
      arrays: in place of `data.source`: images [N, H, W(, C)] or (images, labels), labels 0 normal, 1 anomalous.
      say: takes the few lines that are printed.

    Returns:
      The calibrated scorer, which `load(workdir)` reads again.

    Raises:
      UserError: configuration, data or folder that cannot be used.
      DivergedError: a loss or weight became NaN or infinite; the last finite checkpoint is kept.
      DamagedError: the checkpoint to go on from is damaged.
      StoppedError: SIGINT or SIGTERM came; the state is saved.
    """
    if config.has_members(settings):
        raise UserError("the configuration asks for several members: train_members(config, workdir) trains them")
    workdir = Path(workdir)
    mesh = sharding.local_mesh(settings.mesh.devices)
    this = run.resolve(settings, arrays, mesh.size, progress=True)
    sharding.check_batch(this.config.train.batch_size, mesh)
    environment = _open(workdir, this, data.content_hash(this.dataset))
    detector = ganomaly.from_config(this.config, sharding.axis_name(mesh))
    state = _restored(workdir, jax.jit(detector.init)(jax.random.key(this.config.seed)))
    course = Course(this, workdir)
    parameters = {name: sum(leaf.size for leaf in jax.tree.leaves(p)) / 1e6 for name, p in state.params.items()}
    sizes = " + ".join(f"{count:.1f} M {name}" for name, count in parameters.items())
    step = int(state.step)
    say(data.describe(this.dataset, this.split))
    for note in this.notes:
        say(note)
    say(
        f"{_devices(mesh)} | {course.images:,} images {_size(this)} | parameters {sizes} | {course.total:,} steps of "
        f"{this.config.train.batch_size}{f', from step {step:,}' if step else ''}"
    )
    if step < course.total:
        with _memory(this.config, mesh.size):
            state = sharding.replicate(state, mesh)
            program = _alone(course, detector, mesh, state, say)
            draw = _make_picture(this, workdir / "pictures", detector)
            state = loop.advance([course], workdir, this.config, program, state, np.array([step]), draw, say)
    return _finish(course, jax.device_get(detector.variables(state)), int(state.step), environment)


def train_members(
    settings: Config, workdir: str | os.PathLike[str], arrays: Any = None, say: Say = print
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
    config.check(settings)
    if not config.has_members(settings):
        raise UserError("members.classes and members.seeds are empty: train(config, workdir) trains one model")
    workdir = Path(workdir)
    dataset = sources.read(settings.data, arrays, progress=True)
    team = members.expand(settings, dataset)
    mesh = sharding.member_mesh(len(team), settings.mesh.devices)
    courses = [
        Course(run.resolve(members.settings_of(settings, one), dataset), members.folder(workdir, one), one.name)
        for one in team
    ]
    resolved = _resolved(settings, [course.run for course in courses])
    detector = ganomaly.from_config(courses[0].run.config)
    plan.check_members(detector, len(team), mesh.size, dataset.images.nbytes)
    data_hash = data.content_hash(dataset)
    run.open_workdir(workdir, resolved, data_hash)
    members.write(workdir, team)
    environments = [_open(course.folder, course.run, data_hash) for course in courses]
    run.write_json(workdir / run.ENVIRONMENT, environments[0])
    keys = jnp.stack([jax.random.key(one.seed) for one in team])
    state = _restored(workdir, jax.jit(jax.vmap(detector.init))(keys))
    at = np.array(state.step)
    for note in courses[0].run.notes:
        say(note)
    steps = [course.total for course in courses]
    say(
        f"{len(team)} member{'s' if len(team) > 1 else ''}: {', '.join(one.name for one in team)}\n"
        f"{_devices(mesh)} | {len(dataset.images):,} images {_size(courses[0].run)} for all | {min(steps):,} to "
        f"{max(steps):,} steps of {resolved.train.batch_size} a member{f', from {at.min():,}' if at.any() else ''}"
    )
    if (at < steps).any():
        with _memory(resolved, 1):
            state = sharding.put_members(_filled(state, mesh.size), mesh)
            program = _together(courses, detector, mesh, state, say)
            state = loop.advance(courses, workdir, resolved, program, state, at, None, say)
    variables, steps_done = jax.device_get((detector.variables(state), state.step))
    alive = np.asarray(jax.vmap(loop.finite)(state))

    def finish(m: int) -> Scorer:
        own = jax.tree.map(lambda leaf: leaf[m], variables)
        return _finish(courses[m], own, int(steps_done[m]), environments[m])

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
    for name in ("height", "width", "channels"):
        setattr(resolved.data, name, getattr(data_of_first, name))
    resolved.train.batch_size = sizes.pop()
    if resolved.members.classes:
        resolved.data.abnormal = ""
    return resolved


def _open(folder: Path, this: Run, data_hash: str) -> dict[str, Any]:
    run.open_workdir(folder, this.config, data_hash)
    environment = run.environment(this, data_hash)
    run.write_json(folder / run.ENVIRONMENT, environment)
    return environment


def _restored(workdir: Path, fresh: TrainState) -> TrainState:
    root = workdir / CHECKPOINTS
    return checkpoint.restore(root, fresh)[1] if checkpoint.steps(root) else fresh


def _devices(mesh: Any) -> str:
    return f"{mesh.size} of {jax.local_device_count()} devices ({mesh.devices.flat[0].device_kind})"


def _size(this: Run) -> str:
    return "x".join(map(str, this.dataset.images.shape[1:]))


@contextmanager
def _memory(settings: Config, devices: int) -> Iterator[None]:
    """An error of the device for want of memory as one sentence."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise plan.out_of_memory(settings, devices) from None


def _finish(course: Course, variables: Any, step: int, environment: dict[str, Any]) -> Scorer:
    """Calibrate a trained model, and write the detector into the run's folder."""
    this = course.run
    chosen = this.split.calibration if len(this.split.calibration) else this.split.train
    made = scorer.make(
        ganomaly.from_config(this.config),
        jax.device_put(variables),
        this.config,
        this.pixels,
        this.dataset.images[chosen],
        trained_on=not len(this.split.calibration),
        provenance={"step": int(step), **environment},
    )
    made.save(course.folder / scorer.FOLDER)
    return made


def _alone(course: Course, detector: Detector, mesh: Any, state: TrainState, say: Say) -> Program:
    """One model, each batch spread over the devices."""
    this = course.run
    images = sharding.replicate(this.dataset.images[this.split.train], mesh)
    settings = this.config.train
    augmentation = augment.make(this.config.seed, settings.shift, settings.flip, sharding.axis_name(mesh))
    steps = make_chunk(detector, *this.pixels[1:], augmentation)
    chunk = sharding.data_parallel(steps, mesh, (None, None, 1, None), donate=0)

    def arguments(at: np.ndarray, counts: np.ndarray) -> tuple[Any, ...]:
        index = course.index(at[0], counts[0])
        return images, sharding.put_batch(index, mesh, 1), sharding.replicate(np.int32(counts[0]), mesh)

    compiled = _compile(chunk, state, arguments(np.array([int(state.step)]), np.array([1])), say)

    def advance(state: TrainState, at: np.ndarray, counts: np.ndarray) -> tuple[TrainState, Array]:
        state, losses = compiled(state, *arguments(at, counts))
        return state, losses[None]

    return Program(advance, lambda state: np.asarray(loop.finite(state))[None], lambda state: state)


def _together(courses: Sequence[Course], detector: Detector, mesh: Any, state: TrainState, say: Say) -> Program:
    """Many models, dealt out over the devices, on one data set."""
    team, slots = len(courses), len(state.step)
    images = sharding.replicate(courses[0].run.dataset.images, mesh)
    # A slot that only fills up the devices repeats the last member and takes no step.
    ranges = np.array([course.run.pixels[1:] for course in courses], np.float32)
    seeds = np.array([course.run.config.seed for course in courses], np.uint32)
    own = sharding.put_members(_filled((ranges, seeds), mesh.size), mesh)
    settings = courses[0].run.config.train
    steps = make_members_chunk(detector, lambda seed: augment.make(seed, settings.shift, settings.flip))
    chunk = sharding.member_parallel(steps, mesh, (True, False, True, True, True, True), donate=0)

    def arguments(at: np.ndarray, counts: np.ndarray) -> tuple[Any, ...]:
        index = np.zeros((slots, STEPS_A_CALL, settings.batch_size), np.int32)
        for m, course in enumerate(courses):
            index[m] = course.run.split.train[course.index(at[m], counts[m])]
        each = np.zeros(slots, np.int32)
        each[:team] = counts
        return images, *sharding.put_members((index, each), mesh), *own

    compiled = _compile(chunk, state, arguments(np.zeros(team, int), np.ones(team, int)), say)
    finite = jax.jit(jax.vmap(loop.finite))
    return Program(
        lambda state, at, counts: compiled(state, *arguments(at, counts)),
        lambda state: np.asarray(finite(state))[:team],
        lambda state: jax.tree.map(lambda leaf: leaf[:team], state),
    )


def _filled(tree: Any, devices: int) -> Any:
    """A leading axis of members filled up to a multiple of the devices by repeating the last one."""

    def fill(leaf: Any) -> np.ndarray:
        leaf = np.asarray(leaf)
        return np.concatenate([leaf, np.repeat(leaf[-1:], -len(leaf) % devices, axis=0)])

    return jax.tree.map(fill, tree)


def _compile(chunk: Any, state: TrainState, arguments: Sequence[Any], say: Say) -> Any:
    begin = time.monotonic()
    compiled = chunk.lower(state, *arguments).compile()
    say(f"compiled in {time.monotonic() - begin:.1f} s")
    return compiled


def _make_picture(this: Run, folder: Path, detector: Detector) -> Callable[[int, TrainState], None] | None:
    """`picture(epoch, state)` writes x and x_hat of some calibration images; compiled once for all epochs.

    None where no pictures are wanted or Pillow is absent.
    """
    if not this.config.train.picture_every or importlib.util.find_spec("PIL") is None:
        return None
    chosen = this.split.calibration if len(this.split.calibration) else this.split.train
    raw = this.dataset.images[chosen[:_PICTURED]]

    @jax.jit
    def both(variables: Any, raw: Array) -> tuple[Array, Array]:
        x = preprocess.to_unit(raw, *this.pixels[1:])
        return x, detector.reconstruct(variables, x)

    def picture(epoch: int, state: TrainState) -> None:
        x, x_hat = map(np.asarray, both(detector.variables(state), raw))
        pictures.save(pictures.grid(x, x_hat), folder / f"epoch_{epoch:04d}.png")

    return picture
