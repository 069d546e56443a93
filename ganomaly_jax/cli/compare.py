"""The verb `compare`: tests whether one of two runs separates better."""

from __future__ import annotations

import argparse
from typing import Any

from ganomaly_jax.cli import arguments
from ganomaly_jax.core import exit_codes
from ganomaly_jax.core.printable import show


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Registers the verb and its options."""
    parser = arguments.new_verb(
        subparsers, "compare", "test whether one of two runs separates better on the same test data"
    )
    parser.add_argument("workdirs", nargs=2, metavar="W", help="folders of two evaluated runs")
    return parser


def run(args: argparse.Namespace, overrides: arguments.Overrides) -> int:
    """Prints the comparison of the two runs and returns the exit code."""
    from ganomaly_jax.evaluation import comparison

    show("\n".join(comparison.describe(comparison.compare(*args.workdirs))))
    return exit_codes.DONE
