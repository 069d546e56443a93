"""The errors a user can cause, each with the exit code that the command line returns for it."""

from ganomaly_jax.core import exit_codes


class UserError(ValueError):
    """Something from outside cannot be used; the message says what was got, what was wanted and what to do."""

    exit_code = exit_codes.USAGE


class PartialError(UserError):
    """Some of the inputs failed; the others were processed."""

    exit_code = exit_codes.INCOMPLETE


class DivergedError(RuntimeError):
    """Training met a NaN or an infinity."""

    exit_code = exit_codes.DIVERGED


class DamagedError(RuntimeError):
    """A stored artefact (checkpoint, detector folder) is incomplete or was altered."""

    exit_code = exit_codes.DAMAGED


class StoppedError(RuntimeError):
    """A signal ended the work early; what was done is saved. The exit code is the shell's for that signal."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = exit_codes.of_signal(signal_number)


class LostError(RuntimeError):
    """Another process of the same training is gone."""

    exit_code = exit_codes.PROCESS_LOST


def last_line(error: BaseException) -> str:
    """Returns the last line of a library's error message, where most of them put the cause, cut to 300 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]
