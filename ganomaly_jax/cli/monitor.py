"""The verb `monitor`: watches a stream of sensor rows, or a folder that fills with images."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from typing import Any

from ganomaly_jax.cli import arguments
from ganomaly_jax.core import exit_codes
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.core.printable import show
from ganomaly_jax.streaming.options import Options


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Registers the verb and its options."""
    parser = arguments.new_verb(
        subparsers, "monitor", "watch a stream: rows of sensors, or a folder that fills with images"
    )
    parser.add_argument(
        "source",
        nargs="?",
        metavar="SOURCE",
        help="a growing CSV or JSONL file, or a folder that fills with images (default: rows from standard input)",
    )
    parser.add_argument("--workdir", required=True, help=arguments.RUN_OR_DETECTOR)
    parser.add_argument("--once", action="store_true", help="end at the end of the file, or once the folder is scored")
    parser.add_argument("--out", metavar="FILE", help="append to this file (default: standard output)")
    parser.add_argument("--state", metavar="FILE", help="keep the state here, so that a restart resumes")
    parser.add_argument("--save-every", type=float, metavar="S", help="seconds (default: %(default)s)")
    parser.add_argument("--format", metavar="KIND", help="csv or jsonl (default: that of the first line)")
    parser.add_argument("--time", metavar="NAME", help="column of the time (default: one called `time`)")
    parser.add_argument("--csv", metavar="WORDS", help=arguments.CSV)
    parser.add_argument("--poll", type=float, metavar="S", help="seconds between reads (%(default)s)")
    parser.add_argument(
        "--normals",
        metavar="DATA",
        help="normal data to compare with, if the run's own are gone",
    )
    parser.add_argument("--top", type=int, metavar="N", help="sensors named in a verdict (%(default)s)")
    parser.add_argument("--steps", type=int, metavar="N", help="integration steps of their contributions (%(default)s)")
    parser.add_argument("--report", metavar="FILE.png", help="draw scores, drift and events every minute")
    parser.add_argument("--live", action="store_true", help="show a view on the terminal (needs rich)")
    alarms = parser.add_argument_group("alarms")
    alarms.add_argument("--alarm", metavar="K/N", help="K anomalous of N verdicts (%(default)s)")
    alarms.add_argument("--cool-down", type=int, metavar="N", help="verdicts without a new alarm (%(default)s)")
    alarms.add_argument(
        "--sink", action="append", dest="sinks", metavar="TO", help="file or http(s) address; repeatable"
    )
    alarms.add_argument(
        "--sink-timeout",
        type=float,
        metavar="S",
        help="deadline for each delivery to an address, seconds (%(default)s)",
    )
    alarms.add_argument(
        "--spool",
        metavar="DIR",
        help="where undelivered events wait (default: beside the state)",
    )
    checks = parser.add_argument_group("sensors and drift")
    checks.add_argument("--silent", type=int, metavar="N", help="report N rows without a value; 0: never (%(default)s)")
    checks.add_argument("--stuck", type=int, metavar="N", help="report N rows with one value; 0: never (%(default)s)")
    checks.add_argument(
        "--drift-every",
        type=float,
        metavar="N",
        help="mean number of items between false alarms of each drift test; 0: no test (default: %(default)s)",
    )
    checks.add_argument(
        "--drift-step",
        type=int,
        metavar="N",
        help="verdicts between items (default: no row is shared)",
    )
    checks.add_argument("--drift-window", type=int, metavar="N", help="items in a window (%(default)s)")
    parser.set_defaults(**dataclasses.asdict(Options()) | {"sinks": []})
    return parser


def run(args: argparse.Namespace, overrides: arguments.Overrides) -> int:
    """Watches the stream until it ends or a signal arrives, and returns the exit code."""
    for name in ("top", "steps", "silent", "stuck", "drift_step"):
        if getattr(args, name) < 0:
            raise UserError(f"--{name.replace('_', '-')} {getattr(args, name)}: expected a number from 0")
    for name in ("poll", "save_every", "sink_timeout"):
        if not 0 < getattr(args, name) <= 3600:
            raise UserError(f"--{name.replace('_', '-')} {getattr(args, name)}: expected seconds above 0, 3600 at most")
    if args.live and not args.out and sys.stdout.isatty():
        raise UserError("--live: verdicts would be printed across the view; expected --out FILE, or a pipe")
    from ganomaly_jax.streaming import monitor

    options = Options(**{field.name: getattr(args, field.name) for field in dataclasses.fields(Options)})
    invalid = monitor.monitor(args.workdir, options, log=_note)
    return exit_codes.INCOMPLETE if invalid else exit_codes.DONE


def _note(line: str) -> None:
    show(f"ganomaly: {line}", sys.stderr)
