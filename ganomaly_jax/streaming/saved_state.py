"""The state file of a monitor: locked, bounded, written atomically, and checked when it is read."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ganomaly_jax.core import atomic_files, atomic_folders
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.streaming import inputs, stored, summary, watch_state
from ganomaly_jax.streaming.watch import Line, Watch

FORMAT = 1
MAX_BYTES = 2**26
"""Maximum size of a state, 64 MiB: a window of a million values, or the names of half a million images."""


@contextlib.contextmanager
def locked(path: str) -> Iterator[dict[str, Any]]:
    """Locks the state file and yields its contents, empty if it does not exist.

    Raises:
      UserError: another monitor uses it, it cannot be written, or it is not a state.
    """
    state = Path(path)
    try:
        state.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(f"--state {path} cannot be written: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise UserError(f"another monitor uses --state {path}: choose another file, or stop that monitor") from None
    try:
        yield read(state)
    finally:
        os.close(lock)


def read(path: Path) -> dict[str, Any]:
    """Returns the contents of the state file, empty if it does not exist.

    Raises:
      UserError: it cannot be read, is too large, or is not JSON of this format.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is not a file")
        if status.st_size > MAX_BYTES:
            raise ValueError(f"it has {status.st_size:,} bytes, expected at most {MAX_BYTES:,}")
        held = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number)
        if not isinstance(held, dict) or held.get("format") != FORMAT:
            raise ValueError("another format")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"--state {path} is not the state of a monitor ({error}); remove it to start afresh") from None
    return held


def _no_number(name: str) -> float:
    """Refuses NaN and infinities, which JSON does not have."""
    raise ValueError(f"{name} is not a number")


def write(path: str, values: dict[str, Any]) -> None:
    """Writes a state atomically and flushes it to disk.

    Raises:
      UserError: it cannot be written, or is too large to be read again.
    """
    text = json.dumps({"format": FORMAT} | values, allow_nan=False) + "\n"
    if len(text) > MAX_BYTES:
        raise UserError(
            f"--state {path} was not saved: it would have {len(text):,} bytes, more than {MAX_BYTES:,}; move images "
            "that have been scored out of the folder"
        )
    with atomic_files.replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
        atomic_folders.fsync(temporary)


@contextlib.contextmanager
def usable(path: str) -> Iterator[None]:
    """Adds the file and advice to the UserError for a state that cannot be used."""
    try:
        with stored.reading("monitor"):
            yield
    except UserError as error:
        raise UserError(
            f"--state {path} cannot be used: {error}; choose another, or remove it to start afresh"
        ) from None


def restore(
    watch: Watch, source: inputs.Source, saved: dict[str, Any]
) -> tuple[str, int, int, summary.Summary, list[Line]]:
    """Restores a watch and goes to the position in its source.

    Args:
      watch: the state, modified in place.
      source: the source; one of another kind than before is read from its beginning.
      saved: what `read` returned.

    Returns:
      The id of the stream, the number of its events, the bytes of its output, its summary, and lines to process first.

    Raises:
      UserError: the state is invalid or belongs to another detector.
    """
    with stored.reading("monitor"):
        watch_state.resume(watch, saved["watch"])
        position = stored.fields(saved["source"])
        first = source.seek(position) if position["kind"] == source.position()["kind"] else []
        stream = saved["stream"]
        if not re.fullmatch("[0-9a-f]{8}", stream):
            raise ValueError("the id of the stream is none")
        # States of version 0.2.0 do not count events.
        events, written = stored.count(saved.get("events", 0)), stored.count(saved["written"])
        return stream, events, written, summary.from_dict(saved["course"]), first
