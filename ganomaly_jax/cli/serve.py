"""The verb `serve`: scores images over HTTP."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from ganomaly_jax.cli import arguments
from ganomaly_jax.core import exit_codes
from ganomaly_jax.core.errors import UserError

_MAX_BODY_MIB, _MAX_S = 1024, 3600


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Registers the verb and its options."""
    parser = arguments.new_verb(subparsers, "serve", "score images over HTTP, with a page to drop them on")
    parser.add_argument("--workdir", required=True, help=arguments.RUN_OR_DETECTOR)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0: all (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="0: a free one (default: %(default)s)")
    parser.add_argument(
        "--max-body", type=float, default=16, metavar="MIB", help="largest request body (default: %(default)s)"
    )
    parser.add_argument(
        "--max-pixels", type=int, default=64_000_000, metavar="N", help="pixels of the largest image (%(default)s)"
    )
    parser.add_argument(
        "--max-batch", type=int, default=64, metavar="N", help="images scored together (default: %(default)s)"
    )
    parser.add_argument(
        "--queue", type=int, default=128, metavar="N", help="requests accepted at a time (default: %(default)s)"
    )
    parser.add_argument(
        "--body-timeout", type=float, default=30, metavar="S", help="seconds for a body to arrive (%(default)s)"
    )
    parser.add_argument(
        "--drain",
        type=float,
        default=0,
        metavar="S",
        help="seconds after SIGTERM in which it is not ready but still answers (default: %(default)s)",
    )
    arguments.add_huge_pages(parser)
    return parser


def run(args: argparse.Namespace, overrides: arguments.Overrides) -> int:
    """Serves until a signal ends it, and returns the exit code."""
    if not 0 <= args.drain <= _MAX_S:
        raise UserError(f"--drain {args.drain:g}: expected 0 to {_MAX_S} seconds")
    if not 0 < args.max_body <= _MAX_BODY_MIB:
        raise UserError(f"--max-body {args.max_body:g}: expected more than 0 and at most {_MAX_BODY_MIB} MiB")
    if not 0 < args.body_timeout <= _MAX_S:
        raise UserError(f"--body-timeout {args.body_timeout:g}: expected more than 0 and at most {_MAX_S} seconds")
    from ganomaly_jax.deploy import http_app, http_process
    from ganomaly_jax.scoring import scorer as scoring_scorer

    scorer = scoring_scorer.load(args.workdir)
    limits = http_app.Limits(int(args.max_body * 2**20), args.max_pixels, args.max_batch, args.queue, args.body_timeout)

    def ready(address: str) -> None:
        print(f"{args.workdir} at {address}, {scorer.input_shape} at most {limits.batch} at once", flush=True)

    def log(line: str) -> None:
        print(f"ganomaly: {line}", file=sys.stderr, flush=True)

    cut_off = http_process.serve(scorer, limits, args.host, args.port, args.drain, ready, log)
    log(f"{cut_off} requests were cut off" if cut_off else "all requests were answered")
    return exit_codes.INCOMPLETE if cut_off else exit_codes.DONE
