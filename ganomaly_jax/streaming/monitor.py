"""The verb `monitor`: a stream is watched until it ends or a signal comes. docs/watch.md says what it puts out.

One loop: lines arrive, are judged, are said; in between the state is saved. What happens when is read in `_watched`.
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

from ganomaly_jax.core import atomic_files, sealed_folder, signals
from ganomaly_jax.core.errors import UserError
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
)
from ganomaly_jax.streaming import sinks as streaming_sinks
from ganomaly_jax.streaming import watch as streaming_watch
from ganomaly_jax.streaming.options import Options

FORMAT = 1
# Seconds between drawings of the live view, and between pictures of the report.
_VIEW, _REPORT = 0.25, 60.0
# Seconds that are waited for receivers at the end.
_DRAIN = 3.0


Log = Callable[[str], None]
"""Takes a line for the user."""


def monitor(workdir: str, options: Options, log: Log) -> int:
    """Watches a stream until its source ends or SIGTERM or SIGINT arrives.

    Verdicts and events are written as lines of JSON to `options.out` or standard output.

    Args:
      workdir: folder of a finished run, or a detector folder.
      options: what is watched, and how.
      log: called with a line about what the user should know.

    Returns:
      How many verdicts of this call are `invalid`.

    Raises:
      UserError: options that cannot be used, a source or a state that cannot be read, an output that cannot be written.
    """
    if options.format not in ("", *row_parser.FORMATS):
        raise UserError(f"--format {options.format}: wanted {' or '.join(row_parser.FORMATS)}")
    scorer = scoring_scorer.load(workdir)
    modalities.check(scorer)
    with contextlib.ExitStack() as stack:
        saved = stack.enter_context(_locked(options.state)) if options.state else {}
        watch, known = _started(scorer, workdir, options, saved, log)
        source = modalities.opened(scorer, options.source, options.once)
        stream, seen, first, printed = _resumed(watch, source, saved, options.out)
        out = stack.enter_context(_output(options.out))
        view = dashboard.View(options.source, scorer.threshold, len(scorer.feature_names)) if options.live else None
        if view is not None:
            stack.callback(view.close)
        sinks = _sinks(workdir, options, stack, log)
        stopping = stack.enter_context(signals.noted())
        run = _Run(options, log, watch, known, source, stream, seen, out, sinks, view, printed)
        before = seen.invalid
        # What is there by now stays: looking through it again and again for garbage takes tens of milliseconds.
        gc.collect()
        gc.freeze()
        stack.callback(gc.unfreeze)
        _watched(run, first, stopping)
    return seen.invalid - before


@dataclasses.dataclass(eq=False)
class _Run:
    """What the loop needs."""

    options: Options
    log: Log
    watch: streaming_watch.Watch
    known: dict[str, Any]
    """What the stream is compared with, as the state keeps it: a restart needs no training data."""
    source: inputs.Source
    stream: str
    course: summary.Course
    out: Any
    sinks: list[streaming_sinks.Sink]
    view: dashboard.View | None
    printed: int
    """Rows up to this are in the output already, from a run that was killed after it had last saved its state."""
    full: bool = False


def _watched(run: _Run, first: list[streaming_watch.Line], stopping: list[int]) -> None:
    """Judge what comes until nothing more does; whatever happens, the state of what was said is saved."""
    options, now = run.options, time.monotonic
    shown = drawn = now()
    saved = -math.inf  # at once: a kill within the first seconds leaves output too, and events under this stream's id
    lines, whole = first, True
    place = run.source.place()
    try:
        while True:
            if lines:
                whole = False
                _say(run, streaming_watch.take(run.watch, lines))
                place, whole = run.source.place(), True
            if run.view is not None and now() - shown > _VIEW:
                run.view.show(run.course)
                shown = now()
            if options.state and now() - saved > options.save_every:
                _tried(run.log, _save, run, place)
                saved = now()
            if options.report and now() - drawn > _REPORT:
                _tried(run.log, _report, run)
                drawn = now()
            if stopping:
                run.source.stop()
            if run.source.ended:
                break
            lines = run.source.read(options.poll)
    finally:
        if options.state and whole:  # otherwise some rows are in the windows and not in the output
            _save(run, place)
        if run.view is not None:
            run.view.show(run.course)
    if options.report:
        _report(run)


def _tried(log: Log, function: Callable[..., None], *arguments: Any) -> None:
    """What may fail for now, as on a full disk, without an end to the watch; at the end it counts."""
    try:
        function(*arguments)
    except UserError as error:
        log(str(error))


def _say(run: _Run, said: list[streaming_watch.Said]) -> None:
    spoken = []
    for one in said:
        summary.add(run.course, one)
        if one.row <= run.printed:
            continue
        for k, event in enumerate(one.events):
            name = f"{run.stream}-{one.row}-{k}"
            if not all([sink.put(name, event) for sink in run.sinks]) and not run.full:
                run.full = True
                run.log("the queue of a sink is full: events are left out of it until there is room")
        spoken.append(streaming_watch.text(one))
    try:
        run.out.write("".join(spoken))
        run.out.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(f"the verdicts cannot be written: {error.strerror}; make room, then start again") from None


def _save(run: _Run, place: dict[str, Any]) -> None:
    """The state, whole or not at all."""
    written = os.path.getsize(run.options.out) if run.options.out else 0
    values = {
        "format": FORMAT,
        "stream": run.stream,
        "source": place,
        "written": written,
        "known": run.known,
        "watch": streaming_watch.to_dict(run.watch),
        "course": summary.to_dict(run.course),
    }
    with atomic_files.replacing(run.options.state) as temporary:
        temporary.write_text(json.dumps(values, allow_nan=False) + "\n", encoding="utf-8")
        sealed_folder.fsync(temporary)


def _report(run: _Run) -> None:
    from ganomaly_jax.streaming import plot

    scorer = run.watch.settings.scorer
    plot.watched(run.course, scorer.threshold, run.options.source, Path(run.options.report))


def _resumed(
    watch: streaming_watch.Watch, source: inputs.Source, saved: dict[str, Any], out: str
) -> tuple[str, summary.Course, list[streaming_watch.Line], int]:
    """(id of the stream, its course, what is to be told at once, the last row that the output has)."""
    if not saved:
        return secrets.token_hex(4), summary.Course(), [], 0
    try:
        streaming_watch.resume(watch, saved["watch"])
        first = source.go_to(saved["source"]) if saved["source"]["kind"] == source.place()["kind"] else []
        stream, seen = str(saved["stream"]), summary.from_dict(saved["course"])
        printed = _last_row(Path(out), int(saved["written"])) if out else 0
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"the state cannot be used ({type(error).__name__}: {error}); wanted another --state") from None
    if printed and not source.replays:
        # What came through a pipe does not come again: those rows are gone from the windows, not from the count.
        watch.row, printed = max(watch.row, printed), 0
    return stream, seen, first, printed


def _last_row(path: Path, written: int) -> int:
    """The row of the last verdict that the output has beyond `written` bytes, 0 for none; what follows it is cut off.

    A kill may have left half a line, or the events of a row without its verdict: those rows are judged again.
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
                row, keep = int(held["row"]), keep + _since(file, keep)
        file.truncate(keep)
    return row


