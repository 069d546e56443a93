"""A stream on the terminal as it runs: scores, threshold, drift, the last events. rich, of the extra `watch`."""

from __future__ import annotations

import math
from typing import Any

from ganomaly_jax.core.errors import UserError
from ganomaly_jax.streaming.summary import Course

_BARS = " ▁▂▃▄▅▆▇█"
_HEIGHT = 8
_EVENTS = 6
_COLOURS = {"normal": "green", "review": "yellow", "anomalous": "red", "invalid": "magenta"}


class View:
    """The view while it is open; `show` draws it anew, at most some times a second."""

    def __init__(self, title: str, threshold: float, sensors: int) -> None:
        """
        Raises:
          UserError: no rich.
        """
        try:
            from rich.console import Console
            from rich.live import Live
        except ImportError:
            raise UserError("--live needs rich: pip install 'ganomaly-jax[watch]'") from None
        self.title, self.threshold, self.sensors = title, threshold, sensors
        # Standard output may be a pipe that takes the verdicts.
        self._live = Live(console=Console(stderr=True), auto_refresh=False, transient=False)
        self._live.start()

    def show(self, course: Course) -> None:
        width = max(self._live.console.width - 16, 20)
        self._live.update(drawn(course, self.title, self.threshold, width, self.sensors), refresh=True)

    def close(self) -> None:
        self._live.stop()


def drawn(course: Course, title: str, threshold: float, width: int, sensors: int = 1) -> Any:
    """What rich prints."""
    from rich.console import Group
    from rich.markup import escape
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    last = course.last or {}
    word = last.get("verdict", "")
    head = Text.assemble(
        (f" {word or 'waiting for rows'} ", f"bold reverse {_COLOURS.get(word, 'white')}"),
        f"  row {last.get('row', 0):,}   {course.verdicts:,} verdicts, {course.anomalous:,} anomalous"
        + (f", {course.invalid:,} invalid" if course.invalid else ""),
        (f"   ALARM since row {course.alarm:,}" if course.alarm else "", "bold red"),
    )
    parts: list[Any] = [head, Text(), _scores(course, threshold, width)]
    if last.get("score") is not None:
        line = f"score {last['score']:.4g}, threshold {threshold:.4g}, p-value {last['p_value']:.3g}"
        line += f", {last.get('latency_ms', 0):.1f} ms"
        parts.append(Text(line))
        if last.get("top"):
            parts.append(Text("most from " + ", ".join(f"{_plain(name)} {value:+.3g}" for name, value in last["top"])))
    standing = course.bins[-1].drift if course.bins else {}
    if standing:
        table = Table.grid(padding=(0, 1))
        for test, share in standing.items():
            full = round(min(max(share, 0), 1) * 30)
            style = "red" if share >= 1 else "yellow" if share >= 0.7 else "green"
            table.add_row(f"drift {test}", Text("█" * full + "·" * (30 - full), style), f"{share:.0%} of its limit")
        parts += [Text(), table]
    if course.events:
        parts += [
            Text(),
            *(Text(_event(event), no_wrap=True, overflow="ellipsis") for event in list(course.events)[-_EVENTS:]),
        ]
    return Panel(Group(*parts), title=escape(_plain(title)), title_align="left")


def _scores(course: Course, threshold: float, width: int) -> Any:
    """The last bins as columns, `_HEIGHT` lines high, red where something is anomalous, the threshold as a line."""
    from rich.text import Text

    bins = course.bins[-width:]
    values = [one.highest for one in bins]
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return Text("no scores yet", "dim")
    low, high = min(*finite, threshold), max(*finite, threshold)
    logarithmic = low > 0 and high > 20 * low

    def place(value: float) -> float:
        a, b, v = (math.log(part) if logarithmic else part for part in (low, high, value))
        return _HEIGHT * (0.05 + 0.9 * (v - a) / (b - a)) if b > a else _HEIGHT / 2

    at = min(int(place(threshold)), _HEIGHT - 1)
    made = Text(no_wrap=True)
    for line in range(_HEIGHT - 1, -1, -1):
        for one, value in zip(bins, values, strict=True):
            share = min(max(place(value) - line, 0.0), 1.0) if math.isfinite(value) else 0.0
            bar = _BARS[round(share * 8)]
            if bar == " " and line == at:
                made.append("─", "yellow")
            else:
                made.append(bar, "red" if one.anomalous else "cyan")
        made.append(f" {'threshold' if line == at else ''}", "yellow")
        made.append("\n" if line else "")
    return made


def _event(event: dict[str, Any]) -> str:
    """One event in a line."""
    name = str(event["event"]).replace("_", " ")
    more = [_plain(str(event[key])) for key in ("sensor", "test", "state", "words", "reason") if event.get(key)]
    return f"row {event['row']:>9,}  {name}: {', '.join(more)}" if more else f"row {event['row']:>9,}  {name}"


def _plain(text: str) -> str:
    """Without what a terminal would obey."""
    return "".join(character if character.isprintable() else "?" for character in text)
