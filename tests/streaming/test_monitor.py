"""The monitor: verdicts as the scorer's, windows, state and restarts, events, alarms, drift, the verb, views."""

import io  # noqa: I001
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from tests.support import blobs, tiny_config
from tests.data.test_row_windows import COLUMNS, plant, rows_config, write

import ganomaly_jax as gj
from ganomaly_jax.cli import main
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.evaluation import evaluate
from ganomaly_jax.scoring import build, recalibration
from ganomaly_jax.streaming import (
    alarms,
    compiled_step,
    dashboard,
    drift,
    monitor,
    plot,
    row_parser,
    saved_state,
    sensor_checks,
    summary,
)
from ganomaly_jax.streaming import watch as streaming_watch
from ganomaly_jax.streaming import watch_state
from ganomaly_jax.streaming.watch import Line

ROOT = Path(__file__).resolve().parents[2]


def quiet(line):
    pass


@pytest.fixture(scope="module")
def windowed(tmp_path_factory):
    """(workdir, scorer) of windows, trained on a file that is still there; look, do not touch."""
    return finished(tmp_path_factory.mktemp("windows"), 8)


@pytest.fixture(scope="module", params=["rows", "windows"])
def trained(request, tmp_path_factory):
    """The same, and one of rows alone."""
    if request.param == "windows":
        return request.getfixturevalue("windowed")
    return finished(tmp_path_factory.mktemp("rows"), 0)


def finished(folder, window):
    settings = rows_config(window, steps=150)
    settings.data.source = str(write(folder / "normal.csv", plant(700, 0)))
    settings.data.calibration = 0.3
    return folder / "run", gj.train(settings, folder / "run", log=quiet)


@pytest.fixture(scope="module")
def settings(trained):
    """What does not change while a stream runs, compiled once."""
    scorer = trained[1]
    normal = sensor_checks.NormalRanges(
        np.array([48.0, 30, 49, 40]), np.array([52.0, 70, 51, 60]), np.zeros(4, np.int64)
    )
    return streaming_watch.Settings(scorer, compiled_step.compile_step(scorer), normal, sensor_checks.Settings())


def watch_of(settings, **more):
    return streaming_watch.start(settings, alarms.start("3/5", 10), **more)


def csv_lines(values, times=None):
    head = [",".join(([] if times is None else ["time"]) + list(COLUMNS))]
    for i, row in enumerate(values):
        cells = ["" if np.isnan(v) else repr(float(v)) for v in row]
        head.append(",".join(([] if times is None else [str(times[i])]) + cells))
    return [Line(text.encode(), time.perf_counter()) for text in head]


def taken(watch, lines, size=7):
    """All that is said, (events, verdicts)."""
    said = [one for i in range(0, len(lines), size) for one in streaming_watch.process(watch, lines[i : i + size])]
    return [event for one in said for event in one.events], [one.verdict for one in said if one.verdict]


def names(events):
    return [event["event"] for event in events]


def test_windows_are_said_to_be_neighbours_in_time(windowed):
    assert windowed[1].calibration.source.endswith(build.IN_TIME)


def test_other_files_are_read_by_the_names_of_the_sensors(windowed, tmp_path):
    """Columns in another order, and one more: the same windows."""
    workdir, scorer = windowed
    x = plant(60, 12)
    plain = write(tmp_path / "plain.csv", x)
    lines = [line.split(",") for line in plain.read_text().splitlines()]
    mixed = tmp_path / "mixed.csv"
    mixed.write_text("\n".join(",".join([*row[::-1], str(i) if i else "more"]) for i, row in enumerate(lines)) + "\n")
    wanted = scorer(x)
    run = evaluate._data(workdir, scorer, str(mixed), None, None)
    np.testing.assert_allclose(scorer(run.dataset.images[:]), wanted, rtol=1e-4, atol=1e-6)
    dataset, chosen = recalibration._normals(scorer, str(mixed), None)
    np.testing.assert_allclose(scorer(dataset.images[chosen]), wanted, rtol=1e-4, atol=1e-6)


