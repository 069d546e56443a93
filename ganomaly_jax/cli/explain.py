"""The verb `explain`: shows where and why one image or window of sound differs from normal."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from ganomaly_jax.cli import arguments
from ganomaly_jax.core import exit_codes
from ganomaly_jax.core.errors import UserError


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser = arguments.new_verb(
        subparsers, "explain", "show where and why one image differs from normal: a picture, and boxes as text"
    )
    parser.add_argument("image", metavar="IMAGE", help="an image file, or a recording as FILE@SECONDS")
    parser.add_argument("--workdir", required=True, help=arguments.RUN_OR_DETECTOR)
    parser.add_argument("--out", metavar="FILE", help="picture to write (default: maps/NAME.png in the workdir)")
    return parser


def run(args: argparse.Namespace, overrides: arguments.Overrides) -> int:
    from ganomaly_jax.report import explanation, image_grids, sound_explanation
    from ganomaly_jax.scoring import scorer as scoring_scorer
    from ganomaly_jax.scoring import sound

    scorer = scoring_scorer.load(args.workdir)
    if scorer.columns:
        raise UserError(
            f"{args.workdir} judges sensors, which have no picture: report.html draws them, and "
            "`ganomaly_jax.contributions` gives from Python what each adds to a score"
        )

    def picture(stem: str) -> Path:
        return Path(args.out) if args.out else explanation.folder_of(Path(args.workdir)) / f"{stem}.png"

    if scorer.sound:
        wave, name, begin = sound.window_of(scorer, args.image)
        out = picture(re.sub(r"[^\w.-]+", "_", Path(name).name))
        out.parent.mkdir(parents=True, exist_ok=True)
        lines = sound_explanation.explain_window(scorer, wave, name, begin, out)
    else:
        path = Path(args.image)
        out = picture(path.stem)
        drawn, lines = explanation.explain(scorer, path)
        image_grids.save(drawn, out)
    print("\n".join(lines))
    print(f"picture in {out}")
    return exit_codes.DONE
