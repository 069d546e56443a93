"""The verb `evaluate`: scores the test set of a run and writes metrics, predictions, pictures and the report."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ganomaly_jax.cli import arguments
from ganomaly_jax.core import exit_codes, number_format
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.core.printable import show
from ganomaly_jax.runs import layout

if TYPE_CHECKING:
    from ganomaly_jax.data.datasets import Dataset
    from ganomaly_jax.evaluation.evaluate import Evaluation
    from ganomaly_jax.runs.resolution import Run
    from ganomaly_jax.scoring.judgement import Judgement
    from ganomaly_jax.scoring.scorer import Scorer


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Registers the verb and its options."""
    parser = arguments.new_verb(
        subparsers, "evaluate", "score the test set of a run: metrics, curves, worst cases, report"
    )
    parser.add_argument("--workdir", required=True, help=arguments.RUN)
    parser.add_argument("--data", default="", metavar="DATA", help="other labelled data to test on")
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="folder for the results (default: the workdir; with --data, evaluations/NAME in it)",
    )
    arguments.add_overwrite(parser)
    arguments.add_value_range(parser, arguments.FLOATS)
    arguments.add_rate(parser)
    parser.add_argument("--groups", metavar="FILE", help="CSV with the columns path,group: metrics for each group too")
    parser.add_argument(
        "--baselines",
        metavar="NAMES",
        help="statistical baselines to compare with: pca_t2,pca_q,mahalanobis,neighbours,forest, or all",
    )
    parser.add_argument(
        "--combine", metavar="NAMES", help="how detector and baselines are combined: mean,maximum,stouffer"
    )
    arguments.add_huge_pages(parser)
    return parser


def run(args: argparse.Namespace, overrides: arguments.Overrides) -> int:
    """Evaluates a run or the members of a sweep, prints the metrics, and returns the exit code."""
    from ganomaly_jax.runs import sweep

    if sweep.read_members(Path(args.workdir)):
        for option in ("data", "out", "baselines", "combine", "groups"):
            if getattr(args, option):
                raise UserError(
                    f"--{option}: {args.workdir} holds several members; name one, {args.workdir}/members/NAME"
                )
        return evaluate_members_and_print(args.workdir, args.false_positive_rate)
    evaluation = evaluate_and_print(
        args.workdir,
        args.data,
        args.false_positive_rate,
        by=args.groups,
        baselines=args.baselines,
        combine=args.combine,
        out=args.out,
        overwrite=args.overwrite,
        value_range=args.value_range,
    )
    failed = evaluation.metrics["n_invalid"] or evaluation.metrics["n_unreadable"]
    return exit_codes.INCOMPLETE if failed else exit_codes.DONE


def evaluate_and_print(
    workdir: str,
    source: str = "",
    rate: float | None = None,
    by: str | None = None,
    baselines: str | None = None,
    combine: str | None = None,
    out: str | None = None,
    overwrite: bool = False,
    value_range: tuple[float, float] | None = None,
) -> Evaluation:
    """Evaluates a run and prints the result.

    Args:
      workdir: the run's folder.
      source: as in `evaluation.evaluate.evaluate`, like the other arguments.

    Returns:
      The evaluation.
    """
    from ganomaly_jax.evaluation import evaluate as evaluation_evaluate

    evaluation = evaluation_evaluate.evaluate(
        workdir,
        source,
        false_positive_rate=rate,
        by=by,
        baselines=baselines,
        combine=combine,
        out=out,
        overwrite=overwrite,
        value_range=value_range,
    )
    print_evaluation(evaluation, rate, by)
    return evaluation


def evaluate_run_and_print(
    workdir: Path, scorer: Scorer, run: Run, judged: Judgement | None, printed: Sequence[str]
) -> Evaluation:
    """Evaluates a run that has just been trained and prints the result.

    Args:
      workdir: the run's folder.
      scorer: its detector.
      run: the resolved run.
      judged: the verdicts on the test set, if all processes have scored it together.
      printed: lines that have been printed already; a warning among them is not repeated.

    Returns:
      The evaluation.
    """
    from ganomaly_jax.evaluation import evaluate as evaluation_evaluate

    evaluation = evaluation_evaluate.evaluate_run(workdir, scorer, run, judged)
    print_evaluation(evaluation, printed=printed)
    return evaluation


def print_evaluation(
    evaluation: Evaluation, rate: float | None = None, by: str | None = None, printed: Sequence[str] = ()
) -> None:
    """Prints the metrics of an evaluation, its warnings, and where pictures and report are.

    Args:
      evaluation: the evaluation.
      rate: the false-positive rate given on the command line, if any.
      by: the file of groups given on the command line, if any.
      printed: lines that have been printed already; a warning among them is not repeated.
    """
    from ganomaly_jax.evaluation import baselines as evaluation_baselines
    from ganomaly_jax.evaluation import group_metrics

    values = evaluation.metrics

    def shown(name: str) -> str:
        return number_format.decimal(values[name])

    anomalous_items, protocol = f"anomalous {values['items']}", values["protocol"]
    show(f"test set: {values['n_normal']} normal, {values['n_anomalous']} {anomalous_items} ({protocol})")
    show(f"AUROC {shown('auroc')}, average precision {shown('average_precision')}")
    if len(values["per_class"]) > 1:
        show("AUROC by class: " + ", ".join(f"{k} {v:.4f}" for k, v in values["per_class"].items() if v is not None))
    show(
        f"above the threshold {values['threshold']:.6g}: {shown('false_positive_rate')} of the normal and "
        f"{shown('true_positive_rate')} of the {anomalous_items}"
    )
    if "n_masks" in values:
        where = f"pixel AUROC {shown('pixel_auroc')}, AUPRO up to 30 % {shown('aupro_30')}"
        show(f"maps against {values['n_masks']} masks: {where}")
    if rate is not None:
        show(f"threshold from {values['threshold_source']}")
    if by:
        show("\n".join(group_metrics.lines(values["groups"])))
    if "baselines" in values:
        table = evaluation_baselines.lines(values["baselines"] | values["combinations"])
        show("\n".join(table + values["baselines_notes"]))
    for note in (f"note: {warning}" for warning in values["warnings"]):
        if note not in printed:
            show(note)
    if evaluation.page is not None:
        show(f"pictures in {evaluation.folder / layout.PICTURES}, report in {evaluation.page}")


def evaluate_members_and_print(workdir: str, rate: float | None = None, own: Dataset | None = None) -> int:
    """Evaluates every member of a sweep, prints and writes their summary, and returns the exit code."""
    from ganomaly_jax.evaluation import evaluate as evaluation_evaluate
    from ganomaly_jax.evaluation import sweep_summary
    from ganomaly_jax.report.html import MissingError
    from ganomaly_jax.runs import sweep

    evaluations = evaluation_evaluate.evaluate_members(workdir, rate, own)
    summary = sweep_summary.summarise(sweep.read_members(Path(workdir)), evaluations)
    show("AUROC, running statistics, last step")
    show("\n".join(sweep_summary.lines(summary)))
    for name in summary["diverged"]:
        show(f"note: {name} diverged and is left out of all figures")
    try:
        show(f"report in {sweep_summary.write(Path(workdir), summary)}, each member's own in {layout.MEMBERS}/")
    except MissingError as error:
        show(f"note: {error}")
    return exit_codes.DIVERGED if summary["diverged"] else exit_codes.DONE