def test_a_state_is_used_by_one_monitor_at_a_time(tmp_path):
    path = tmp_path / "of" / "state.json"
    with saved_state.locked(str(path)) as held:
        assert held == {}
        with pytest.raises(UserError, match="another monitor uses --state"), saved_state.locked(str(path)):
            pass
    path.write_text(json.dumps({"format": saved_state.FORMAT, "watch": 3}))
    with saved_state.locked(str(path)) as held:  # free again
        assert held == {"format": saved_state.FORMAT, "watch": 3}


def test_outputs_that_cannot_be_written_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"--out .* cannot be written: "), monitor._output(str(tmp_path)):
        pass
    with monitor._output(str(tmp_path / "out.jsonl")) as file:
        file.write("1\n")
    with monitor._output(str(tmp_path / "out.jsonl")) as file:
        file.write("2\n")
    assert file.closed and (tmp_path / "out.jsonl").read_text() == "1\n2\n"
    with monitor._output("") as file:
        assert file is sys.stdout


def test_output_beyond_the_last_save_is_cut_after_its_last_verdict(tmp_path):
    path = tmp_path / "out.jsonl"
    saved, kept = '{"row": 3, "verdict": "normal"}\n', '{"event": "x", "row": 4}\n{"row": 4, "verdict": "normal"}\n'
    for rest in ('{"event": "y", "row": 5}\n', '{"row": 5, "verdict": "nor', "", "[1]\n", "nonsense\n"):
        path.write_text(saved + kept + rest)
        assert monitor._last_row(path, len(saved)) == 4
        assert path.read_text() == saved + kept, rest
        assert monitor._last_row(path, len(saved + kept)) == -1
    path.write_text(saved + '{"event": "y", "row": 5}\n')
    assert monitor._last_row(path, len(saved)) == -1 and path.read_text() == saved
    assert monitor._last_row(tmp_path / "none", 0) == -1


# Verdicts


def test_verdicts_are_those_of_the_scorer_and_contributions_add_up(settings):
    scorer, x = settings.scorer, np.concatenate([plant(60, 3), plant(40, 4, broken=True)])
    events, verdicts = taken(watch_of(settings), csv_lines(x))
    theirs = scorer.judge(x)
    assert [one["verdict"] for one in verdicts] == theirs.verdicts and "anomalous" in theirs.verdicts
    np.testing.assert_allclose([one["score"] for one in verdicts], theirs.scores, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose([one["p_value"] for one in verdicts], theirs.p_values, atol=0.01)
    length = scorer.input_shape[0] if len(scorer.input_shape) == 2 else 1
    assert [one["row"] for one in verdicts] == list(range(length, 101))
    for one in verdicts:
        assert len(one["top"]) == 3 and {name for name, _ in one["top"]} <= set(COLUMNS) and one["latency_ms"] > 0
        added = sum(value for _, value in one["top"]) + one["others"] + one["base"] + one["error"]
        assert added == pytest.approx(one["score"], rel=1e-6)
        assert one["top"][0][1] >= one["top"][1][1] >= one["top"][2][1]
    # Of what there is to explain, the steps of the integral leave little.
    assert np.median([abs(one["error"]) for one in verdicts]) < 0.2 * np.median(
        [abs(one["score"] - one["base"]) for one in verdicts]
    )
    assert names(events).count("alarm") >= 1


def test_nothing_is_compiled_while_a_stream_runs(settings):
    watch, compiled = watch_of(settings), []
    taken(watch, csv_lines(plant(20, 1)))
    jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: compiled.append(name))
    for size in (1, 3, 9, 64):
        taken(watch, csv_lines(plant(130, 2))[1:], size)
    assert not [name for name in compiled if "compile" in name]
    with pytest.raises(TypeError):
        settings.step.sizes[1](settings.step.variables, np.zeros((2, *settings.scorer.input_shape), np.float32))


