"""A queue of a monitor's events on disk, bounded in number and bytes.

A folder holds one file for each event, `NUMBER-ID.json` in order of their numbers, until it is delivered. `refused/`
holds those that the receiver rejected. While the disk cannot be written, events are held in memory, up to a bound.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import fcntl
import json
import os
import re
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from ganomaly_jax.core import atomic_files
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.core.printable import printable

REFUSED = "refused"
RECEIVER = "receiver.txt"
_FILE = re.compile(r"(\d{12})-([0-9A-Za-z-]{1,100})\.json", re.ASCII)
_NEAR, _FAR = 0.8, 0.5
# Shares of a bound at which a warning is logged, and below which it may be logged again.

Log = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bounds of a queue; a million bytes is a MB.

    Attributes:
      events: undelivered events. When the queue is full, new events are dropped.
      size: bytes of the undelivered events.
      for_alarms: share of both that is kept for alarms: other events are dropped before any alarm.
      refused: events in `refused/`. When it is full, the oldest are deleted.
      refused_size: bytes of the events in `refused/`.
      in_memory: events held in memory while the disk cannot be written.
    """

    events: int = 100_000
    size: int = 100_000_000
    for_alarms: float = 0.1
    refused: int = 10_000
    refused_size: int = 10_000_000
    in_memory: int = 1_000


@dataclasses.dataclass
class Entry:
    """One event: its number, id and bytes; `data` only while it is not on disk."""

    number: int
    name: str
    size: int
    data: bytes | None = None

    @property
    def file(self) -> str:
        """Returns the name of its file."""
        return f"{self.number:012}-{self.name}.json"


