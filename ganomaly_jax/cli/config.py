"""The verb `config`: lists the keys of the configuration and the configurations shipped with the package."""

from __future__ import annotations

import argparse
from typing import Any

from ganomaly_jax.cli import arguments, config_listing
from ganomaly_jax.core import exit_codes
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.core.printable import show


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Registers the verb and its options."""
    parser = arguments.new_verb(
        subparsers, "config", "list the keys of the configuration, and the shipped ones by name"
    )
    parser.add_argument(
        "name",
        nargs="?",
        metavar="NAME",
        help="a key such as train.epochs, a section such as train, or a shipped configuration such as surface "
        "(default: everything in one line each)",
    )
    parser.add_argument("--list", action="store_true", help="the shipped configurations only")
    return parser


def run(args: argparse.Namespace, overrides: arguments.Overrides) -> int:
    """Prints the requested part of the configuration and returns the exit code."""
    if args.name and args.list:
        raise UserError(f"both {args.name!r} and --list are given: expected only one of them")
    if args.name:
        lines = config_listing.about(args.name)
    else:
        lines = config_listing.shipped() if args.list else config_listing.everything()
    show("\n".join(lines))
    return exit_codes.DONE
