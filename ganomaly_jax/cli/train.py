"""The verb `train`: trains a detector, or resumes a training, and evaluates the result."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ganomaly_jax.cli import arguments, evaluate
from ganomaly_jax.core import config, exit_codes, members, validation
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.core.printable import show

if TYPE_CHECKING:
    from ganomaly_jax.evaluation.evaluate import Evaluation


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Registers the verb and its options."""
    parser = arguments.new_verb(subparsers, "train", "train a detector, or resume its training, then evaluate it")
    arguments.add_data(parser)
    parser.add_argument("--workdir", required=True, help="folder of the run; an unfinished training in it is resumed")
    arguments.add_config(parser)
    parser.add_argument(
        "--fall-back", action="store_true", help="if the last checkpoint is damaged, resume from the one before it"
    )
    group = parser.add_argument_group("several processes", "each of them starts the same command; see docs/pods.md")
    group.add_argument("--distributed", action="store_true", help="join the processes that the cluster has started")
    group.add_argument(
        "--coordinator-address", default="", metavar="HOST:PORT", help="process 0, where the cluster does not say it"
    )
    group.add_argument("--num-processes", type=int, default=0, metavar="N", help="number of processes")
    group.add_argument("--process-id", type=int, default=-1, metavar="I", help="number of this process, from 0")
    group.add_argument(
        "--wait",
        type=int,
        default=300,
        metavar="SECONDS",
        help="how long to wait for all processes (default: %(default)s)",
    )
    arguments.add_huge_pages(parser)
    return parser


def run(args: argparse.Namespace, overrides: arguments.Overrides) -> int:
    """Trains one model or the members of a sweep, prints the evaluation, and returns the exit code."""
    settings = arguments.settings(args, overrides)
    if not settings.data.source:
        raise UserError("no data: expected `ganomaly train DATA --workdir W`, DATA a folder of normal images")
    validation.check(settings)
    _join(args)
    if members.requested(settings):
        return _train_members(settings, args.workdir, args.fall_back)
    train_and_evaluate(settings, args.workdir, args.fall_back)
    return exit_codes.DONE


def train_and_evaluate(settings: config.Config, workdir: str, fall_back: bool = False) -> Evaluation | None:
    """Trains one model and prints its evaluation.

    Args:
      settings: a configuration that `validation.check` has accepted.
      workdir: the run's folder.
      fall_back: whether to resume from an earlier checkpoint if the last one is damaged.

    Returns:
      The evaluation; None in all processes but the primary one.
    """
    from ganomaly_jax.evaluation import evaluate as evaluation_evaluate
    from ganomaly_jax.parallel import processes
    from ganomaly_jax.training import trainer

    printed: list[str] = []

    def log(line: str) -> None:
        printed.append(line)
        show(line)

    with trainer.locked(workdir):
        resolved = trainer.resolve(settings)
        scorer = trainer.train_run(resolved, workdir, log, fall_back)
        judged = evaluation_evaluate.judge_together(scorer, resolved) if processes.is_distributed() else None

        def on_primary() -> Evaluation:
            show(f"threshold {scorer.threshold:.6g}: {scorer.calibration.source}")
            return evaluate.evaluate_run_and_print(Path(workdir), scorer, resolved, judged, printed)

        return processes.run_on_primary(on_primary)


def leave(code: int) -> None:
    """Ends this process at once where there are others, which might wait for it for minutes."""
    from ganomaly_jax.parallel import processes

    processes.exit_now(code)


def _join(args: argparse.Namespace) -> None:
    """Joins the other processes, where there are any."""
    named = args.coordinator_address or args.num_processes or args.process_id >= 0
    args.distributed = bool(args.distributed or named)  # also for `main`, which then ends this process at once
    if args.wait < 1:
        raise UserError(f"--wait {args.wait}: expected 1 second or more")
    if args.distributed:
        from ganomaly_jax.parallel import processes

        processes.initialize(args.coordinator_address, args.num_processes, args.process_id, args.wait)
    from ganomaly_jax.runs import orbax_logging

    orbax_logging.silence_failed_writes()


def _train_members(settings: config.Config, workdir: str, fall_back: bool) -> int:
    from ganomaly_jax.data import sources
    from ganomaly_jax.training import trainer

    with trainer.locked(workdir):
        dataset = sources.read(settings.data, progress=True)
        trainer.train_members(settings, workdir, dataset, lambda line: show(line), fall_back)
        return evaluate.evaluate_members_and_print(workdir, own=dataset)
