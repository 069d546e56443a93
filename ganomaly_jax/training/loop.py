"""The training loop, for one model or for all members of a sweep: steps, then hooks."""

from __future__ import annotations

import dataclasses
import signal
import time
from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np

from ganomaly_jax.core import signals
from ganomaly_jax.core.errors import StoppedError
from ganomaly_jax.model.protocol import TrainState
from ganomaly_jax.parallel import processes
from ganomaly_jax.runs import checkpoint
from ganomaly_jax.training import health, hooks
from ganomaly_jax.training.hooks import Hook
from ganomaly_jax.training.state import Call, Training

# A call runs as many steps as take about so long: the host is asked rarely, and a signal is still answered soon.
_SECONDS_A_CALL = 1.0


def run(training: Training, more_hooks: Sequence[Hook] = ()) -> TrainState:
    """Trains every model up to its last step, and returns the state after it.

    A single model may stop before, where the loss on held-out images has not improved for longer than its patience.

    Args:
      training: the models, and where they begin; changed as they advance.
      more_hooks: called after the health is checked and the checkpoint is saved, such as `hooks.SavePictures`.

    Raises:
      DivergedError: no model is left whose losses and weights are finite.
      StoppedError: a signal or a notice of preemption came, here or in another process; the state is saved.
    """
    settings, steps_per_epoch = training.config.train, training.runs[0].steps_per_epoch
    with ExitStack() as stack:
        # Signals are noted until the last checkpoint is written, so this is the first to be entered.
        caught = stack.enter_context(signals.noted(*signals.STOP, signal.SIGUSR1))
        saver = stack.enter_context(checkpoint.Saver())
        log_losses = stack.enter_context(hooks.logging(training))
        save = hooks.SaveCheckpoint(saver, settings.save_every, training.step)
        save_best = save if settings.choose == "best" else None
        interval = health.interval(settings.check_every, steps_per_epoch)
        all_hooks: list[Hook] = [hooks.CheckHealth(interval, log_losses.histories, save_best), save, *more_hooks]
        pace, agreement, pending = Pace(training.compiled.max_steps), Agreement(caught), None
        steps, stopped_by = agreement.reach(pace.steps)
        while training.step < training.last_step and not stopped_by and not training.has_stopped_early:
            due_in = [hook.steps_until_due(training) for hook in all_hooks]
            length = min(steps, training.last_step - training.step, *due_in)
            call = training.advance(length)
            # The losses of the call before: the device has its next work before the host waits for anything.
            log_losses(training, pending, pace.rate)
            pace.update(pending)
            pending = call
            if length in due_in:
                log_losses(training, pending, pace.rate)
                pending = None
                pace.restart()
            for hook, until in zip(all_hooks, due_in, strict=True):
                if until == length:
                    hook(training)
            steps, stopped_by = agreement.reach(pace.steps)
        log_losses(training, pending, pace.rate)
        log_losses.finish(training)
        save(training)
    if stopped_by:
        raise StoppedError(
            f"stopped by {signal.Signals(stopped_by).name} at step {training.step:,} of {training.last_step:,}; saved, "
            "run it again to resume",
            stopped_by,
        )
    return training.state


class Pace:
    """Measures steps a second, and chooses how many steps the next call runs."""

    def __init__(self, max_steps: int) -> None:
        self.steps, self.rate = 1, 0.0
        self._max_steps, self._began = max_steps, time.monotonic()

    def restart(self) -> None:
        """Begins anew to measure, after something else than steps took time."""
        self._began = time.monotonic()

    def update(self, call: Call | None) -> None:
        """Takes into account that this call has ended; None: none was under way."""
        now = time.monotonic()
        if call is not None:
            self.rate = float(call.counts.max()) / (now - self._began)
            self.steps = int(np.clip(self.rate * _SECONDS_A_CALL, 1, self._max_steps))
        self._began = now


@dataclasses.dataclass
class Agreement:
    """Makes all processes run the same calls and stop at the same step."""

    caught: list[int]
    """Signals that came to this process."""
    rounds: int = 0

    def reach(self, steps: int) -> tuple[int, int]:
        """Returns the steps that the next call takes in all processes, and a signal that came to any of them, or 0."""
        self.rounds += 1
        if processes.is_preempted(self.rounds):
            self.caught.append(signal.SIGTERM)
        found = processes.all_gather(np.array([steps, self.caught[0] if self.caught else 0], np.int32))
        return int(found[0, 0]), int(found[:, 1].max())
