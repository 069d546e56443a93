"""Sources of a stream: a pipe, a growing file, a folder that fills with images. Each returns what arrived, in order.

`read` waits briefly for input; `position` is a JSON-ready value up to which everything returned was read, and `seek`
goes there. Memory is constant: nothing more is read while lines are waiting.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import select
import stat
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data.images import files as image_files
from ganomaly_jax.streaming import stored
from ganomaly_jax.streaming.watch import Line

CHUNK = 2**16
MAX_LINE = 2**20
"""Bytes of a line at most; a longer one is reported and skipped."""
MAX_LINES = 64
_TAIL = 64
_SETTLE_S = 1.0
_UNFINISHED = (".tmp", ".part", ".partial", ".crdownload", ".filepart")


@dataclasses.dataclass(eq=False)
class LineBuffer:
    """Splits bytes into lines.

    Attributes:
      rest: bytes of the incomplete last line.
      ready: complete lines that were not taken yet.
      end: bytes of the source up to the end of the last complete line.
      skipping: whether the rest of a too long line is being skipped.
    """

    rest: bytes = b""
    ready: collections.deque[Line] = dataclasses.field(default_factory=collections.deque)
    end: int = 0
    skipping: bool = False

    def add(self, data: bytes) -> None:
        """Adds bytes."""
        arrived = time.perf_counter()
        *complete, self.rest = (self.rest + data).split(b"\n")
        for text in complete:
            self.end += len(text) + 1
            if not self.skipping:
                self.ready.append(Line(text, arrived, self.end))
            self.skipping = False
        if len(self.rest) > MAX_LINE:
            if not self.skipping:
                self.ready.append(Line(arrived=arrived, end=self.end, problem=f"a line longer than {MAX_LINE} bytes"))
            self.end += len(self.rest)
            self.rest, self.skipping = b"", True

    def finish(self) -> None:
        """Ends the input: the incomplete last line counts as a line."""
        if self.rest and not self.skipping:
            self.end += len(self.rest)
            self.ready.append(Line(self.rest, time.perf_counter(), self.end))
        self.rest = b""

    def take(self) -> list[Line]:
        """Removes and returns the next lines, at most `MAX_LINES`."""
        return [self.ready.popleft() for _ in range(min(len(self.ready), MAX_LINES))]


class Pipe:
    """Standard input or a named pipe: rows that cannot be read again. It ends when the writer has gone."""

    is_replayable = False

    def __init__(self, descriptor: int, path: Path | None = None, once: bool = False) -> None:
        """Wraps a file descriptor; a named pipe waits for further writers unless `once`."""
        self.descriptor, self.lines, self.stopped = descriptor, LineBuffer(), False
        # A named pipe may get another writer.
        self.waits = path is not None and not once
        self.begun = path is None
        try:
            self.regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
        except OSError:
            raise UserError("standard input is closed: expected rows, or the name of a growing file") from None

    def read(self, wait: float) -> list[Line]:
        """Returns the next lines, after waiting at most `wait` seconds."""
        if not self.lines.ready and not self.stopped:
            readable = self.regular or bool(select.select([self.descriptor], [], [], wait)[0])
            data = os.read(self.descriptor, CHUNK) if readable else None
            if data:
                self.begun = True
                self.lines.add(data)
            elif data is not None and not self.waits and self.begun:
                self.lines.finish()
                self.stopped = True
            elif data is not None:  # a named pipe without a writer
                time.sleep(wait)
        return self.lines.take()

    def stop(self) -> None:
        """Stops reading; lines already read can still be taken, since they cannot be read again."""
        self.stopped = True

    @property
    def ended(self) -> bool:
        """Returns True once nothing more will come."""
        return self.stopped and not self.lines.ready

    def position(self) -> dict[str, Any]:
        """Returns the JSON-ready position."""
        return {"kind": "pipe", "rest": self.lines.rest.decode("latin-1")}

    def seek(self, position: Mapping[str, Any]) -> list[Line]:
        """Restores the incomplete line of a previous run."""
        self.lines.rest = stored.text(position["rest"], MAX_LINE).encode("latin-1")
        return []


class File:
    """A file that others append to. If it is replaced or truncated, reading restarts at its beginning."""

    is_replayable = True

    def __init__(self, path: Path, once: bool) -> None:
        """Opens the file if it exists; with `once` reading ends at its end."""
        self.path, self.once, self.stopped = path, once, False
        self.lines, self.file, self.delivered, self.tail = LineBuffer(), -1, 0, b""
        if once or path.exists():
            self._open()

    def _open(self) -> bool:
        """Opens the file; returns False if it does not exist yet."""
        try:
            self.file = os.open(self.path, os.O_RDONLY)
        except FileNotFoundError:
            if self.once:
                raise UserError(f"{self.path} does not exist") from None
            return False
        except OSError as error:
            raise UserError(f"{self.path} cannot be read: {error.strerror}") from None
        self.lines, self.delivered, self.tail = LineBuffer(), 0, b""
        return True

    def read(self, wait: float) -> list[Line]:
        """Returns the next lines, after waiting at most `wait` seconds."""
        found: list[Line] = []
        if not self.lines.ready and not self.stopped:
            found = self._read_more()
            if not found and not self.lines.ready and not self.stopped:
                time.sleep(wait)
        found += self.lines.take()
        if found:
            self.delivered = found[-1].end or self.delivered
        return found

    def _read_more(self) -> list[Line]:
        """Reads a chunk; returns events of the file itself."""
        if self.file < 0 and not self._open():
            return []
        if self._was_truncated():
            os.lseek(self.file, 0, os.SEEK_SET)
            self.lines, self.delivered, self.tail = LineBuffer(), 0, b""
            return [Line(event={"event": "source_truncated", "source": str(self.path)})]
        data = os.read(self.file, CHUNK)
        if data:
            self.lines.add(data)
            self.tail = (self.tail + data)[-_TAIL:]
            return []
        if self.once:
            self.lines.finish()
            self.stopped = True
            return []
        if self._was_replaced():
            self.lines.finish()
            os.close(self.file)
            last, self.file = self.lines.ready, -1
            self._open()
            return [*last, Line(event={"event": "source_rotated", "source": str(self.path)})]
        return []

    def _was_truncated(self) -> bool:
        """Returns True if the file is shorter than what was read, or differs from it."""
        at = os.lseek(self.file, 0, os.SEEK_CUR)
        if os.fstat(self.file).st_size < at:
            return True
        return os.pread(self.file, len(self.tail), at - len(self.tail)) != self.tail

    def _was_replaced(self) -> bool:
        """Returns True if the path now names another file."""
        try:
            current = os.stat(self.path)
        except OSError:  # gone for now: its writer will create the next one
            return False
        opened = os.fstat(self.file)
        return (current.st_dev, current.st_ino) != (opened.st_dev, opened.st_ino)

    def stop(self) -> None:
        """Stops reading; lines that were not taken are read again after a restart."""
        self.stopped = True
        self.lines.ready.clear()

    @property
    def ended(self) -> bool:
        """Returns True once nothing more will come."""
        return self.stopped and not self.lines.ready

    def position(self) -> dict[str, Any]:
        """Returns the JSON-ready position: offset, last bytes before it and inode."""
        if self.file < 0:
            return {"kind": "file", "end": 0, "tail": "", "inode": 0}
        tail = os.pread(self.file, min(_TAIL, self.delivered), max(self.delivered - _TAIL, 0))
        return {
            "kind": "file",
            "end": self.delivered,
            "tail": tail.decode("latin-1"),
            "inode": os.fstat(self.file).st_ino,
        }

    def seek(self, position: Mapping[str, Any]) -> list[Line]:
        """Goes to the position of a previous run, or to the beginning of a new file; returns events."""
        end, inode = stored.count(position["end"]), stored.count(position["inode"], most=2**64)
        tail = stored.text(position["tail"]).encode("latin-1")
        if len(tail) != min(end, _TAIL):
            raise ValueError("a position without the bytes before it")
        if self.file < 0 or not end:
            return []
        if os.pread(self.file, len(tail), end - len(tail)) == tail and os.fstat(self.file).st_size >= end:
            os.lseek(self.file, end, os.SEEK_SET)
            self.lines.end = self.delivered = end
            self.tail = tail
            return []
        old = self._rotated(inode, end, tail)
        if old is None:
            return [Line(event={"event": "source_replaced", "source": str(self.path)})]
        # What was written between the stop and the rotation is still there, under another name.
        os.close(self.file)
        self.file = os.open(old, os.O_RDONLY)
        os.lseek(self.file, end, os.SEEK_SET)
        self.lines.end, self.delivered, self.tail = end, end, tail
        return []

    def _rotated(self, inode: int, end: int, tail: bytes) -> Path | None:
        """Returns the path of a previous run's file if it was renamed (log rotation), else None."""
        for path in self.path.parent.glob(f"{self.path.name}*"):
            if path != self.path and path.is_file() and path.stat().st_ino == inode:
                with path.open("rb") as file:
                    if os.pread(file.fileno(), len(tail), end - len(tail)) == tail:
                        return path
        return None


