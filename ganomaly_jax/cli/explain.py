"""The verb `explain`: shows where and why one image or window of sound differs from normal."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ganomaly_jax.cli import arguments
from ganomaly_jax.core import exit_codes
from ganomaly_jax.core.printable import show
from ganomaly_jax.runs import outputs


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Registers the verb and its options."""
    parser = arguments.new_verb(
        subparsers, "explain", "show where and why one image differs from normal: a picture, and boxes as text"
    )
    parser.add_argument("image", metavar="IMAGE", help="an image file, or a recording as FILE@SECONDS")
    parser.add_argument("--workdir", required=True, help=arguments.RUN_OR_DETECTOR)
    parser.add_argument("--out", metavar="FILE", help="picture to write (default: maps/NAME.png in the workdir)")
    arguments.add_overwrite(parser)
    return parser


def run(args: argparse.Namespace, overrides: arguments.Overrides) -> int:
    """Writes the picture, prints what it shows, and returns the exit code."""
    from ganomaly_jax.report import explanation, modalities
    from ganomaly_jax.scoring import scorer as scoring_scorer

    scorer = scoring_scorer.load(args.workdir)
    stem, draw = modalities.of(scorer).explained(scorer, args.image)
    out = Path(args.out) if args.out else explanation.folder_of(Path(args.workdir)) / f"{stem}.png"
    outputs.refuse_existing([out], args.overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)
    show("\n".join(draw(out)))
    show(f"picture in {out}")
    return exit_codes.DONE
