"""Streams that are written as in other countries: the rules of files, line by line."""

import json

import numpy as np
import pytest

from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data.rows import dialects
from ganomaly_jax.streaming import row_parser

PLANT = "semicolon,decimal-comma,thousands-point"


def parsed(text, stated="", **more):
    """(rows, format) of lines, for the sensors a and b."""
    fmt = row_parser.Format(("a", "b"), stated=dialects.of_words(stated), **more)
    rows = []
    for line in text if isinstance(text, list) else text.encode().split(b"\n"):
        fmt, row = row_parser.parse(fmt, line)
        rows += [] if row is None else [row]
    return rows, fmt


@pytest.mark.parametrize(
    ("text", "stated", "values"),
    [
        ("a;b\n1,5;2\n3;4,25", "", [[1.5, 2], [3, 4.25]]),
        ("a;b\n1,5;1.234,5", PLANT, [[1.5, 1234.5]]),
        ("a;b\n1.234;1", PLANT, [[1234, 1]]),
        ("a\tb\n1.5\t2", "", [[1.5, 2]]),
        ('"b"; "x"; "a"\n"1,5";7;2', "", [[2, 1.5]]),
        ("a,b\n1.5,2", PLANT, [[1.5, 2]]),  # another program, which separates by commas: what was learnt is of others
        ("a,b\n1.234,true", "", [[1.234, 1]]),
        ("Druck, bar;a;b\n1;1,5;2", "", [[1.5, 2]]),
        # Not known until a number tells; a mark that contradicts what is known is no number.
        ("a;b\n1;2\n1.234;5\n0,5;1.234", "", [[1, 2], [np.nan, 5], [0.5, np.nan]]),
        ("a;b\n12.5;1", "semicolon,decimal-comma", [[np.nan, 1]]),
        ("a;b\n1.234;1", "semicolon,decimal-comma", [[np.nan, 1]]),
        ('a,b\n"1,234","1,5"', "", [[np.nan, np.nan]]),
        ('{"a": "1.5", "b": "1,5"}\n{"a": 1, "b": true}', PLANT, [[1.5, np.nan], [1, 1]]),
    ],
)
def test_rows_are_read_as_they_are_written(text, stated, values):
    rows, _ = parsed(text, stated)
    np.testing.assert_array_equal([row.values for row in rows], values)
    for row in rows:  # nothing is lost without being named
        assert len(row.unreadable) == np.isnan(row.values).sum() and not row.problem


def test_a_header_that_may_be_split_in_two_ways_is_stated():
    with pytest.raises(UserError, match=r"semicolons or pipes: state which with .*--csv"):
        parsed("a;x|b")
    assert parsed("a;x|b", "pipe")[1].header == ("a;x", "b")


def test_encodings_of_a_stream():
    rows, fmt = parsed(["a;b;Öl".encode("cp1252"), b"1,5;2;3"])
    assert fmt.header[2] == "Öl" and rows[0].values.tolist() == [1.5, 2]
    assert parsed(["\ufeffa;b".encode(), b"1;2"])[1].header == ("a", "b")
    for encoding in ("utf-16", "utf-16-le"):
        with pytest.raises(UserError, match="UTF-16: expected UTF-8"):
            parsed("a;b\n".encode(encoding).split(b"\n"))


@pytest.mark.parametrize(
    ("text", "seconds", "shown"),
    [
        ("datetime,a,b\n2024-01-01 00:00:10,1,2", 1704067210, "2024-01-01T00:00:10"),
        ("a;b;Zeit\n1;2;01.01.2024 00:00:10", 1704067210, "2024-01-01T00:00:10"),
        ("a,b,x\n1,2,2024-01-01T01:00:10+01:00", 1704067210, "2024-01-01T00:00:10Z"),
        ("timestamp,a,b\n7.5,1,2", 7.5, 7.5),
        ("time,a,b\nnoon,1,2", None, None),
        ("a,b\n1,2", None, None),
        ('{"at": "2024-01-01T00:00:10Z", "a": 1, "b": 2}', 1704067210, "2024-01-01T00:00:10Z"),
        ('{"time": 7, "a": 1, "b": 2}', 7, 7),
    ],
)
def test_the_time_of_a_row(text, seconds, shown):
    (row,) = parsed(text)[0]
    assert (row.time, row.shown) == (seconds, shown)
    json.dumps(row.shown)
