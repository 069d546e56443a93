"""The state of a monitor as a file that may hold anything, and rows that must not end the monitor."""

import collections
import copy
import io
import json
import math
import os
import types

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ganomaly_jax.core.errors import UserError
from ganomaly_jax.streaming import (
    alarms,
    compiled_step,
    drift,
    inputs,
    monitor,
    saved_state,
    sensor_checks,
    stored,
    summary,
    watch_state,
)
from ganomaly_jax.streaming import watch as streaming_watch
from ganomaly_jax.streaming.options import Options
from ganomaly_jax.streaming.watch import Line, RowOutput

WINDOW = 3
QUICK = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))


def step(x):
    """Scores windows by their mean; no detector is needed for what is tested here."""
    means = np.where(np.isfinite(x), x, np.nan).reshape(len(x), -1).mean(1).astype(np.float32)
    return compiled_step.StepOutput(means, np.full(len(x), 0.5, np.float32), None, None)


@pytest.fixture(scope="module")
def tests_of_drift():
    return drift.start(drift.Settings(20, 0, 0, 1000), np.linspace(0, 1, 60))


def new_watch(drifting=None, sensors=("a", "b"), window=WINDOW):
    scorer = types.SimpleNamespace(
        feature_names=sensors,
        input_shape=(window, len(sensors)),
        config=types.SimpleNamespace(data=types.SimpleNamespace(missing="", stride=1, csv="auto")),
        threshold=0.5,
        calibration=types.SimpleNamespace(review=None),
        low=0.0,
        high=1.0,
    )
    d = len(sensors)
    normal = sensor_checks.NormalRanges(np.zeros(d), np.ones(d), np.zeros(d, np.int64))
    return streaming_watch.start(
        streaming_watch.Settings(scorer, step, normal, sensor_checks.Settings()), alarms.start("3/5", 10), drifting
    )


def process(watch, *lines):
    return streaming_watch.process(watch, [Line(line if isinstance(line, bytes) else line.encode()) for line in lines])


@pytest.fixture(scope="module")
def rows_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows.csv"
    rows = [f"{i},{0.9 if i % 7 else 0.1},{i % 3}" for i in range(60)]
    path.write_text("\n".join(["time,a,b", *rows, "5,,x", "inf,inf,1e39", ""]))
    return path


@pytest.fixture(scope="module")
def saved(tests_of_drift, rows_file):
    """A state as `monitor` writes it, after JSON."""
    watch, so_far, source = new_watch(tests_of_drift), summary.Summary(), inputs.File(rows_file, True)
    while not source.ended:
        for one in streaming_watch.process(watch, source.read(0)):
            summary.add(so_far, one)
    assert so_far.events and watch.alarm.recent and watch.drift.seen
    values = {"format": 1, "stream": "0123abcd", "events": 3, "source": source.position(), "written": 7, "known": {}}
    values |= {"watch": watch_state.to_dict(watch), "course": summary.to_dict(so_far)}
    return json.loads(json.dumps(values, allow_nan=False))


def use(values, drifting, rows_file):
    """Restores a state and goes on with it, as `monitor` does; what is wrong is a UserError."""
    watch, source = new_watch(drifting), inputs.File(rows_file, True)
    stream, events, written, so_far, first = saved_state.restore(watch, source, values)
    outputs = streaming_watch.process(watch, first) + process(watch, "99,1,2", "100,,inf", "2,2,2")
    for one in outputs:
        summary.add(so_far, one)
        streaming_watch.to_lines(one).encode()
    json.dumps([watch_state.to_dict(watch), summary.to_dict(so_far), source.position()], allow_nan=False)
    assert watch.row >= 3 and len(stream) == 8 and events >= 0 and written >= 0


def test_a_state_is_restored_as_it_was(saved, tests_of_drift, rows_file):
    watch, source = new_watch(tests_of_drift), inputs.File(rows_file, True)
    stream, events, written, so_far, first = saved_state.restore(watch, source, saved)
    assert (stream, events, written, first) == ("0123abcd", 3, 7, [])
    assert json.loads(json.dumps(watch_state.to_dict(watch))) == saved["watch"]
    assert json.loads(json.dumps(summary.to_dict(so_far))) == saved["course"]
    use(saved, tests_of_drift, rows_file)
    before = copy.deepcopy(saved)  # as version 0.2.0 wrote it
    del before["events"], before["watch"]["health"]["late"], before["watch"]["health"]["late_clock"]
    use(before, tests_of_drift, rows_file)