class Folder:
    """A folder that fills with images, oldest first. Each file is read once, when it has stopped growing."""

    is_replayable = True

    def __init__(self, path: Path, once: bool) -> None:
        """Watches `path`; with `once` reading ends when all images have been read."""
        self.path, self.once, self.stopped = path, once, False
        self.done: set[str] = set()
        self.ready: collections.deque[str] = collections.deque()
        self.sizes: dict[str, tuple[int, int]] = {}

    def read(self, wait: float) -> list[Line]:
        """Returns the paths of the next images, after waiting at most `wait` seconds."""
        if not self.ready and not self.stopped:
            self._scan()
            if self.once and not self.ready and not self.sizes:
                self.stopped = True
            elif not self.ready:
                time.sleep(wait)
        # A few at a time: images are large.
        names = [self.ready.popleft() for _ in range(min(len(self.ready), 8))]
        self.done.update(names)
        return [Line(os.fsencode(self.path / name), time.perf_counter(), path=True) for name in names]

    def _scan(self) -> None:
        """Looks for images that have stopped growing."""
        complete: list[tuple[int, str]] = []
        growing: dict[str, tuple[int, int]] = {}
        present: set[str] = set()
        try:
            entries = list(os.scandir(self.path))
        except OSError as error:
            raise UserError(f"{self.path} cannot be read: {error.strerror}") from None
        for entry in entries:
            present.add(entry.name)
            if entry.name in self.done or entry.name.startswith(".") or entry.name.lower().endswith(_UNFINISHED):
                continue
            if Path(entry.name).suffix.lower() not in image_files.ENDINGS:
                continue
            try:
                status = entry.stat()
            except OSError:
                continue
            size = (status.st_size, status.st_mtime_ns)
            # A file that was written recently may be incomplete.
            if time.time() - status.st_mtime < _SETTLE_S and self.sizes.get(entry.name) != size:
                growing[entry.name] = size
            else:
                complete.append((status.st_mtime_ns, entry.name))
        self.sizes = growing
        self.done &= present
        self.ready.extend(name for _, name in sorted(complete))

    def stop(self) -> None:
        """Stops reading; images that were not taken are read after a restart."""
        self.stopped = True
        self.ready.clear()

    @property
    def ended(self) -> bool:
        """Returns True once nothing more will come."""
        return self.stopped and not self.ready

    def position(self) -> dict[str, Any]:
        """Returns the JSON-ready position: the names of the files read."""
        return {"kind": "folder", "done": sorted(self.done)}

    def seek(self, position: Mapping[str, Any]) -> list[Line]:
        """Goes to the position of a previous run."""
        self.done = set(stored.texts(position["done"]))
        return []


