"""Delivery of events to files and webhooks, through a queue on disk, in a thread of its own.

An event stays in the queue until it is delivered, so none is lost while the receiver is down or the monitor restarts;
scoring never waits for deliveries. Events are delivered at least once, in order, each with an `id`: after a crash an
event may be delivered again with the same id. Standard library only.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import stat
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ganomaly_jax.core.errors import UserError
from ganomaly_jax.core.printable import printable
from ganomaly_jax.streaming import event_queue, webhook
from ganomaly_jax.streaming.event_queue import Limits, Log
from ganomaly_jax.streaming.webhook import DeliveryError, RefusedError

TIMEOUT = 10.0
"""Seconds for a whole delivery: connection, sending and the answer (`--sink-timeout`)."""
FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0
"""Seconds before the next try; doubled after each that failed."""
_REASONS = 10
# Maximum number of different reasons reported while a receiver accepts nothing.


@dataclasses.dataclass(frozen=True)
class Receiver:
    """Where events go.

    Attributes:
      name: its name in messages, without secrets.
      key: identifies its queue; independent of the password.
      deliver: called with the event's bytes, its id and seconds; raises RefusedError or DeliveryError.
    """

    name: str
    key: str = dataclasses.field(repr=False)
    deliver: Callable[[bytes, str, float], None] = dataclasses.field(repr=False)


def receiver(target: str) -> Receiver:
    """Returns the receiver that `--sink` names.

    Args:
      target: file in an existing folder, or http(s) URL.

    Raises:
      UserError: it is neither.
    """
    if re.match(r"https?:|[\w+.-]*:/", target, re.IGNORECASE):
        address = webhook.parse(target)
        hook = webhook.connect_through(address)
        key = re.sub(r"//[^/?#]*@", "//", target, count=1)
        return Receiver(address.origin, key, lambda data, name, timeout: webhook.post(hook, data, name, timeout))
    if any(ord(c) < 32 or c == "\x7f" for c in target) or not _can_be_file(target):
        raise UserError(f"--sink {printable(target)}: expected a file in an existing folder, or http://HOST/PATH")
    if re.fullmatch(r"[\w.-]+:\d+", target, re.ASCII) and not os.path.exists(target):
        raise UserError(f"--sink {target}: expected http://{target} for an address, or ./{target} for a file")
    return Receiver(printable(target), target, lambda data, name, timeout: _append(Path(target), data))


def _can_be_file(target: str) -> bool:
    """Returns True for a file, or a new name in an existing folder."""
    try:
        return not stat.S_ISDIR(os.stat(target).st_mode)
    except FileNotFoundError:
        return bool(os.path.basename(target)) and os.path.isdir(os.path.dirname(target) or ".")
    except (OSError, ValueError):  # a name that is too long or invalid text
        return False


class Sink:
    """One receiver with its queue and its thread."""

    def __init__(
        self,
        receiver: Receiver,
        spool: Path,
        log: Log,
        timeout: float = TIMEOUT,
        limits: Limits | None = None,
        first_wait: float = FIRST_WAIT,
    ) -> None:
        """Opens the queue and starts the thread.

        Args:
          receiver: where events go.
          spool: folder of the queues.
          log: called with messages for the user.
          timeout: seconds for a whole delivery.
          limits: bounds of the queue.
          first_wait: seconds before the first retry.

        Raises:
          UserError: the queue is in use or cannot be written.
        """
        self.name, self._receiver, self._log, self._timeout = receiver.name, receiver, log, timeout
        folder = spool / hashlib.sha256(receiver.key.encode()).hexdigest()[:16]
        self.queue = event_queue.Queue(folder, receiver.name, limits or Limits(), log)
        self._first_wait = self._wait = first_wait
        self._reasons: set[str] = set()
        self._stop, self._wake = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def put(self, name: str, event: dict[str, Any]) -> bool:
        """Queues an event and returns at once; see `event_queue.Queue.put`."""
        kept = self.queue.put(name, event)
        self._wake.set()
        return kept

    def _run(self) -> None:
        """Delivers the queue until stopped, waiting longer after each failure."""
        while not self._stop.is_set():
            entry = self.queue.first()
            if entry is None:
                self._wake.wait(1.0)
                self._wake.clear()
                continue
            try:
                self._take(entry)
            except Exception as error:  # any kind: without its thread a sink would silently stop
                reason = str(error) if isinstance(error, DeliveryError) else f"fails: {printable(str(error))}"
                if reason not in self._reasons and len(self._reasons) < _REASONS:
                    self._reasons.add(reason)
                    self._log(f"{self.name} {reason}; events wait in {self.queue.folder}")
                self.queue.write_held()
                self._stop.wait(self._wait)
                self._wait = min(2 * self._wait, LONGEST_WAIT)

    def _take(self, entry: event_queue.Entry) -> None:
        """Delivers the first event of the queue and removes it."""
        try:
            data = self.queue.read(entry)
        except FileNotFoundError:
            self._log(f"{self.queue.folder / entry.file} was deleted before delivery")
            self.queue.remove_first()
            return
        try:
            if not _is_event(data):
                raise RefusedError("its file is damaged")
            self._receiver.deliver(data, entry.name, self._timeout)
        except RefusedError as error:
            self.queue.refuse_first()
            self._log(
                f"{self.name} rejects {entry.name}: {error}; "
                f"the event is kept in {self.queue.folder / event_queue.REFUSED}"
            )
        else:
            self.queue.remove_first()
            if self._reasons:
                self._log(f"{self.name} accepts events again")
        self._wait = self._first_wait
        self._reasons.clear()

    def drain(self, until: float) -> None:
        """Waits until everything is delivered or `time.monotonic()` reaches `until`, after which no delivery begins."""
        while len(self.queue) and time.monotonic() < until:
            self._stop.wait(0.05)
        self._stop.set()
        self._wake.set()

    def close(self) -> int:
        """Ends the thread after its current delivery; returns the number of undelivered events."""
        self._stop.set()
        self._wake.set()
        self._thread.join(self._timeout + 1)
        left, lost = len(self.queue), self.queue.close()
        if lost:
            self._log(f"{lost:,} events for {self.name} are lost: they were held in memory because the disk is full")
        if left - lost:
            self._log(
                f"{left - lost:,} events for {self.name} are waiting in {self.queue.folder}; "
                "the next run with this --sink delivers them"
            )
        if self.queue.dropped:
            self._log(f"{self.queue.dropped:,} events for {self.name} were dropped because the queue was full")
        if self.queue.deleted:
            self._log(f"{self.queue.deleted:,} rejected events were deleted because there were too many")
        return left


def close_all(sinks: Sequence[Sink], wait: float) -> None:
    """Delivers for at most `wait` seconds more and closes all sinks."""
    until = time.monotonic() + wait
    for sink in sinks:
        sink.drain(until)
    for sink in sinks:
        sink.close()


def _is_event(data: bytes) -> bool:
    """Returns False for the incomplete file of an event, for example after a power failure."""
    try:
        return isinstance(json.loads(data), dict)
    except (ValueError, RecursionError):
        return False


def _append(path: Path, data: bytes) -> None:
    """Appends a line to a file, all of it or nothing.

    Raises:
      DeliveryError: it cannot be written.
    """
    # Without O_NONBLOCK, a named pipe without a reader would block the sink.
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        with open(os.open(path, flags, 0o666), "wb", 0) as file:
            before = os.fstat(file.fileno())
            regular = stat.S_ISREG(before.st_mode)
            if regular and _is_broken(path, before.st_size):
                data = b"\n" + data
            written = file.write(data) or 0
            if written != len(data):
                if regular and os.fstat(file.fileno()).st_size == before.st_size + written:  # nobody else wrote
                    file.truncate(before.st_size)
                raise OSError("no space for a whole line")
    except OSError as error:
        raise DeliveryError(f"cannot be written: {error.strerror or error}") from None


def _is_broken(path: Path, size: int) -> bool:
    """Returns True if a file of `size` bytes ends within a line, which a killed writer left."""
    try:
        with path.open("rb") as file:
            return size > 0 and os.pread(file.fileno(), 1, size - 1) != b"\n"
    except OSError:  # a write-only file
        return False
