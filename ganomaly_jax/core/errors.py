"""Errors that users can cause, each with the exit code that the command line returns for it."""

from ganomaly_jax.core import exit_codes
from ganomaly_jax.core.printable import LONGEST, printable


class UserError(ValueError):
    """An input or option that cannot be used; the message says what was received, what was expected and what to do."""

    exit_code = exit_codes.USAGE

    def __init__(self, message: str) -> None:
        """Creates the error; control characters and line ends, which only names contain, are escaped."""
        super().__init__(printable(message, max(len(message) * 10, LONGEST)))


class DivergedError(RuntimeError):
    """Training produced a NaN or an infinity."""

    exit_code = exit_codes.DIVERGED


class DamagedError(RuntimeError):
    """A stored artefact (checkpoint, detector folder) is incomplete or was altered."""

    exit_code = exit_codes.DAMAGED


class StoppedError(RuntimeError):
    """A signal stopped the work early; the progress so far is saved. The exit code is 128 + the signal's number."""

    def __init__(self, message: str, signal_number: int) -> None:
        """Creates the error for the signal with number `signal_number`."""
        super().__init__(message)
        self.exit_code = exit_codes.of_signal(signal_number)


class ProcessLostError(RuntimeError):
    """Another process of the same training is gone."""

    exit_code = exit_codes.PROCESS_LOST


def last_line(error: BaseException) -> str:
    """Returns the last line of an error's message, where most libraries put the cause; at most 300 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]
