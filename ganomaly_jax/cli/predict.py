"""The verb `predict`: a verdict for each of many files, here or on Ray workers."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ganomaly_jax.cli import arguments
from ganomaly_jax.core import exit_codes, text_table
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.runs import layout

if TYPE_CHECKING:
    from ganomaly_jax.scoring.scorer import Judgement, Scorer

# Rows of the verdict table on the terminal; predictions.csv has them all.
_ROWS = 20


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser = arguments.new_verb(subparsers, "predict", "give a verdict for each file")
    parser.add_argument(
        "paths", nargs="+", metavar="PATH", help="files or folders: images, tables or recordings; ray: shards too"
    )
    parser.add_argument("--workdir", required=True, help=arguments.RUN_OR_DETECTOR)
    parser.add_argument("--out", help="where to write the rows (default: predictions.csv in the workdir)")
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
    if args.engine == "ray":
        return _on_ray(args)
    if args.workers is not None or args.address is not None:
        raise UserError("--workers and --address belong to --engine ray")
    if args.most_maps < 0:
        raise UserError(f"--most-maps {args.most_maps}: wanted a number of pictures, 0 for all")
    from ganomaly_jax.core import sealed_folder
    from ganomaly_jax.scoring import scorer as scoring_scorer

    scorer = scoring_scorer.load(args.workdir)
    if not args.out and (Path(args.workdir) / sealed_folder.MANIFEST).exists():
        raise UserError(f"{args.workdir} is a detector folder, which nothing may be written into: wanted --out FILE")
    out = Path(args.out) if args.out else Path(args.workdir) / layout.PREDICTIONS
    if scorer.columns:
        return _rows(scorer, args, out)
    if scorer.sound:
        return _sound(scorer, args, out)
    return _images(scorer, args, out)


def _images(scorer: Scorer, args: argparse.Namespace, out: Path) -> int:
    from ganomaly_jax.data.images import decode
    from ganomaly_jax.data.images import files as image_files
    from ganomaly_jax.evaluation import evaluate
    from ganomaly_jax.report import explanation
    from ganomaly_jax.scoring import groups

    files: list[Path] = []
    for path in map(Path, args.paths):
        files += image_files.list_images(path) if path.is_dir() else [path]
    if not files:
        raise UserError(f"no image files in {', '.join(args.paths)}")
    judged, problems = scorer.judge_files(files, progress=True)
    if args.groups:
        judged = groups.judge_by(scorer, judged, groups.of_images(args.groups, [str(path) for path in files]))
    reasons = dict(problems)
    names = [str(path) for path in files]
    why = [
        reasons.get(decode.shown(path), evaluate.NOT_FINITE) if verdict == "invalid" else ""
        for path, verdict in zip(files, judged.verdicts, strict=True)
    ]
    evaluate.write_predictions(out, names, [None] * len(files), judged, why)
    code = _print_verdicts(scorer, names, judged, why, out)
    if args.maps:
        folder = _maps_folder(args, out)
        drawn, anomalous = explanation.write_most_anomalous(scorer, folder, files, judged, args.most_maps)
        print(_maps_line(drawn, anomalous, folder))
    return code


def _rows(scorer: Scorer, args: argparse.Namespace, out: Path) -> int:
    """Tables of sensors: a verdict for each row or window."""
    from ganomaly_jax.evaluation import evaluate
    from ganomaly_jax.scoring import sensors

    if args.maps or args.groups:
        raise UserError("--maps and --groups are for images: wanted neither with tables of sensors")
    found = sensors.judge_tables(scorer, args.paths)
    evaluate.write_predictions(out, found.paths, [None] * len(found.paths), found.judged, found.reasons)
    for note in found.notes:
        print(f"note: {note}")
    return _print_verdicts(scorer, found.paths, found.judged, found.reasons, out)


def _sound(scorer: Scorer, args: argparse.Namespace, out: Path) -> int:
    """Recordings: a verdict for each window, and a row for each file in a second table."""
    from ganomaly_jax.evaluation import evaluate
    from ganomaly_jax.report import sound_explanation
    from ganomaly_jax.scoring import sound

    if args.groups:
        raise UserError("--groups is for images: wanted none with recordings")
    found, notes = sound.judge_recordings(scorer, args.paths)
    beside = out.with_name(f"{out.stem}_files.csv")
    sound.write_files(beside, found)
    notes = [*notes, f"a row a file in {beside}"]
    if args.maps:
        folder = _maps_folder(args, out)
        drawn, anomalous = sound_explanation.write_maps(scorer, folder, found, args.most_maps)
        notes.append(_maps_line(drawn, anomalous, folder))
    names = [name for one in found for name in one.names]
    why = [reason for one in found for reason in one.reasons]
    judged = sound.together(found)
    evaluate.write_predictions(out, names, [None] * len(names), judged, why)
    for note in notes:
        print(f"note: {note}")
    return _print_verdicts(scorer, names, judged, why, out)


def _on_ray(args: argparse.Namespace) -> int:
    if args.groups or args.maps:
        raise UserError("--groups and --maps are not for --engine ray; wanted the local engine")
    if not args.out:
        raise UserError("--engine ray: wanted --out DIR, a folder for the rows")
    from ganomaly_jax.deploy import ray_engine

    found = ray_engine.predict(
        args.workdir,
        args.paths,
        args.out,
        args.workers or 0,
        args.address or "",
        log=lambda line: print(f"ganomaly: {line}", file=sys.stderr),
    )
    if found.kept:
        print(f"{found.kept} of {found.parts} parts were scored already")
    counts = ", ".join(f"{count} {verdict}" for verdict, count in found.counts.items())
    print(f"{counts}; rows in {found.parts} Parquet files in {args.out}")
    return exit_codes.INCOMPLETE if found.counts["invalid"] else exit_codes.DONE


def _maps_folder(args: argparse.Namespace, out: Path) -> Path:
    from ganomaly_jax.report import explanation

    folder = layout.MAPS
    return out.with_name(f"{out.stem}_{folder}") if args.out else explanation.folder_of(Path(args.workdir))


def _maps_line(drawn: int, anomalous: int, folder: Path) -> str:
    left = f", the most anomalous of {anomalous} (--most-maps 0 draws all)" if drawn < anomalous else ""
    return f"{drawn} pictures in {folder}{left}"


def _print_verdicts(scorer: Scorer, names: Sequence[str], judged: Judgement, why: Sequence[str], out: Path) -> int:
    """Prints the verdicts and how many there are of each; returns the exit code."""
    _print_table(names, judged, why)
    counts = {verdict: judged.verdicts.count(verdict) for verdict in ("normal", "review", "anomalous", "invalid")}
    if scorer.calibration.review is None:
        counts.pop("review")
    print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()) + f"; rows in {out}")
    return exit_codes.INCOMPLETE if counts["invalid"] else exit_codes.DONE


def _print_table(names: Sequence[str], judged: Judgement, why: Sequence[str]) -> None:
    """Prints the verdicts, invalid ones and then the most anomalous first."""
    order = sorted(range(len(names)), key=lambda i: (judged.verdicts[i] != "invalid", -judged.scores[i]))
    rows = [("verdict", "score", "p-value", "path")]
    for i in order[:_ROWS]:
        if judged.verdicts[i] == "invalid":
            rows.append(("invalid", "", "", f"{_one_line(names[i])}: {why[i]}"))
        else:
            numbers = f"{judged.scores[i]:.4g}", f"{judged.p_values[i]:.4f}"
            rows.append((judged.verdicts[i], *numbers, _one_line(names[i])))
    print(*text_table.lines(rows, right={1, 2}), sep="\n")
    if len(order) > _ROWS:
        print(f"... and {len(order) - _ROWS} less anomalous ones")


def _one_line(name: str) -> str:
    """Returns a file name without line ends and without what a terminal would obey."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
