"""Where a stream comes from: a pipe, a file that grows, a folder that fills. Each gives what has arrived, in order.

`read` waits a little for something; `place` is a value of JSON that says up to where all that was given has been read,
`go_to` goes there. Memory is constant: nothing more is read while lines wait.
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
from ganomaly_jax.streaming.watch import Line

CHUNK = 2**16
LONGEST = 2**20
"""Bytes of a line; a longer one is told of and left out."""
AT_ONCE = 64
_TAIL = 64
_SETTLED = 1.0
_UNFINISHED = (".tmp", ".part", ".partial", ".crdownload", ".filepart")


@dataclasses.dataclass(eq=False)
class Lines:
    """Bytes become lines; what has no end yet waits in `rest`."""

    rest: bytes = b""
    ready: collections.deque[Line] = dataclasses.field(default_factory=collections.deque)
    end: int = 0
    """Bytes up to the end of the last whole line."""
    skipping: bool = False

    def add(self, data: bytes) -> None:
        arrived = time.perf_counter()
        *whole, self.rest = (self.rest + data).split(b"\n")
        for text in whole:
            self.end += len(text) + 1
            if not self.skipping:
                self.ready.append(Line(text, arrived, self.end))
            self.skipping = False
        if len(self.rest) > LONGEST:
            if not self.skipping:
                self.ready.append(Line(arrived=arrived, end=self.end, problem=f"a line longer than {LONGEST} bytes"))
            self.end += len(self.rest)
            self.rest, self.skipping = b"", True

    def finish(self) -> None:
        """The end: what has no line end is a line as well."""
        if self.rest and not self.skipping:
            self.end += len(self.rest)
            self.ready.append(Line(self.rest, time.perf_counter(), self.end))
        self.rest = b""

    def take(self) -> list[Line]:
        return [self.ready.popleft() for _ in range(min(len(self.ready), AT_ONCE))]


class Pipe:
    """Standard input, or a named pipe: rows that come once. It ends where nobody writes any more."""

    replays = False

    def __init__(self, descriptor: int, path: Path | None = None, once: bool = False) -> None:
        self.descriptor, self.lines, self.stopped = descriptor, Lines(), False
        # A named pipe goes on with the next writer.
        self.waits = path is not None and not once
        self.begun = path is None
        try:
            self.regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
        except OSError:
            raise UserError("standard input is closed: wanted rows, or the name of a file that grows") from None

    def read(self, wait: float) -> list[Line]:
        if not self.lines.ready and not self.stopped:
            there = self.regular or bool(select.select([self.descriptor], [], [], wait)[0])
            data = os.read(self.descriptor, CHUNK) if there else None
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
        """Read no more; what has been read can still be taken, since nobody can read it again."""
        self.stopped = True

    @property
    def ended(self) -> bool:
        return self.stopped and not self.lines.ready

    def place(self) -> dict[str, Any]:
        return {"kind": "pipe", "rest": self.lines.rest.decode("latin-1")}

    def go_to(self, place: Mapping[str, Any]) -> list[Line]:
        self.lines.rest = str(place.get("rest", "")).encode("latin-1")
        return []


class File:
    """A file that others append to. Another one in its place, or one that became shorter, is begun anew."""

    replays = True

    def __init__(self, path: Path, once: bool) -> None:
        self.path, self.once, self.stopped = path, once, False
        self.lines, self.file, self.given, self.tail = Lines(), -1, 0, b""
        self.whole = False
        if once or path.exists():
            self._open()

    def _open(self) -> bool:
        try:
            self.file = os.open(self.path, os.O_RDONLY)
        except FileNotFoundError:
            if self.once:
                raise UserError(f"there is no file {self.path}") from None
            return False
        except OSError as error:
            raise UserError(f"{self.path} cannot be read: {error.strerror}") from None
        self.lines, self.given, self.tail = Lines(), 0, b""
        return True

    def read(self, wait: float) -> list[Line]:
        found: list[Line] = []
        if not self.lines.ready and not self.stopped:
            found = self._more()
            if not found and not self.lines.ready and not self.stopped:
                time.sleep(wait)
        found += self.lines.take()
        if found:
            self.given = found[-1].end or self.given
        return found

    def _more(self) -> list[Line]:
        """Read on; what is to tell of the file itself."""
        if self.file < 0 and not self._open():
            return []
        if self._was_cut():
            os.lseek(self.file, 0, os.SEEK_SET)
            self.lines, self.given, self.tail = Lines(), 0, b""
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

    def _was_cut(self) -> bool:
        """Whether the file is shorter than what was read, or is another one up to there."""
        at = os.lseek(self.file, 0, os.SEEK_CUR)
        if os.fstat(self.file).st_size < at:
            return True
        return os.pread(self.file, len(self.tail), at - len(self.tail)) != self.tail

    def _was_replaced(self) -> bool:
        try:
            there = os.stat(self.path)
        except OSError:  # gone for now: what writes it makes the next one
            return False
        own = os.fstat(self.file)
        return (there.st_dev, there.st_ino) != (own.st_dev, own.st_ino)

    def stop(self) -> None:
        """The lines that were not taken are read again."""
        self.stopped = True
        self.lines.ready.clear()

    @property
    def ended(self) -> bool:
        return self.stopped and not self.lines.ready

    def place(self) -> dict[str, Any]:
        if self.file < 0:
            return {"kind": "file", "end": 0, "tail": "", "inode": 0}
        tail = os.pread(self.file, min(_TAIL, self.given), max(self.given - _TAIL, 0))
        return {
            "kind": "file",
            "end": self.given,
            "tail": tail.decode("latin-1"),
            "inode": os.fstat(self.file).st_ino,
        }

    def go_to(self, place: Mapping[str, Any]) -> list[Line]:
        """Back to where a run before was; where the file is another one, its beginning, with what is to tell."""
        end, tail = int(place["end"]), str(place["tail"]).encode("latin-1")
        if self.file < 0 or not end:
            return []
        if os.pread(self.file, len(tail), end - len(tail)) == tail and os.fstat(self.file).st_size >= end:
            os.lseek(self.file, end, os.SEEK_SET)
            self.lines.end = self.given = end
            self.tail = tail
            return []
        old = self._rotated(int(place["inode"]), end, tail)
        if old is None:
            return [Line(event={"event": "source_replaced", "source": str(self.path)})]
        # What was written after the stop and before the rotation is still there, under another name.
        os.close(self.file)
        self.file = os.open(old, os.O_RDONLY)
        os.lseek(self.file, end, os.SEEK_SET)
        self.lines.end, self.given, self.tail = end, end, tail
        return []

    def _rotated(self, inode: int, end: int, tail: bytes) -> Path | None:
        """The file of a run before, beside the one that took its place."""
        for path in self.path.parent.glob(f"{self.path.name}*"):
            if path != self.path and path.is_file() and path.stat().st_ino == inode:
                with path.open("rb") as file:
                    if os.pread(file.fileno(), len(tail), end - len(tail)) == tail:
                        return path
        return None


class Folder:
    """A folder that fills with images, oldest first; each file once, by its name, as soon as it has stopped growing."""

    replays = True

    def __init__(self, path: Path, once: bool) -> None:
        self.path, self.once, self.stopped = path, once, False
        self.done: set[str] = set()
        self.ready: collections.deque[str] = collections.deque()
        self.sizes: dict[str, tuple[int, int]] = {}

    def read(self, wait: float) -> list[Line]:
        if not self.ready and not self.stopped:
            self._look()
            if self.once and not self.ready and not self.sizes:
                self.stopped = True
            elif not self.ready:
                time.sleep(wait)
        # A few at a time: images are large.
        names = [self.ready.popleft() for _ in range(min(len(self.ready), 8))]
        self.done.update(names)
        return [Line(os.fsencode(self.path / name), time.perf_counter(), path=True) for name in names]

    def _look(self) -> None:
        found: list[tuple[int, str]] = []
        growing: dict[str, tuple[int, int]] = {}
        there: set[str] = set()
        try:
            entries = list(os.scandir(self.path))
        except OSError as error:
            raise UserError(f"{self.path} cannot be read: {error.strerror}") from None
        for entry in entries:
            there.add(entry.name)
            if entry.name in self.done or entry.name.startswith(".") or entry.name.lower().endswith(_UNFINISHED):
                continue
            if Path(entry.name).suffix.lower() not in image_files.ENDINGS:
                continue
            try:
                known = entry.stat()
            except OSError:
                continue
            size = (known.st_size, known.st_mtime_ns)
            # What was written lately may not be whole yet.
            if time.time() - known.st_mtime < _SETTLED and self.sizes.get(entry.name) != size:
                growing[entry.name] = size
            else:
                found.append((known.st_mtime_ns, entry.name))
        self.sizes = growing
        self.done &= there
        self.ready.extend(name for _, name in sorted(found))

    def stop(self) -> None:
        self.stopped = True
        self.ready.clear()

    @property
    def ended(self) -> bool:
        return self.stopped and not self.ready

    def place(self) -> dict[str, Any]:
        return {"kind": "folder", "done": sorted(self.done)}

    def go_to(self, place: Mapping[str, Any]) -> list[Line]:
        self.done = set(map(str, place["done"]))
        return []


Source = Pipe | File | Folder


def opened_folder(source: str, once: bool) -> Source:
    """Opens a folder that fills with images.

    Raises:
      UserError: it is no folder.
    """
    path = Path(source)
    if not path.is_dir():
        raise UserError(f"{source}: this detector is of images: wanted a folder that fills with them")
    return Folder(path, once)


def opened_lines(source: str, once: bool) -> Source:
    """Opens a file or pipe of rows, or standard input.

    Raises:
      UserError: nothing there, or a folder.
    """
    path = Path(source)
    if source == "-":
        return Pipe(0, None, once)
    if path.is_dir():
        raise UserError(f"{source} is a folder: this detector is of sensors, wanted a CSV or JSONL file, or - for rows")
    if path.exists() and stat.S_ISFIFO(path.stat().st_mode):
        return Pipe(os.open(path, os.O_RDONLY | os.O_NONBLOCK), path, once)
    if not path.parent.is_dir():
        raise UserError(f"there is no folder {path.parent}: wanted a file that grows, in a folder that is there")
    if path.exists() and not path.is_file():
        raise UserError(f"{source} is neither a file nor a named pipe")
    return File(path, once)
