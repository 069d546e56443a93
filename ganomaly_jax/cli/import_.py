"""The verb `import`: makes a detector from the weights of a PyTorch GANomaly."""

from __future__ import annotations

import argparse
from typing import Any

from ganomaly_jax.cli import arguments
from ganomaly_jax.core import exit_codes
from ganomaly_jax.core.printable import show


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Registers the verb and its options."""
    parser = arguments.new_verb(
        subparsers, "import", "make a detector from PyTorch weights: the original netG.pth or an anomalib checkpoint"
    )
    parser.add_argument(
        "file", metavar="FILE", help="netG.pth, or the .ckpt of anomalib's Ganomaly; no code in it is run"
    )
    parser.add_argument(
        "--data", required=True, metavar="NORMALS", help="normal images to calibrate on, not used in the training"
    )
    parser.add_argument("--workdir", required=True, help="folder to create, for predict, evaluate and export")
    arguments.add_rate(parser)
    return parser


def run(args: argparse.Namespace, overrides: arguments.Overrides) -> int:
    """Imports the weights, prints the size and the threshold of the detector, and returns the exit code."""
    from ganomaly_jax.deploy import import_pytorch

    scorer = import_pytorch.import_pytorch(args.file, args.data, args.workdir, args.false_positive_rate, progress=True)
    height, width, channels = scorer.input_shape
    show(f"{args.file}: a detector of {height}x{width}x{channels} images, written to {args.workdir}")
    show(f"threshold {scorer.threshold:.6g}: {scorer.calibration.source}")
    return exit_codes.DONE
