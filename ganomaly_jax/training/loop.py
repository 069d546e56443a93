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

# A call runs as many steps as take about this long: the host interrupts rarely, and a signal is still answered soon.
_SECONDS_A_CALL = 1.0


def run(training: Training, more_hooks: Sequence[Hook] = ()) -> TrainState:
    """Trains every model up to its last step.

    A single model stops early if the loss on held-out images does not improve within its patience.

    Args:
      training: the models and their state, which is updated in place.
      more_hooks: hooks such as `hooks.SavePictures`, called after the health is checked and the checkpoint is saved.

    Returns:
      The state after the last step.

    Raises:
      DivergedError: the losses or weights of every model are no longer finite.
      StoppedError: a signal or a notice of preemption arrived, here or in another process; the state is saved.
    """
    settings, steps_per_epoch = training.config.train, training.runs[0].steps_per_epoch
    with ExitStack() as stack:
        # Entered first and so left last: signals are only noted until the last checkpoint is written.
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
            # The losses of the previous call: the device has its next work before the host waits for anything.
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
    """Measures the steps per second, and chooses how many steps the next call runs."""

    def __init__(self, max_steps: int) -> None:
        self.steps, self.rate = 1, 0.0
        self._max_steps, self._began = max_steps, time.monotonic()

    def restart(self) -> None:
        """Restarts the clock, after something other than training steps took time."""
        self._began = time.monotonic()

    def update(self, call: Call | None) -> None:
        """Updates the rate when a call has ended; None means that no call was running."""
        now = time.monotonic()
        if call is not None:
            self.rate = float(call.counts.max()) / (now - self._began)
            self.steps = int(np.clip(self.rate * _SECONDS_A_CALL, 1, self._max_steps))
        self._began = now


@dataclasses.dataclass
class Agreement:
    """Lets all processes run the same calls and stop at the same step."""

    caught: list[int]
    """Signals that this process has received."""
    rounds: int = 0
    """Number of times that the processes have agreed."""

    def reach(self, steps: int) -> tuple[int, int]:
        """Returns the number of steps of the next call and a signal to stop for, both equal in all processes.

        Args:
          steps: the number of steps that this process proposes; that of process 0 is taken.

        Returns:
          The number of steps, and a signal that any process has received, or 0.
        """
        self.rounds += 1
        if processes.is_preempted(self.rounds):
            self.caught.append(signal.SIGTERM)
        proposals = processes.all_gather(np.array([steps, self.caught[0] if self.caught else 0], np.int32))
        return int(proposals[0, 0]), int(proposals[:, 1].max())