def test_many_streams_at_once_are_as_each_alone(trained):
    scorer = trained[1]
    x = np.stack([plant(20, seed) for seed in range(5)], axis=1)  # [20, 5, 4]
    streams = compiled_step.compile_streams(scorer, 5)
    for row in x[:-1]:
        streams, found = compiled_step.advance(streams, row)
    x[-1, 2, 1] = np.nan
    streams, found = compiled_step.advance(streams, x[-1])
    length = scorer.input_shape[0] if len(scorer.input_shape) == 2 else 1
    for i in (0, 1, 3, 4):
        alone = scorer(x[-length:, i] if length > 1 else x[-1:, i])
        np.testing.assert_allclose(found["score"][i], alone[0], rtol=1e-4, atol=1e-6)
    assert np.isnan(found["score"][2]) and np.isnan(found["p_value"][2])


def test_memory_is_constant(settings):
    watch, seen = watch_of(settings), summary.Summary()
    sizes = []
    for repeat in range(6):
        for said in streaming_watch.process(watch, csv_lines(plant(700, repeat))):
            summary.add(seen, said)
        sizes.append(len(json.dumps(watch_state.to_dict(watch))))
    assert max(sizes[1:]) < 1.05 * sizes[1] and len(seen.bins) <= summary.MAX_BINS
    assert seen.verdicts == watch.items > 4000 and seen.bins[-1].last == watch.row
    assert json.loads(json.dumps(summary.to_dict(summary.from_dict(summary.to_dict(seen))))) == json.loads(
        json.dumps(summary.to_dict(seen))
    )


# Rows and sensors


def test_json_rows_and_their_missing_values(settings):
    watch = watch_of(settings)
    x = plant(30, 5)
    lines = [Line(json.dumps(dict(zip(COLUMNS, row, strict=True))).encode()) for row in x.tolist()]
    lines[20] = Line(json.dumps({"pressure": 50.0, "flow": None, "level": "broken", "temperature": 50}).encode())
    lines[22] = Line(b'{"pressure": ')
    events, verdicts = taken(watch, lines)
    assert [(one["event"], one.get("sensor"), one["row"]) for one in events[:1]] == [("value_unreadable", "level", 21)]
    assert "row_unreadable" in names(events)
    by_row = {one["row"]: one for one in verdicts}
    assert by_row[20]["verdict"] != "invalid"
    assert by_row[21]["verdict"] == "invalid" and by_row[21]["score"] is None
    assert "flow" in by_row[21]["reason"] and "level" in by_row[21]["reason"] and "pressure" not in by_row[21]["reason"]


def test_a_missing_column_is_named_once_and_when_it_is_back(settings):
    watch = watch_of(settings)
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in plant(9, 5).tolist()]
    for row in rows[3:6]:
        del row["flow"]
    events, _ = taken(watch, [Line(json.dumps(row).encode()) for row in rows])
    assert [(one["event"], one["sensor"], one["state"], one["row"]) for one in events] == [
        ("column_missing", "flow", "begins", 4),
        ("column_missing", "flow", "ends", 7),
    ]
    watch = watch_of(settings)
    events, verdicts = taken(watch, [Line(b"pressure,level,temperature"), *[Line(b"50,50,50")] * 12])
    assert [(one["event"], one["sensor"]) for one in events] == [("column_missing", "flow")]
    assert {one["verdict"] for one in verdicts} == {"invalid"}


@pytest.mark.parametrize("header", ["a,b,c", "1,2,3,4", "pressure,flow,flow,level"])
def test_a_header_that_cannot_be_used_is_refused(settings, header):
    with pytest.raises(UserError):
        taken(watch_of(settings), [Line(header.encode())])


def test_a_header_again_and_a_row_of_other_length(settings):
    lines = csv_lines(plant(10, 5))
    events, _ = taken(watch := watch_of(settings), [*lines, lines[0], Line(b""), *lines[1:], Line(b"1,2")])
    assert [name for name in names(events) if name != "alarm"] == ["row_unreadable"] and watch.row == 21


