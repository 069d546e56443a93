"""Axes of rows are labelled with times where these are known."""

import json

import pytest

from ganomaly_jax.report import figures, time_axis
from ganomaly_jax.streaming import plot, summary
from ganomaly_jax.streaming.watch import RowOutput

pytest.importorskip("matplotlib")


def labels_of(ax):
    ax.figure.canvas.draw()
    return [tick.get_text() for tick in ax.get_xticklabels()]


def test_ticks_are_the_times_of_the_nearest_rows():
    ax = figures.new_figure(6, 3).add_subplot()
    rows = [1, 2, 3, 4, 5]
    ax.plot(rows, rows)
    time_axis.label(ax, rows, [f"2024-05-12T10:3{i}:00" if i != 2 else "" for i in range(5)])
    found = labels_of(ax)
    assert ax.get_xlabel() == "time" and "2024-05-12\n10:30:00" in found and "2024-05-12\n10:34:00" in found
    assert not any("10:32" in one for one in found)
    time_axis.label(ax, rows, ["\x1b[31m"] * 5)
    assert all("\x1b" not in one for one in labels_of(ax))
    time_axis.label(ax, rows, [""] * 5)
    assert ax.get_xlabel() == "row"


def test_a_stream_with_times_is_drawn_over_them(monkeypatch):
    monkeypatch.setattr(summary, "MAX_BINS", 4)
    seen = summary.Summary()
    for row in range(1, 11):
        verdict = {"row": row, "score": 1.0, "p_value": 0.5, "verdict": "normal", "time": f"2024-05-12T10:{row:02}:00"}
        summary.add(seen, RowOutput(row, (), verdict))
    assert [one.time[-5:-3] for one in seen.bins] == ["04", "08", "10"]
    again = summary.from_dict(json.loads(json.dumps(summary.to_dict(seen))))
    assert [one.time for one in again.bins] == [one.time for one in seen.bins]
    figure = figures.new_figure(6, 3)
    plot.draw(figure, seen, 2.0, "stream")
    assert figure.axes[-1].get_xlabel() == "time" and "2024-05-12\n10:10:00" in labels_of(figure.axes[-1])
