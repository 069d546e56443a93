"""What a target of fuzzing is: a parser as a function of bytes, with valid inputs and a way to change them.

A parser ends in a value, or in the error of a user's mistake with a printable sentence. Anything else is a finding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.faults.fuzz_mutators import Mutator
from ganomaly_jax.core.errors import DamagedError, UserError

VALUE = "a value"


class UnprintableError(AssertionError):
    """A message for the user holds characters that act on a terminal."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a target works."""

    scratch: Path
    """A folder of its own, in memory if possible."""
    images: Path
    """The folder of a finished run on images."""
    rows: Path
    """The folder of a finished run on windows of sensors."""


@dataclasses.dataclass(frozen=True)
class Opened:
    """A target that is ready."""

    seeds: Sequence[bytes]
    """Valid inputs."""
    parse: Callable[[bytes], Any]
    """Parses an input as the package does."""


@dataclasses.dataclass(frozen=True)
class Target:
    """A parser."""

    open: Callable[[Place], Opened]
    mutate: Mutator
    longest: int = 2**15
    """Bytes of an input at most."""


def outcome(opened: Opened, data: bytes) -> str:
    """Returns `VALUE` or the sentence in which parsing ended; whatever else is raised goes through.

    Raises:
      UnprintableError: the sentence would act on a terminal.
    """
    try:
        opened.parse(data)
    except (UserError, DamagedError) as error:
        said = str(error)
        if not said or not said.replace("\n", "").isprintable():
            raise UnprintableError(repr(said)) from error
        return said
    return VALUE


def written(path: Path, data: bytes) -> Path:
    """Writes a file and returns its path."""
    path.write_bytes(data)
    return path
