"""Makes text from outside (names of files, classes and sensors) safe to print on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TextIO

MOST = 200
"""Maximum length of a printed name."""
LONGEST = 4096
"""Maximum length of a printed path or sentence."""


def printable(name: str, most: int = MOST) -> str:
    """Returns a name as one line that cannot act on a terminal.

    Control characters (also line ends and tabs), characters that reorder or hide text, and the bytes of file names that
    are not valid text are escaped as in Python: `\\x1b[2J`, `\\n`, `\\u202e`, `\\udcff`.

    Args:
      name: Any text.
      most: Maximum length of the result, at least 3; the middle of longer text is omitted.
    """
    if not name.isprintable():
        name = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
    if len(name) <= most:
        return name
    end = (most - 3) // 2
    return f"{name[: most - 3 - end]}...{name[len(name) - end :]}"


def quoted(name: str, most: int = MOST) -> str:
    """Returns a name between quotation marks, otherwise as `printable`."""
    return printable(repr(name), most)


def printable_lines(text: str) -> str:
    """Returns text of any length, escaped as by `printable` except for line ends."""
    return "\n".join(printable(line, max(len(line) * 10, 3)) for line in text.split("\n"))


def spreadsheet_safe(cell: str) -> str:
    """Returns a cell with an apostrophe in front if a spreadsheet would interpret it as a formula."""
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell


def show(text: str, file: TextIO | None = None) -> None:
    """Prints lines of text, which may contain untrusted names, immediately.

    Args:
      text: One or several lines; see `printable_lines` for what is escaped.
      file: The output; None: standard output.
    """
    print(printable_lines(text), file=sys.stdout if file is None else file, flush=True)


def listed(names: Sequence[str], most: int = 8) -> str:
    """Returns names for a sentence: the first `most`, and how many more there are."""
    text = ", ".join(printable(name) or "(no name)" for name in names[:most])
    return text + (f" and {len(names) - most} more" if len(names) > most else "")
