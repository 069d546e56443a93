"""The exit codes of the command `ganomaly`, each once."""

DONE = 0
"""Everything asked for was done."""
PROCESS_LOST = 1
"""Another process of the same training is gone."""
USAGE = 2
"""The command, its options or its inputs cannot be used as they are."""
INCOMPLETE = 3
"""Some inputs failed and the others were processed, or an update was refused."""
DIVERGED = 4
"""Training met a NaN or an infinity."""
DAMAGED = 5
"""A stored artefact is incomplete or was altered."""
INTERRUPTED = 130
"""Stopped by SIGINT (Ctrl-C)."""
BROKEN_PIPE = 141
"""The reader of the output has gone."""


def of_signal(number: int) -> int:
    """Returns the code that shells give to a process ended by this signal: 130 for SIGINT, 143 for SIGTERM."""
    return 128 + number
