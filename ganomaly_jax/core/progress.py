"""Progress of long work: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from types import TracebackType
from typing import TypeVar

from ganomaly_jax.core.printable import show

Block = TypeVar("Block", bound=Sized)

# Off a terminal, the minimum interval between lines: readable logs that still show that a job is alive.
_SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """A progress bar (tqdm, on standard error) or, off a terminal, lines on standard output.

    Args:
      total: number of units of work.
      done: number of units that are already done.
      unit: name of the unit, such as `step`.
      quiet: show nothing.
      transient: show nothing for work that finishes quickly, and leave no bar behind.
    """

    def __init__(self, total: int, done: int, unit: str, quiet: bool = False, transient: bool = False) -> None:
        """Starts the bar, or the clock of the lines."""
        self._total, self._unit, self._quiet, self._late = total, unit, quiet, transient
        self._last = time.monotonic() if done or transient else 0.0
        self._bar = None
        if sys.stderr.isatty() and not quiet:
            try:
                from tqdm import tqdm
            except ImportError:
                return
            self._bar = tqdm(
                total=total, initial=done, unit=unit, dynamic_ncols=True, leave=not transient, delay=transient
            )

    def update(self, done: int, text: str) -> None:
        """Reports progress; may be called at any rate.

        Args:
          done: units done so far, of the total.
          text: current state of the work, such as the loss.
        """
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(done - self._bar.n)
        elif not self._quiet and (
            (done == self._total and not self._late) or time.monotonic() - self._last >= _SECONDS_BETWEEN_LINES
        ):
            self._last = time.monotonic()
            show(f"{self._unit} {done}/{self._total}  {text}")

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()


def track(blocks: Iterable[Block], total: int, unit: str, quiet: bool, text: str) -> Iterator[Block]:
    """Yields blocks of work and shows transient progress; a block counts as done when the next one is requested.

    Args:
      blocks: the blocks, each of the size of its `len`.
      total: sum of the sizes.
      unit: name of one item.
      quiet: show nothing.
      text: text shown beside the numbers.
    """
    with Progress(total, 0, unit, quiet, transient=True) as bar:
        done = 0
        for block in blocks:
            yield block
            done += len(block)
            bar.update(done, text)