Source = Pipe | File | Folder


def open_folder(source: str, once: bool) -> Source:
    """Opens a folder that fills with images.

    Args:
      source: path of the folder.
      once: end when all images were read instead of waiting for more.

    Raises:
      UserError: it is not a folder.
    """
    path = Path(source)
    if not path.is_dir():
        raise UserError(f"{source}: expected a folder that fills with images, for which this detector was trained")
    return Folder(path, once)


def open_lines(source: str, once: bool) -> Source:
    """Opens a file or pipe of rows.

    Args:
      source: `-` for standard input, or a path.
      once: end at the end of the file instead of waiting for more.

    Raises:
      UserError: the source does not exist, or is a folder.
    """
    path = Path(source)
    if source == "-":
        return Pipe(0, None, once)
    if path.is_dir():
        raise UserError(
            f"{source} is a folder: expected a CSV or JSONL file, or - for standard input, for a detector of sensors"
        )
    if path.exists() and stat.S_ISFIFO(path.stat().st_mode):
        return Pipe(os.open(path, os.O_RDONLY | os.O_NONBLOCK), path, once)
    if not path.parent.is_dir():
        raise UserError(
            f"the folder {path.parent} does not exist; expected the name of a growing file in an existing folder"
        )
    if path.exists() and not path.is_file():
        raise UserError(f"{source} is neither a file nor a named pipe")
    return File(path, once)
