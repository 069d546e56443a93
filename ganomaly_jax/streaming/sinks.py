"""Delivery of events to files and webhooks, through a queue on disk, in a thread of its own.

An event is a file in the queue's folder until it is delivered, so that none is lost while the receiver is down or the
monitor restarts; scoring never waits for it. Events are delivered at least once, in order, each with an `id`: after a
crash an event may be delivered again with the same id. Standard library only.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ganomaly_jax.core import atomic_files
from ganomaly_jax.core.errors import UserError

MAX_QUEUED = 100_000
"""Events in a queue at most; further ones are counted and dropped."""
TIMEOUT = 10.0
FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0
"""Seconds before the next try; doubled after each that failed."""
_REFUSED = "refused"

Log = Callable[[str], None]


class RefusedError(Exception):
    """The receiver rejects an event for good."""


class Sink:
    """One receiver with its queue and its thread."""

    def __init__(
        self, target: str, spool: Path, log: Log, max_queued: int = MAX_QUEUED, first_wait: float = FIRST_WAIT
    ) -> None:
        """Opens the queue and starts the thread.

        Args:
          target: file, or http(s) URL.
          spool: folder of the queues.
          log: called with messages for the user.
          max_queued: events in the queue at most.
          first_wait: seconds before the first retry.

        Raises:
          UserError: the target is invalid, or the queue is in use or cannot be written.
        """
        self.name, self._deliver = _display_name(target), _make_deliver(target)
        self.folder = spool / hashlib.sha256(target.encode()).hexdigest()[:16]
        self._log, self.max_queued, self._first_wait = log, max_queued, first_wait
        self.dropped = 0
        self._stop, self._wake = threading.Event(), threading.Event()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another monitor uses the queue {self.folder}: choose another --spool") from None
        except OSError as error:
            raise UserError(f"{self.folder} cannot be written: {error.strerror}; choose another --spool") from None
        waiting = self.waiting()
        self._count = len(waiting)
        self._next = 1 + int(waiting[-1].name.split("-")[0]) if waiting else 0
        self._known = {path.stem.split("-", 1)[1] for path in waiting}
        self._changing = threading.Lock()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def waiting(self) -> list[Path]:
        """Returns the files of the events that are not delivered yet, in order."""
        return sorted(self.folder.glob("[0-9]*.json"))

    def put(self, name: str, event: dict[str, Any]) -> bool:
        """Queues an event.

        Args:
          name: id of the event, of letters, digits and hyphens.
          event: JSON-ready dict.

        Returns:
          False if the queue is full or cannot be written.
        """
        with self._changing:
            if name in self._known:
                return True
            if self._count >= self.max_queued:
                self.dropped += 1
                return False
            self._count += 1
            self._known.add(name)
            number, self._next = self._next, self._next + 1
        try:
            atomic_files.write_text(self.folder / f"{number:012}-{name}.json", json.dumps({"id": name} | event) + "\n")
        except UserError as error:  # a full disk must not end the monitor
            with self._changing:
                self._count -= 1
                self._known.discard(name)
                self.dropped += 1
            self._log(str(error))
            return False
        self._wake.set()
        return True

    def close(self, wait: float) -> int:
        """Delivers for at most `wait` seconds more and stops; returns the number of undelivered events."""
        if self._count:
            deadline = threading.Event()
            for _ in range(max(int(wait / 0.05), 1)):
                if not self._count or deadline.wait(0.05):
                    break
        self._stop.set()
        self._wake.set()
        self._thread.join(TIMEOUT + 1)
        os.close(self._lock)
        return self._count

    def _run(self) -> None:
        """Delivers the queue until stopped, waiting longer after each failure."""
        wait, down = self._first_wait, False
        while not self._stop.is_set():
            queue = self.waiting()
            if not queue:
                self._wake.wait(1.0)
                self._wake.clear()
                continue
            for path in queue:
                if self._stop.is_set():
                    return
                try:
                    self._deliver(path.read_bytes(), path.stem.split("-", 1)[1])
                except RefusedError as error:
                    self._log(
                        f"{self.name} rejects {path.stem}: {error}; the event is kept in {self.folder / _REFUSED}"
                    )
                    (self.folder / _REFUSED).mkdir(exist_ok=True)
                    os.replace(path, self.folder / _REFUSED / path.name)
                except (OSError, ValueError) as error:  # including those of HTTP
                    if not down:
                        self._log(f"{self.name} cannot be reached: {error}; events wait in {self.folder}")
                    down = True
                    self._stop.wait(wait)
                    wait = min(2 * wait, LONGEST_WAIT)
                    break
                else:
                    with suppress(OSError):
                        path.unlink()
                    if down:
                        self._log(f"{self.name} can be reached again")
                    wait, down = self._first_wait, False
                with self._changing:
                    self._count -= 1
                    self._known.discard(path.stem.split("-", 1)[1])


def _display_name(target: str) -> str:
    """Returns the target without what may be secret: of a URL only scheme and host."""
    parts = urlsplit(target)
    return f"{parts.scheme}://{parts.hostname}" if parts.scheme in ("http", "https") else target


def _make_deliver(target: str) -> Callable[[bytes, str], None]:
    """Returns the function that delivers the bytes of one event.

    Raises:
      UserError: the target is neither a file nor an http(s) URL.
    """
    parts = urlsplit(target)
    if "://" not in target:
        path = Path(target)
        if path.is_dir() or not path.parent.is_dir():
            raise UserError(f"--sink {target}: expected a file in an existing folder, or http://HOST/PATH")
        return lambda data, name: _append(path, data)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"--sink {parts.scheme}://...: expected http://HOST/PATH, https://HOST/PATH, or a file")
    return lambda data, name: _post(target, data, name)


def _append(path: Path, data: bytes) -> None:
    """Appends an event to a file."""
    with path.open("ab") as file:
        file.write(data)


def _post(url: str, data: bytes, name: str) -> None:
    """Posts an event to a URL."""
    headers = {"Content-Type": "application/json", "Idempotency-Key": name, "User-Agent": "ganomaly"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=TIMEOUT) as answer:
            answer.read(2**16)
    except urllib.error.HTTPError as error:
        error.close()
        # These concern the receiver and may pass; other client errors concern the event.
        if 400 <= error.code < 500 and error.code not in (401, 403, 404, 408, 425, 429):
            raise RefusedError(f"HTTP {error.code}") from None
        raise OSError(f"HTTP {error.code}") from None
    except (urllib.error.URLError, TimeoutError) as error:
        raise OSError(str(getattr(error, "reason", error))) from None
    except ValueError:
        raise
    except Exception as error:  # http.client raises its own errors for invalid responses
        raise OSError(f"{type(error).__name__}: {error}") from None
