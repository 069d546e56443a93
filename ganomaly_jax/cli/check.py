"""The verb `check`: inspects data before a training."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from ganomaly_jax.cli import arguments
from ganomaly_jax.core import exit_codes
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.core.printable import show
from ganomaly_jax.runs import outputs


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Registers the verb and its options."""
    parser = arguments.new_verb(
        subparsers, "check", "inspect data before training: what is wrong with it, and what to do"
    )
    arguments.add_data(parser)
    parser.add_argument("--workdir", help="folder of a finished run whose detector the data are compared with")
    parser.add_argument("--json", metavar="FILE", help="write the findings to this file too, as JSON")
    arguments.add_overwrite(parser)
    arguments.add_config(parser)
    return parser


def run(args: argparse.Namespace, overrides: arguments.Overrides) -> int:
    """Prints the findings and returns the exit code."""
    settings = arguments.settings(args, overrides)
    if not settings.data.source:
        raise UserError("no data: expected `ganomaly check DATA`, DATA as in train")
    from ganomaly_jax.core import atomic_files
    from ganomaly_jax.scoring import scorer
    from ganomaly_jax.training import data_check

    if args.json:
        outputs.refuse_existing([args.json], args.overwrite, "--json")
    result = data_check.check(settings, scorer.load(args.workdir) if args.workdir else None, progress=True)
    show(data_check.describe(result))
    if args.json:
        values = dataclasses.asdict(result) | {"usable": result.usable}
        atomic_files.write_text(Path(args.json), json.dumps(values, indent=1, allow_nan=False) + "\n")
    return exit_codes.DONE if result.usable else exit_codes.INCOMPLETE
