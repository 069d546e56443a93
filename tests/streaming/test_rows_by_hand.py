"""Rows of sensors by hand: how windows form, what is missing, which faults are named, with a detector that adds up."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest

from ganomaly_jax.core.errors import UserError
from ganomaly_jax.scoring.calibration import Calibration
from ganomaly_jax.streaming import (
    alarms,
    compiled_step,
    drift,
    inputs,
    modalities,
    options,
    reference,
    row_parser,
    run_length,
    sensor_checks,
    watch,
)
from ganomaly_jax.streaming.watch import Line

NAMES = ("a", "b")
NORMAL = sensor_checks.NormalRanges(np.array([0.0, 10]), np.array([10.0, 20]), np.array([2, 0]))


def scorer_of(window=0, missing="refuse", stride=1):
    """A detector whose score is the sum of an input and whose threshold is 100."""
    shape = (window, 2) if window else (2,)
    data = SimpleNamespace(missing=missing, stride=stride, csv="auto")
    return SimpleNamespace(
        feature_names=NAMES,
        input_shape=shape,
        config=SimpleNamespace(data=data),
        low=np.array([0.0, 10]),
        high=np.array([4.0, 20]),
        threshold=100.0,
        calibration=Calibration(100.0, 0.1, "given"),
    )


def step(x):
    scores = x.reshape(len(x), -1).sum(1)
    values = np.stack([x.reshape(len(x), -1, 2).sum(1)[:, k] for k in (0, 1)], axis=1)
    return compiled_step.StepOutput(scores, 1 / (1 + scores), x.reshape(len(x), -1), values)


step.base = 0.5


def started(scorer, top=1, drifting=None, drift_step=0):
    checks = sensor_checks.Settings(silent=2, stuck=4)
    settings = watch.Settings(scorer, step, NORMAL, checks, top, drift_step)
    return watch.start(settings, alarms.start("1/1", 0), drifting)


def said(state, *rows):
    lines = [Line(b"a,b"), *(Line(",".join(map(str, row)).encode()) for row in rows)]
    return [one for one in watch.process(state, lines) if one.verdict or one.events]


def scores(outputs):
    return {one.row: one.verdict["score"] for one in outputs if one.verdict}


# Windows


def test_windows_of_the_last_rows_begin_every_stride():
    rows = [(i, 10 * i) for i in range(1, 9)]
    assert scores(said(started(scorer_of()), *rows)) == {i: 11.0 * i for i in range(1, 9)}
    whole = {i: 11.0 * (3 * i - 3) for i in range(3, 9)}
    assert scores(said(started(scorer_of(3)), *rows)) == whole
    assert scores(said(started(scorer_of(3, stride=2)), *rows)) == {i: whole[i] for i in (3, 5, 7)}
    # One row at a time, the same.
    state, found = started(scorer_of(3, stride=2)), {}
    for row in rows:
        found |= scores(said(state, row))
    assert found == {i: whole[i] for i in (3, 5, 7)} and state.filled == 8 and state.items == 3
    np.testing.assert_array_equal(state.ring[:3], state.ring[3:])


def test_missing_values_are_refused_carried_or_masked():
    rows = [(1, 11), ("", 12), ("", ""), (4, 14)]
    refused = said(started(scorer_of()), *rows)
    assert [one.verdict["verdict"] for one in refused] == ["normal", "invalid", "invalid", "normal"]
    assert refused[1].verdict["reason"].endswith(": a") and refused[2].verdict["reason"].endswith(": a, b")
    assert "reason" not in refused[0].verdict and refused[1].verdict["top"] == []
    assert scores(said(started(scorer_of(missing="last")), *rows)) == {1: 12, 2: 13, 3: 13, 4: 18}
    assert scores(said(started(scorer_of(missing="mask")), *rows)) == {1: 12, 2: 14, 3: 17, 4: 18}  # centres 2 and 15
    first = said(started(scorer_of(missing="last")), ("", 11))
    assert first[0].verdict["verdict"] == "invalid"  # there is no value to carry yet


def test_a_verdict_names_the_highest_contributions():
    [one] = said(started(scorer_of(), top=1), (60, 50))
    verdict = one.verdict
    assert (verdict["score"], verdict["verdict"], verdict["row"]) == (110, "anomalous", 1)
    assert verdict["top"] == [["a", 60]] and verdict["others"] == 50
    assert (verdict["base"], verdict["error"]) == (0.5, pytest.approx(-0.5)) and verdict["latency_ms"] >= 0
    [event] = one.events
    assert event | {"top": 0} == {
        "event": "alarm", "row": 1, "state": "begins", "since": 1, "anomalous": 1, "of": 1, "score": 110.0,
        "p_value": pytest.approx(1 / 111), "top": 0,
    }  # fmt: skip
    [_, both] = said(started(scorer_of(), top=2), (60, 50), (1, 15))
    assert both.verdict["top"] == [["b", 15], ["a", 1]] and both.verdict["others"] == 0
    assert [(e["event"], e["state"], e["since"], "score" in e) for e in both.events] == [("alarm", "ends", 1, False)]


def test_a_score_that_is_not_finite_is_said_of_the_score():
    state = started(scorer_of())
    unusable = compiled_step.StepOutput(np.array([np.nan]), np.array([np.nan]), None, None)
    state.settings = dataclasses.replace(state.settings, step=lambda x: unusable)
    [one] = said(state, (1, 11))
    assert (one.verdict["verdict"], one.verdict["reason"]) == ("invalid", "the score is not finite")


def test_lines_of_json_have_no_other_numbers():
    event = {"event": "x", "row": 3, "seen": [1.0, float("inf")]}
    output = watch.RowOutput(3, (watch._json_value(event),), watch._json_value({"score": float("nan")}))
    events = [json.loads(line) for line in watch.to_lines(output).splitlines()]
    assert events == [{"event": "x", "row": 3, "seen": [1.0, None]}, {"score": None}]
    assert watch.to_lines(watch.RowOutput(3, (), None)) == ""


def test_lines_that_are_no_rows():
    state = started(scorer_of())
    found = watch.process(
        state, [Line(event={"event": "source_rotated"}), Line(b"a,b"), Line(problem="too long"), Line(b"1,11")]
    )
    assert [(one.row, [event["event"] for event in one.events]) for one in found] == [
        (0, ["source_rotated"]), (0, []), (1, ["row_unreadable"]), (2, []),
    ]  # fmt: skip
    assert found[2].events[0]["reason"] == "too long" and found[2].verdict["verdict"] == "invalid"
    assert found[3].verdict["score"] == 12


def test_drift_is_tested_on_items_that_share_no_row_and_then_rests():
    settings = drift.Settings(window=10, ks=100, mmd=0, cusum=0)
    state = drift.start(settings, np.linspace(0, 1, 60))
    events = []
    for every, stride, window in ((1, 1, 0), (3, 1, 3), (2, 2, 3), (5, 1, 3)):
        watched = started(scorer_of(window, stride=stride), drifting=state, drift_step=5 if every == 5 else 0)
        rows = [(1000 + i, 10) for i in range(10 * every * stride + 2)]
        outputs = said(watched, *rows)
        events = [event for one in outputs for event in one.events if event["event"] == "drift"]
        assert len(events) == 1 and events[0]["items"] == [0, 9], (every, stride)
        assert events[0]["between_rows"] == events[0]["between"] * every * stride
        assert watched.drift.seen == -(-watched.items // every) and watched.told == {"ks": (0, 10 + watch.QUIET * 10)}
    # It stays silent until then, and counts.
    watched = started(scorer_of(), drifting=state)
    outputs = said(watched, *[(1000 + i, 10) for i in range(10 * (watch.QUIET + 2))])
    drifts = [(one.row, e["passed_since"]) for one in outputs for e in one.events if e["event"] == "drift"]
    assert drifts == [(10, 0), (10 + 10 * watch.QUIET, watch.QUIET - 1)]


def test_alarms_are_restored_under_the_rule_of_today():
    held = {"k": 2, "n": 4, "rest": 9, "recent": [[1, True], [2, False], [3, True]], "since": 3, "quiet": 8}
    found = alarms.from_dict(held, alarms.start("1/2", 5))
    assert found == alarms.State(1, 2, 5, ((2, False), (3, True)), 3, 5)
    assert alarms.from_dict(held, alarms.start("2/4", 9)) == alarms.State(
        2, 4, 9, ((1, True), (2, False), (3, True)), 3, 8
    )
    for wrong in ({"recent": [[1]]}, {"since": "x"}, {"quiet": None}):
        with pytest.raises(UserError, match="stored state of the alarms"):
            alarms.from_dict(held | wrong, alarms.start("1/2", 5))
    with pytest.raises(UserError, match="at least 0"):
        alarms.start("1/2", -1)


def test_there_are_no_streams_of_sound():
    sound = SimpleNamespace(modality=SimpleNamespace(name="sound"), words=SimpleNamespace(kind="recordings"))
    for refused in (lambda: modalities.check(sound), lambda: modalities.open_source(sound, "-", True)):
        with pytest.raises(UserError, match="this is a detector of recordings"):
            refused()


def test_ranges_without_data_follow_from_the_scaling():
    found = reference._ranges_from_scaling(scorer_of())
    assert found.low.tolist() == [2 - 10 * 2, 15 - 10 * 5] and found.high.tolist() == [22, 65]
    assert found.runs.tolist() == [0, 0]
    images = SimpleNamespace(low=0, high=255, feature_names=())
    assert len(reference._ranges_from_scaling(images).low) == 0


@pytest.fixture
def found_items(monkeypatch):
    """Makes `reference.learn` find these items; the score of an item is its first value."""

    def set_to(items, has_latent=True):
        made = SimpleNamespace(**vars(scorer_of()), detector=SimpleNamespace(has_latent=has_latent))
        called = type("Called", (SimpleNamespace,), {"__call__": lambda self, x: np.asarray(x)[:, 0]})(**vars(made))
        monkeypatch.setattr(reference, "_items_of_source", lambda *_: ((items, items), 1))
        monkeypatch.setattr(reference, "_latents", lambda scorer, items: np.asarray(items) + 1)
        return called

    return set_to


def test_what_is_learned_of_normal_data(found_items):
    x = np.stack([np.arange(60.0), np.arange(60.0) + 10], axis=1)
    x[7, 0] = np.nan
    found = reference.learn(found_items(x), None, "normal.csv")
    assert found.notes == () and found.scores.tolist() == np.delete(np.arange(60.0), 7).tolist()
    np.testing.assert_array_equal(found.latents, x + 1)
    for items, latent, words in ((x, False, "tiled images"), (x[: drift.MIN_SCORES - 1], True, "49 calibration items")):
        found = reference.learn(found_items(items, latent), None, "normal.csv")
        assert found.latents is None and len(found.scores) == len(items) - 1 and words in found.notes[0]
    assert reference.learn(found_items(x[10 : 10 + drift.MIN_SCORES]), None, "normal.csv").latents is not None


def test_normal_data_without_a_normal_item_are_refused(monkeypatch):
    dataset = SimpleNamespace(classes=("good", "bad"), labels=np.array([1, 1, 0]), images=np.arange(3))
    made = SimpleNamespace(**vars(scorer_of()), reading=lambda source: SimpleNamespace(abnormal="bad"))
    monkeypatch.setattr(reference.sources, "read", lambda settings: dataset)
    monkeypatch.setattr(reference.splits, "normal_classes", lambda dataset, abnormal: {"good"} - {abnormal})
    (first, second), every = reference._items_of_source(made, "x.csv")
    assert list(first) == list(second) == [2] and every == 1
    dataset.labels = np.array([1, 1, 1])
    with pytest.raises(UserError, match=r"--normals x\.csv: no normal items"):
        reference._items_of_source(made, "x.csv")


def test_defaults_change_nothing():
    scorer = scorer_of()
    plain = watch.Settings(scorer, step, NORMAL, sensor_checks.Settings())
    assert (plain.top, plain.drift_step) == (3, 0) and options.Options("-").drift_step == 0
    assert sensor_checks.Settings() == sensor_checks.Settings(5, 30) and alarms.State() == alarms.State(
        3, 5, 60, (), 0, 0
    )
    assert [made.is_replayable for made in (inputs.Pipe, inputs.File, inputs.Folder)] == [False, True, True]


def test_units_are_the_ratios_that_they_say():
    told = sensor_checks.explain_out_of_range
    base = np.array([10.0, 12, 11, 14])
    for factor in (1000, 1 / 1000, 60, 1 / 60, 3.6, 1 / 3.6, 100, 1 / 100):
        event, more = told(base * factor, 10.0, 10.0, 20.0)
        assert event == "sensor_unit" and more["factor"] == pytest.approx(factor, rel=1e-9)
        assert f"{factor:.0f}" in more["words"] or "1/" in more["words"] or factor < 1 or factor == 3.6


def test_ranges_of_items_leave_out_what_is_missing_and_widen_what_never_changed():
    x = np.array([[0, 5], [1, 5], [1, np.nan], [4, 5]], float)
    more = np.array([[2, 5], [np.nan, 5]], float)
    found = reference._normal_ranges(scorer_of(), (x, more), 1)
    assert found.low.tolist() == [0, 4] and found.high.tolist() == [4, 6] and found.runs.tolist() == [2, -1]
    nothing = np.full((3, 2), np.nan)
    nothing[:, 0] = [1, 2, 3]
    found = reference._normal_ranges(scorer_of(), (nothing, nothing[:0]), 1)
    assert found.low.tolist() == [1, -35] and found.high.tolist() == [3, 65] and found.runs.tolist() == [1, 1]
    # Of windows, only those that share no row count: here every second of those of 2 rows.
    windows = np.stack([np.stack([[i, i], [i + 1, i + 1]]) for i in (0, 1, 2, 3)]).astype(float)
    windows[1] += 100
    found = reference._normal_ranges(scorer_of(2), (windows, windows[:1]), 2)
    assert found.high.tolist() == [3, 3]
    assert [reference._disjoint_stride(scorer_of(w, stride=s)) for w, s in ((0, 1), (3, 1), (3, 2), (4, 2))] == [
        1,
        3,
        2,
        2,
    ]


# The compiled step


def test_a_step_scores_few_one_by_one_and_many_in_blocks():
    called = []

    def run(size):
        def scored(variables, x):
            called.append(len(x))
            assert len(x) == size and variables == "weights"
            return {"score": x.sum(1), "p_value": x[:, 0]}

        return scored

    made = compiled_step.Step({1: run(1), 4: run(4)}, "weights", 0.0)
    x = np.arange(18.0).reshape(9, 2)
    found = made(x)
    assert called == [4, 4, 4] and found.latents is None and found.values is None
    np.testing.assert_array_equal(found.scores, x.sum(1))
    np.testing.assert_array_equal(found.p_values, x[:, 0])
    called.clear()
    np.testing.assert_array_equal(made(x[:8]).scores, x[:8].sum(1))
    assert called == [1] * 8


# Sensors


def checked(rows, settings=None, normal=NORMAL, times=None):
    """(row, event, sensor, state, rows) of everything that is said of rows of values."""
    health, found = sensor_checks.start(2), []
    for i, values in enumerate(rows, 1):
        row = row_parser.Row(np.array(values, float), *((times[i - 1], str(times[i - 1])) if times else ()))
        events, _ = sensor_checks.check(health, NAMES, normal, settings or sensor_checks.Settings(2, 4), row)
        found += [(i, e["event"], e.get("sensor"), e.get("state"), e.get("rows")) for e in events]
        held = json.loads(json.dumps(sensor_checks.to_dict(health), allow_nan=False))
        health = sensor_checks.from_dict(held, 2)  # as after a restart
    return found


def test_silence_begins_and_ends_at_its_number_of_rows():
    gap = lambda n: [(1, 11), *[(np.nan, 12 + i % 2) for i in range(n)], (2, 14)]  # noqa: E731
    assert checked(gap(1)) == []
    assert checked(gap(2)) == [(3, "sensor_silent", "a", "begins", 2), (4, "sensor_silent", "a", "ends", 2)]
    assert checked(gap(3)) == [(3, "sensor_silent", "a", "begins", 2), (5, "sensor_silent", "a", "ends", 3)]
    assert checked(gap(3), sensor_checks.Settings(0, 4)) == []


def test_a_sensor_is_stuck_after_three_times_its_longest_run():
    """a stayed the same for 2 rows in calibration, so 6 count; b for 0, so the 4 of the setting do."""
    rows = [(5, 11), *[(5, 12)] * 3, (5, 13), (5, 14), (6, 15), *[(7 + i % 2, 15) for i in range(3)], (7, 16)]
    assert checked(rows) == [
        (6, "sensor_stuck", "a", "begins", 6),
        (7, "sensor_stuck", "a", "ends", 6),
        (10, "sensor_stuck", "b", "begins", 4),
        (11, "sensor_stuck", "b", "ends", 4),
    ]
    assert checked(rows, sensor_checks.Settings(2, 0)) == []
    # A missing value interrupts nothing; a sensor that was constant in calibration is not watched.
    rows = [(1, 11), (2, 11), (3, np.nan), (4, 11), (5, 11)]
    assert checked(rows) == [(5, "sensor_stuck", "b", "begins", 4)]
    constant = sensor_checks.NormalRanges(NORMAL.low, NORMAL.high, np.array([2, -1]))
    assert checked(rows, normal=constant) == []


def test_times_twice_back_and_unreadable():
    rows = [(1, 11), (2, 12), (2, 12), (3, 13), (4, 14), (3, 13)]
    found = checked(rows, times=[10.0, 20.0, 20.0, 15.0, 20.0, 20.0])
    assert [one[:2] for one in found] == [(3, "row_duplicated"), (4, "row_out_of_order")]
    health, events = sensor_checks.start(2), []
    for text in ("noon", "later"):
        row = row_parser.Row(np.array([1.0, 11]), None, text)
        events += sensor_checks.check(health, NAMES, NORMAL, sensor_checks.Settings(), row)[0]
    assert events == [{"event": "time_unreadable", "value": "noon"}]
    held = sensor_checks.to_dict(health)
    assert sensor_checks.from_dict(held, 2).unreadable_time is True
    for wrong in ({"at": None}, {"recent": [[1.0, 2.0]]}, {"missing": [0]}, {"clock": "x"}):
        with pytest.raises(UserError, match="stored state of the sensors is invalid"):
            sensor_checks.from_dict(held | wrong, 2)


def test_values_are_far_only_beyond_the_margin():
    """The range of a is 0 to 10; values up to half its width outside are not far."""
    n, edge = sensor_checks.RING_ROWS, 10 + 10 * sensor_checks._RANGE_MARGIN
    wiggle = [0.01 * (i % 7) for i in range(n)]
    for level, far in ((edge - 0.07, False), (edge + 0.01, True), (-edge + 10 - 0.08, True)):
        found = checked([(5, 11), *[(level + w, 11 + i % 3) for i, w in enumerate(wiggle)], (5, 12)])
        expected = [(n + 1, "sensor_range", "a", "begins", None), (n + 2, "sensor_range", "a", "ends", None)]
        assert found == (expected if far else []), level
    assert checked([(5, 11), *[(edge + 1 + w, 11 + i % 3) for i, w in enumerate(wiggle[1:])], (5, 12)]) == []


def test_units_at_their_limits():
    told = sensor_checks.explain_out_of_range
    base = np.array([10.0, 12, 11, 14])
    assert told(base * 1000, 10.0, 10.0, 20.0)[1]["factor"] == 1000
    assert told(base * 1000, np.nan, 10.0, 20.0)[0] == "sensor_unit"
    assert told(base * 1000, 20.0, 10.0, 20.0)[0] == "sensor_range"  # it did not go on where the sensor was
    assert told(base * 1000, 10.0, -10.0, 20.0)[0] == "sensor_range"  # a range with 0 in it has no factor
    assert told(-base * 1000, 10.0, 10.0, 20.0) == ("sensor_range", {})
    assert told(np.array([]), 10.0, 10.0, 20.0) == told(base, 10.0, 10.0, 10.0) == ("sensor_range", {})
    assert told(np.append(base, np.inf) * 1000, 10.0, 10.0, 20.0) == ("sensor_range", {})


def test_longest_runs_by_hand():
    x = np.array([[1, 1, 1], [1, 2, 1], [2, 2, 1], [2, 2, 1], [2, 3, 1]])
    assert sensor_checks.longest_runs(x).tolist() == [3, 3, -1]


# Lines of text


def row_of(line, kind="", time="", header=NAMES):
    return row_parser.parse(row_parser.Format(NAMES, kind, time, header), line.encode())[1]


def test_cells_are_numbers_missing_or_unreadable():
    row = row_of("1e3, NA ")
    assert row.values[0] == 1000 and np.isnan(row.values[1]) and row.unreadable == () and row.absent == ()
    row = row_of("x,None")
    assert np.isnan(row.values).all() and row.unreadable == (("a", "x"),)
    row = row_of('{"b": true, "c": 4}', "jsonl")
    assert row.values[1] == 1 and np.isnan(row.values[0]) and row.absent == ("a",) and row.unreadable == ()
    row = row_of('{"a": [1], "b": "2.5"}', "jsonl")
    assert row.values[1] == 2.5 and row.unreadable == (("a", "[1]"),)
    for text, why in (("[1, 2]", "not a JSON object"), ("{", "not JSON: ")):
        row = row_of(text, "jsonl")
        assert row.problem.startswith(why) and np.isnan(row.values).all()
    assert row_of("1,2,3").problem == "3 values, the header has 2"
    assert row_of('"1,2').problem and row_of("  ") is None
    assert row_of('{"a": 1, "b": "' + "x" * 100 + '"}', "jsonl").unreadable == (("b", "x" * 64),)


def test_a_header_among_the_rows_is_more_than_half_of_the_sensors():
    fmt = row_parser.Format(("a", "b", "c", "d"), "csv", "", ("a", "b", "c", "d"))
    again, row = row_parser.parse(fmt, b"d,c,b,x")
    assert row is None and again.header == ("d", "c", "b", "x")
    same, row = row_parser.parse(fmt, b"a,b,1,2")
    assert same == fmt and row.unreadable == (("a", "a"), ("b", "b"))


def test_the_column_of_the_time_is_named_or_usual():
    header = ("time", "t2", "a", "b")
    assert row_of("5,6,1,2", header=header).time == 5 and row_of("5,6,1,2", time="t2", header=header).time == 6
    assert row_of("1,2").time is None and row_of("inf,6,1,2", header=header).time is None
    row = row_of("2024-01-01T01:00:00+01:00,6,1,2", header=header)
    assert row.time == 1704067200 and row.time_text == "2024-01-01T01:00:00+01:00"
    assert row_of('{"time": true, "a": 1, "b": 2}', "jsonl").time is None


# The limit of CUSUM


def test_the_limit_of_cusum_at_its_ends():
    rise = np.array([-1.0, 0.5])
    assert run_length.limit_for(rise, 1.0) == 0.05  # any limit is passed as seldom as that
    limit = run_length.limit_for(rise, 50.0, seed=3)
    draws = np.random.RandomState(3).dirichlet(np.ones(2), run_length.DIRICHLET_DRAWS)
    rate = (1 / run_length.run_lengths(rise, draws, limit)).mean()
    assert 1 / rate == pytest.approx(50, rel=0.2)
    with pytest.raises(UserError, match="not possible with 1 calibration scores"):
        run_length.limit_for(np.array([-0.1, 30.0]), 1e6)
