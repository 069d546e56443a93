"""What is kept of a stream and what is shown of it, by hand."""

import io
import json
import math

import numpy as np
import pytest

from ganomaly_jax.core.errors import UserError
from ganomaly_jax.report import figures
from ganomaly_jax.streaming import dashboard, plot, summary
from ganomaly_jax.streaming.watch import RowOutput


def verdict(row, score, word=None, **more):
    word = word or ("invalid" if score is None else "anomalous" if score > 5 else "normal")
    return {"row": row, "score": score, "p_value": None if score is None else 0.25, "verdict": word, **more}


def seen_of(scores, events=(), drift=None):
    """A summary of scores, one a row from 1, None for an invalid one."""
    made = summary.Summary()
    for event in events:
        summary.add(made, RowOutput(event["row"], (event,), None))
    for row, score in enumerate(scores, 1):
        summary.add(made, RowOutput(row, (), verdict(row, score), drift or {}))
    return made


def alarm(row, state, since):
    return {"event": "alarm", "row": row, "state": state, "since": since}


# What is kept


def test_full_bins_are_merged_in_pairs(monkeypatch):
    monkeypatch.setattr(summary, "MAX_BINS", 4)
    made = seen_of([1.0, 2.0, None, 9.0])
    assert (made.width, made.filled, made.verdicts, made.anomalous, made.invalid) == (1, 1, 4, 1, 1)
    assert [one.count for one in made.bins] == [1, 1, 0, 1] and math.isnan(made.bins[2].highest)
    for row, score, drift in ((5, 4.0, {}), (6, 3.0, {"ks": 0.4}), (7, 6.0, {"ks": 0.6})):
        summary.add(made, RowOutput(row, (), verdict(row, score), drift))
    assert (made.width, made.filled, made.verdicts) == (2, 1, 7)
    found = [(one.first, one.last, one.highest, one.total, one.count, one.anomalous) for one in made.bins]
    assert found == [(1, 2, 2, 3, 2, 0), (3, 4, 9, 9, 1, 1), (5, 6, 4, 7, 2, 0), (7, 7, 6, 6, 1, 1)]
    assert [one.drift for one in made.bins] == [{}, {}, {"ks": 0.4}, {"ks": 0.6}]
    assert made.last == verdict(7, 6.0)


def test_an_alarm_stands_until_it_ends():
    made = seen_of([1.0], [alarm(3, "begins", 2)])
    assert made.alarm == 2
    summary.add(made, RowOutput(4, ({"event": "drift", "row": 4}, alarm(4, "ends", 2)), None))
    assert made.alarm == 0 and made.verdicts == 1 and len(made.events) == 3


def test_a_summary_survives_json_and_nonsense_is_refused(monkeypatch):
    monkeypatch.setattr(summary, "MAX_BINS", 4)
    made = seen_of([1.0, None, 9.0, 2.0, 3.0], [alarm(3, "begins", 2)], {"ks": 0.5})
    values = json.loads(json.dumps(summary.to_dict(made), allow_nan=False))
    again = summary.from_dict(values)
    assert summary.to_dict(again) == summary.to_dict(made) and again.last == made.last and again.alarm == 2
    assert [math.isnan(one.highest) for one in again.bins] == [math.isnan(one.highest) for one in made.bins]
    for wrong in ({}, values | {"width": "x"}, values | {"bins": [1]}, values | {"events": [3]}):
        with pytest.raises(UserError, match="stored state of the summary is invalid"):
            summary.from_dict(wrong)


# On the terminal


def shown(made, threshold=5.0, title="plant", width=80):
    console = pytest.importorskip("rich.console").Console(file=io.StringIO(), width=100, record=True)
    console.print(dashboard.render(made, title, threshold, width))
    return [line[2:-2].rstrip() for line in console.export_text().splitlines()]