def places(values, path=()):
    """Every place in a tree of JSON."""
    found = [path] if path else []
    inner = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in inner:
        found += places(value, (*path, key))
    return found


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([-1, 10**400, 2**53, 2**63, 2**64, 1e308, -1e308, 1e-320, "", "NaN", "\ud800", [], {}, [[]]]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=5),
)
ANYTHING = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
)


@QUICK
@given(data=st.data())
def test_a_state_that_was_changed_anywhere_is_used_or_refused(saved, tests_of_drift, rows_file, data):
    values = copy.deepcopy(saved)
    for _ in range(data.draw(st.integers(1, 3))):
        *path, last = data.draw(st.sampled_from(places(values)))
        inner = values
        for key in path:
            inner = inner[key]
        change = data.draw(st.sampled_from(["replace", "delete", "repeat"]))
        if change == "replace":
            inner[last] = data.draw(ANYTHING)
        elif change == "delete":
            del inner[last]
        elif isinstance(inner, list):
            inner *= 2
    try:
        use(values, tests_of_drift, rows_file)
    except UserError as error:
        assert str(error)


@QUICK
@given(values=ANYTHING)
def test_a_state_that_is_anything_is_refused(tests_of_drift, rows_file, values):
    for saved in (values, {"watch": values}, {"format": 1, "watch": values, "source": values, "course": values}):
        with pytest.raises(UserError):
            use(saved, tests_of_drift, rows_file)


@QUICK
@given(
    change=st.dictionaries(st.sampled_from(["key", "low", "high", "runs", "drift"]), ANYTHING, min_size=1),
)
def test_a_reference_that_is_anything_is_used_or_refused(tests_of_drift, change):
    known = {"low": [0.0, 0.0], "high": [1.0, 1.0], "runs": [1, -1], "drift": drift.to_dict(tests_of_drift)} | change
    try:
        with stored.reading("monitor"):
            normal, drifting = monitor._stored_reference(known, 2, tests_of_drift.settings)
    except UserError:
        return
    assert (normal.low < normal.high).all() and normal.runs.shape == (2,)
    assert drifting is None or drifting.settings == tests_of_drift.settings


@QUICK
@given(raw=st.binary(max_size=60) | ANYTHING.map(lambda value: json.dumps(value).encode()))
def test_a_file_that_holds_anything_is_read_or_refused(tmp_path_factory, raw):
    path = tmp_path_factory.getbasetemp() / "state.json"
    path.write_bytes(raw)
    try:
        assert saved_state.read(path)["format"] == saved_state.FORMAT
    except UserError as error:
        assert "is not the state of a monitor" in str(error) and "remove it" in str(error)


@pytest.mark.parametrize("raw", ["[" * 100_000, "1" * 5000, '{"format": NaN}', "", '{"format": 1, "watch": {"row'])
def test_files_that_are_no_state_are_refused(tmp_path, raw):
    (tmp_path / "state").write_text(raw)
    with pytest.raises(UserError, match="is not the state of a monitor"):
        saved_state.read(tmp_path / "state")


def test_a_file_that_is_huge_or_none_is_refused_before_it_is_read(tmp_path):
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(2**40)
    os.mkfifo(tmp_path / "pipe")
    for name, words in (("huge", "1,099,511,627,776 bytes"), ("pipe", "not a file"), (".", "not a file")):
        with pytest.raises(UserError, match=words):
            saved_state.read(tmp_path / name)
    with pytest.raises(UserError, match="was not saved"):
        saved_state.write(str(tmp_path / "state"), {"done": ["x" * saved_state.MAX_BYTES]})


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("watch", "row"), -5, "expected a whole number from 0 to 9007199254740992, got -5"),
        (("watch", "row"), True, "got True"),
        (("watch", "row"), 10**400, "got int"),
        (("watch", "items"), 10**6, "more verdicts than rows"),
        (("watch", "sensors"), ["a", "c"], "detector of other sensors"),
        (("watch", "shape"), [4, 2], "detector of other sensors or inputs"),
        (("watch", "alarm", "recent"), [[3, 1]], "of the alarms is invalid .expected true or false"),
        (("watch", "alarm", "since"), None, "alarms"),
        (("watch", "health", "told"), [0, 7], "of the sensors is invalid .expected a whole number from 0 to 2"),
        (("watch", "health", "absent"), ["z"], "absent sensors"),
        (("watch", "ring"), [[1.0, 2.0]], "expected 3 rows, got 1"),
        (("watch", "ring"), [[1e300, 2.0]] * 3, "beyond float32"),
        (("watch", "drift", "limits"), {"cusum": 0.0}, "do not fit together"),
        (("watch", "form", "header"), ["x"], "a format that no row has"),
        (("course", "bins"), [{}] * 2000, "at most 1024 items"),
        (("course", "last"), {"row": 1}, "'verdict' is missing"),
        (("source", "end"), 2**62, "expected a whole number"),
        (("source", "end"), 2**53, "source"),
        (("stream",), "../../etc", "id of the stream"),
        (("written",), "many", "got 'many'"),
        (("course",), None, "summary"),
    ],
)
def test_what_is_wrong_with_a_state_is_said(saved, tests_of_drift, rows_file, path, value, words):
    values = copy.deepcopy(saved)
    inner = values
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    if words == "source":  # a position beyond the end of the file is another file
        return use(values, tests_of_drift, rows_file)
    with pytest.raises(UserError, match=words), saved_state.usable("plant.state"):
        use(values, tests_of_drift, rows_file)


