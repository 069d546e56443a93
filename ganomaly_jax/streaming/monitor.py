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
from ganomaly_jax.scoring import scorer as scoring_scorer
from ganomaly_jax.scoring.scorer import Scorer
from ganomaly_jax.streaming import (
    alarms,
    compiled_step,
    dashboard,
    drift,
    inputs,
    reference,
    row_parser,
    sensor_checks,
    summary,
)
from ganomaly_jax.streaming import sinks as streaming_sinks
from ganomaly_jax.streaming import watch as streaming_watch

FORMAT = 1
_SOME_FAILED = 3
# Seconds between drawings of the live view, and between pictures of the report.
_VIEW, _REPORT = 0.25, 60.0
# Seconds that are waited for receivers at the end.
_DRAIN = 3.0


def main(given: Any) -> int:
    """The verb: parsed arguments in, verdicts and events as lines of JSON out, the exit code back.

    0 once the source has ended or after SIGTERM or SIGINT, 3 where verdicts are invalid.
    """
    _check(given)
    scorer = scoring_scorer.load(given.workdir)
    if scorer.sound:
        raise UserError("monitor watches rows of sensors and folders of images: `ganomaly predict` judges recordings")
    with contextlib.ExitStack() as stack:
        saved = stack.enter_context(_locked(given.state)) if given.state else {}
        watch, known = _started(scorer, given, saved)
        source = inputs.opened(given.source, given.once, not scorer.columns)
        stream, seen, first, printed = _resumed(watch, source, saved, given.out)
        out = stack.enter_context(_output(given.out))
        view = dashboard.View(given.source, scorer.threshold, len(scorer.columns)) if given.live else None
        if view is not None:
            stack.callback(view.close)
        told = _told(given, scorer, stack)
        stopping = stack.enter_context(signals.noted())
        run = _Run(given, watch, known, source, stream, seen, out, told, view, printed)
        before = seen.invalid
        # What is there by now stays: looking through it again and again for garbage takes tens of milliseconds.
        gc.collect()
        gc.freeze()
        stack.callback(gc.unfreeze)
        _watched(run, first, stopping)
    return _SOME_FAILED if seen.invalid > before else 0


@dataclasses.dataclass(eq=False)
class _Run:
    """What the loop needs."""

    given: Any
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
    given, now = run.given, time.monotonic
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
            if given.state and now() - saved > given.save_every:
                _tried(_save, run, place)
                saved = now()
            if given.report and now() - drawn > _REPORT:
                _tried(_report, run)
                drawn = now()
            if stopping:
                run.source.stop()
            if run.source.ended:
                break
            lines = run.source.read(given.poll)
    finally:
        if given.state and whole:  # otherwise some rows are in the windows and not in the output
            _save(run, place)
        if run.view is not None:
            run.view.show(run.course)
    if given.report:
        _report(run)


def _tried(function: Callable[..., None], *arguments: Any) -> None:
    """What may fail for now, as on a full disk, without an end to the watch; at the end it counts."""
    try:
        function(*arguments)
    except UserError as error:
        _note(str(error))


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
                _note("the queue of a sink is full: events are left out of it until there is room")
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
    written = os.path.getsize(run.given.out) if run.given.out else 0
    values = {
        "format": FORMAT,
        "stream": run.stream,
        "source": place,
        "written": written,
        "known": run.known,
        "watch": streaming_watch.to_dict(run.watch),
        "course": summary.to_dict(run.course),
    }
    with atomic_files.replacing(run.given.state) as temporary:
        temporary.write_text(json.dumps(values, allow_nan=False) + "\n", encoding="utf-8")
        sealed_folder.sync_one(temporary)


def _report(run: _Run) -> None:
    from ganomaly_jax.streaming import plot

    scorer = run.watch.settings.scorer
    plot.watched(run.course, scorer.threshold, run.given.source, Path(run.given.report))


