"""Where a stream comes from: files that grow, are cut, replaced or turned over, and what is no source."""

import json

import pytest

from ganomaly_jax.core.errors import UserError
from ganomaly_jax.streaming import inputs


def read_all(source, most=8):
    found = []
    for _ in range(most):
        lines = source.read(0.0001)
        found += [line.event["event"] if line.event else line.text.decode() for line in lines]
    return found


def test_a_file_that_grows_is_cut_or_replaced(tmp_path):
    path = tmp_path / "rows.csv"
    source = inputs.open_lines(str(path), False)
    assert read_all(source) == []
    path.write_text("a\n1\n2")
    assert read_all(source) == ["a", "1"]
    with path.open("a") as file:
        file.write("0\n3\n")
    assert read_all(source) == ["20", "3"]
    place = json.loads(json.dumps(source.position()))
    # Cut and written anew, longer than before: the size alone does not show it.
    path.write_text("a\n7\n8\n9\n10\n")
    assert read_all(source) == ["source_truncated", "a", "7", "8", "9", "10"]
    with path.open("a") as file:
        file.write("11")
    path.rename(tmp_path / "rows.csv.1")
    path.write_text("a\n12\n")
    assert read_all(source) == ["11", "source_rotated", "a", "12"]
    other = inputs.open_lines(str(path), False)
    assert [line.event["event"] for line in other.seek(place)] == ["source_replaced"]


def test_what_was_written_before_a_rotation_is_read_after_a_restart(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("a\n1\n")
    source = inputs.open_lines(str(path), False)
    read_all(source)
    place = source.position()
    with path.open("a") as file:
        file.write("2\n")
    path.rename(tmp_path / "rows.csv.1")
    path.write_text("a\n3\n")
    again = inputs.open_lines(str(path), False)
    assert again.seek(place) == []
    assert read_all(again) == ["2", "source_rotated", "a", "3"]


def test_a_line_without_end_is_told_of_and_not_kept(tmp_path):
    lines = inputs.LineBuffer()
    lines.add(b"a\n" + b"x" * (inputs.MAX_LINE + 1))
    lines.add(b"y" * 1000)
    assert len(lines.rest) <= 1000
    lines.add(b"\nb\n")
    assert [line.problem or line.text for line in lines.take()] == [
        b"a",
        f"a line longer than {inputs.MAX_LINE} bytes",
        b"b",
    ]


def test_what_is_no_source_is_refused(tmp_path):
    lines, folder = inputs.open_lines, inputs.open_folder
    for source, opener in ((tmp_path / "no" / "rows.csv", lines), (tmp_path, lines), (tmp_path / "rows.csv", folder)):
        with pytest.raises(UserError):
            opener(str(source), False)
    with pytest.raises(UserError, match="does not exist"):
        inputs.open_lines(str(tmp_path / "rows.csv"), True)