def test_each_fault_of_a_sensor_is_named(settings):
    x = plant(200, 6)
    x[50:60, 0] = np.nan  # silent
    x[100:150, 3] = x[100, 3]  # stuck
    x[160:190, 2] *= 1000  # another unit
    events, _ = taken(watch_of(settings), csv_lines(x))
    found = [(e["event"], e["sensor"], e["state"], e["row"]) for e in events if e["event"].startswith("sensor")]
    assert found == [
        ("sensor_silent", "pressure", "begins", 55),
        ("sensor_silent", "pressure", "ends", 61),
        ("sensor_stuck", "temperature", "begins", 130),
        ("sensor_stuck", "temperature", "ends", 151),
        ("sensor_unit", "level", "begins", 180),
        ("sensor_unit", "level", "ends", 191),
    ]
    assert next(e for e in events if e["event"] == "sensor_unit")["factor"] == 1000


def test_units_are_told_from_sensors_that_go_astray():
    def told(values, before, low=19.0, high=25.0):
        return sensor_checks.explain_out_of_range(np.asarray(values, float), before, low, high)

    room = np.linspace(21, 23, 20)
    assert told(room * 1.8 + 32, 21.0)[1]["words"].endswith("Celsius to Fahrenheit")
    assert told(room + 273.15, 21.0)[1]["words"].endswith("Celsius to kelvin")
    assert told(room / 1000, np.nan)[1]["factor"] == 0.001
    assert told(room * 7, 21.0)[1]["factor"] == pytest.approx(7, rel=0.1)
    # Away slowly, wildly, or to where the sensor was not.
    assert told(np.linspace(30, 70, 20), 24.9)[0] == "sensor_range"
    assert told(np.linspace(30, 900, 20), 21.0)[0] == "sensor_range"
    assert told(room * 1.8 + 32, 0.0, -6.0, 6.0)[0] == "sensor_range"


def test_rows_late_or_twice_are_named_and_not_judged_twice(settings):
    x, times = plant(40, 7), [1000 + 10 * i for i in range(40)]
    lines = csv_lines(x, times)
    window = len(settings.scorer.input_shape) == 2
    _, alone = taken(watch_of(settings), lines)
    mixed = [*lines[:21], lines[20], *lines[21:31], csv_lines(x[:1] + 0.001, [1205])[1], *lines[31:]]
    events, verdicts = taken(watch_of(settings), mixed)
    assert [(e["event"], e["row"]) for e in events if e["event"].startswith("row")] == [
        ("row_duplicated", 21),
        ("row_out_of_order", 32),
    ]
    if not window:  # a late row is judged by itself, but has no place in a window
        assert verdicts.pop(30)["row"] == 32
    np.testing.assert_allclose(
        [one["score"] for one in verdicts], [one["score"] for one in alone], rtol=1e-4, atol=1e-6
    )


def test_times_are_read_as_they_come():
    form = row_parser.Format(("a",))
    form, _ = row_parser.parse(form, b"\xef\xbb\xbfTimestamp,a")
    for text, seconds in (("2024-01-01T00:00:10Z", 1704067210), ("2024-01-01 00:00:10", 1704067210), ("7.5", 7.5)):
        assert row_parser.parse(form, f"{text},1".encode())[1].time == seconds
    assert row_parser.parse(form, b"noon,1")[1].time is None
    with pytest.raises(UserError, match="no such column"):
        row_parser.parse(row_parser.Format(("a",), time="when"), b"time,a")


# Alarms and drift


def changes(state, verdicts):
    found = []
    for row, bad in enumerate(verdicts, 1):
        state, change = alarms.update(state, row, bool(bad))
        if change is not None:
            found.append((row, change.begins, change.since, change.count))
    return found


def test_alarms_by_hand():
    bad = [0, 1, 0, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1]
    assert changes(alarms.start("3/5", 0), bad) == [(5, True, 2, 3), (7, False, 2, 2), (12, True, 10, 3)]
    # The rest holds the second one back; it comes where there are still 3 of 5 when it is over.
    assert changes(alarms.start("3/5", 5), bad) == [(5, True, 2, 3), (7, False, 2, 2), (13, True, 10, 4)]
    assert changes(alarms.start("1/1", 100), [1, 0, 1, 0, 1]) == [(1, True, 1, 1), (2, False, 1, 0)]
    for wrong in ("0/5", "6/5", "3", "a/b"):
        with pytest.raises(UserError):
            alarms.start(wrong, 0)


