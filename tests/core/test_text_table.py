import pytest

from ganomaly_jax.core import text_table


def test_columns_are_as_wide_as_their_widest_cell():
    rows = [("name", "count", "note"), ("a", "7", ""), ("longer", "1,024", "last")]
    assert text_table.lines(rows, right={1}) == ["name    count  note", "a           7", "longer  1,024  last"]


def test_rows_of_different_lengths_are_refused():
    with pytest.raises(ValueError):
        text_table.lines([("a", "b"), ("c",)])
