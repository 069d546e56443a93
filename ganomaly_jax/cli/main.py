"""The command `ganomaly`: registers the verbs, runs one of them, and turns errors into exit codes."""

from __future__ import annotations

import argparse
import os
import sys
import threading
import traceback
from collections.abc import Sequence

from ganomaly_jax import __version__
from ganomaly_jax.cli import (
    arguments,
    check,
    compare,
    config,
    demo,
    environment,
    evaluate,
    explain,
    export,
    import_,
    monitor,
    pack,
    plan,
    predict,
    recalibrate,
    serve,
    train,
    update,
)
from ganomaly_jax.core import exit_codes, memory
from ganomaly_jax.core.errors import DamagedError, DivergedError, ProcessLostError, StoppedError, UserError
from ganomaly_jax.core.printable import printable, show

VERBS = (
    *(demo, train, evaluate, predict, explain, export, import_, serve, monitor),
    *(recalibrate, update, compare, check, plan, pack, config),
)
"""In the order of `ganomaly --help`. Each module has `add_parser(subparsers)` and `run(args, overrides)`."""
_LINGER_S = 5.0


def command() -> int:
    """Runs `main` as the command `ganomaly` and makes sure that the process ends.

    After a failed write Orbax leaves threads behind, for which Python would wait up to ten minutes.

    Returns:
      The exit code.
    """
    try:
        code = main()
    except Exception as error:
        code = 1
        if not memory.is_exhausted(error):  # a defect of this package
            traceback.print_exc()
        else:
            why = printable(" ".join(str(error).split()) or type(error).__name__)
            print(
                f"ganomaly: out of memory ({why}); what has been saved is intact. Raise the limit (`ulimit -v`, a "
                "cgroup), or use a smaller --config.train.batch_size or fewer items at a time",
                file=sys.stderr,
            )
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(exit_codes.USAGE)  # an orderly exit needs memory; without it, it aborts or hangs
    if code:
        sys.stdout.flush()
        sys.stderr.flush()
        last = threading.Timer(_LINGER_S, os._exit, (code,))
        last.daemon = True
        try:
            last.start()
        except RuntimeError:  # no memory for another thread
            os._exit(code)
    return code


def main(words: Sequence[str] | None = None) -> int:
    """Runs one verb.

    Args:
      words: the command line without the program's name. None: that of this process, which may then restart itself
        with huge pages of memory.

    Returns:
      One of `core.exit_codes`.
    """
    if hasattr(sys.stdout, "reconfigure"):  # file names may contain characters that the terminal cannot encode
        sys.stdout.reconfigure(errors="backslashreplace")
    args = argparse.Namespace()
    try:
        args, overrides = parse(sys.argv[1:] if words is None else words)
        if not hasattr(args, "run"):
            make_parser().print_help()
            return exit_codes.USAGE
        if words is None and getattr(args, "huge_pages", False):
            environment.restart_with_huge_pages()
        environment.set_defaults()
        if args.run is not config.run:
            memory.check_address_space()
        return args.run(args, overrides)
    except (UserError, DivergedError, DamagedError, StoppedError, ProcessLostError) as error:
        show(f"ganomaly: {error}", sys.stderr)
        if getattr(args, "distributed", False):
            train.leave(error.exit_code)
        return error.exit_code
    except KeyboardInterrupt:
        show("ganomaly: interrupted", sys.stderr)
        return exit_codes.INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exit_codes.BROKEN_PIPE


def parse(words: Sequence[str]) -> tuple[argparse.Namespace, arguments.Overrides]:
    """Returns the parsed options of a verb and its `--config.KEY=VALUE` overrides.

    Raises:
      UserError: a verb or option is unknown, or a value is missing or has the wrong type.
    """
    parser = make_parser()
    plain, overrides = arguments.split_overrides(words)
    verb = arguments.verb_parser(plain, parser)
    arguments.check_options(plain, overrides, verb)
    args, rest = parser.parse_known_args(plain)
    if rest:
        raise UserError(f"unexpected argument: {rest[0]}; see `{verb.prog} --help`")
    return args, overrides


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of the command with all its verbs."""
    parser = arguments.Parser(
        "ganomaly",
        description="Train an anomaly detector on normal images, sensor rows or recordings, and find what is unusual.",
        epilog="exit codes: 0 done; 1 another process is gone; 2 usage error; 3 some inputs failed, or an update was "
        "refused; 4 training diverged; 5 damaged artefact; 130, 143 stopped by a signal",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"ganomaly-jax {__version__}")
    subparsers = parser.add_subparsers(
        title="verbs", metavar="VERB", description="`ganomaly VERB --help` lists the options of each"
    )
    for verb in VERBS:
        verb.add_parser(subparsers).set_defaults(run=verb.run)
    return parser