def test_drift_is_told_with_its_stated_time_and_then_rests(settings):
    scorer = settings.scorer
    asked = drift.Settings(20, 1000, 0, 1000)
    state = drift.start(asked, np.asarray(scorer.variables["calibration"]))
    watch = watch_of(settings, drifting=state)
    every = streaming_watch.drift_stride(scorer)
    assert every == (8 if len(scorer.input_shape) == 2 else 1)
    x = plant(40 * every, 8, broken=True)
    events, verdicts = taken(watch, csv_lines(x))
    drifts = [event for event in events if event["event"] == "drift"]
    assert {event["test"] for event in drifts} == {"ks", "cusum"} and len(drifts) == 2
    assert all(event["between_rows"] == every * event["between"] >= every * 1000 for event in drifts)
    assert watch.drift.seen == -(-len(verdicts) // every)


# The verb


def monitored(workdir, source, *flags):
    return main.main(["monitor", str(source), "--workdir", str(workdir), "--once", "--drift-every", "0", *flags])


def said_in(path):
    """What a file of lines says, without how long it took."""
    held = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in one.items() if key != "latency_ms"} for one in held]


def alike(one, other):
    """The same lines; scores alone and in a block may differ in their last digits."""
    assert [(a.get("row"), a.get("event"), a.get("verdict")) for a in one] == [
        (b.get("row"), b.get("event"), b.get("verdict")) for b in other
    ]
    for a, b in zip(one, other, strict=True):
        if a.get("score") is not None:
            assert a["score"] == pytest.approx(b["score"], rel=1e-3, abs=1e-5)


def test_restarts_lose_no_row_and_judge_none_twice(windowed, tmp_path):
    workdir, _ = windowed
    x = np.concatenate([plant(60, 3), plant(30, 4, broken=True), plant(60, 5)])
    whole, growing = write(tmp_path / "whole.csv", x), tmp_path / "growing.csv"
    assert monitored(workdir, whole, "--out", str(tmp_path / "whole.jsonl")) == 0
    lines = whole.read_bytes().splitlines(keepends=True)
    out, state, kept = tmp_path / "out.jsonl", tmp_path / "state.json", []
    for end in (1, 4, 70, 71, 140, len(lines)):
        growing.write_bytes(b"".join(lines[:end]))
        assert monitored(workdir, growing, "--out", str(out), "--state", str(state)) == 0
        kept.append(state.read_bytes())
    alike(said_in(out), said_in(tmp_path / "whole.jsonl"))
    # Killed with an older state on disk, in the midst of writing a line.
    state.write_bytes(kept[2])
    with out.open("ab") as file:
        file.write(b'{"event": "alarm", "row": 151}\n{"row": 15')
    assert monitored(workdir, growing, "--out", str(out), "--state", str(state)) == 0
    alike(said_in(out), said_in(tmp_path / "whole.jsonl"))
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_kill_before_the_first_rows_are_saved_says_none_twice(windowed, tmp_path, monkeypatch):
    workdir, _ = windowed
    source = write(tmp_path / "rows.csv", plant(40, 3))
    call = [workdir, source, "--out", str(tmp_path / "out.jsonl"), "--state", str(tmp_path / "state.json")]
    save = monitor._save
    with monkeypatch.context() as killed:
        killed.setattr(monitor, "_save", lambda run, place: save(run, place) if run.watch.row == 0 else None)
        assert monitored(*call) == 0
    first = (tmp_path / "out.jsonl").read_bytes()
    assert monitored(*call) == 0
    assert first and (tmp_path / "out.jsonl").read_bytes() == first