def _resumed(
    watch: streaming_watch.Watch, source: inputs.Source, saved: dict[str, Any], out: str | None
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


def _started(scorer: Scorer, given: Any, saved: dict[str, Any]) -> tuple[streaming_watch.Watch, dict[str, Any]]:
    """Everything that is made once: reference, compiled step, drift tests; and what of it the state keeps."""
    asked = drift.Settings(given.drift_window, *[given.drift_every] * 3)
    key = [given.normals, given.drift_every, given.drift_window, scorer.threshold, list(scorer.columns)]
    known = saved.get("known") or {}
    try:
        if known.get("key") == key:
            normal = sensor_checks.Normal(*(sensor_checks.array(known[name]) for name in ("low", "high", "runs")))
            drifting = None if known["drift"] is None else drift.from_dict(known["drift"])
        else:
            normal, drifting = _learned(scorer, given, asked)
            known = {"key": key, "drift": None if drifting is None else drift.to_dict(drifting)}
            known |= {name: sensor_checks.plain(getattr(normal, name)) for name in ("low", "high", "runs")}
        if normal.low.shape != (len(scorer.columns),):
            raise ValueError("another number of sensors")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"the --state cannot be used ({error}); remove it to begin anew") from None
    checks = sensor_checks.Settings(given.silent, given.stuck)
    step = compiled_step.step(scorer, given.steps if given.top else 0)
    settings = streaming_watch.Settings(scorer, step, normal, checks, given.top, given.drift_step)
    alarm = alarms.start(given.alarm, given.cool_down)
    return streaming_watch.start(settings, alarm, drifting, given.format, given.time), known


def _learned(scorer: Scorer, given: Any, asked: drift.Settings) -> tuple[sensor_checks.Normal, drift.State | None]:
    known = reference.learn(scorer, Path(given.workdir), given.normals)
    for note in known.notes:
        _note(note)
    scores = np.asarray(scorer.variables["calibration"]) if known.scores is None else known.scores
    if not given.drift_every:
        return known.normal, None
    if len(scores) < drift.LEAST:
        _note(f"{len(scores)} calibration scores: drift is not tested, that needs {drift.LEAST}; see --normals")
        return known.normal, None
    return known.normal, drift.start(asked, scores, known.latents)


def _told(given: Any, scorer: Scorer, stack: contextlib.ExitStack) -> list[streaming_sinks.Sink]:
    if not given.sink:
        return []
    if given.spool:
        spool = Path(given.spool)
    elif given.state:
        spool = Path(f"{given.state}.spool")
    elif (Path(given.workdir) / sealed_folder.MANIFEST).exists():
        raise UserError(f"{given.workdir} is a detector folder, which nothing may be written into: wanted --spool DIR")
    else:
        spool = Path(given.workdir) / "spool"
    made = []
    for target in dict.fromkeys(given.sink):
        sink = streaming_sinks.Sink(target, spool, _note)
        stack.callback(_closed, sink)
        made.append(sink)
    return made


def _closed(sink: streaming_sinks.Sink) -> None:
    left = sink.close(_DRAIN)
    if left:
        _note(f"{left} events for {sink.name} wait in {sink.folder}; the next start delivers them")
    if sink.dropped:
        _note(f"{sink.dropped} events for {sink.name} were left out, the queue was full")


@contextlib.contextmanager
def _output(path: str | None) -> Iterator[Any]:
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


def _note(line: str) -> None:
    print(f"ganomaly: {line}", file=sys.stderr, flush=True)


def _check(given: Any) -> None:
    """
    Raises:
      UserError: flags that cannot be.
    """
    for name in ("top", "steps", "silent", "stuck", "drift_step"):
        value = getattr(given, name)
        if value < 0:
            raise UserError(f"--{name.replace('_', '-')} {value}: wanted a number from 0")
    if given.format not in ("", *row_parser.FORMATS):
        raise UserError(f"--format {given.format}: wanted {' or '.join(row_parser.FORMATS)}")
    for name in ("poll", "save_every"):
        if not 0 < getattr(given, name) <= 3600:
            raise UserError(f"--{name.replace('_', '-')} {getattr(given, name)}: wanted seconds above 0, 3600 at most")
    if given.live and not given.out and sys.stdout.isatty():
        raise UserError("--live: verdicts would be printed across the view; wanted --out FILE, or a pipe")
