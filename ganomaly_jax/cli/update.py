"""The verb `update`: trains a detector further with new normal data, and keeps the result if it is not worse."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ganomaly_jax.cli import arguments, evaluate
from ganomaly_jax.core import exit_codes
from ganomaly_jax.core.printable import show
from ganomaly_jax.runs import layout


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Registers the verb and its options."""
    parser = arguments.new_verb(
        subparsers, "update", "train further with new normal data; the result is kept if it is not worse"
    )
    parser.add_argument("--workdir", required=True, help="folder of a finished run, which is not changed")
    parser.add_argument("--data", required=True, metavar="NEW", help="new normal data, as in train")
    parser.add_argument(
        "--out", required=True, metavar="W2", help="folder of the new run; an unfinished update in it is resumed"
    )
    parser.add_argument(
        "--replay", type=float, default=0.5, metavar="SHARE", help="share of old data in the training (%(default)s)"
    )
    parser.add_argument(
        "--margin", type=float, default=0.05, metavar="M", help="how much worse the result may be (%(default)s)"
    )
    parser.add_argument("--old-data", default="", metavar="DATA", help="where the old data are now, if they have moved")
    arguments.add_config(parser, preset=False, note=" (default: a tenth of the old steps)")
    arguments.add_huge_pages(parser)
    return parser


def run(args: argparse.Namespace, overrides: arguments.Overrides) -> int:
    """Updates the detector, prints the comparison and the decision, and returns the exit code."""
    from ganomaly_jax.training import update

    result = update.update(
        args.workdir,
        args.data,
        args.out,
        args.replay,
        args.margin,
        lambda settings: arguments.apply(settings, overrides),
        args.old_data,
        lambda line: show(line),
    )
    show("\n".join(result.lines))
    if not result.kept:
        show(f"refused, {args.workdir} stays in use: {'; '.join(result.reasons)}")
        show(f"the new detector is in {Path(args.out) / layout.REFUSED} for inspection; nothing loads it by itself")
        return exit_codes.INCOMPLETE
    show(f"kept: the new detector is in {args.out}; {args.workdir} is unchanged")
    evaluate.evaluate_and_print(args.out)
    return exit_codes.DONE