class Queue:
    """The open queue of one receiver."""

    def __init__(self, folder: Path, receiver: str, limits: Limits, log: Log) -> None:
        """Opens the folder, creating it if necessary.

        Args:
          folder: the queue's folder.
          receiver: printable name of the receiver.
          limits: the bounds.
          log: called with messages for the user.

        Raises:
          UserError: another process uses the folder, or it cannot be written.
        """
        self.folder, self.receiver, self.limits, self._log = folder, receiver, limits, log
        self.dropped = self.deleted = 0
        self._near, self._full, self._unwritable, self._held = False, 0, False, 0
        self._changing = threading.Lock()
        try:
            (folder / REFUSED).mkdir(parents=True, exist_ok=True)
            self._lock = _locked(folder)
            for leftover in folder.glob(".*.tmp"):  # of a write that was killed
                leftover.unlink(missing_ok=True)
            self._entries, self._refused = (collections.deque(_scan(part)) for part in (folder, folder / REFUSED))
        except OSError as error:
            raise UserError(f"{folder} cannot be used: {error.strerror or error}; choose another --spool") from None
        with contextlib.suppress(UserError):
            atomic_files.write_text(folder / RECEIVER, f"{receiver}\n")
        self._size = sum(entry.size for entry in self._entries)
        self._refused_size = sum(entry.size for entry in self._refused)
        self._names = {entry.name for entry in self._entries}
        self._next = 1 + max((part[-1].number for part in (self._entries, self._refused) if part), default=-1)

    def __len__(self) -> int:
        """Returns the number of undelivered events."""
        return len(self._entries)

    def put(self, name: str, event: dict[str, Any]) -> bool:
        """Adds an event; one whose id is in the queue already is not added again.

        Args:
          name: id of the event, of letters, digits and hyphens.
          event: JSON-ready dict.

        Returns:
          False if it was dropped.
        """
        data = json.dumps({"id": name} | event, allow_nan=False).encode() + b"\n"
        with self._changing:
            if name in self._names:
                return True
            share = 1.0 if event.get("event") == "alarm" else 1 - self.limits.for_alarms
            if not self._has_room(len(data), share):
                return self._drop(f"is full ({self._filling()})")
            entry = Entry(self._next, name, len(data), data)
            if not self._write(entry):
                if self._held >= self.limits.in_memory * share:
                    return self._drop(f"cannot be written, and {self._held:,} of its events are held in memory")
                self._held += 1
            self._next += 1
            self._entries.append(entry)
            self._names.add(name)
            self._size += entry.size
            self._say_if_near()
        return True

    def first(self) -> Entry | None:
        """Returns the oldest undelivered event, or None."""
        with self._changing:
            return self._entries[0] if self._entries else None

    def read(self, entry: Entry) -> bytes:
        """Returns the bytes of an event.

        Raises:
          OSError: its file cannot be read.
        """
        data = entry.data
        return (self.folder / entry.file).read_bytes() if data is None else data

    def remove_first(self) -> None:
        """Removes the first event, which was delivered."""
        with self._changing:
            with contextlib.suppress(OSError):  # it is sent again after a restart
                (self.folder / self._entries[0].file).unlink()
            self._forget_first()

    def refuse_first(self) -> None:
        """Moves the first event to `refused/`, and deletes the oldest ones there if there are too many.

        Raises:
          OSError: it cannot be moved; it stays in the queue.
        """
        with self._changing:
            entry = self._entries[0]
            if entry.data is not None and not self._write_held(entry):
                raise OSError("the disk cannot be written")
            os.replace(self.folder / entry.file, self.folder / REFUSED / entry.file)
            self._forget_first()
            self._refused.append(entry)
            self._refused_size += entry.size
            while len(self._refused) > self.limits.refused or self._refused_size > self.limits.refused_size:
                oldest = self._refused.popleft()
                self._refused_size -= oldest.size
                (self.folder / REFUSED / oldest.file).unlink(missing_ok=True)
                if not self.deleted:
                    self._log(
                        f"{self.folder / REFUSED} is full ({len(self._refused):,} events): the oldest are deleted"
                    )
                self.deleted += 1

    def write_held(self) -> int:
        """Writes the events held in memory as far as possible; returns the number that remain."""
        with self._changing:
            for entry in self._entries if self._held else ():
                if entry.data is not None and not self._write_held(entry):
                    break
            return self._held

    def close(self) -> int:
        """Writes the events held in memory and unlocks the folder; returns the number of lost events."""
        lost = self.write_held()
        os.close(self._lock)
        return lost

    def _write(self, entry: Entry) -> bool:
        """Writes an event to its file; returns False, and logs it once, if that fails."""
        try:
            atomic_files.write_text(self.folder / entry.file, (entry.data or b"").decode())
        except UserError as error:  # a full disk must not end the monitor
            if not self._unwritable:
                self._log(f"{error}; up to {self.limits.in_memory:,} events for {self.receiver} are held in memory")
            self._unwritable = True
            return False
        entry.data, self._unwritable = None, False
        return True

    def _write_held(self, entry: Entry) -> bool:
        """Writes an event that is held in memory; returns False if that fails."""
        written = self._write(entry)
        self._held -= written
        return written

    def _forget_first(self) -> None:
        """Removes the first entry."""
        entry = self._entries.popleft()
        self._names.discard(entry.name)
        self._size -= entry.size
        self._held -= entry.data is not None
        if self._share() < _FAR:
            if self._full:
                self._log(f"the queue of {self.receiver} has room again; {self._full:,} events were dropped")
            self._near, self._full = False, 0

    def _share(self) -> float:
        """Returns how full the queue is, from 0 to 1."""
        return max(len(self._entries) / self.limits.events, self._size / self.limits.size)

    def _has_room(self, size: int, share: float) -> bool:
        """Returns True if an event of `size` bytes fits into a share of the queue."""
        return len(self._entries) < self.limits.events * share and self._size + size <= self.limits.size * share

    def _filling(self) -> str:
        """Returns a description of the contents of the queue."""
        return f"{len(self._entries):,} events, {self._size / 1e6:.1f} MB"

    def _drop(self, why: str) -> bool:
        """Counts a dropped event and logs the first of several; returns False."""
        if not self._full:
            self._log(f"the queue of {self.receiver} {why}: new events are dropped until there is room, alarms last")
        self._full += 1
        self.dropped += 1
        return False

    def _say_if_near(self) -> None:
        """Logs that the bound is near, once until there is ample room again."""
        if not self._near and self._share() >= _NEAR:
            self._near = True
            self._log(
                f"the queue of {self.receiver} holds {self._filling()}, of {self.limits.events:,} events and "
                f"{self.limits.size / 1e6:g} MB at most: new events will soon be dropped, alarms last"
            )


def _locked(folder: Path) -> int:
    """Returns the descriptor of a folder that this process has locked.

    Raises:
      UserError: another process has.
    """
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        if isinstance(error, BlockingIOError):
            raise UserError(f"another monitor uses the queue {folder}: choose another --spool") from None
        raise
    return lock


def _scan(folder: Path) -> list[Entry]:
    """Returns the events in a folder, in order."""
    with os.scandir(folder) as files:
        found = [
            Entry(int(match[1]), match[2], file.stat().st_size)
            for file in files
            if (match := _FILE.fullmatch(file.name))
        ]
    return sorted(found, key=lambda entry: entry.file)


def waiting_elsewhere(spool: Path, opened: Collection[Path]) -> list[tuple[Path, int, str]]:
    """Returns (folder, number of events, receiver) of queues below `spool` that hold events but are not open."""
    found = []
    with contextlib.suppress(OSError):
        for folder in sorted(spool.iterdir()):
            if folder in opened or not re.fullmatch(r"[0-9a-f]{16}", folder.name) or not folder.is_dir():
                continue
            if entries := _scan(folder):
                receiver = "another receiver"
                with contextlib.suppress(OSError):  # queues of earlier versions do not name it
                    receiver = printable((folder / RECEIVER).read_text("utf-8", "replace").strip())
                found.append((folder, len(entries), receiver))
    return found
