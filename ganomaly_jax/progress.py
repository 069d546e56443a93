"""How long work shows how far it is: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

# Off a terminal a line at least this many seconds apart: a log that can be read, and a job that is seen to live.
_SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """A bar (tqdm, on standard error) or lines (standard output); `update` as often as you like. `quiet`: neither."""

    def __init__(self, total: int, done: int, unit: str, quiet: bool = False) -> None:
        self._total, self._unit, self._quiet = total, unit, quiet
        self._last = time.monotonic() if done else 0.0
        self._bar = None
        if sys.stderr.isatty() and not quiet:
            try:
                from tqdm import tqdm
            except ImportError:
                return
            self._bar = tqdm(total=total, initial=done, unit=unit, dynamic_ncols=True, leave=True)

    def update(self, done: int, text: str) -> None:
        """`done` of the total are done; `text` says how it goes."""
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(done - self._bar.n)
        elif not self._quiet and (done == self._total or time.monotonic() - self._last >= _SECONDS_BETWEEN_LINES):
            self._last = time.monotonic()
            print(f"{self._unit} {done}/{self._total}  {text}", flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()
