"""Describes the format of tables in text: the separator of columns and the format of numbers.

Most files are unambiguous: `3,7` can only contain a decimal comma, `12.5` only a decimal point. `1,234` may be either,
so other numbers of the file decide. `data.csv` states what remains ambiguous.
"""

from __future__ import annotations

import csv
import dataclasses
import re
from collections.abc import Mapping, Sequence

from ganomaly_jax.core.errors import UserError
from ganomaly_jax.core.printable import quoted

MISSING = frozenset({"", "na", "n/a", "nan", "null", "none"})
"""Cells without a value, in lower case."""
POINT, COMMA = ".", ","
AUTO = "auto"
OPTION = "--config.data.csv"
FLAG = "--csv for predict and monitor"
_SEPARATORS = {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|"}
_DECIMALS = {"decimal-point": POINT, "decimal-comma": COMMA}
_THOUSANDS = {"thousands-comma": ",", "thousands-point": ".", "thousands-space": " ", "thousands-apostrophe": "'"}
WORDS = (*_SEPARATORS, *_DECIMALS, *_THOUSANDS)
"""The words of `data.csv`."""
_BOOLEANS = {"true": 1.0, "false": 0.0}
# Spaces and apostrophes that separate thousands, and the typographic minus.
_ALIKE = str.maketrans({"\u00a0": " ", "\u2009": " ", "\u202f": " ", "\u2019": "'", "\u2212": "-"})
_GROUPED = {
    mark: re.compile(
        rf"([+-]?)([1-9][0-9]{{0,2}}([ '{other}])[0-9]{{3}}(?:\3[0-9]{{3}})*)((?:[{mark}][0-9]*)?(?:[eE][+-]?[0-9]+)?)"
    )
    for mark, other in ((POINT, COMMA), (COMMA, POINT))
}


@dataclasses.dataclass(frozen=True)
class Dialect:
    """The format of a table; empty fields are unknown."""

    separator: str = ""
    """Between columns."""
    decimal: str = ""
    """Decimal mark, a point or a comma."""
    thousands: str = ""
    """The thousands separators that occur: any of `,. '`."""


def of_words(text: str) -> Dialect:
    """Parses `data.csv`: words of `WORDS` separated by commas, or `auto`.

    Raises:
      UserError: A word is unknown, or two contradict each other.
    """
    words = [word for word in text.replace(" ", "").lower().split(",") if word not in ("", AUTO)]
    unknown = [word for word in words if word not in WORDS]
    found = [[table[word] for word in words if word in table] for table in (_SEPARATORS, _DECIMALS, _THOUSANDS)]
    if unknown or len(found[0]) > 1 or len(found[1]) > 1 or (found[1] and found[1][0] in found[2]):
        raise UserError(
            f"data.csv={text!r}: expected {AUTO}, or at most one of {', '.join(_SEPARATORS)} and one of "
            f"{', '.join(_DECIMALS)}, and any of {', '.join(_THOUSANDS)}, separated by commas"
        )
    return Dialect("".join(found[0]), "".join(found[1]), "".join(sorted(found[2])))


def to_words(dialect: Dialect) -> str:
    """Returns the value of `data.csv` for a dialect."""
    tables = ((_SEPARATORS, dialect.separator), (_DECIMALS, dialect.decimal), (_THOUSANDS, dialect.thousands))
    return ",".join(word for table, marks in tables for word, mark in table.items() if marks and mark in marks) or AUTO


def learnt(stated: str, seen: Dialect) -> str:
    """Returns `data.csv` for files like one that was read; unchanged unless the format is unusual."""
    if not describe(seen):
        return stated
    before = of_words(stated)
    if before.separator not in ("", seen.separator):
        before = Dialect()
    thousands = "".join(sorted(set(seen.thousands + before.thousands) - {seen.decimal}))
    return to_words(Dialect(seen.separator, seen.decimal or before.decimal, thousands))


def describe(dialect: Dialect) -> str:
    """Returns the unusual features of a dialect, such as `separated by semicolons, decimal comma`."""
    parts = [f"separated by {word}s" for word, mark in _SEPARATORS.items() if mark == dialect.separator != ","]
    parts += ["decimal comma"] if dialect.decimal == COMMA else []
    parts += [f"thousands separated by {w[10:]}s" for w, mark in _THOUSANDS.items() if mark in dialect.thousands]
    return ", ".join(parts)


def parsed(cell: str, decimal: str) -> tuple[float, str] | None:
    """Returns the number in a cell and its thousands separator ("" without), or None if it is not a number.

    Args:
      cell: Text, with or without surrounding spaces. `true` and `false` are 1 and 0.
      decimal: The decimal mark, a point or a comma.
    """
    plain = cell.strip()
    if decimal == COMMA:
        plain = plain.replace(POINT, "_.").replace(COMMA, POINT)  # no number contains _.
    try:
        return float(plain), ""
    except ValueError:
        pass
    if plain.lower() in _BOOLEANS:
        return _BOOLEANS[plain.lower()], ""
    cell = cell.strip().translate(_ALIKE)
    found = _GROUPED[decimal].fullmatch(cell)
    if found:
        return float(found[1] + found[2].replace(found[3], "") + found[4].replace(decimal, POINT)), found[3]
    if cell.startswith("-") and not plain.startswith("-"):  # a typographic minus
        return parsed(cell, decimal)
    return None


def number(cell: str, dialect: Dialect) -> float | None:
    """Returns the number in a cell in a dialect; None if it is not a number or is ambiguous."""
    if dialect.decimal:
        found = parsed(cell, dialect.decimal)
        return found[0] if found and found[1] in dialect.thousands else None
    either = [parsed(cell, decimal) for decimal in (POINT, COMMA)]
    same = either[0] is not None and either[0] == either[1] and either[0][1] in dialect.thousands
    return either[0][0] if same and either[0] is not None else None


def decimal_of(cells: Sequence[str]) -> str:
    """Returns the decimal mark of the first cell that is a number with only one of them; empty if there is none."""
    for cell in cells:
        valid = [mark for mark in (POINT, COMMA) if parsed(cell, mark) is not None]
        if len(valid) == 1:
            return valid[0]
    return ""


def split(line: str, separator: str) -> list[str]:
    """Splits one line into cells without surrounding spaces.

    Raises:
      csv.Error: The line is not complete.
    """
    return [cell.strip() for cell in next(csv.reader([line], delimiter=separator, skipinitialspace=True, strict=True))]


def separators_in(header: str) -> list[str]:
    """Returns the separators that occur in a header."""
    return [mark for mark in _SEPARATORS.values() if mark in header]


def best_separator(scores: Mapping[str, tuple[float, ...]], stated: Dialect, name: str) -> str:
    """Returns the separator with the highest score, the stated one among equals.

    Args:
      scores: Score of each possible separator; if empty, the stated one or a comma is returned.
      stated: What `data.csv` says.
      name: The table in messages.

    Raises:
      UserError: Several separators score highest, and none is stated.
    """
    best = [mark for mark in scores if scores[mark] == max(scores.values())] or [stated.separator or ","]
    if len(best) == 1:
        return best[0]
    if stated.separator in best:
        return stated.separator
    words = [word for word, mark in _SEPARATORS.items() if mark in best]
    raise UserError(
        f"{name}: columns may be separated by {' or '.join(f'{word}s' for word in words)}: state which with "
        f"{' or '.join(f'{OPTION}={word}' for word in words)} ({FLAG})"
    )


def ambiguous(name: str, column: str, row: int, cell: str, dialect: Dialect) -> UserError:
    """Returns the error for a number whose value depends on a decimal mark that is not known."""
    values = {word: parsed(cell, mark) for word, mark in _DECIMALS.items()}
    known = to_words(Dialect(dialect.separator))
    prefix = "" if known == AUTO else f"{known},"
    readings = [(f"{found[0]:.15g}", f"{prefix}{word}") for word, found in values.items() if found]
    return UserError(
        f"{name}: column {quoted(column)} holds {quoted(cell)} in row {row}, which may be "
        f"{' or '.join(value for value, _ in readings)}; the table is ambiguous: state which with "
        f"{' or '.join(f'{OPTION}={words}' for _, words in readings)} ({FLAG})"
    )
