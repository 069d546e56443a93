"""Signals that ask a process to end: noted, so that it can finish what it is doing first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOP = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def noted(*numbers: signal.Signals) -> Iterator[list[int]]:
    """Collects signals instead of acting on them; the second of a kind acts as it did before.

    Python delivers signals to the main thread only. In any other thread nothing is changed and the list stays empty.

    Args:
      *numbers: the signals to note, `STOP` by default.

    Yields:
      A list that grows by the number of each signal that arrives. The handlers of before are back after the block.
    """
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    before = {int(number): signal.getsignal(number) for number in numbers or STOP}

    def note(number: int, _: FrameType | None) -> None:
        came.append(number)
        signal.signal(number, before[number])

    for number in before:
        signal.signal(number, note)
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