def test_columns_are_as_high_as_their_scores():
    lines = shown(seen_of([0.0, 10.0, 5.0, None]))
    bars = [line.ljust(16) for line in lines[3:11]]
    # From 0 to 10 over eight lines with a twentieth left free: 0.4, 7.6 and, in the middle at 4, the threshold.
    assert "".join(line[0] for line in bars) == "   ─   ▃"
    assert "".join(line[1] for line in bars) == "▅███████"
    assert "".join(line[2] for line in bars) == "   ─████"
    assert [line[3:].rstrip() for line in bars] == ["", "", "", "─ threshold", "", "", "", ""]
    assert lines[1].split() == ["invalid", "row", "4", "4", "verdicts,", "1", "anomalous,", "1", "invalid"]


def heights(scores, **options):
    """How many lines each column reaches."""
    bars = [line.ljust(16) for line in shown(seen_of(scores), **options)[3:11]]
    return [sum(line[i] in "▁▂▃▄▅▆▇█" for line in bars) for i in range(len(scores[-options.get("width", 80) :]))]


def test_wide_ranges_are_logarithmic_and_the_last_bins_are_shown():
    assert heights([1.0, 1.0, 10.0, 100.0], threshold=10.0, width=3) == [1, 4, 8]
    assert heights([1.0, 10.0, 20.0], threshold=10.0) == [1, 4, 8]  # 20 is not more than 20 times 1
    assert heights([1.0, 4.0, 20.2], threshold=4.0) == [1, 4, 8]  # this is: in the middle of the logarithms
    assert heights([5.0]) == [4]  # there is no range
    assert "no scores yet" in shown(seen_of([None, None]))[3]


def test_the_last_verdict_drift_and_events_are_lines():
    made = seen_of([1.0], [alarm(i, "begins", i) for i in range(1, 9)], {"ks": 0.5, "mmd": 0.7, "cusum": 1.25})
    summary.add(made, RowOutput(1234, (), verdict(1234, 2.5, top=[["a\x1b", 1.5], ["b", -0.25]], latency_ms=3.14159)))
    made.bins[-1].drift = {"ks": 0.5, "mmd": 0.7, "cusum": 1.25}
    made.events[-1] |= {"sensor": "s\x1b[31m", "words": "w"}
    lines = shown(made)
    assert lines[1].split() == [
        "normal",
        "row",
        "1,234",
        "2",
        "verdicts,",
        "0",
        "anomalous",
        "ALARM",
        "since",
        "row",
        "8",
    ]
    text = "\n".join(lines)
    assert "score 2.5, threshold 5, p-value 0.25, 3.1 ms" in text
    assert "most from a" in text and "+1.5, b -0.25" in text and "\x1b" not in text
    for test, full, share in (("ks", 15, "50%"), ("mmd", 21, "70%"), ("cusum", 30, "125%")):
        [line] = [line for line in lines if line.startswith(f"drift {test}")]
        assert line.count("█") == full and line.count("·") == 30 - full and f"{share} of its limit" in line
    told = [line for line in lines if line.startswith("row ")]
    assert [line.split()[1] for line in told] == ["3", "4", "5", "6", "7", "8"]
    assert told[0].endswith("alarm: begins") and "begins, w" in told[-1]
    assert dashboard._event_line({"event": "source_truncated", "row": 3}) == "row         3  source truncated"
    quiet = "\n".join(shown(seen_of([1.0])))
    assert "most from" not in quiet and "drift" not in quiet and "ALARM" not in quiet and "invalid" not in quiet


def test_a_view_is_redrawn_on_standard_error(capsys):
    pytest.importorskip("rich")
    view = dashboard.View("plant", 5.0)
    view.show(seen_of([1.0, 2.0]))
    view.close()
    said = capsys.readouterr()
    assert said.out == "" and "plant" in said.err and "threshold 5" in said.err and "2 verdicts" in said.err


# As a figure


def drawn(made, threshold=5.0):
    pytest.importorskip("matplotlib")
    figure = figures.new_figure(9.0, plot.figure_height(made))
    plot.draw(figure, made, threshold, "plant $1$")
    return figure


def lines_of(axes):
    return {line.get_label(): np.asarray(line.get_xydata(), float).tolist() for line in axes.get_lines()}


