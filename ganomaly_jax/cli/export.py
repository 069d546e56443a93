"""The verb `export`: writes the scoring function to files that run without this package."""

from __future__ import annotations

import argparse
from typing import Any

from ganomaly_jax.cli import arguments
from ganomaly_jax.core import exit_codes
from ganomaly_jax.core.printable import show


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Registers the verb and its options."""
    parser = arguments.new_verb(
        subparsers, "export", "write the scoring function to files that run without this package"
    )
    parser.add_argument("--workdir", required=True, help=arguments.RUN_OR_DETECTOR)
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write; an earlier export is replaced")
    parser.add_argument(
        "--format", choices=("stablehlo", "onnx"), default="stablehlo", help="file format (default: %(default)s)"
    )
    parser.add_argument(
        "--weights",
        choices=("inside", "beside"),
        default="inside",
        help="inside the program, or beside it in weights.npz (default: %(default)s)",
    )
    arguments.add_value_range(parser, "accept float32 in this range instead of integer pixels, such as 0,1 or =-1,1")
    parser.add_argument(
        "--check", nargs="+", metavar="PATH", help="images to compare export and detector on (default: the run's own)"
    )
    return parser


def run(args: argparse.Namespace, overrides: arguments.Overrides) -> int:
    """Writes the export, prints its contents, and returns the exit code."""
    from ganomaly_jax.deploy import export

    manifest = export.export(args.workdir, args.out, args.weights, args.format, args.check, args.value_range)
    show(export.describe(manifest, args.out))
    return exit_codes.DONE
