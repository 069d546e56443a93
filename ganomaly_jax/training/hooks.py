"""Hooks of the training loop: logging losses, checking the health of the models, saving checkpoints and pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import numpy as np

from ganomaly_jax.core import config_values
from ganomaly_jax.core.progress import Progress
from ganomaly_jax.model.protocol import TrainState
from ganomaly_jax.parallel import processes
from ganomaly_jax.runs import checkpoint, diagnostics, layout
from ganomaly_jax.runs.history import History
from ganomaly_jax.training.state import Call, Training


class Hook(Protocol):
    """An action that the training loop takes at certain steps."""

    def steps_until_due(self, training: Training) -> int:
        """Returns the number of steps until it is due again, at least 1."""

    def __call__(self, training: Training) -> None:
        """Performs the action; called at the steps at which it is due."""


@dataclasses.dataclass(frozen=True)
class LogLosses:
    """Writes losses to `history.jsonl` and to the progress line, and drops models whose loss is not finite."""

    histories: Sequence[History]
    progress: Progress

    def __call__(self, training: Training, call: Call | None, steps_per_second: float) -> None:
        """Waits for the losses of a call and writes them; does nothing if there was no call."""
        if call is None:
            return
        losses, names = np.asarray(call.losses), training.compiled.losses
        images_per_second = steps_per_second * training.config.train.batch_size
        for m, history in enumerate(self.histories):
            values = losses[m, : call.counts[m]]
            bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
            history.add(values[: bad[0]] if len(bad) else values, images_per_second)
            if len(bad) and training.alive[m]:
                wrong = ", ".join(n for n, v in zip(names, values[bad[0]], strict=True) if not np.isfinite(v))
                training.drop(m, int(call.first[m] + bad[0]) + 1, f"the loss {wrong} is not finite")
        shown = int(training.alive.argmax())
        line = self.histories[shown].line(images_per_second * len(training.runs), training.runs[0].run.words.items)
        self.progress.update(call.step, f"{training.runs[shown].name}: {line}" if training.is_sweep else line)

    def finish(self, training: Training) -> None:
        """Writes the losses that are still buffered, and a note if the training stopped early."""
        for history in self.histories:
            history.flush()
        if training.has_stopped_early:
            sentence = training.early_stopping.sentence(training.step, training.last_step)
            self.histories[0].note(training.step, {diagnostics.STOPPED: sentence})


@contextmanager
def logging(training: Training) -> Iterator[LogLosses]:
    """Opens the history of each model and the progress line; only the primary process writes them."""
    primary, every = processes.is_primary(), training.config.train.log_every
    with ExitStack() as stack:
        progress = stack.enter_context(Progress(training.last_step, training.step, "step", quiet=not primary))
        histories = [
            stack.enter_context(
                History(
                    run.folder / layout.HISTORY if primary else None,
                    int(first),
                    run.steps_per_epoch,
                    every,
                    training.compiled.losses,
                )
            )
            for run, first in zip(training.runs, training.steps, strict=True)
        ]
        yield LogLosses(histories, progress)


@dataclasses.dataclass(eq=False)
class SaveCheckpoint:
    """Saves a checkpoint at every multiple of `every` steps, and half-way between two of them.

    A checkpoint is written while training continues, and the next one waits for it. So if the process is killed, the
    steps lost since the last complete checkpoint are at most two such intervals, that is `every`.
    """

    saver: checkpoint.Saver
    every: int
    """Steps."""
    saved: int
    """The step that is on disk: where the training began, then the last one that was saved."""

    def steps_until_due(self, training: Training) -> int:
        """Returns the number of steps until the next checkpoint is due."""
        return steps_to_save(training.step, self.every)

    def __call__(self, training: Training) -> None:
        """Saves the state, after dropping models whose weights are not finite."""
        if training.step == self.saved:
            return
        # Finite losses do not show what the last update did to the weights.
        for m in np.flatnonzero(training.alive & ~training.compiled.finite(training.state)).tolist():
            training.drop(m, training.step, "a weight is not finite")
        meta: dict[str, Any] = {"config": config_values.to_dict(training.config)}
        if not training.is_sweep:
            meta |= {name: value for name, value in training.health()[0].items() if name == checkpoint.LOSS}
            meta |= training.early_stopping.to_meta()
        kept, root = training.compiled.kept(training.state), training.workdir / layout.CHECKPOINTS
        self.saver.save(root, training.step, kept, meta, training.config.train.keep)
        if self.every == 1:
            self.saver.wait()  # so that no later step is trained before this one is complete on disk
        self.saved = training.step


def steps_to_save(step: int, every: int) -> int:
    """Returns the steps from `step` to the next checkpoint: at multiples of `every` and half-way between them."""
    return min(every - step % every, (every // 2 - step) % every or every)


@dataclasses.dataclass(frozen=True, eq=False)
class CheckHealth:
    """Measures the health of the models at multiples of `every` and at the last step, and updates early stopping."""

    every: int
    """Steps."""
    histories: Sequence[History]
    save_best: SaveCheckpoint | None
    """Saves each improvement if the best step is to be chosen at the end; None otherwise."""

    def steps_until_due(self, training: Training) -> int:
        """Returns the number of steps until the next check is due."""
        return min(self.every - training.step % self.every, training.last_step - training.step)

    def __call__(self, training: Training) -> None:
        """Measures the models, writes the values to their histories and updates early stopping."""
        measured = training.health()
        for m in np.flatnonzero(training.alive).tolist():
            self.histories[m].add_health(int(training.steps[m]), measured[m])
        # The check at the last step counts only if it is a multiple of `every`: otherwise a run that is extended would
        # count one check more than a run that was configured longer from the start.
        if training.is_sweep or training.step % self.every:
            return
        loss = processes.broadcast(measured[0].get(checkpoint.LOSS, np.nan))
        training.early_stopping = training.early_stopping.after(training.step, loss)
        if self.save_best is not None and training.early_stopping.best_step == training.step:
            self.save_best(training)


@dataclasses.dataclass(frozen=True, eq=False)
class SavePictures:
    """Saves pictures of inputs and reconstructions at multiples of `every`."""

    every: int
    """Steps, a multiple of those of an epoch."""
    draw: Callable[[int, TrainState], None]
    """`draw(epoch, state)`, see `pictures.make_draw`."""

    def steps_until_due(self, training: Training) -> int:
        """Returns the number of steps until the next picture is due."""
        return self.every - training.step % self.every

    def __call__(self, training: Training) -> None:
        """Draws the picture of this epoch."""
        self.draw(training.step // training.runs[0].steps_per_epoch, training.state)
