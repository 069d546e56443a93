"""What the verbs of the command do: each takes what was given and returns the exit code."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ganomaly_jax.core import config, config_values, validation
from ganomaly_jax.core.errors import DivergedError, UserError

if TYPE_CHECKING:
    from ganomaly_jax.data.datasets import Dataset
    from ganomaly_jax.evaluation.evaluate import Evaluation
    from ganomaly_jax.scoring.scorer import Judgement

Given = Any
"""The parsed flags of a verb, attributes by their names."""
_SOME_FAILED = 3


def _overrides(settings: config.Config, rest: Sequence[str]) -> None:
    """`--config.a.b=value` and `--config.a.b value`."""
    words = iter(rest)
    for word in words:
        key, equals, value = word.partition("=")
        if not key.startswith("--config."):
            raise UserError(f"{word!r} is not understood; `ganomaly VERB --help` lists what is")
        if not equals:
            value = next(words, "")
            if not value or value.startswith("--"):
                raise UserError(f"{key} has no value: wanted {key}=VALUE")
        config_values.set_value(settings, key.removeprefix("--config."), value)


def _nothing_left(rest: Sequence[str]) -> None:
    if rest:
        raise UserError(f"{rest[0]!r} is not understood; `ganomaly VERB --help` lists what is")


def _config_from(path: str) -> config.Config:
    """The Config that `get_config()` of a Python file returns.

    Raises:
      UserError: no such file, or it does not run, or it returns something else.
    """
    spec = importlib.util.spec_from_file_location("ganomaly_config", path)
    if spec is None or spec.loader is None or not Path(path).is_file():
        raise UserError(f"--config {path}: wanted a Python file with a function get_config(), such as configs/mnist.py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        settings = module.get_config()
    except Exception as error:  # the user's own code may do anything
        raise UserError(f"--config {path} does not run: {type(error).__name__}: {error}") from None
    if not isinstance(settings, config.Config):
        raise UserError(f"--config {path}: get_config() returned {type(settings).__name__}, wanted ganomaly_jax.Config")
    return settings


def _settings(given: Given, rest: Sequence[str]) -> config.Config:
    """What --config, --data and the overrides ask for."""
    if given.folder and given.data:
        raise UserError(f"both {given.folder!r} and --data {given.data!r} are given; wanted one of them")
    settings = _config_from(given.config) if given.config else config.Config()
    _overrides(settings, rest)
    settings.data.source = given.folder or given.data or settings.data.source
    return settings


def compare(given: Given, rest: Sequence[str]) -> int:
    _nothing_left(rest)
    from ganomaly_jax.evaluation import comparison

    print("\n".join(comparison.describe(comparison.compare(*given.workdirs))))
    return 0


def plan(given: Given, rest: Sequence[str]) -> int:
    settings = _settings(given, rest)
    validation.check(settings)
    from ganomaly_jax.data import sources
    from ganomaly_jax.model import registry
    from ganomaly_jax.parallel import sharding
    from ganomaly_jax.runs import resolution, sweep
    from ganomaly_jax.training import cost

    if config.has_members(settings):
        if not settings.data.source:
            raise UserError("members are counted from the data: wanted ganomaly plan DATA")
        dataset = sources.read(settings.data, progress=True)
        team = sweep.expand(settings, dataset)
        one = resolution.resolve(sweep.settings_of(settings, team[0]), dataset).config
        devices = sharding.member_mesh(len(team), settings.mesh.devices).size
        print(cost.describe(cost.plan(one)))
        print(cost.describe_members(registry.from_config(one), len(team), devices, dataset.images.nbytes))
        return 0
    mesh = sharding.local_mesh(settings.mesh.devices)
    sides = (settings.data.height, settings.data.width)
    open_sides = settings.data.kind != "rows" and 0 in sides
    if (open_sides or 0 in config.input_shape(settings.data)) and settings.data.source:
        settings = resolution.resolve(settings, devices=mesh.size, progress=True).config
    sharding.check_batch_size(settings.train.batch_size, mesh)
    print(cost.describe(cost.plan(settings, mesh.size)))
    return 0


def pack(given: Given, rest: Sequence[str]) -> int:
    given.data = None
    settings = _settings(given, rest)
    validation.check(settings)
    from ganomaly_jax.data import pack as data_pack

    packed = data_pack.pack(settings.data, given.out, progress=True)
    print(data_pack.describe(packed))
    return _SOME_FAILED if packed.problems else 0


def train(given: Given, rest: Sequence[str]) -> int:
    settings = _settings(given, rest)
    if not settings.data.source:
        raise UserError("no data: wanted `ganomaly train DATA --workdir W`, DATA a folder of normal images")
    validation.check(settings)
    _join(given)
    if config.has_members(settings):
        return _train_members(settings, given.workdir, given.fall_back)
    _train_and_evaluate(settings, given.workdir, given.fall_back)
    return 0


def _join(given: Given) -> None:
    """Join the other processes, where there shall be any."""
    asked = given.coordinator_address or given.num_processes or given.process_id >= 0
    given.distributed = bool(given.distributed or asked)
    if given.wait < 1:
        raise UserError(f"--wait {given.wait}: wanted 1 second or more")
    if given.distributed:
        from ganomaly_jax.parallel import processes

        processes.initialize(given.coordinator_address, given.num_processes, given.process_id, given.wait)
    from ganomaly_jax.runs import orbax_logging

    orbax_logging.failed_writes()


def leave(code: int) -> None:
    from ganomaly_jax.parallel import processes

    processes.exit_now(code)


def _train_members(settings: config.Config, workdir: str, fall_back: bool) -> int:
    from ganomaly_jax.data import sources
    from ganomaly_jax.training import trainer

    dataset = sources.read(settings.data, progress=True)
    trainer.train_members(settings, workdir, dataset, lambda line: print(line, flush=True), fall_back)
    return _show_members(workdir, own=dataset)


def _show_members(workdir: str, rate: float | None = None, own: Dataset | None = None) -> int:
    from ganomaly_jax.evaluation import evaluate as evaluation_evaluate
    from ganomaly_jax.evaluation import sweep_summary
    from ganomaly_jax.runs import sweep

    found = evaluation_evaluate.evaluate_members(workdir, rate, own)
    summary = sweep_summary.summarise(sweep.stored(Path(workdir)), found)
    print("AUROC, running statistics, last step")
    print("\n".join(sweep_summary.lines(summary)))
    for name in summary["diverged"]:
        print(f"note: {name} diverged and is in no figure")
    print(f"report in {sweep_summary.write(Path(workdir), summary)}, each member's own in {sweep.FOLDER}/")
    return DivergedError.exit_code if summary["diverged"] else 0


def demo(given: Given, rest: Sequence[str]) -> int:
    from ganomaly_jax.core import presets

    settings = presets.get_config()
    _overrides(settings, rest)
    if config.has_members(settings):
        raise UserError("the demo is one model; `ganomaly train --config.members...` trains several")
    found = _train_and_evaluate(settings, given.workdir)
    if found is not None and found.misses:
        print("worst misses (a picture of each is in the report):")
        for case in found.misses:
            print(f"  {case.kind:14}  {case.name}  score {case.score:.4g}, threshold {case.threshold:.4g}")
    return 0


def _train_and_evaluate(settings: config.Config, workdir: str, fall_back: bool = False) -> Evaluation | None:
    from ganomaly_jax.data import sources
    from ganomaly_jax.evaluation import evaluate as evaluation_evaluate
    from ganomaly_jax.parallel import processes
    from ganomaly_jax.training import trainer

    validation.check(settings)
    dataset = sources.load(settings.data, progress=processes.is_primary(), shared=processes.is_distributed())
    told: list[str] = []

    def log(line: str) -> None:
        told.append(line)
        print(line, flush=True)

    scoring_scorer = trainer.train(settings, workdir, dataset, log, fall_back)
    judged = evaluation_evaluate.judge_together(scoring_scorer, dataset) if processes.is_distributed() else None

    def evaluate() -> Evaluation:
        print(f"threshold {scoring_scorer.threshold:.6g}: {scoring_scorer.calibration.source}")
        return show_evaluation(workdir, own=dataset, judged=judged, told=told)

    return processes.run_on_primary(evaluate)


def evaluate(given: Given, rest: Sequence[str]) -> int:
    _nothing_left(rest)
    from ganomaly_jax.runs import sweep

    if sweep.stored(Path(given.workdir)):
        if given.data:
            raise UserError(f"--data: {given.workdir} holds several members; name one, {given.workdir}/members/NAME")
        if given.partners is not None or given.combine is not None:
            raise UserError(
                f"--partners, --combine: {given.workdir} holds several members; name one, {given.workdir}/members/NAME"
            )
        if given.groups:
            raise UserError(f"--groups: {given.workdir} holds several members; name one, {given.workdir}/members/NAME")
        return _show_members(given.workdir, given.false_positive_rate)
    beside = (given.partners, given.combine)
    found = show_evaluation(given.workdir, given.data, given.false_positive_rate, by=given.groups, beside=beside)
    return _SOME_FAILED if found.metrics["n_invalid"] or found.metrics["n_unreadable"] else 0


def recalibrate(given: Given, rest: Sequence[str]) -> int:
    _nothing_left(rest)
    from ganomaly_jax.scoring import recalibration

    return recalibration.main(given)


def check(given: Given, rest: Sequence[str]) -> int:
    settings = _settings(given, rest)
    if not settings.data.source:
        raise UserError("no data: wanted `ganomaly check DATA`, DATA as in train")
    from ganomaly_jax.training import data_check

    return 0 if data_check.main(given, settings) else _SOME_FAILED


def update(given: Given, rest: Sequence[str]) -> int:
    from ganomaly_jax.training import update as training_update

    if not training_update.main(given, lambda settings: _overrides(settings, rest)):
        return _SOME_FAILED
    show_evaluation(given.out)
    return 0


def show_evaluation(
    workdir: str,
    source: str = "",
    rate: float | None = None,
    own: Dataset | None = None,
    judged: Judgement | None = None,
    by: str | None = None,
    told: Sequence[str] = (),
    beside: tuple[str | None, str | None] = (None, None),
) -> Evaluation:
    from ganomaly_jax.evaluation import baselines, group_metrics
    from ganomaly_jax.evaluation import evaluate as evaluation_evaluate

    found = evaluation_evaluate.evaluate(workdir, source, None, rate, own, judged, by, *beside)
    values = found.metrics

    def shown(name: str) -> str:
        return "not defined" if values[name] is None else f"{values[name]:.4f}"

    of, protocol = f"anomalous {values['items']}", values["protocol"]
    print(f"test set: {values['n_normal']} normal, {values['n_anomalous']} {of} ({protocol})")
    print(f"AUROC {shown('auroc')}, average precision {shown('average_precision')}")
    if len(values["per_class"]) > 1:
        print("AUROC by class: " + ", ".join(f"{k} {v:.4f}" for k, v in values["per_class"].items() if v is not None))
    print(
        f"above the threshold {values['threshold']:.6g}: {shown('false_positive_rate')} of the normal and "
        f"{shown('true_positive_rate')} of the {of}"
    )
    if "n_masks" in values:
        where = f"pixel AUROC {shown('pixel_auroc')}, AUPRO up to 30 % {shown('aupro_30')}"
        print(f"maps against {values['n_masks']} masks: {where}")
    if rate is not None:
        print(f"threshold from {values['threshold_source']}")
    if by:
        print("\n".join(group_metrics.lines(values["groups"])))
    if "partners" in values:
        print("\n".join(baselines.lines(values["partners"] | values["combinations"]) + values["partners_notes"]))
    for note in (f"note: {warning}" for warning in values["warnings"]):
        if note not in told:
            print(note)
    if found.page is not None:
        print(f"pictures in {found.page.parent / 'pictures'}, report in {found.page}")
    return found


def predict(given: Given, rest: Sequence[str]) -> int:
    _nothing_left(rest)
    if given.engine == "ray":
        return _predict_on_ray(given)
    if given.workers is not None or given.address is not None:
        raise UserError("--workers and --address belong to --engine ray")
    from ganomaly_jax.cli import predict as cli_predict

    return cli_predict.predict(given)


def _predict_on_ray(given: Given) -> int:
    if given.groups or given.maps:
        raise UserError("--groups and --maps are not for --engine ray; wanted the local engine")
    if not given.out:
        raise UserError("--engine ray: wanted --out DIR, a folder for the rows")
    from ganomaly_jax.deploy import ray_engine

    found = ray_engine.predict(
        given.workdir,
        given.paths,
        given.out,
        given.workers or 0,
        given.address or "",
        log=lambda line: print(f"ganomaly: {line}", file=sys.stderr),
    )
    if found.kept:
        print(f"{found.kept} of {found.parts} parts were scored already")
    counts = ", ".join(f"{count} {verdict}" for verdict, count in found.counts.items())
    print(f"{counts}; rows in {found.parts} Parquet files in {given.out}")
    return _SOME_FAILED if found.counts["invalid"] else 0


def export(given: Given, rest: Sequence[str]) -> int:
    _nothing_left(rest)
    from ganomaly_jax.deploy import export as deploy_export

    manifest = deploy_export.export(given.workdir, given.out, given.weights, given.format, given.check)
    print(deploy_export.describe(manifest, given.out))
    return 0


def monitor(given: Given, rest: Sequence[str]) -> int:
    _nothing_left(rest)
    from ganomaly_jax.streaming import monitor as streaming_monitor

    return streaming_monitor.main(given)


def serve(given: Given, rest: Sequence[str]) -> int:
    _nothing_left(rest)
    from ganomaly_jax.deploy import http_process

    return http_process.main(given)


def bring(given: Given, rest: Sequence[str]) -> int:
    _nothing_left(rest)
    from ganomaly_jax.deploy import import_pytorch

    made = import_pytorch.import_pytorch(
        given.file, given.data, given.workdir, given.false_positive_rate, progress=True
    )
    height, width, channels = made.input_shape
    print(f"{given.file}: a detector of {height}x{width}x{channels} images, written into {given.workdir}")
    print(f"threshold {made.threshold:.6g}: {made.calibration.source}")
    return 0


def explain(given: Given, rest: Sequence[str]) -> int:
    _nothing_left(rest)
    from ganomaly_jax.report import explanation, sound_explanation
    from ganomaly_jax.scoring import scorer as scoring_scorer

    scorer = scoring_scorer.load(given.workdir)
    return sound_explanation.main(given, scorer) if scorer.sound else explanation.main(given, scorer)
