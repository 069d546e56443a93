"""Monitors a stream until it ends or a signal arrives; docs/watch.md describes the output.

One loop (`_run_loop`): lines arrive, are scored and written; in between, the state is saved.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
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

from ganomaly_jax.core import atomic_files, atomic_folders, sealed_folder, signals
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
    inputs,
    modalities,
    reference,
    row_parser,
    sensor_checks,
    summary,
    watch_state,
)
from ganomaly_jax.streaming import sinks as streaming_sinks
from ganomaly_jax.streaming import watch as streaming_watch
from ganomaly_jax.streaming.options import Options

FORMAT = 1
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
    scorer = scoring_scorer.load(workdir)
    modalities.check(scorer)
    with contextlib.ExitStack() as stack:
        saved = stack.enter_context(_locked_state(options.state)) if options.state else {}
        watch, known = _prepare(scorer, workdir, options, saved, log)
        source = modalities.open_source(scorer, options.source, options.once)
        stream, so_far, first, printed = _resume(watch, source, saved, options.out)
        out = stack.enter_context(_output(options.out))
        view = dashboard.View(options.source, scorer.threshold) if options.live else None
        if view is not None:
            stack.callback(view.close)
        sinks = _sinks(workdir, options, stack, log)
        stopping = stack.enter_context(signals.noted())
        run = _Run(options, log, watch, known, source, stream, so_far, out, sinks, view, printed)
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
      known: what the stream is compared with, as stored in the state: a restart needs no training data.
      printed: row up to which the output is already written, by a run that was killed after its last save.
      full: whether a full queue was reported.
    """

    options: Options
    log: Log
    watch: streaming_watch.Watch
    known: dict[str, Any]
    source: inputs.Source
    stream: str
    summary: summary.Summary
    out: Any
    sinks: list[streaming_sinks.Sink]
    view: dashboard.View | None
    printed: int
    full: bool = False


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
    """Returns the outputs of lines, and says once how the rows are written, if that is unusual."""
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
        if one.row <= run.printed:
            continue
        for k, event in enumerate(one.events):
            name = f"{run.stream}-{one.row}-{k}"
            if not all([sink.put(name, event) for sink in run.sinks]) and not run.full:
                run.full = True
                run.log("the queue of a sink is full: events are dropped until there is room")
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
        "format": FORMAT,
        "stream": run.stream,
        "source": position,
        "written": written,
        "known": run.known,
        "watch": watch_state.to_dict(run.watch),
        "course": summary.to_dict(run.summary),
    }
    with atomic_files.replacing(run.options.state) as temporary:
        temporary.write_text(json.dumps(values, allow_nan=False) + "\n", encoding="utf-8")
        atomic_folders.fsync(temporary)


def _save_report(run: _Run) -> None:
    """Saves the plot."""
    from ganomaly_jax.streaming import plot

    scorer = run.watch.settings.scorer
    plot.save_plot(run.summary, scorer.threshold, run.options.source, Path(run.options.report))


def _resume(
    watch: streaming_watch.Watch, source: inputs.Source, saved: dict[str, Any], out: str
) -> tuple[str, summary.Summary, list[streaming_watch.Line], int]:
    """Returns (id of the stream, its summary, lines to process first, last row in the output)."""
    if not saved:
        return secrets.token_hex(4), summary.Summary(), [], 0
    try:
        watch_state.resume(watch, saved["watch"])
        first = source.seek(saved["source"]) if saved["source"]["kind"] == source.position()["kind"] else []
        stream, so_far = str(saved["stream"]), summary.from_dict(saved["course"])
        printed = _last_row(Path(out), int(saved["written"])) if out else 0
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"the state cannot be used ({type(error).__name__}: {error}); choose another --state") from None
    if printed and not source.is_replayable:
        # Rows from a pipe cannot be read again: they are missing in the windows, but counted.
        watch.row, printed = max(watch.row, printed), 0
    return stream, so_far, first, printed


