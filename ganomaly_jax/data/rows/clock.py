"""Reads the times of rows."""

from __future__ import annotations

import dataclasses
import datetime
import re
from collections.abc import Sequence

import numpy as np

NAMES = ("time", "timestamp", "datetime", "date_time", "date")
"""Names, in lower case, of columns that hold times."""
NUMBERED = NAMES[:3]
"""Names of columns whose numbers count as times."""
FORMS = "ISO 8601, YYYY-MM-DD HH:MM:SS, DD.MM.YYYY HH:MM"
"""Forms of times, for messages."""
_ISO = re.compile(r"[0-9]{4}([-/])[0-9]{2}\1[0-9]{2}(?:[T ].*)?")
_DAY_FIRST = re.compile(
    r"([0-9]{1,2})\.([0-9]{1,2})\.([0-9]{4})(?:[T ] ?([0-9]{1,2}):([0-9]{2})(?::([0-9]{2})(?:[.,]([0-9]{1,6}))?)?)?"
)
_OF_DAY = re.compile(r"[0-9]{1,2}:[0-9]{2}(?::[0-9]{2}(?:[.,][0-9]+)?)?")


@dataclasses.dataclass(frozen=True, eq=False)
class Times:
    """The times of rows."""

    values: np.ndarray
    """[N] datetime64[us], in UTC if zones are given; or float64. NaT or NaN where there is none."""
    zoned: bool = False
    """Whether time zones are given."""

    def __getitem__(self, chosen: np.ndarray) -> Times:
        """Returns the times of some rows."""
        return Times(self.values[chosen], self.zoned)

    def text(self) -> list[str]:
        """Returns each time as text: ISO 8601 or a number; empty where there is none."""
        if self.values.dtype.kind == "f":
            return ["" if value != value else f"{value:.15g}" for value in self.values.tolist()]
        return ["" if when is None else _iso(when, self.zoned) for when in self.values.tolist()]


def joined(parts: Sequence[Times | None]) -> Times | None:
    """Joins the times of consecutive recordings; None if one has none, or of another kind than the first."""
    known = [part for part in parts if part is not None]
    kinds = {(part.values.dtype.kind, part.zoned) for part in known}
    if len(known) < len(parts) or len(kinds) != 1:
        return None
    return Times(np.concatenate([part.values for part in known]), known[0].zoned)


def parse(cell: str) -> datetime.datetime | None:
    """Returns a date, or a date and a time, of one of `FORMS`, in UTC if it has a zone; None for anything else."""
    cell = cell.strip()
    try:
        if _ISO.fullmatch(cell):
            when = datetime.datetime.fromisoformat(cell[:10].replace("/", "-") + cell[10:])
            return when if when.tzinfo is None else when.astimezone(datetime.UTC)
        if found := _DAY_FIRST.fullmatch(cell):
            day, month, year, hour, minute, second, fraction = found.groups()
            clock = (int(hour or 0), int(minute or 0), int(second or 0), int((fraction or "0").ljust(6, "0")))
            return datetime.datetime(int(year), int(month), int(day), *clock)
    except (ValueError, OverflowError):
        pass
    return None


def is_of_day(cell: str) -> bool:
    """Returns whether a cell holds a time of day, such as 12:30."""
    return _OF_DAY.fullmatch(cell.strip()) is not None


def parse_all(cells: Sequence[str], missing: frozenset[str]) -> Times | None:
    """Returns the times of a column; None if a cell is neither a time nor missing, or only some have a zone."""
    found: list[datetime.datetime | None] = []
    zones = set()
    for cell in cells:
        when = parse(cell)
        if when is None and cell.strip().lower() not in missing:
            return None
        if when is not None:
            zones.add(when.tzinfo is not None)
        found.append(when if when is None else when.replace(tzinfo=None))
    return None if len(zones) > 1 else Times(np.array(found, "datetime64[us]"), zones == {True})


def iso(when: datetime.datetime) -> str:
    """Returns a time of `parse` in ISO 8601."""
    return _iso(when.replace(tzinfo=None), when.tzinfo is not None)


def _iso(when: datetime.datetime, zoned: bool) -> str:
    return when.isoformat() + ("Z" if zoned else "")
