"""The verb `serve`: scores images over HTTP."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from ganomaly_jax.cli import arguments
from ganomaly_jax.core import exit_codes
from ganomaly_jax.core.errors import UserError

_MAX_BODY_MIB, _MAX_S = 1024, 3600
_EVERYWHERE = ("", "0.0.0.0", "::")
# Options with a number: name, type, default, unit, help.
_LIMITS: tuple[tuple[str, type, float, str, str], ...] = (
    ("--max-body", float, 16, "MIB", "largest request body"),
    ("--max-pixels", int, 64_000_000, "N", "pixels of the largest image"),
    ("--max-files", int, 32, "N", "maximum files in a form"),
    ("--max-batch", int, 64, "N", "images scored together"),
    ("--max-connections", int, 512, "N", "maximum open connections"),
    ("--queue", int, 128, "N", "requests accepted at a time"),
    ("--large-queue", int, 8, "N", "images of more than 4 million pixels in progress"),
    ("--header-timeout", float, 10, "S", "time limit for headers, in seconds"),
    ("--body-timeout", float, 30, "S", "seconds for a body to arrive"),
    ("--drain", float, 0, "S", "seconds after SIGTERM in which it is not ready but still answers"),
)


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Registers the verb and its options."""
    parser = arguments.new_verb(subparsers, "serve", "score images over HTTP, with a page to drop them on")
    parser.add_argument("--workdir", required=True, help=arguments.RUN_OR_DETECTOR)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0: all (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="0: a free one (default: %(default)s)")
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="also accept requests for this host name or address; * for any; repeatable",
    )
    parser.add_argument(
        "--token-file", metavar="FILE", help="require the token in this file, as Authorization: Bearer (default: none)"
    )
    for name, kind, default, unit, text in _LIMITS:
        parser.add_argument(name, type=kind, default=default, metavar=unit, help=f"{text} (default: %(default)s)")
    parser.add_argument(
        "--fixed-batch",
        action="store_true",
        help="pad every batch to --max-batch, so that scores are bit-identical under any load",
    )
    parser.add_argument("--access-log", action="store_true", help="log every response")
    arguments.add_huge_pages(parser)
    return parser


def run(args: argparse.Namespace, overrides: arguments.Overrides) -> int:
    """Serves until a signal ends it, and returns the exit code."""
    if not 0 <= args.drain <= _MAX_S:
        raise UserError(f"--drain {args.drain:g}: expected 0 to {_MAX_S} seconds")
    if not 0 < args.max_body <= _MAX_BODY_MIB:
        raise UserError(f"--max-body {args.max_body:g}: expected more than 0 and at most {_MAX_BODY_MIB} MiB")
    for name, seconds in (("--body-timeout", args.body_timeout), ("--header-timeout", args.header_timeout)):
        if not 0 < seconds <= _MAX_S:
            raise UserError(f"{name} {seconds:g}: expected more than 0 and at most {_MAX_S} seconds")
    from ganomaly_jax.deploy import http_app, http_gate, http_limits, http_log, http_process
    from ganomaly_jax.scoring import scorer as scoring_scorer

    own = [] if args.host in _EVERYWHERE else [args.host.partition("%")[0]]
    hosts = http_gate.allowed_hosts([*args.allow_host, *own])
    token = None if args.token_file is None else http_gate.read_token(args.token_file)
    scorer = scoring_scorer.load(args.workdir)
    limits = http_limits.Limits(
        body=int(args.max_body * 2**20),
        pixels=args.max_pixels,
        batch=args.max_batch,
        queue=args.queue,
        body_s=args.body_timeout,
        header_s=args.header_timeout,
        connections=args.max_connections,
        large=args.large_queue,
        files=args.max_files,
    )

    def make(started: Callable[[], None]) -> Any:
        access = http_gate.Access(hosts, token)
        return http_app.application(scorer, limits, started, access, args.fixed_batch, args.access_log)

    def ready(address: str) -> None:
        print(f"{args.workdir} at {address}, {scorer.input_shape} at most {limits.batch} at once", flush=True)
        if token is None and args.host not in http_gate.LOOPBACK:
            http_log.say("no --token-file: anyone who can reach this address can use the detector")

    cut_off = http_process.serve(make, limits, args.host, args.port, args.drain, ready)
    http_log.say(f"{cut_off} requests were cut off" if cut_off else "all requests were answered")
    return exit_codes.INCOMPLETE if cut_off else exit_codes.DONE
