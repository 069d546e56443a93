"""Tables for a terminal."""

from __future__ import annotations

from collections.abc import Container, Sequence

from ganomaly_jax.core.printable import LONGEST, printable


def lines(rows: Sequence[Sequence[str]], right: Container[int] = ()) -> list[str]:
    """Returns a table as lines, its columns two spaces apart and as wide as their widest cell.

    Args:
      rows: cells of equally many columns, the header first; control characters are escaped.
      right: indices of the columns that are aligned to the right, as numbers are.

    Returns:
      A line for each row, without trailing spaces.
    """
    rows = [[printable(cell, LONGEST) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligned = [str.rjust if k in right else str.ljust for k in range(len(widths))]
    return [
        "  ".join(align(cell, width) for align, cell, width in zip(aligned, row, widths, strict=True)).rstrip()
        for row in rows
    ]