def test_states_that_cannot_be_used_are_refused(windowed, tmp_path, capsys):
    workdir, _ = windowed
    source, state = write(tmp_path / "rows.csv", plant(20, 1)), tmp_path / "state.json"
    assert monitored(workdir, source, "--state", str(state)) == 0
    held = json.loads(state.read_text())
    for text in ("{", "[]", json.dumps(held | {"watch": {}}), json.dumps(held | {"source": 3})):
        state.write_text(text)
        assert monitored(workdir, source, "--state", str(state)) == 2
        assert "--state" in capsys.readouterr().err
    held["watch"]["sensors"] = ["other"]
    for change, words in (
        ({}, "detector of other sensors"),
        ({"known": held["known"] | {"low": [1]}}, "4 numbers, got 1"),
    ):
        state.write_text(json.dumps(held | change))
        assert monitored(workdir, source, "--state", str(state)) == 2
        told = capsys.readouterr().err
        assert words in told and f"--state {state} cannot be used" in told and "remove it" in told


def test_a_process_that_gets_rows_and_a_signal(windowed, tmp_path):
    """Standard input, SIGTERM with rows on their way, and the start after it."""
    workdir, scorer = windowed
    x, state = plant(40, 9), tmp_path / "state.json"
    lines = [line.text.decode() + "\n" for line in csv_lines(x)]
    call = [sys.executable, "-m", "ganomaly_jax", "monitor", "--workdir", str(workdir), "--state", str(state)]
    out = tmp_path / "out.jsonl"
    for part in (lines[:25], lines[25:]):
        with out.open("ab") as file:
            already = file.tell()
            ran = subprocess.Popen(
                call,
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=subprocess.PIPE,
                cwd=ROOT,
                env=os.environ | {"JAX_PLATFORMS": "cpu"},
            )
            ran.stdin.write("".join(part).encode())
            ran.stdin.flush()
            while out.stat().st_size == already and ran.poll() is None:  # until it is up
                time.sleep(0.02)
            if part[0] is lines[0]:
                ran.send_signal(signal.SIGTERM)  # with standard input still open
                errors = ran.stderr.read()
                ran.wait(60)
                ran.stdin.close()
                ran.stderr.close()
            else:
                _, errors = ran.communicate(timeout=60)
        assert ran.returncode == 0, errors
    found = [json.loads(line) for line in out.read_text().splitlines()]
    verdicts = [one for one in found if "verdict" in one]
    length = scorer.input_shape[0] if len(scorer.input_shape) == 2 else 1
    assert [one["row"] for one in verdicts] == list(range(length, 41))
    np.testing.assert_allclose([one["score"] for one in verdicts], scorer(x), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "flags",
    [
        ["--alarm", "9"],
        ["--top", "-1"],
        ["--poll", "0"],
        ["--format", "xml"],
        ["--sink", "ftp://a/b"],
        ["--sink", "http://user:hunter2@a:99999/"],
        ["--sink-timeout", "nan"],
        ["--drift-every", "-1"],
    ],
)
def test_flags_that_cannot_be_are_refused(windowed, tmp_path, flags, capsys):
    source = write(tmp_path / "rows.csv", plant(20, 1))
    call = ["monitor", str(source), "--workdir", str(windowed[0]), "--once", "--spool", str(tmp_path / "spool"), *flags]
    assert main.main(call) == 2
    said = capsys.readouterr().err
    assert "expected" in said and "hunter2" not in said


