"""The parts of an HTML page, as strings: every text from outside is escaped, pictures lie in the page itself."""

from __future__ import annotations

import base64
import html
import json
import numbers
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ganomaly_jax.core.config import Config
from ganomaly_jax.core.config_values import flatten, to_dict


def page(title: str, parts: Iterable[str]) -> str:
    """A whole page around parts of HTML; it loads nothing, and its own policy forbids that as well as scripts."""
    name = text(title)
    return f"{_HEAD}<title>{name}</title>\n</head>\n<body>\n<h1>{name}</h1>\n{''.join(parts)}</body>\n</html>\n"


def section(heading: str, *parts: str) -> str:
    """Parts of HTML below a heading."""
    return f"<section><h2>{text(heading)}</h2>{''.join(parts)}</section>\n"


def paragraph(sentence: str) -> str:
    return f"<p>{text(sentence)}</p>"


def image(path: Path, caption: str = "", width: str = "") -> str:
    """A PNG with its bytes in the page, as wide as it is, or as a CSS length says; never wider than the page."""
    try:
        data = base64.b64encode(path.read_bytes()).decode()
    except OSError as error:
        return paragraph(f"{path.name} cannot be read: {error.strerror}.")
    alt = caption or path.stem.replace("_", " ")
    below = f"<figcaption>{text(caption)}</figcaption>" if caption else ""
    style = f' style="width: {width}"' if width else ""
    return f'<figure{style}><img alt="{text(alt)}" src="data:image/png;base64,{data}">{below}</figure>'


def table(rows: Iterable[Sequence[str]], header: Sequence[str] = ()) -> str:
    return raw_table(([text(cell) for cell in row] for row in rows), header)


def raw_table(rows: Iterable[Sequence[str]], header: Sequence[str] = ()) -> str:
    """A table whose cells are HTML already."""
    head = "<tr>" + "".join(f"<th>{text(cell)}</th>" for cell in header) + "</tr>" if header else ""
    lines = ("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table>{head}{''.join(lines)}</table>"


def link(path: str, words: str) -> str:
    """A link to a file beside the page."""
    return f'<a href="{text(urllib.parse.quote(path))}">{text(words)}</a>'


def dots(groups: Mapping[str, Sequence[float]]) -> str:
    """A drawing of values from 0 to 1: a row a group, a dot a value, a bar at the mean."""
    left, right, row, top = 150, 620, 26, 24
    bottom = top + row * len(groups)

    def x(value: float) -> float:
        return left + (right - left) * value

    drawn = []
    for tick in (0, 0.25, 0.5, 0.75, 1):
        dashed = ' stroke-dasharray="4 3"' if tick == 0.5 else ""
        drawn.append(f'<path d="M{x(tick):g} {top}V{bottom}" stroke="#{"888" if dashed else "ddd"}"{dashed}/>')
        drawn.append(f'<text x="{x(tick):g}" y="{top - 8}" text-anchor="middle" fill="#555">{tick:g}</text>')
    for place, (name, values) in enumerate(groups.items()):
        y = top + row * (place + 0.5)
        short = name if len(name) <= 20 else f"{name[:19]}…"
        drawn.append(f'<text x="{left - 10}" y="{y + 4:g}" text-anchor="end">{text(short)}</text>')
        if not len(values):
            continue
        mean = sum(values) / len(values)
        drawn.append(f'<path d="M{x(mean):.1f} {y - 9:g}V{y + 9:g}" stroke="#1e1e1e" stroke-width="2"/>')
        drawn.append(f'<text x="{right + 10}" y="{y + 4:g}">{mean:.3f}</text>')
        drawn += [f'<circle cx="{x(v):.1f}" cy="{y:g}" r="4.5" fill="#2b6cb0" fill-opacity="0.65"/>' for v in values]
    size = f'viewBox="0 0 {right + 60} {bottom + 6}" width="{right + 60}"'
    return f'<svg {size} role="img" aria-label="values by group" font-size="13">{"".join(drawn)}</svg>'


def settings(flat: dict[str, Any]) -> str:
    """A table of a flat configuration, with the default of each value that has another."""
    defaults = flatten(to_dict(Config()))
    rows = [
        (key, show(value), "" if value == defaults.get(key) else show(defaults.get(key)) or "(empty)")
        for key, value in flat.items()
    ]
    return table(rows, ("key", "value", "default, where it differs"))


def facts(values: dict[str, Any]) -> str:
    """A table of a nested dict."""
    return table([(key, show(value)) for key, value in flatten(values).items()])


def text(value: Any) -> str:
    """Anything as text that no browser takes for markup."""
    return html.escape("".join(part if part.isprintable() or part == "\n" else "?" for part in str(value)))


def show(value: Any) -> str:
    """A value of a JSON file in one line."""
    return value if isinstance(value, str) else json.dumps(value)


def number(value: Any) -> str:
    """Four digits; `not defined` for None and NaN."""
    if value is None or value != value:
        return "not defined"
    whole = isinstance(value, numbers.Integral) or not isinstance(value, numbers.Real)
    return str(value) if whole else f"{value:.4g}"


def percent(share: Any) -> str:
    """A share of 1 in per cent, three digits."""
    return f"{100 * share:.3g} %" if isinstance(share, float) and share == share else number(share)


def read(path: Path) -> tuple[dict[str, Any], str]:
    """The object in a JSON file and no note, or nothing and a sentence why."""
    try:
        values = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}, f"{path.name} is missing."
    except (OSError, ValueError, RecursionError):
        return {}, f"{path.name} cannot be read."
    return (values, "") if isinstance(values, dict) else ({}, f"{path.name} holds no object.")


