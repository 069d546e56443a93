"""The Markdown page of an end-to-end report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.common import command

STAGES = ("start", "data", "compilation", "training", "calibration", "evaluation")
_PREDICT_COLUMNS = "threads | files/s | listing | waiting for files | scoring | writing | device busy"
_PREDICT_COLUMNS += " | device idle for want of files | CPU s of decoding"


def markdown(report: Mapping[str, Any]) -> str:
    """Formats the report as a page."""
    settings = report["settings"]
    lines = [
        *command.opening(report, "End to end"),
        f"`train {' '.join(settings['flags'])}`"
        + (", quick: figures of a trial, not to be quoted." * settings["quick"]),
    ]
    if found := report.get("train"):
        rate = found["training_images_per_s"]
        auroc = "not defined" if found["auroc"] is None else f"{found['auroc']:.3f}"
        lines += [
            "",
            f"## From the command to a detector: {found['total_s']:.1f} s",
            "",
            f"{found['opening']}. AUROC {auroc} on {found['n_test']:,} images; {found['steps']:,} steps"
            + (f", {rate:,.0f} images/s while training" if rate else "")
            + f"; `evaluate` alone: {found['evaluate_alone_s']:.1f} s.",
            "",
            *command.table(" | ".join(["seconds", *STAGES, "all"])),
        ]
        for name, key, total in (
            ("nothing compiled before", "stages_s", "total_s"),
            ("compiled before", "stages_compiled_before_s", "total_compiled_before_s"),
        ):
            cells = [f"{found[key][stage]:.1f}" for stage in STAGES]
            lines.append(f"| {name} | {' | '.join(cells)} | {found[total]:.1f} |")
        lines += ["", "The training of the second row is that of the first; the rest is measured."]
    if found := report.get("predict"):
        shape = "x".join(map(str, found["shape"]))
        lines += [
            "",
            f"## `predict` of {found['files']:,} JPEG files: {found['command_files_per_s']:,.0f} files/s",
            "",
            f"{found['side']} x {found['side']} in colour, {found['bytes_a_file'] / 1000:.1f} kB each, scored at "
            f"{shape}; the command took {found['command_s']:.1f} s, start included. The parts, in one process:",
            "",
            *command.table(_PREDICT_COLUMNS),
        ]
        for name, workers in found["workers"].items():
            parts, rate = found["parts"][name], found["files_per_s"][name]
            total = parts["total_s"]["median"]
            of = ("listing_s", "decoding_s", "scoring_s", "writing_s", "device_busy_s", "device_idle_for_decoding_s")
            cells = [command.extremes(rate, ",.0f")]
            cells += [f"{parts[part]['median'] / total:.0%}" for part in of]
            lines.append(f"| {workers} | {' | '.join(cells)} | {parts['decoding_cpu_s']['median']:.2f} |")
        lines += ["", f"All threads / one: {command.extremes(found['ratio_all_to_one'])}."]
    return "\n".join(lines) + "\n"