def test_a_folder_of_images(arrays, tmp_path, capsys):
    settings = tiny_config(steps=5)
    workdir, inbox = tmp_path / "run", tmp_path / "inbox"
    gj.train(settings, workdir, arrays, log=quiet)
    inbox.mkdir()

    def put(name, image):
        Image.fromarray(image[..., 0]).save(inbox / name)
        os.utime(inbox / name, (1e9 + len(list(inbox.iterdir())),) * 2)

    capsys.readouterr()
    for i, image in enumerate(blobs(3, 5)):
        put(f"{9 - i}.png", image)
    (inbox / "broken.png").write_bytes(b"no image")
    os.utime(inbox / "broken.png", (1.1e9, 1.1e9))
    (inbox / "half.png.part").write_bytes(b"")
    call = ["monitor", str(inbox), "--workdir", str(workdir), "--once", "--state", str(tmp_path / "state.json")]
    assert main.main(call) == 3
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(Path(one["path"]).name, one["verdict"] == "invalid") for one in said] == [
        ("9.png", False),
        ("8.png", False),
        ("7.png", False),
        ("broken.png", True),
    ]
    theirs = gj.load(workdir)([inbox / f"{9 - i}.png" for i in range(3)])
    np.testing.assert_allclose([one["score"] for one in said[:3]], theirs, rtol=1e-4)
    put("later.png", blobs(1, 6)[0])
    main.main(call)
    (one,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert Path(one["path"]).name == "later.png" and one["row"] == 5


def test_events_go_to_a_file_once_each(windowed, tmp_path, capsys):
    x = np.concatenate([plant(40, 3), plant(30, 4, broken=True)])
    source, sink = write(tmp_path / "rows.csv", x), tmp_path / "events.jsonl"
    monitored(windowed[0], source, "--sink", str(sink), "--spool", str(tmp_path / "spool"), "--stuck", "0")
    events = [line for line in map(json.loads, capsys.readouterr().out.splitlines()) if "event" in line]
    told = [json.loads(line) for line in sink.read_text().splitlines()]
    assert events and [{k: v for k, v in one.items() if k != "id"} for one in told] == events
    assert len({one["id"] for one in told}) == len(told)
    # Another sink, while events wait for the first one.
    [queue] = (path for path in (tmp_path / "spool").iterdir())
    (queue / "000000000000-s-1-0.json").write_text('{"id": "s-1-0"}\n')
    other = ["--sink", str(tmp_path / "other.jsonl"), "--spool", str(tmp_path / "spool")]
    monitored(windowed[0], source, *other)
    assert f"1 events in {queue} wait for {sink}, which is not a --sink" in capsys.readouterr().err


def test_a_sensor_that_the_header_lacks_is_reported_to_the_output_and_the_sinks(windowed, tmp_path, capsys):
    source, sink = write(tmp_path / "rows.csv", plant(10, 3)[:, 1:], COLUMNS[1:]), tmp_path / "events.jsonl"
    assert monitored(windowed[0], source, "--sink", str(sink), "--spool", str(tmp_path / "spool")) == 3
    for lines in (capsys.readouterr().out.splitlines(), sink.read_text().splitlines()):
        (event,) = [one for one in map(json.loads, lines) if "event" in one]
        assert (event["event"], event["sensor"], event["row"]) == ("column_missing", "pressure", 0)


# Views


def course_of(settings):
    watch, seen = watch_of(settings), summary.Summary()
    state = drift.start(drift.Settings(20, 1000, 0, 1000), np.asarray(settings.scorer.variables["calibration"]))
    watch.drift = state
    lines = csv_lines(np.concatenate([plant(100, 3), plant(100, 4, broken=True)]))
    for said in streaming_watch.process(watch, lines):
        summary.add(seen, said)
    return seen


def test_the_view_shows_scores_threshold_drift_and_events(settings):
    console = pytest.importorskip("rich.console")
    shown = console.Console(file=io.StringIO(), width=100, record=True)
    seen = course_of(settings)
    seen.events[-1]["words"] = "\x1b[2J[red]"
    shown.print(dashboard.render(seen, "plant [1]", settings.scorer.threshold, 80))
    text = shown.export_text()
    for word in ("plant [1]", "verdicts", "threshold", "drift ks", "alarm", "most from"):
        assert word in text, word
    assert "\x1b" not in text and "[red]" in text
    shown.print(dashboard.render(summary.Summary(), "plant", 1.0, 80))
    assert "waiting for rows" in shown.export_text()


def test_the_picture_of_the_report_is_drawn(settings, tmp_path):
    path = plot.save_plot(course_of(settings), settings.scorer.threshold, "plant", tmp_path / "watch.png")
    with Image.open(path) as picture:
        assert picture.size[0] == 1350 and np.asarray(picture.convert("L")).std() > 5
    plot.save_plot(summary.Summary(), 1.0, "nothing yet", tmp_path / "empty.png")
