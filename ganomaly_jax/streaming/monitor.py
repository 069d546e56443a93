"""Monitors a stream until it ends or a signal arrives; docs/watch.md describes the output.

One loop (`_run_loop`): lines arrive, are scored and written; in between, the state is saved.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import math
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ganomaly_jax.core import sealed_folder, signals
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data.rows import dialects
from ganomaly_jax.runs import layout
from ganomaly_jax.scoring import scorer as scoring_scorer
from ganomaly_jax.scoring.scorer import Scorer
from ganomaly_jax.streaming import (
    alarms,
    compiled_step,
    dashboard,
    drift,
    event_queue,
    inputs,
    modalities,
    reference,
    row_parser,
    saved_state,
    sensor_checks,
    stored,
    summary,
    watch_state,
)
from ganomaly_jax.streaming import sinks as streaming_sinks
from ganomaly_jax.streaming import watch as streaming_watch
from ganomaly_jax.streaming.options import Options

# Seconds between updates of the live view, and of the plot.
_VIEW, _REPORT = 0.25, 60.0
# Seconds to wait for receivers at the end.
_DRAIN = 3.0


Log = Callable[[str], None]
"""Takes a line for the user."""


def monitor(workdir: str, options: Options, log: Log) -> int:
    """Monitors a stream until its source ends or SIGTERM or SIGINT arrives.

    Verdicts and events are written as lines of JSON to `options.out` or standard output.

    Args:
      workdir: folder of a finished run, or a detector folder.
      options: what is monitored, and how.
      log: called with messages for the user.

    Returns:
      The number of `invalid` verdicts of this call.

    Raises:
      UserError: options are invalid, a source or state cannot be read, or an output cannot be written.
    """
    if options.format not in ("", *row_parser.FORMATS):
        raise UserError(f"--format {options.format}: expected {' or '.join(row_parser.FORMATS)}")
    receivers = [streaming_sinks.receiver(target) for target in dict.fromkeys(options.sinks)]
    scorer = scoring_scorer.load(workdir)
    modalities.check(scorer)
    with contextlib.ExitStack() as stack:
        saved = stack.enter_context(saved_state.locked(options.state)) if options.state else {}
        watch, known = _prepare(scorer, workdir, options, saved, log)
        source = modalities.open_source(scorer, options.source, options.once)
        stream, events, so_far, first, printed = _resume(watch, source, saved, options)
        out = stack.enter_context(_output(options.out))
        view = dashboard.View(options.source, scorer.threshold) if options.live else None
        if view is not None:
            stack.callback(view.close)
        sinks = _open_sinks(workdir, receivers, options, stack, log)
        stopping = stack.enter_context(signals.noted())
        run = _Run(options, log, watch, known, source, stream, events, so_far, out, sinks, view, printed)
        before = so_far.invalid
        # All objects so far stay alive; collecting them again and again would take tens of milliseconds.
        gc.collect()
        gc.freeze()
        stack.callback(gc.unfreeze)
        _run_loop(run, first, stopping)
    return so_far.invalid - before


@dataclasses.dataclass(eq=False)
class _Run:
    """Everything that the loop uses.

    Attributes:
      known: reference values of the stream as stored in the state, so a restart needs no training data.
      events: number of events so far, which makes their ids unique.
      printed: row up to which the output is already written, by a run that was killed after its last save.
    """

    options: Options
    log: Log
    watch: streaming_watch.Watch
    known: dict[str, Any]
    source: inputs.Source
    stream: str
    events: int
    summary: summary.Summary
    out: Any
    sinks: list[streaming_sinks.Sink]
    view: dashboard.View | None
    printed: int


def _run_loop(run: _Run, first: list[streaming_watch.Line], stopping: list[int]) -> None:
    """Processes input until there is no more; whatever happens, the state after the last output is saved."""
    options, now = run.options, time.monotonic
    shown = drawn = now()
    saved = -math.inf  # save at once: after a kill in the first seconds there is output, with this stream's id
    lines, consistent = first, True
    position = run.source.position()
    try:
        while True:
            if lines:
                consistent = False
                _write(run, _process(run, lines))
                position, consistent = run.source.position(), True
            if run.view is not None and now() - shown > _VIEW:
                run.view.show(run.summary)
                shown = now()
            if options.state and now() - saved > options.save_every:
                _log_errors(run.log, _save, run, position)
                saved = now()
            if options.report and now() - drawn > _REPORT:
                _log_errors(run.log, _save_report, run)
                drawn = now()
            if stopping:
                run.source.stop()
            if run.source.ended:
                break
            lines = run.source.read(options.poll)
    finally:
        if options.state and consistent:  # otherwise some rows are in the windows but not in the output
            _save(run, position)
        if run.view is not None:
            run.view.show(run.summary)
    if options.report:
        _save_report(run)


def _process(run: _Run, lines: list[streaming_watch.Line]) -> list[streaming_watch.RowOutput]:
    """Returns the outputs of lines, and logs the format of the rows once if it is unusual."""
    before = run.watch.format.dialect
    outputs = streaming_watch.process(run.watch, lines)
    words = dialects.describe(run.watch.format.dialect)
    if words and run.watch.format.dialect != before:
        run.log(f"the rows are read as {words}")
    return outputs


def _log_errors(log: Log, function: Callable[..., None], *arguments: Any) -> None:
    """Calls a function that may fail temporarily, as on a full disk, and logs its UserError."""
    try:
        function(*arguments)
    except UserError as error:
        log(str(error))


def _write(run: _Run, outputs: list[streaming_watch.RowOutput]) -> None:
    """Writes outputs, queues their events for the sinks and adds them to the summary."""
    lines = []
    for one in outputs:
        summary.add(run.summary, one)
        first, run.events = run.events, run.events + len(one.events)
        if one.row <= run.printed:
            continue
        for number, event in enumerate(one.events, first):
            for sink in run.sinks:
                sink.put(f"{run.stream}-{one.row}-{number}", event)
        lines.append(streaming_watch.to_lines(one))
    try:
        run.out.write("".join(lines))
        run.out.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(f"the verdicts cannot be written: {error.strerror}; free some space and restart") from None


def _save(run: _Run, position: dict[str, Any]) -> None:
    """Saves the state atomically."""
    written = os.path.getsize(run.options.out) if run.options.out else 0
    values = {
        "stream": run.stream,
        "events": run.events,
        "source": position,
        "written": written,
        "known": run.known,
        "watch": watch_state.to_dict(run.watch),
        "course": summary.to_dict(run.summary),
    }
    saved_state.write(run.options.state, values)


def _save_report(run: _Run) -> None:
    """Saves the plot."""
    from ganomaly_jax.streaming import plot

    scorer = run.watch.settings.scorer
    plot.save_plot(run.summary, scorer.threshold, run.options.source, Path(run.options.report))


def _resume(
    watch: streaming_watch.Watch, source: inputs.Source, saved: dict[str, Any], options: Options
) -> tuple[str, int, summary.Summary, list[streaming_watch.Line], int]:
    """Returns (id of the stream, its events, its summary, lines to process first, last row in the output)."""
    if not saved:
        return secrets.token_hex(4), 0, summary.Summary(), [], -1
    with saved_state.usable(options.state):
        stream, events, written, so_far, first = saved_state.restore(watch, source, saved)
    printed = _last_row(Path(options.out), written) if options.out else -1
    if printed > 0 and not source.is_replayable:
        # Rows from a pipe cannot be read again: they are missing in the windows, but counted.
        watch.row, printed = max(watch.row, printed), -1
    return stream, events, so_far, first, printed


def _last_row(path: Path, written: int) -> int:
    """Returns the row of the last verdict in the output beyond `written` bytes, and truncates what follows.

    Without a verdict it is -1, since events of the header have the row 0.

    A kill may have left an incomplete line, or events of a row without its verdict: those rows are processed again.
    """
    if not path.exists() or path.stat().st_size <= written:
        return -1
    row = -1
    with path.open("r+b") as file:
        file.seek(written)
        keep = written
        for line in file:
            try:
                held = json.loads(line) if line.endswith(b"\n") else {}
            except (ValueError, RecursionError):
                held = {}
            if isinstance(held, dict) and "verdict" in held and type(held.get("row")) is int:
                row, keep = held["row"], keep + _line_length(file, keep)
        file.truncate(keep)
    return row


def _line_length(file: Any, keep: int) -> int:
    """Returns the bytes from `keep` to the current position."""
    return file.tell() - keep


def _prepare(
    scorer: Scorer, workdir: str, options: Options, saved: dict[str, Any], log: Log
) -> tuple[streaming_watch.Watch, dict[str, Any]]:
    """Returns the watch (reference, compiled step, drift tests), and what of it is stored in the state."""
    drift_settings = drift.Settings(options.drift_window, options.drift_every, options.drift_every, options.drift_every)
    key = [options.normals, options.drift_every, options.drift_window, scorer.threshold, list(scorer.feature_names)]
    known = saved.get("known") or {}
    with saved_state.usable(options.state):
        resumed = stored.fields(known).get("key") == key
        if resumed:
            normal, drift_state = _stored_reference(known, len(scorer.feature_names), drift_settings)
    if not resumed:
        normal, drift_state = _fit_reference(scorer, workdir, options, drift_settings, log)
        known = {"key": key, "drift": None if drift_state is None else drift.to_dict(drift_state)}
        known |= {name: stored.to_json(getattr(normal, name)) for name in ("low", "high", "runs")}
    checks = sensor_checks.Settings(options.silent, options.stuck)
    step = compiled_step.compile_step(scorer, options.steps if options.top else 0)
    settings = streaming_watch.Settings(scorer, step, normal, checks, options.top, options.drift_step)
    alarm = alarms.start(options.alarm, options.cool_down)
    return streaming_watch.start(settings, alarm, drift_state, options.format, options.time, options.csv), known


def _stored_reference(
    known: dict[str, Any], size: int, drift_settings: drift.Settings
) -> tuple[sensor_checks.NormalRanges, drift.State | None]:
    """Returns what `_fit_reference` returned when the stream began."""
    low, high = (stored.numbers(known[name], size) for name in ("low", "high"))
    if not (low < high).all():
        raise ValueError("a sensor's range that is empty")
    normal = sensor_checks.NormalRanges(low, high, stored.counts(known["runs"], size, least=-1))
    drift_state = None if known["drift"] is None else drift.from_dict(known["drift"])
    if drift_state is not None and drift_state.settings != drift_settings:
        raise ValueError("drift tests of other settings")
    return normal, drift_state


def _fit_reference(
    scorer: Scorer, workdir: str, options: Options, drift_settings: drift.Settings, log: Log
) -> tuple[sensor_checks.NormalRanges, drift.State | None]:
    """Returns the normal ranges of the sensors and the initial drift state."""
    known = reference.learn(scorer, Path(workdir), options.normals)
    for note in known.notes:
        log(note)
    scores = np.asarray(scorer.variables["calibration"]) if known.scores is None else known.scores
    if not options.drift_every:
        return known.normal, None
    if len(scores) < drift.MIN_SCORES:
        log(f"{len(scores)} calibration scores: drift is not tested, which needs {drift.MIN_SCORES}; see --normals")
        return known.normal, None
    return known.normal, drift.start(drift_settings, scores, known.latents)


def _open_sinks(
    workdir: str,
    receivers: list[streaming_sinks.Receiver],
    options: Options,
    stack: contextlib.ExitStack,
    log: Log,
) -> list[streaming_sinks.Sink]:
    """Opens the sinks, and logs where events wait for receivers that are not among them."""
    is_detector = (Path(workdir) / sealed_folder.MANIFEST).exists()
    if options.spool:
        spool = Path(options.spool)
    elif options.state:
        spool = Path(f"{options.state}.spool")
    elif is_detector and receivers:
        raise UserError(f"{workdir} is a detector folder, which is read-only; pass --spool DIR")
    else:
        spool = Path(workdir) / layout.SPOOL
    sinks: list[streaming_sinks.Sink] = []
    stack.callback(streaming_sinks.close_all, sinks, _DRAIN)
    for receiver in receivers:
        sinks.append(streaming_sinks.Sink(receiver, spool, log, options.sink_timeout))
    for folder, events, name in event_queue.waiting_elsewhere(spool, {sink.queue.folder for sink in sinks}):
        log(
            f"{events:,} events in {folder} wait for {name}, which is not a --sink of this run: add it again, or "
            "move the files into the queue of another sink before its monitor starts"
        )
    return sinks


@contextlib.contextmanager
def _output(path: str) -> Iterator[Any]:
    """Opens the output for appending; standard output without a path."""
    if not path:
        yield sys.stdout
        return
    try:
        file = open(path, "a", encoding="utf-8", newline="\n")  # noqa: SIM115
    except OSError as error:
        raise UserError(f"--out {path} cannot be written: {error.strerror}") from None
    try:
        yield file
    finally:
        with contextlib.suppress(OSError):  # lines are flushed one by one; what could not be written was reported then
            file.close()
