"""The verb `pack`: decodes images once into a file that a training reads as it goes."""

from __future__ import annotations

import argparse
from typing import Any

from ganomaly_jax.cli import arguments
from ganomaly_jax.core import exit_codes, validation
from ganomaly_jax.core.printable import show
from ganomaly_jax.runs import outputs


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Registers the verb and its options."""
    parser = arguments.new_verb(subparsers, "pack", "decode images once, for sets that are larger than memory")
    parser.add_argument("folder", metavar="DIR", help="a folder of images, or other data as in train")
    parser.add_argument("out", metavar="OUT.array_record", help="file to write; a JSON file is written beside it")
    arguments.add_overwrite(parser)
    arguments.add_config(parser)
    parser.set_defaults(data=None)
    return parser


def run(args: argparse.Namespace, overrides: arguments.Overrides) -> int:
    """Packs the images, prints how many there are, and returns the exit code."""
    settings = arguments.settings(args, overrides)
    validation.check(settings)
    from ganomaly_jax.data import pack

    outputs.refuse_existing([args.out, f"{args.out}.json"], args.overwrite, "OUT.array_record")
    packed = pack.pack(settings.data, args.out, progress=True)
    show(pack.describe(packed))
    return exit_codes.INCOMPLETE if packed.problems else exit_codes.DONE
