"""The loop of every training: what happens at step k can be read here, for one model or for many together."""

from __future__ import annotations

import dataclasses
import functools
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ganomaly_jax.core import config, config_values, signals
from ganomaly_jax.core.config import Config
from ganomaly_jax.core.errors import DivergedError, StoppedError
from ganomaly_jax.core.progress import Progress
from ganomaly_jax.data import batch_order
from ganomaly_jax.model.protocol import TrainState
from ganomaly_jax.parallel import processes
from ganomaly_jax.runs import checkpoint, diagnostics, layout, resolution
from ganomaly_jax.runs.history import History
from ganomaly_jax.runs.resolution import Run
from ganomaly_jax.training import health
from ganomaly_jax.training.health import EarlyStopping
from ganomaly_jax.training.train_step import STEPS_A_CALL

# A call runs as many steps as take about so long: the host is asked rarely, and a signal is still answered soon.
_SECONDS_A_CALL = 1.0
_WAITING = "waiting"

Log = Callable[[str], None]


@dataclasses.dataclass(frozen=True, eq=False)
class Course:
    """What one model trains on, where it leaves its traces, and how far it goes."""

    run: Run
    folder: Path
    name: str = ""

    @property
    def images(self) -> int:
        return len(self.run.split.train)

    @property
    def total(self) -> int:
        return resolution.total_steps(self.run.config, self.images)

    @property
    def epoch_steps(self) -> int:
        return self.images // self.run.config.train.batch_size

    @functools.cached_property
    def places(self) -> np.ndarray:
        """int64 [B, images / B]: which images of the training part each place in a batch draws from."""
        return batch_order.columns(self.run.config.seed, self.images, self.run.config.train.batch_size)

    def rows(self, step: int, count: int) -> np.ndarray:
        """int32 [STEPS_A_CALL, B]: which of its `places` each place takes in the next `count` steps, and zeros."""
        settings = self.run.config
        rows = np.zeros((STEPS_A_CALL, settings.train.batch_size), np.int32)
        rows[:count] = batch_order.batch_rows(settings.seed, self.images, settings.train.batch_size, step, count)
        return rows

    def index(self, step: int, count: int) -> np.ndarray:
        """int32 [STEPS_A_CALL, B]: the same as indices into the training part."""
        return self.places[np.arange(len(self.places)), self.rows(step, count)].astype(np.int32)


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """How the models advance: `advance(state, at, counts)` runs counts[m] steps of model m, which has done at[m]."""

    advance: Callable[[TrainState, np.ndarray, np.ndarray], tuple[TrainState, Array]]
    finite: Callable[[TrainState], np.ndarray]
    """Whether all weights are, [models] bool."""
    stored: Callable[[TrainState], TrainState]
    """What of the state is kept."""
    losses: Sequence[str]
    """Names of what `advance` gives of each step, [models, steps, L]."""
    look: Callable[[TrainState], list[dict[str, Any]]] | None = None
    """At some normal images: what `health.measurer` measures of each model. With `checkpoint.LOSS` where they are held
    out: the checkpoint with the smallest is kept."""
    most: int = STEPS_A_CALL
    """Steps a call may take."""


