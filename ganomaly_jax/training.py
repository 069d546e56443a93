"""Training: one loop, in which what happens at step k can be read."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ganomaly_jax import checkpoint, config, data, files, ganomaly, pictures, plan, preprocess, run, scorer, sharding
from ganomaly_jax.chunk import LOSSES, STEPS_A_CALL, make_chunk
from ganomaly_jax.config import Config
from ganomaly_jax.detector import Detector, TrainState
from ganomaly_jax.errors import DivergedError, StoppedError, UserError
from ganomaly_jax.progress import Progress
from ganomaly_jax.run import Run
from ganomaly_jax.scorer import Scorer

HISTORY = "history.jsonl"
CHECKPOINTS = "checkpoints"
_SHORT = ("adv", "con", "enc", "G", "D")  # the losses on the progress line
# A call runs as many steps as take about so long: the host is asked rarely, and a signal is still answered soon.
_SECONDS_A_CALL = 1.0
_PICTURED = 16


def train(
    settings: Config, workdir: str | os.PathLike[str], arrays: Any = None, say: Callable[[str], None] = print
) -> Scorer:
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
    workdir = Path(workdir)
    mesh = sharding.local_mesh(settings.mesh.devices)
    this = run.resolve(settings, arrays, mesh.size, progress=True)
    sharding.check_batch(this.config.train.batch_size, mesh)
    data_hash = data.content_hash(this.dataset)
    run.open_workdir(workdir, this.config, data_hash)
    environment = run.environment(this, data_hash)
    run.write_json(workdir / run.ENVIRONMENT, environment)
    detector = ganomaly.from_config(this.config, sharding.axis_name(mesh))
    state = jax.jit(detector.init)(jax.random.key(this.config.seed))
    if checkpoint.steps(workdir / CHECKPOINTS):
        _, state, _ = checkpoint.restore(workdir / CHECKPOINTS, state)
    for line in (data.describe(this.dataset, this.split), *this.notes, _opening(this, state, mesh)):
        say(line)
    try:
        state = _loop(this, workdir, detector, sharding.replicate(state, mesh), mesh, say)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise plan.out_of_memory(this.config, mesh.size) from None
    on_one = ganomaly.from_config(this.config)
    calibration = this.split.calibration if len(this.split.calibration) else this.split.train
    result = scorer.make(
        on_one,
        jax.device_put(jax.device_get(detector.variables(state))),
        this.config,
        this.pixels,
        this.dataset.images[calibration],
        trained_on=not len(this.split.calibration),
        provenance={"step": int(state.step), **environment},
    )
    result.save(workdir / scorer.FOLDER)
    return result


def _opening(this: Run, state: TrainState, mesh: Any) -> str:
    settings, images = this.config, len(this.split.train)
    height, width, channels = this.dataset.images.shape[1:]
    parameters = {name: sum(leaf.size for leaf in jax.tree.leaves(p)) / 1e6 for name, p in state.params.items()}
    sizes = " + ".join(f"{count:.1f} M {name}" for name, count in parameters.items())
    steps = run.total_steps(settings, images)
    begin = f", from step {int(state.step):,}" if int(state.step) else ""
    return (
        f"{mesh.size} of {jax.local_device_count()} devices ({mesh.devices.flat[0].device_kind}) | {images:,} images "
        f"{height}x{width}x{channels} | parameters {sizes} | {steps:,} steps of {settings.train.batch_size}{begin}"
    )


def _loop(
    this: Run, workdir: Path, detector: Detector, state: TrainState, mesh: Any, say: Callable[[str], None]
) -> TrainState:
    settings, train_images = this.config.train, this.dataset.images[this.split.train]
    draws = settings.picture_every > 0 and importlib.util.find_spec("PIL") is not None
    n = len(train_images)
    batch, total, epoch_steps = settings.batch_size, run.total_steps(this.config, n), n // settings.batch_size
    picture_steps = settings.picture_every * epoch_steps if draws else 0
    step = saved = int(state.step)
    if step >= total:
        return state
    images = sharding.replicate(train_images, mesh)
    draw = _make_picture(this, workdir / "pictures", detector)
    chunk = sharding.data_parallel(make_chunk(detector, *this.pixels[1:]), mesh, (None, None, 1, None), donate=0)

    def arguments(count: int) -> tuple[Any, ...]:
        index = np.zeros((STEPS_A_CALL, batch), np.int32)
        index[:count] = data.batch_indices(this.config.seed, n, batch, step, count)
        return images, sharding.put_batch(index, mesh, 1), sharding.replicate(np.int32(count), mesh)

    begin = time.monotonic()
    compiled = chunk.lower(state, *arguments(1)).compile()
    say(f"compiled in {time.monotonic() - begin:.1f} s")
    count, rate, pending = 1, 0.0, None
    with (
        checkpoint.Saver() as saver,
        Progress(total, step, "step") as progress,
        _History(workdir / HISTORY, step, epoch_steps, settings.log_every) as history,
        _signals() as stopped,
    ):

        def fetch(waiting: tuple[int, Array, int] | None) -> None:
            if waiting is None:
                return
            first, losses, length = waiting
            values = np.asarray(losses)[:length]
            bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
            history.add(first, values[: bad[0]] if len(bad) else values, rate * batch)
            if len(bad):
                at = first + int(bad[0]) + 1
                names = ", ".join(name for name, v in zip(LOSSES, values[bad[0]], strict=True) if not np.isfinite(v))
                raise _diverged(workdir, at, f"the loss {names} is not finite")
            progress.update(first + length, history.line(rate * batch))

        began = time.monotonic()
        while step < total and not stopped:
            to_save = settings.save_every - step % settings.save_every
            to_picture = picture_steps - step % picture_steps if picture_steps else total
            length = min(count, total - step, to_save, to_picture)
            state, losses = compiled(state, *arguments(length))
            # The losses of the call before: the device has its next work before the host waits for anything.
            fetch(pending)
            now = time.monotonic()
            if pending is not None:
                rate = pending[2] / (now - began)
                count = int(np.clip(rate * _SECONDS_A_CALL, 1, STEPS_A_CALL))
            began = now
            pending = (step, losses, length)
            step += length
            save = step % settings.save_every == 0
            picture = picture_steps and step % picture_steps == 0
            if save or picture:
                fetch(pending)
                pending = None
                began = time.monotonic()
            if save:
                _save(saver, workdir, step, state, this, settings.keep)
                saved = step
            if picture:
                draw(step // epoch_steps, state)
        fetch(pending)
        history.flush()
        if step != saved:
            _save(saver, workdir, step, state, this, settings.keep)
    if stopped:
        raise StoppedError(
            f"stopped by {signal.Signals(stopped[0]).name} at step {step:,} of {total:,}; saved, run it again to go on",
            stopped[0],
        )
    return state


def _save(saver: checkpoint.Saver, workdir: Path, step: int, state: TrainState, this: Run, keep: int) -> None:
    # Finite losses do not show what the last update did to the weights.
    if not bool(_finite(state)):
        raise _diverged(workdir, step, "a weight is not finite")
    saver.save(workdir / CHECKPOINTS, step, state, {"config": config.to_dict(this.config)}, keep)


@jax.jit
def _finite(state: TrainState) -> Array:
    leaves = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.stack(leaves).all()


def _diverged(workdir: Path, step: int, what: str) -> DivergedError:
    kept = checkpoint.steps(workdir / CHECKPOINTS)
    last = f"the last finite checkpoint is that of step {kept[-1]:,}" if kept else "there is no checkpoint before it"
    return DivergedError(
        f"training diverged at step {step:,}: {what}; {last}. Lower --config.optimizer.learning_rate, or look for "
        "extreme pixel values in the data"
    )


def _make_picture(this: Run, folder: Path, detector: Detector) -> Callable[[int, TrainState], None]:
    """`picture(epoch, state)` writes x and x_hat of some calibration images; compiled once for all epochs."""
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


class _History:
    """`history.jsonl`: a line every few steps with the mean losses of those; lines beyond a resumed step go."""

    def __init__(self, path: Path, step: int, epoch_steps: int, every: int) -> None:
        self._epoch_steps, self._every = epoch_steps, every
        self._window: list[np.ndarray] = []
        self._step, self._last = step, np.full(len(LOSSES), np.nan)
        self._speed = 0.0
        kept = []
        try:
            if path.exists():
                for line in path.read_text(encoding="utf-8").splitlines():
                    try:
                        if json.loads(line)["step"] <= step:
                            kept.append(line)
                    except (ValueError, KeyError, TypeError):
                        continue  # a line that a kill cut short
            files.write_text(path, "".join(f"{line}\n" for line in kept))
            self._file = path.open("a", encoding="utf-8", buffering=1)
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}") from None

    def add(self, first: int, losses: np.ndarray, images_per_second: float) -> None:
        """The losses [n, 5] of the steps first + 1 ... first + n."""
        self._speed = images_per_second or self._speed
        for row in losses:
            self._window.append(row)
            self._step += 1
            if self._step % self._every == 0:
                self.flush()

    def flush(self) -> None:
        """Write what has come since the last line."""
        if not self._window:
            return
        self._last = np.mean(self._window, axis=0)
        self._window = []
        values = {"step": self._step, "epoch": round(self._step / self._epoch_steps, 4)}
        values |= {"images_per_second": round(self._speed, 1)}
        values |= {name: float(value) for name, value in zip(LOSSES, self._last, strict=True)}
        try:
            self._file.write(json.dumps(values, allow_nan=False) + "\n")
        except OSError as error:
            raise UserError(f"{HISTORY} cannot be written: {error.strerror}; the checkpoints are intact") from None

    def line(self, images_per_second: float) -> str:
        """The latest losses for the progress bar."""
        last = np.mean(self._window, axis=0) if self._window else self._last
        losses = "  ".join(f"{name} {value:.3g}" for name, value in zip(_SHORT, last, strict=True))
        return f"{images_per_second:,.0f} images/s  {losses}" if images_per_second else losses

    def __enter__(self) -> _History:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


@contextmanager
def _signals() -> Iterator[list[int]]:
    """A list to which SIGINT and SIGTERM are added; a second one ends the process as usual."""
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, _: Any) -> None:
        came.append(number)
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, note)
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
