"""How long work shows how far it is: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from types import TracebackType
from typing import TypeVar

Block = TypeVar("Block", bound=Sized)

# Off a terminal a line at least this many seconds apart: a log that can be read, and a job that is seen to live.
_SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """A bar (tqdm, on standard error) or lines (standard output); `update` as often as you like. `quiet`: neither.

    `late`: nothing of work that is soon done, and no bar is left behind.
    """

    def __init__(self, total: int, done: int, unit: str, quiet: bool = False, late: bool = False) -> None:
        self._total, self._unit, self._quiet, self._late = total, unit, quiet, late
        self._last = time.monotonic() if done or late else 0.0
        self._bar = None
        if sys.stderr.isatty() and not quiet:
            try:
                from tqdm import tqdm
            except ImportError:
                return
            self._bar = tqdm(total=total, initial=done, unit=unit, dynamic_ncols=True, leave=not late, delay=late)

    def update(self, done: int, text: str) -> None:
        """`done` of the total are done; `text` says how it goes."""
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(done - self._bar.n)
        elif not self._quiet and (
            (done == self._total and not self._late) or time.monotonic() - self._last >= _SECONDS_BETWEEN_LINES
        ):
            self._last = time.monotonic()
            print(f"{self._unit} {done}/{self._total}  {text}", flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()


def over(blocks: Iterable[Block], total: int, unit: str, quiet: bool, text: str) -> Iterator[Block]:
    """The blocks, with progress over their `total` items, shown late: a block is done once the next is asked for."""
    with Progress(total, 0, unit, quiet, late=True) as bar:
        done = 0
        for block in blocks:
            yield block
            done += len(block)
            bar.update(done, text)