def _last_row(path: Path, written: int) -> int:
    """Returns the row of the last verdict in the output beyond `written` bytes, 0 for none, and truncates what follows.

    A kill may have left an incomplete line, or events of a row without its verdict: those rows are processed again.
    """
    if not path.exists() or path.stat().st_size <= written:
        return 0
    row = 0
    with path.open("r+b") as file:
        file.seek(written)
        keep = written
        for line in file:
            try:
                held = json.loads(line) if line.endswith(b"\n") else {}
            except ValueError:
                held = {}
            if isinstance(held, dict) and "verdict" in held:
                row, keep = int(held["row"]), keep + _line_length(file, keep)
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
    try:
        if known.get("key") == key:
            normal = sensor_checks.NormalRanges(
                *(sensor_checks.from_json(known[name]) for name in ("low", "high", "runs"))
            )
            drift_state = None if known["drift"] is None else drift.from_dict(known["drift"])
        else:
            normal, drift_state = _fit_reference(scorer, workdir, options, drift_settings, log)
            known = {"key": key, "drift": None if drift_state is None else drift.to_dict(drift_state)}
            known |= {name: sensor_checks.to_json(getattr(normal, name)) for name in ("low", "high", "runs")}
        if normal.low.shape != (len(scorer.feature_names),):
            raise ValueError("another number of sensors")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"the --state cannot be used ({error}); remove it to start afresh") from None
    checks = sensor_checks.Settings(options.silent, options.stuck)
    step = compiled_step.compile_step(scorer, options.steps if options.top else 0)
    settings = streaming_watch.Settings(scorer, step, normal, checks, options.top, options.drift_step)
    alarm = alarms.start(options.alarm, options.cool_down)
    return streaming_watch.start(settings, alarm, drift_state, options.format, options.time, options.csv), known


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


def _sinks(workdir: str, options: Options, stack: contextlib.ExitStack, log: Log) -> list[streaming_sinks.Sink]:
    """Opens the sinks."""
    if not options.sinks:
        return []
    if options.spool:
        spool = Path(options.spool)
    elif options.state:
        spool = Path(f"{options.state}.spool")
    elif (Path(workdir) / sealed_folder.MANIFEST).exists():
        raise UserError(f"{workdir} is a detector folder, which is read-only; pass --spool DIR")
    else:
        spool = Path(workdir) / layout.SPOOL
    made = []
    for target in dict.fromkeys(options.sinks):
        sink = streaming_sinks.Sink(target, spool, log)
        stack.callback(_close_sink, sink, log)
        made.append(sink)
    return made


def _close_sink(sink: streaming_sinks.Sink, log: Log) -> None:
    """Closes a sink and logs what is left."""
    left = sink.close(_DRAIN)
    if left:
        log(f"{left} events for {sink.name} are waiting in {sink.folder}; the next start delivers them")
    if sink.dropped:
        log(f"{sink.dropped} events for {sink.name} were dropped, since the queue was full")


@contextlib.contextmanager
def _output(path: str) -> Iterator[Any]:
    """Opens the output for appending; standard output without a path."""
    if not path:
        yield sys.stdout
        return
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(open(path, "a", encoding="utf-8", newline="\n"))
        except OSError as error:
            raise UserError(f"--out {path} cannot be written: {error.strerror}") from None
        yield file


@contextlib.contextmanager
def _locked_state(path: str) -> Iterator[dict[str, Any]]:
    """Locks the state file and yields what it holds, empty if it does not exist."""
    state = Path(path)
    try:
        state.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(f"--state {path} cannot be written: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise UserError(f"another monitor uses --state {path}: choose another file, or stop that monitor") from None
    try:
        yield _read(state)
    finally:
        os.close(lock)


def _read(path: Path) -> dict[str, Any]:
    """Returns what the state file holds, empty if it does not exist."""
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(held, dict) or held.get("format") != FORMAT:
            raise ValueError("another format")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"--state {path} is not the state of a monitor ({error}); remove it to start afresh") from None
    return held
