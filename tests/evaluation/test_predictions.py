"""The table of predictions: its columns, and cells that a spreadsheet would take for formulas."""

import csv

import numpy as np
import pytest

from ganomaly_jax.core.printable import spreadsheet_safe
from ganomaly_jax.evaluation import predictions
from ganomaly_jax.scoring.judgement import Judgement

NAMES = ["=cmd|' /C calc'!A1.png", "+1", "-2+3.png", "@SUM(A1)", "\t=1", "\r=1", "plain=1.png", "\udcff.png"]
JUDGED = Judgement(
    np.array([-1.5, *[np.nan] * 7], np.float32),
    np.array([0.5, *[np.nan] * 7], np.float32),
    ["normal", *["invalid"] * 7],
)


def written(tmp_path, **more):
    reasons = ["", "=HYPERLINK(1)", *[""] * 6]
    predictions.write(tmp_path / "p.csv", NAMES, [None] * 8, JUDGED, reasons, **more)
    with (tmp_path / "p.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_names_are_written_as_they_are_unless_a_spreadsheet_opens_them(tmp_path):
    rows = written(tmp_path)
    assert [row["path"] for row in rows] == [*NAMES[:5], "\\r=1", NAMES[6], "\\udcff.png"] and "time" not in rows[0]
    rows = written(tmp_path, safe=True)
    assert [row["path"] for row in rows] == [*(f"'{name}" for name in NAMES[:5]), "\\r=1", NAMES[6], "\\udcff.png"]
    assert rows[1]["reason"] == "'=HYPERLINK(1)" and rows[0]["score"] == "-1.5"  # numbers stay numbers


def test_times_are_a_column(tmp_path):
    rows = written(tmp_path, times=["2024-05-12T10:30:00", *[""] * 7])
    assert [row["time"] for row in rows[:2]] == ["2024-05-12T10:30:00", ""]
    assert list(rows[0]) == ["path", "label", "score", "p_value", "verdict", "reason", "time"]


@pytest.mark.parametrize(("cell", "safe"), [("", ""), ("a-b", "a-b"), ("-1", "'-1"), ("'=1", "'=1")])
def test_cells(cell, safe):
    assert spreadsheet_safe(cell) == safe