def test_a_figure_of_scores_alone():
    figure = drawn(seen_of([1.0, 9.0, None, 3.0]))
    [axes] = figure.axes
    assert plot.figure_height(seen_of([1.0])) == 3.0 and axes.get_title(loc="left") == "plant $1$"
    found = lines_of(axes)
    np.testing.assert_array_equal(found["score"], [[1, 1], [2, 9], [3, math.nan], [4, 3]])
    assert found["anomalous"] == [[2, 9]] and found["threshold"] == [[0, 5], [1, 5]] and "mean" not in found
    assert axes.get_yscale() == "linear" and not axes.patches
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("row", "score")


def test_a_figure_of_bins_alarms_drift_and_events(monkeypatch):
    monkeypatch.setattr(summary, "MAX_BINS", 2)
    events = [alarm(2, "begins", 1), alarm(3, "ends", 1), alarm(4, "begins", 4)]
    events += [{"event": "sensor_stuck", "row": 2, "sensor": "a\x1b"}, {"event": "drift", "row": 3, "test": "ks"}] * 2
    made = seen_of([0.1, 0.3, 0.2, 8.0], events, {"ks": 0.5, "cusum": 40.0})
    assert plot.figure_height(made) == pytest.approx(3 + 1.8 + 0.5 + 0.22 * 3)
    scores, drift, marks = drawn(made).axes
    found = lines_of(scores)
    assert found["highest of 2 verdicts"] == [[1.5, 0.3], [3.5, 8.0]]
    np.testing.assert_allclose(found["mean"], [[1.5, 0.2], [3.5, 4.1]])
    assert found["anomalous"] == [[3.5, 8.0]]
    spans = sorted((patch.get_x(), patch.get_x() + patch.get_width()) for patch in scores.patches)
    assert spans == [(1, 3), (4, 4)]
    assert lines_of(drift)["ks"] == [[1.5, 0.5], [3.5, 0.5]] and lines_of(drift)["cusum"] == [[1.5, 40], [3.5, 40]]
    assert drift.get_yscale() == "symlog" and drift.get_yticks().tolist() == [0, 0.5, 1, 10, 100]
    assert drift.get_ylim()[0] == 0 and drift.get_ylabel() == "drift / limit" and len(drift.get_yticks(minor=True)) == 0
    names = [text.get_text() for text in marks.get_yticklabels()]
    assert names == ["alarm", "sensor stuck a\\x1b", "drift ks"]
    assert [line.get_xydata().tolist() for line in marks.get_lines()] == [
        [[2, 0], [3, 0], [4, 0]],
        [[2, 1], [2, 1]],
        [[3, 2], [3, 2]],
    ]
    assert marks.get_ylim() == (pytest.approx(2.6), pytest.approx(-0.6))


def test_scales_follow_from_what_is_there():
    # A score far above the others, all above 0: 20 times their median.
    for scores, threshold, scale in (
        ([1.0, 1.0, 21.0], 5.0, "log"),
        ([1.0, 1.0, 20.0], 5.0, "linear"),
        ([1.0, 1.0, 2.0], 21.0, "log"),
        ([0.0, 1.0, 50.0], 5.0, "linear"),
        ([1.0, 1.0, 50.0], -1.0, "linear"),
    ):
        assert drawn(seen_of(scores), threshold).axes[0].get_yscale() == scale, (scores, threshold)
    assert drawn(seen_of([1.0], drift={"ks": 3.0})).axes[1].get_yscale() == "linear"
    assert drawn(seen_of([])).axes[0].get_yscale() == "linear"
    many = [{"event": f"e{i}", "row": i} for i in range(12)] + [{"event": "e7", "row": 20}, alarm(1, "ends", 0)]
    assert plot._kinds(seen_of([], many)) == ["alarm", "e7", "e0", "e1", "e2", "e3", "e4", "e5"]
    assert plot._alarms(seen_of([], [alarm(2, "begins", 1)])) == [] and plot._alarms(seen_of([1.0], many)) == []
