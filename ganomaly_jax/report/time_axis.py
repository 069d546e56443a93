"""Labels axes of rows with the times of the rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ganomaly_jax.core.printable import printable

# A type of matplotlib, which is imported in figures.py alone.
Axes = Any
_TICKS = 5


def label(ax: Axes, rows: Sequence[int] | np.ndarray, times: Sequence[str]) -> None:
    """Labels the x axis with times if they are known, otherwise with row numbers.

    The scale remains that of rows, so gaps in time are not visible.

    Args:
      ax: the axes, whose x values are rows.
      rows: [n] rows in ascending order.
      times: [n] the time of each as text, ISO 8601 or a number; empty if unknown.
    """
    known = [(int(row), time) for row, time in zip(rows, times, strict=True) if time]
    if not known:
        ax.set_xlabel("row", fontsize=9)
        return
    numbers = np.array([row for row, _ in known])

    def text(row: float, _: int | None = None) -> str:
        nearest = int(np.abs(numbers - row).argmin())
        return printable(known[nearest][1], 26).replace("T", "\n")

    ax.locator_params(axis="x", nbins=_TICKS)
    ax.xaxis.set_major_formatter(text)
    ax.set_xlabel("time", fontsize=9)
