"""The verb `predict`: gives a verdict for each file, in this process or on Ray workers."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ganomaly_jax.cli import arguments
from ganomaly_jax.core import exit_codes, text_table
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.core.printable import printable, show
from ganomaly_jax.runs import layout, outputs

if TYPE_CHECKING:
    from ganomaly_jax.core.config import Config
    from ganomaly_jax.scoring.judgement import Judgement
    from ganomaly_jax.scoring.scorer import Scorer

# Maximum number of verdicts shown on the terminal; the file contains all of them.
_ROWS = 20


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Registers the verb and its options."""
    parser = arguments.new_verb(subparsers, "predict", "give a verdict for each file")
    parser.add_argument(
        "paths", nargs="+", metavar="PATH", help="files or folders: images, tables or recordings; ray: shards too"
    )
    parser.add_argument("--workdir", required=True, help=arguments.RUN_OR_DETECTOR)
    parser.add_argument(
        "--out", help="file to write the rows to, or folder with ray (default: predictions/NAME in the workdir)"
    )
    arguments.add_overwrite(parser)
    parser.add_argument("--csv", metavar="WORDS", default="", help=arguments.CSV)
    parser.add_argument(
        "--spreadsheet-safe",
        action="store_true",
        help="mark names that a spreadsheet would interpret as formulas as text, with an apostrophe",
    )
    parser.add_argument(
        "--groups", metavar="FILE", help="CSV with the columns path,group, for thresholds set by recalibrate --groups"
    )
    parser.add_argument("--maps", action="store_true", help="draw each anomalous image or window, showing where")
    parser.add_argument(
        "--most-maps",
        type=int,
        default=100,
        metavar="N",
        help="draw the N most anomalous only; 0: all (default: %(default)s)",
    )
    parser.add_argument("--engine", choices=("local", "ray"), default="local", help="this process, or Ray workers")
    parser.add_argument("--workers", type=int, help="ray: how many (default: one for each accelerator, or machine)")
    parser.add_argument("--address", help="ray: HOST:PORT of a cluster, or auto (default: start one on this machine)")
    arguments.add_huge_pages(parser)
    return parser


def run(args: argparse.Namespace, overrides: arguments.Overrides) -> int:
    """Scores the files, prints and writes the verdicts, and returns the exit code."""
    if args.engine == "ray":
        return _on_ray(args)
    if args.workers is not None or args.address is not None:
        raise UserError("--workers and --address belong to --engine ray")
    if args.most_maps < 0:
        raise UserError(f"--most-maps {args.most_maps}: expected a number of pictures, 0 for all")
    from ganomaly_jax.evaluation import predictions
    from ganomaly_jax.report import modalities as report_modalities
    from ganomaly_jax.scoring import groups
    from ganomaly_jax.scoring import modalities as scoring_modalities
    from ganomaly_jax.scoring import scorer as scoring_scorer

    scorer = scoring_scorer.load(args.workdir)
    out = Path(args.out) if args.out else outputs.predictions_file(args.workdir, args.paths)
    if args.csv:
        scorer = dataclasses.replace(scorer, config=_with_csv(scorer, args.csv))
    judging, drawing = scoring_modalities.of(scorer), report_modalities.of(scorer)
    if args.groups and not judging.grouped:
        raise UserError(f"--groups is for images, not for {scorer.words.kind}")
    if args.maps and not drawing.mapped:
        raise UserError(f"--maps is for images and sound, not for {scorer.words.kind}")
    maps = out.with_name(f"{out.stem}_{layout.MAPS}")
    outputs.refuse_existing([out, *judging.files(out), *([maps] if args.maps else [])], args.overwrite)
    found = judging.judge_paths(scorer, args.paths)
    judged = found.judged
    if args.groups:
        judged = groups.judge_by(scorer, judged, groups.of_images(args.groups, found.names))
    _print_table(found.names, judged, found.reasons)
    counts = _counts(scorer, judged)
    for note in found.notes:
        show(f"note: {note}")
    if not args.out and counts["invalid"] == len(found.names):
        show(f"{_words(counts)}; nothing could be scored, so no file was written (--out FILE writes the reasons)")
        return exit_codes.INCOMPLETE
    unknown = [None] * len(found.names)
    predictions.write(out, found.names, unknown, judged, found.reasons, found.times, args.spreadsheet_safe)
    for note in judging.write_files(out, found):
        show(f"note: {note}")
    show(f"{_words(counts)}; rows in {out}")
    if args.maps:
        drawn, anomalous = drawing.write_maps(scorer, dataclasses.replace(found, judged=judged), maps, args.most_maps)
        show(_maps_line(drawn, anomalous, maps))
    return exit_codes.INCOMPLETE if counts["invalid"] else exit_codes.DONE


def _with_csv(scorer: Scorer, words: str) -> Config:
    """Returns the detector's configuration with another `data.csv`."""
    if not scorer.feature_names:
        raise UserError(f"--csv applies to tables of sensors, not to {scorer.words.kind}")
    return dataclasses.replace(scorer.config, data=dataclasses.replace(scorer.config.data, csv=words))


def _on_ray(args: argparse.Namespace) -> int:
    if args.groups or args.maps or args.csv or args.spreadsheet_safe:
        raise UserError("--engine ray supports no --groups, --maps, --csv or --spreadsheet-safe; use the local engine")
    if args.overwrite:
        raise UserError("--engine ray supports no --overwrite: it resumes its own results; choose another --out")
    from ganomaly_jax.deploy import ray_engine

    out = args.out or str(outputs.predictions_file(args.workdir, args.paths).with_suffix(""))

    found = ray_engine.predict(
        args.workdir,
        args.paths,
        out,
        args.workers or 0,
        args.address or "",
        log=lambda line: show(f"ganomaly: {line}", sys.stderr),
    )
    if found.kept:
        show(f"{found.kept} of {found.parts} parts had already been scored")
    show(f"{_words(found.counts)}; rows in {found.parts} Parquet files in {out}")
    return exit_codes.INCOMPLETE if found.counts["invalid"] else exit_codes.DONE


def _maps_line(drawn: int, anomalous: int, folder: Path) -> str:
    left = f", the most anomalous of {anomalous} (--most-maps 0 draws all)" if drawn < anomalous else ""
    return f"{drawn} pictures in {folder}{left}"


def _counts(scorer: Scorer, judged: Judgement) -> dict[str, int]:
    """Counts the items by verdict; `review` only where the detector gives it."""
    counts = {verdict: judged.verdicts.count(verdict) for verdict in ("normal", "review", "anomalous", "invalid")}
    if scorer.calibration.review is None:
        counts.pop("review")
    return counts


def _words(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {verdict}" for verdict, count in counts.items())


def _print_table(names: Sequence[str], judged: Judgement, why: Sequence[str]) -> None:
    """Prints the verdicts, invalid ones and then the most anomalous first."""
    order = sorted(range(len(names)), key=lambda i: (judged.verdicts[i] != "invalid", -judged.scores[i]))
    rows = [("verdict", "score", "p-value", "path")]
    for i in order[:_ROWS]:
        if judged.verdicts[i] == "invalid":
            rows.append(("invalid", "", "", f"{printable(names[i])}: {why[i]}"))
        else:
            numbers = f"{judged.scores[i]:.4g}", f"{judged.p_values[i]:.4f}"
            rows.append((judged.verdicts[i], *numbers, printable(names[i])))
    show("\n".join(text_table.lines(rows, right={1, 2})))
    if len(order) > _ROWS:
        show(f"... and {len(order) - _ROWS} less anomalous ones")
