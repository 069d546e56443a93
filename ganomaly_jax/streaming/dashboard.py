"""Live view of a stream on the terminal: scores, threshold, drift and recent events. Uses rich (extra `watch`)."""

from __future__ import annotations

import math
from typing import Any

from ganomaly_jax.core.errors import UserError
from ganomaly_jax.streaming.summary import Summary

_BARS = " ▁▂▃▄▅▆▇█"
_HEIGHT = 8
_EVENTS = 6
_COLOURS = {"normal": "green", "review": "yellow", "anomalous": "red", "invalid": "magenta"}


class View:
    """An open live view."""

    def __init__(self, title: str, threshold: float) -> None:
        """Opens the view on standard error.

        Raises:
          UserError: rich is not installed.
        """
        try:
            from rich.console import Console
            from rich.live import Live
        except ImportError:
            raise UserError("--live needs rich: pip install 'ganomaly-jax[watch]'") from None
        self.title, self.threshold = title, threshold
        # Standard output may be a pipe that takes the verdicts.
        self._live = Live(console=Console(stderr=True), auto_refresh=False, transient=False)
        self._live.start()

    def show(self, summary: Summary) -> None:
        """Redraws the view."""
        width = max(self._live.console.width - 16, 20)
        self._live.update(render(summary, self.title, self.threshold, width), refresh=True)

    def close(self) -> None:
        """Closes the view; its last state stays on the terminal."""
        self._live.stop()


def render(summary: Summary, title: str, threshold: float, width: int) -> Any:
    """Returns the renderable of the view for rich."""
    from rich.console import Group
    from rich.markup import escape
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    last = summary.last or {}
    word = last.get("verdict", "")
    head = Text.assemble(
        (f" {word or 'waiting for rows'} ", f"bold reverse {_COLOURS.get(word, 'white')}"),
        f"  row {last.get('row', 0):,}   {summary.verdicts:,} verdicts, {summary.anomalous:,} anomalous"
        + (f", {summary.invalid:,} invalid" if summary.invalid else ""),
        (f"   ALARM since row {summary.alarm:,}" if summary.alarm else "", "bold red"),
    )
    parts: list[Any] = [head, Text(), _scores(summary, threshold, width)]
    if last.get("score") is not None:
        line = f"score {last['score']:.4g}, threshold {threshold:.4g}, p-value {last['p_value']:.3g}"
        line += f", {last.get('latency_ms', 0):.1f} ms"
        parts.append(Text(line))
        if last.get("top"):
            parts.append(
                Text("most from " + ", ".join(f"{_printable(name)} {value:+.3g}" for name, value in last["top"]))
            )
    standing = summary.bins[-1].drift if summary.bins else {}
    if standing:
        table = Table.grid(padding=(0, 1))
        for test, share in standing.items():
            full = round(min(max(share, 0), 1) * 30)
            style = "red" if share >= 1 else "yellow" if share >= 0.7 else "green"
            table.add_row(f"drift {test}", Text("█" * full + "·" * (30 - full), style), f"{share:.0%} of its limit")
        parts += [Text(), table]
    if summary.events:
        parts += [
            Text(),
            *(Text(_event_line(event), no_wrap=True, overflow="ellipsis") for event in list(summary.events)[-_EVENTS:]),
        ]
    return Panel(Group(*parts), title=escape(_printable(title)), title_align="left")


def _scores(summary: Summary, threshold: float, width: int) -> Any:
    """Returns the last bins as columns of `_HEIGHT` lines, anomalous ones in red, with the threshold as a line."""
    from rich.text import Text

    bins = summary.bins[-width:]
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


def _event_line(event: dict[str, Any]) -> str:
    """Returns one event as a line of text."""
    name = str(event["event"]).replace("_", " ")
    more = [_printable(str(event[key])) for key in ("sensor", "test", "state", "words", "reason") if event.get(key)]
    return f"row {event['row']:>9,}  {name}: {', '.join(more)}" if more else f"row {event['row']:>9,}  {name}"


def _printable(text: str) -> str:
    """Replaces characters that a terminal would interpret."""
    return "".join(character if character.isprintable() else "?" for character in text)