# Rows


def test_infinite_values_do_not_end_the_monitor():
    watch, so_far = new_watch(), summary.Summary()
    outputs = process(watch, "a,b", *["inf,1"] * 3, *["1e39,1"] * 22)
    for one in outputs:
        summary.add(so_far, one)
    assert "sensor_range" in {event["event"] for one in outputs for event in one.events}
    json.dumps([watch_state.to_dict(watch), summary.to_dict(so_far)], allow_nan=False)
    json.dumps([one.events for one in outputs], allow_nan=False)


def test_names_that_are_no_text_do_not_end_the_monitor():
    [one] = process(new_watch(), '{"a": "\\ud800", "b": 1}')
    [event, *_] = map(json.loads, streaming_watch.to_lines(one).encode().splitlines())
    assert event["value"] == "\ud800"


def times(watch, seconds, high=False):
    outputs = process(watch, *[f"{at},{9 if high else 0},0" for at in seconds])
    events = collections.Counter(event["event"] for one in outputs for event in one.events)
    return events, sum(one.verdict is not None for one in outputs)


def test_a_clock_that_was_set_back_is_followed():
    """As at the end of summer time, or after a single row from the future; windows would stay silent for ever."""
    watch = new_watch()
    process(watch, "time,a,b")
    assert times(watch, [*range(100), 9e9])[1] == 99
    events, verdicts = times(watch, range(100, 200), high=True)
    late = sensor_checks.CLOCK_ROWS - 1
    assert events["row_out_of_order"] == late and verdicts == 100 - late
    assert events["clock_set_back"] == 1 and events["alarm"] == 1
    # Rows that are late among others, or in no order among themselves, are late.
    mixed = [at for i in range(60) for at in (200 + i, 150)]
    assert times(watch, mixed)[0]["clock_set_back"] == 0
    assert times(watch, range(100, 50, -1))[0]["clock_set_back"] == 0


def test_an_output_that_is_full_is_said_and_its_events_are_queued_before():
    put = []
    sink = types.SimpleNamespace(put=lambda name, event: put.append(name))
    output = RowOutput(5, ({"event": "alarm", "row": 5, "state": "begins", "since": 3},), None)
    with pytest.raises(UserError, match="No space left on device"), monitor._output("/dev/full") as out:
        run = monitor._Run(Options(), print, None, {}, None, "0123abcd", 0, summary.Summary(), out, [sink], None, 0)
        monitor._write(run, [output])
    assert put == ["0123abcd-5-0"]


def test_events_of_one_row_have_ids_of_their_own(saved):
    class Kept:
        def __init__(self):
            self.names = []

        def put(self, name, event):
            self.names.append(name)

    sink, out = Kept(), io.StringIO()
    watch = new_watch()
    run = monitor._Run(Options(), print, watch, {}, None, "0123abcd", 0, summary.Summary(), out, [sink], None, 0)
    begins = {"event": "alarm", "row": 5, "state": "begins", "since": 3}
    verdict = {"row": 5, "verdict": "anomalous", "score": math.pi}
    rotated = {"event": "source_rotated", "row": 5, "source": "x"}
    monitor._write(run, [RowOutput(5, (begins,), verdict), RowOutput(5, (rotated,), None)])
    assert sink.names == ["0123abcd-5-0", "0123abcd-5-1"] and run.events == 2
    # Rows that are in the output already count, so that ids after a kill are those of before it.
    run.printed = 6
    monitor._write(run, [RowOutput(6, (rotated | {"row": 6},), None), RowOutput(7, (rotated | {"row": 7},), None)])
    assert sink.names[2:] == ["0123abcd-7-3"]
