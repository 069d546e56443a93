"""The verb `recalibrate`: sets another threshold for a trained detector."""

from __future__ import annotations

import argparse
from typing import Any

from ganomaly_jax.cli import arguments
from ganomaly_jax.core import exit_codes
from ganomaly_jax.core.printable import show


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Registers the verb and its options."""
    parser = arguments.new_verb(subparsers, "recalibrate", "set another threshold, in seconds and without training")
    parser.add_argument("--workdir", required=True, help=arguments.RUN_OR_DETECTOR)
    parser.add_argument(
        "--data",
        default="",
        metavar="DATA",
        help="normal data to calibrate on (default: the stored scores)",
    )
    arguments.add_value_range(parser, arguments.FLOATS)
    way = parser.add_mutually_exclusive_group()
    arguments.add_rate(way)
    way.add_argument("--quantile", type=float, metavar="Q", help="quantile of the calibration scores, such as 0.99")
    way.add_argument(
        "--tail", type=float, metavar="R", help="false-positive rate, extrapolated by a generalised Pareto tail"
    )
    way.add_argument("--threshold", type=float, metavar="T", help="this score itself")
    parser.add_argument(
        "--groups", metavar="FILE", help="CSV with the columns path,group: a threshold of its own for each group"
    )
    parser.add_argument(
        "--review", type=float, metavar="R", help="give the verdict `review` to p-values up to R; 0: never"
    )
    return parser


def run(args: argparse.Namespace, overrides: arguments.Overrides) -> int:
    """Sets the threshold, prints the old and the new one, and returns the exit code."""
    from ganomaly_jax.scoring import calibration, recalibration, scorer

    before = scorer.load(args.workdir).threshold
    recalibrated = recalibration.recalibrate(
        args.workdir,
        args.data,
        false_positive_rate=args.false_positive_rate,
        quantile=args.quantile,
        tail=args.tail,
        threshold=args.threshold,
        review=args.review,
        by=args.groups,
        value_range=args.value_range,
    )
    show(f"threshold {before:.6g} -> {recalibrated.threshold:.6g}: {recalibrated.calibration.source}")
    for name in recalibrated.calibration.groups:
        group = calibration.of_group(recalibrated.calibration, name, recalibrated.config.evaluate)
        show(f"group {name}: threshold {group.threshold:.6g}: {group.source}")
    show(f"written to {args.workdir}; `ganomaly evaluate` prints the metrics at this threshold")
    return exit_codes.DONE
