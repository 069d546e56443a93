"""The verb `demo`: trains on 5,000 real digits and shows what the detector finds."""

from __future__ import annotations

import argparse
from typing import Any

from ganomaly_jax.cli import arguments, train
from ganomaly_jax.core import exit_codes, members, presets, validation
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.core.printable import show


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Registers the verb and its options."""
    parser = arguments.new_verb(subparsers, "demo", "train on 5,000 real digits and show the result, in about a minute")
    parser.add_argument("--workdir", default="runs/demo", help="folder of the run (default: %(default)s)")
    arguments.add_config(parser, preset=False)
    arguments.add_huge_pages(parser)
    return parser


def run(args: argparse.Namespace, overrides: arguments.Overrides) -> int:
    """Trains on the digits, prints the evaluation and the worst misses, and returns the exit code."""
    settings = presets.read("mnist5k")
    arguments.apply(settings, overrides)
    if members.requested(settings):
        raise UserError("the demo trains one model; `ganomaly train --config.members...` trains several")
    validation.check(settings)
    evaluation = train.train_and_evaluate(settings, args.workdir)
    if evaluation is not None and evaluation.misses:
        show("worst misses (a picture of each is in the report):")
        for case in evaluation.misses:
            show(f"  {case.kind:14}  {case.name}  score {case.score:.4g}, threshold {case.threshold:.4g}")
    return exit_codes.DONE