def _since(file: Any, keep: int) -> int:
    return file.tell() - keep


def _started(
    scorer: Scorer, workdir: str, options: Options, saved: dict[str, Any], log: Log
) -> tuple[streaming_watch.Watch, dict[str, Any]]:
    """Everything that is made once: reference, compiled step, drift tests; and what of it the state keeps."""
    asked = drift.Settings(options.drift_window, options.drift_every, options.drift_every, options.drift_every)
    key = [options.normals, options.drift_every, options.drift_window, scorer.threshold, list(scorer.feature_names)]
    known = saved.get("known") or {}
    try:
        if known.get("key") == key:
            normal = sensor_checks.Normal(*(sensor_checks.array(known[name]) for name in ("low", "high", "runs")))
            drifting = None if known["drift"] is None else drift.from_dict(known["drift"])
        else:
            normal, drifting = _learned(scorer, workdir, options, asked, log)
            known = {"key": key, "drift": None if drifting is None else drift.to_dict(drifting)}
            known |= {name: sensor_checks.plain(getattr(normal, name)) for name in ("low", "high", "runs")}
        if normal.low.shape != (len(scorer.feature_names),):
            raise ValueError("another number of sensors")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"the --state cannot be used ({error}); remove it to begin anew") from None
    checks = sensor_checks.Settings(options.silent, options.stuck)
    step = compiled_step.step(scorer, options.steps if options.top else 0)
    settings = streaming_watch.Settings(scorer, step, normal, checks, options.top, options.drift_step)
    alarm = alarms.start(options.alarm, options.cool_down)
    return streaming_watch.start(settings, alarm, drifting, options.format, options.time), known


def _learned(
    scorer: Scorer, workdir: str, options: Options, asked: drift.Settings, log: Log
) -> tuple[sensor_checks.Normal, drift.State | None]:
    known = reference.learn(scorer, Path(workdir), options.normals)
    for note in known.notes:
        log(note)
    scores = np.asarray(scorer.variables["calibration"]) if known.scores is None else known.scores
    if not options.drift_every:
        return known.normal, None
    if len(scores) < drift.LEAST:
        log(f"{len(scores)} calibration scores: drift is not tested, that needs {drift.LEAST}; see --normals")
        return known.normal, None
    return known.normal, drift.start(asked, scores, known.latents)


def _sinks(workdir: str, options: Options, stack: contextlib.ExitStack, log: Log) -> list[streaming_sinks.Sink]:
    if not options.sinks:
        return []
    if options.spool:
        spool = Path(options.spool)
    elif options.state:
        spool = Path(f"{options.state}.spool")
    elif (Path(workdir) / sealed_folder.MANIFEST).exists():
        raise UserError(f"{workdir} is a detector folder, which nothing may be written into: wanted --spool DIR")
    else:
        spool = Path(workdir) / layout.SPOOL
    made = []
    for target in dict.fromkeys(options.sinks):
        sink = streaming_sinks.Sink(target, spool, log)
        stack.callback(_closed, sink, log)
        made.append(sink)
    return made


def _closed(sink: streaming_sinks.Sink, log: Log) -> None:
    left = sink.close(_DRAIN)
    if left:
        log(f"{left} events for {sink.name} wait in {sink.folder}; the next start delivers them")
    if sink.dropped:
        log(f"{sink.dropped} events for {sink.name} were left out, the queue was full")


@contextlib.contextmanager
def _output(path: str) -> Iterator[Any]:
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
def _locked(path: str) -> Iterator[dict[str, Any]]:
    """What the state file holds, empty where there is none; no other monitor may use it at the same time."""
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
        raise UserError(f"another monitor uses --state {path}: wanted another file, or to end that one") from None
    try:
        yield _read(state)
    finally:
        os.close(lock)


def _read(path: Path) -> dict[str, Any]:
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(held, dict) or held.get("format") != FORMAT:
            raise ValueError("another format")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"--state {path} is no state of a monitor ({error}); remove it to begin anew") from None
    return held