def warnings(found: dict[str, Any]) -> str:
    """The warnings of metrics.json."""
    lines = found.get("warnings") or []
    lines = lines if isinstance(lines, list) else [lines]
    return "".join(f'<p class="warning"><strong>Warning.</strong> {text(line)}</p>\n' for line in lines)


def headline(found: dict[str, Any]) -> str:
    """The figures of metrics.json as tiles, where the threshold comes from, and the classes one by one."""
    items = str(found.get("items", "images"))
    tiles = [
        (name, percent(found.get(key)) if key.endswith("rate") else number(found.get(key)), hint)
        for name, key, hint in (
            ("AUROC", "auroc", "1 is perfect, 0.5 is chance"),
            ("average precision", "average_precision", "1 is perfect, the share of anomalies is chance"),
            ("threshold", "threshold", "a score above it is called anomalous"),
            ("false-positive rate", "false_positive_rate", f"normal {items} above the threshold"),
            ("true-positive rate", "true_positive_rate", f"anomalous {items} above the threshold"),
        )
    ]
    if found.get("n_masks"):
        tiles.append(("pixel AUROC", number(found.get("pixel_auroc")), f"of the maps, with {found['n_masks']} masks"))
        tiles.append(
            ("AUPRO", number(found.get("aupro_30")), "overlap by region up to 30 % false positives; chance 0.15")
        )
    counts = [f"{number(found[key])} {key[2:]}" for key in ("n_normal", "n_anomalous") if found.get(key) is not None]
    invalid = f", and {number(found['n_invalid'])} that could not be scored" if found.get("n_invalid") else ""
    tiles.append((items, ", ".join(counts) or "not known", f"in the test set{invalid}"))
    parts = [
        f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd><small>{text(hint)}</small></div>"
        for name, value, hint in tiles
    ]
    parts = ['<dl class="tiles">', *parts, "</dl>"]
    for name, key in (("Threshold", "threshold_source"), ("Protocol", "protocol"), ("Seed", "seed")):
        if found.get(key) is not None:
            parts.append(f"<p><strong>{name}.</strong> {text(show(found[key]))}</p>")
    classes = found.get("per_class")
    if isinstance(classes, dict) and classes:
        parts.append(table([(name, number(value)) for name, value in classes.items()], ("class", "AUROC")))
    return "".join(parts) + "\n"


_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<style>
:root { color-scheme: light; }
body { max-width: 62rem; margin: 0 auto; padding: 1rem; background: #fff; color: #1e1e1e; }
body { font: 16px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; }
h2 { font-size: 1.2rem; margin: 2rem 0 0.5rem; padding-bottom: 0.25rem; border-bottom: 1px solid #ccc; }
p { max-width: 46rem; }
.warning { padding: 0.75rem 1rem; border-left: 5px solid #c8442b; background: #fdf1ee; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); gap: 0.75rem; margin: 1rem 0; }
.tiles div { padding: 0.6rem 0.8rem; border: 1px solid #ccc; border-radius: 6px; break-inside: avoid; }
.tiles dd { margin: 0; font-size: 1.25rem; font-weight: 600; line-height: 1.3; }
dt, small, figcaption { color: #555; font-size: 0.875rem; }
figure { display: inline-block; margin: 0.5rem 0.5rem 0.5rem 0; max-width: 100%; vertical-align: top; }
figure { break-inside: avoid; }
img, svg { display: block; max-width: 100%; height: auto; }
table { border-collapse: collapse; margin: 0.5rem 0; font-size: 0.875rem; }
th, td { padding: 0.2rem 1.25rem 0.2rem 0; border-bottom: 1px solid #e4e4e4; text-align: left; vertical-align: top; }
td { min-width: 4.5rem; }
</style>
"""
