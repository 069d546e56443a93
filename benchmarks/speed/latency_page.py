"""The Markdown page of a latency report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.common import command, timing

_MODES = {
    "device": "Device only: images of the network's size, where its program takes them",
    "arrays": "With preprocessing: raw arrays of {side} x {side} to scores",
    "files": "From files: JPEG and PNG of {side} x {side}, decoding included",
}
_COLUMNS = "images a call | side | p50 ms | p95 ms | p99 ms | images/s | ours is so many times as fast"
_DIFFERS = (
    "anomalib's encoders pad their first convolution by 4 instead of 1, so that its maps have odd sides (35 where ours "
    "has 32 of 64): somewhat more work. `ours, anomalib's weights` is that network with those weights in our scorer."
)
_SETTINGS = "shape {shape}, {features} features, latent {latent}; {rounds} rounds of turns of about {turn_s:g} s"


def rows(case: Mapping[str, Any]) -> list[str]:
    """Returns the table rows of one case, one per side."""

    def milliseconds(value: float | None) -> str:
        return "-" if value is None else f"{value:.3g}" if value < 100 else f"{value:,.0f}"

    lines = []
    for name, found in case["sides"].items():
        cells = [str(case["batch"]), name, *(milliseconds(found[key]) for key in ("p50", "p95", "p99"))]
        ratio = found["times_as_fast"]
        cells += [f"{found['images_per_s']:,.0f}", command.extremes(ratio) if ratio else "-"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def markdown(report: Mapping[str, Any]) -> str:
    """Formats the report as a page: a table per mode, cold starts, sizes, what was left out."""
    settings = report["settings"]
    words = settings | {"shape": "x".join(map(str, settings["shape"]))}
    lines = [
        *command.opening(report, "Latency", _SETTINGS.format(**words) + "; ", ("jax", "jaxlib", "flax")),
        "Milliseconds of a call until its scores are on the host: quantiles over all calls of all rounds, - where "
        "there were fewer than 20 (p95) or 100 (p99). A ratio is that of the medians of a round: the median over the "
        "rounds with the least and the greatest." + " Quick: figures of a trial, not to be quoted." * settings["quick"],
        "",
        _DIFFERS,
        "",
    ]
    for mode, title in _MODES.items():
        cases = [case for case in report["cases"] if case["mode"] == mode]
        if cases:
            lines += [f"## {title.format(side=settings['files_side'])}", "", *command.table(_COLUMNS)]
            lines += [line for case in cases for line in rows(case)] + [""]
    if starts := report["cold_start_s"]:
        lines += ["## Cold start: from the start of a process to the score of one file", ""]
        lines += command.table("side | s, nothing compiled before | s, with its cache on the disk")
        for name, found in starts.items():
            cells = [command.extremes(timing.spread(times), ".3g") if times else "no cache" for times in found.values()]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines.append("")
    if report["sizes"]:
        lines += ["## Size", "", *command.table("what is carried away | MB")]
        lines += [f"| {name} | {size / 1e6:.1f} |" for name, size in report["sizes"].items()] + [""]
    differences: dict[str, float] = {}
    for case in report["cases"]:
        for name, found in case["differences"].items():
            differences[f"{name}, {case['mode']}"] = max(found, differences.get(f"{name}, {case['mode']}", 0.0))
    if differences:
        lines += ["## Scores", "", "Largest difference from the side whose scores they have to be, relative:", ""]
        lines += [f"- {what}: {found:.1e}" for what, found in differences.items()] + [""]
    notes = {(name, note) for case in report["cases"] for name, note in case.get("notes", {}).items() if note}
    lines += [f"- {name}: {note}" for name, note in sorted(notes)]
    sides: dict[str, list[str]] = {}
    for name, found in report["versions"].items():
        sides.setdefault(", ".join(f"{package} {version}" for package, version in found.items()), []).append(name)
    lines += [f"- {'; '.join(names)}: {packages}" for packages, names in sides.items()]
    left_out = dict(report["left_out"]) | {k: v for case in report["cases"] for k, v in case["left_out"].items()}
    lines += ["", "Left out:", ""] * bool(left_out) + [f"- {name}: {why}" for name, why in sorted(left_out.items())]
    return "\n".join(lines).rstrip() + "\n"
