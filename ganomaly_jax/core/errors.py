"""The errors a user can cause, each with the exit code that the command line gives for it."""


class UserError(ValueError):
    """Something from outside cannot be used; the message says what was got, what was wanted and what to do."""

    exit_code = 2


class PartialError(UserError):
    """Some of the inputs failed; the others were dealt with."""

    exit_code = 3


class DivergedError(RuntimeError):
    """Training met a NaN or an infinity."""

    exit_code = 4


class DamagedError(RuntimeError):
    """A stored artefact (checkpoint, detector folder) is incomplete or was altered."""

    exit_code = 5


class StoppedError(RuntimeError):
    """A signal ended the work early; what was done is saved. The exit code is the shell's for that signal."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


class LostError(RuntimeError):
    """Another process of the same training is gone."""

    exit_code = 1


def last_line(error: BaseException) -> str:
    """The last line of what an error of a library says, which is where most of them put the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]