def advance(
    courses: Sequence[Course],
    workdir: Path,
    whole: Config,
    program: Program,
    state: TrainState,
    at: np.ndarray,
    draw: Callable[[int, TrainState], None] | None,
    waiting: EarlyStopping,
    log: Log,
) -> TrainState:
    """Take every model from the step `at` [models] to its last one; `whole` is the configuration that is kept.

    A model that is alone may stop before, where it has been `waiting` for a smaller loss for longer than its patience.
    """
    settings, together = whole.train, len(courses) > 1 or bool(courses[0].name)
    totals = np.array([course.total for course in courses])
    batch, last = settings.batch_size, int(totals.max())
    picture_steps = settings.picture_every * courses[0].epoch_steps if draw else 0
    look_steps = health.interval(settings.check_every, courses[0].epoch_steps) if program.look else 0
    looked: tuple[int, list[dict[str, Any]]] = (-1, [])
    alive = program.finite(state).copy()
    # A model that diverged takes no further step.
    at = np.where(alive, at, totals)
    step = saved = int(at[at < totals].min(initial=last))
    count, rate, pending, calls = 1, 0.0, None, 0

    def lose(m: int, at_step: int, what: str) -> None:
        if not together:
            raise _diverged(workdir, at_step, what)
        alive[m], at[m] = False, totals[m]
        log(f"member {courses[m].name} diverged at step {at_step:,}: {what}; the others go on")
        if not alive.any():
            raise _diverged(workdir, at_step, "the last member's")

    def look(step: int) -> list[dict[str, Any]]:
        nonlocal looked
        if program.look is not None and looked[0] != step:
            looked = (step, program.look(state))
        return looked[1]

    def save(step: int) -> None:
        # Finite losses do not show what the last update did to the weights.
        for m in np.flatnonzero(alive & ~program.finite(state)):
            lose(int(m), step, "a weight is not finite")
        meta: dict[str, Any] = {"config": config_values.to_dict(whole)}
        if not together:
            meta |= {name: value for name, value in look(step)[0].items() if name == checkpoint.LOSS}
            meta[_WAITING] = dataclasses.asdict(waiting)
        saver.save(workdir / layout.CHECKPOINTS, step, program.stored(state), meta, settings.keep)
        if settings.save_every == 1:
            saver.wait()  # nothing lies half-way

    with ExitStack() as stack:
        # First, and so until the last save is written.
        came = stack.enter_context(signals.noted(*signals.STOP, signal.SIGUSR1))
        saver = stack.enter_context(checkpoint.Saver())
        here = processes.is_primary()
        progress = stack.enter_context(Progress(last, step, "step", quiet=not here))
        histories = []
        for course, first in zip(courses, at, strict=True):
            path = course.folder / layout.HISTORY if here else None
            history = History(path, int(first), course.epoch_steps, settings.log_every, program.losses)
            histories.append(stack.enter_context(history))

        def fetch(waiting: tuple[int, np.ndarray, np.ndarray, Array] | None) -> None:
            if waiting is None:
                return
            done, first, counts, losses = waiting
            fetched = np.asarray(losses)
            for m, history in enumerate(histories):
                values = fetched[m, : counts[m]]
                bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
                history.add(int(first[m]), values[: bad[0]] if len(bad) else values, rate * batch)
                if len(bad) and alive[m]:
                    wrong = zip(program.losses, values[bad[0]], strict=True)
                    names = ", ".join(name for name, value in wrong if not np.isfinite(value))
                    lose(m, int(first[m] + bad[0]) + 1, f"the loss {names} is not finite")
            shown = histories[int(alive.argmax())].line(rate * batch * len(courses))
            shown = shown.replace("images/s", f"{config.items(whole.data)}/s")
            progress.update(done, f"{courses[int(alive.argmax())].name}: {shown}" if together else shown)

        def asked() -> tuple[int, int]:
            """(steps that a call takes, the signal that came or 0), so that all processes run the same calls."""
            nonlocal calls
            calls += 1
            if processes.is_preempted(calls):
                came.append(signal.SIGTERM)
            said = processes.all_gather(np.array([count, came[0] if came else 0], np.int32))
            return int(said[0, 0]), int(said[:, 1].max())

        began = time.monotonic()
        count, stopped = asked()
        while step < last and not stopped and not waiting.over(settings.patience):
            to_save = steps_to_save(step, settings.save_every)
            to_picture = picture_steps - step % picture_steps if picture_steps else last
            to_look = look_steps - step % look_steps if look_steps else last
            length = min(count, last - step, to_save, to_picture, to_look)
            counts = np.clip(np.minimum(step + length, totals) - at, 0, length)
            first = at.copy()
            state, losses = program.advance(state, first, counts)
            at += counts
            # The losses of the call before: the device has its next work before the host waits for anything.
            fetch(pending)
            now = time.monotonic()
            if pending is not None:
                rate = float(pending[2].max()) / (now - began)
                count = int(np.clip(rate * _SECONDS_A_CALL, 1, program.most))
            began = now
            step += length
            pending = (step, first, counts, losses)
            to_draw = picture_steps and step % picture_steps == 0
            looks = look_steps and (to_look == length or step == last)
            if to_save == length or to_draw or looks:
                fetch(pending)
                pending = None
                began = time.monotonic()
            better = False
            if looks:
                for m in np.flatnonzero(alive):
                    histories[m].look(int(at[m]), look(step)[m])
                # A last look out of turn would count for a run that goes on, and not for one that never ended there.
                if to_look == length and not together:
                    waiting = waiting.after(step, processes.broadcast(look(step)[0].get(checkpoint.LOSS, np.nan)))
                    better = waiting.step == step and settings.choose == "best"
            if to_save == length or better:
                save(step)
                saved = step
            if to_draw and draw:
                draw(step // courses[0].epoch_steps, state)
            count, stopped = asked()
        fetch(pending)
        for history in histories:
            history.flush()
        if step < last and waiting.over(settings.patience):
            histories[0].note(step, {diagnostics.STOPPED: waiting.sentence(step, last)})
        if step != saved:
            save(step)
    if stopped:
        raise StoppedError(
            f"stopped by {signal.Signals(stopped).name} at step {step:,} of {last:,}; saved, run it again to go on",
            stopped,
        )
    return state


def steps_to_save(step: int, save_every: int) -> int:
    """Steps from `step` to the next checkpoint: they are due at every multiple of `save_every`, and half-way between.

    One is written while the steps go on to the next, which waits for it. So what a kill can cost, the steps since the
    last that is complete, is the distance of three in a row at most: `save_every`.
    """
    return min(save_every - step % save_every, (save_every // 2 - step) % save_every or save_every)


def waiting_of(meta: dict[str, Any]) -> EarlyStopping:
    """How long the run has waited for a smaller loss that this checkpoint's meta is of."""
    return EarlyStopping(**meta.get(_WAITING, {}))


@jax.jit
def finite(state: TrainState) -> Array:
    leaves = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.stack(leaves).all()


def _diverged(workdir: Path, step: int, what: str) -> DivergedError:
    kept = checkpoint.steps(workdir / layout.CHECKPOINTS)
    last = f"the last finite checkpoint is that of step {kept[-1]:,}" if kept else "there is no checkpoint before it"
    return DivergedError(
        f"training diverged at step {step:,}: {what}; {last}. Lower --config.optimizer.learning_rate, or look for "
        "extreme pixel values in the data"
    )
