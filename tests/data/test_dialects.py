"""Tables as other countries write them, and columns that are no sensors: recognised, or refused in a sentence."""

import datetime
import decimal
import signal

import numpy as np
import pytest

from ganomaly_jax.core import config, memory
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data.rows import clock, columns, dialects, tables, windows
from ganomaly_jax.data.rows.dialects import Dialect


@pytest.fixture
def read(tmp_path):
    def read(text, encoding="utf-8", **more):
        path = tmp_path / "a.csv"
        path.write_bytes(text.encode(encoding))
        return tables.read(path, **more)

    return read


@pytest.mark.parametrize(
    ("text", "values", "said"),
    [
        ("a;b\n0,143;2\n1,5;-3e2\n", [[0.143, 2], [1.5, -300]], "separated by semicolons, decimal comma"),
        ("a\tb\n1,5\t2\n3\t\n", [[1.5, 2], [3, np.nan]], "separated by tabs, decimal comma"),
        ("a;b\n1.5;2\n1000;3\n", [[1.5, 2], [1000, 3]], "separated by semicolons"),
        ("a|b\n1.5|2\n", [[1.5, 2]], "separated by pipes"),
        # The marks of other numbers tell what 1.234 and 1,234 are.
        ("a;b\n1.234;0,5\n12;2\n", [[1234, 0.5], [12, 2]], "decimal comma, thousands separated by points"),
        ("a;b\n1,234;0.5\n12;2\n", [[1234, 0.5], [12, 2]], "semicolons, thousands separated by commas"),
        ("a;b\n1.234.567,5;1\n", [[1234567.5, 1]], "decimal comma, thousands separated by points"),
        ("a;b\n1 234,5;1\n1\u00a0000;2\n", [[1234.5, 1], [1000, 2]], "thousands separated by spaces"),
        ("a;b\n1'234.5;1\n12\u2019345;2\n", [[1234.5, 1], [12345, 2]], "thousands separated by apostrophes"),
        ('a,b\n"1,000",0.5\n"12,500.25",7\n', [[1000, 0.5], [12500.25, 7]], "thousands separated by commas"),
        ('a,b\n"1,5",2\n"2,25",3\n', [[1.5, 2], [2.25, 3]], "decimal comma"),
        ("a;b\n0,123;\u22121,5\n", [[0.123, -1.5]], "decimal comma"),
        # Where commas separate columns, a point is a decimal mark; nothing is said of what everybody expects.
        ("a,b\n1.234,2\n", [[1.234, 2]], ""),
        ("a,b\ntrue,2\nFalse,3\n", [[1, 2], [0, 3]], ""),
    ],
)
def test_numbers_are_read_as_they_were_written(read, text, values, said):
    table = read(text)
    np.testing.assert_array_equal(table.values, values)
    assert table.columns == ("a", "b")
    assert said in table.notes[0] if said else table.notes == ()
    # What was learnt reads the same again, also of a part of the file that does not tell by itself.
    np.testing.assert_array_equal(read(text, stated=dialects.to_words(table.dialect)).values, values)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("Druck, bar;Fluss, l/s\n1,5;2,5\n", ("Druck, bar", "Fluss, l/s")),
        ('"Druck; bar","Fluss"\n1.5,2.5\n', ("Druck; bar", "Fluss")),
        ('"a";"b"\n"1,5";"2"\n', ("a", "b")),
        ('a, "b, c"\n1, 2\n', ("a", "b, c")),
        ("\ufeffa;b\n1,5;2\n", ("a", "b")),
        ("a\r\n1.5\r\n", ("a",)),
        ("a\n1.5\n", ("a",)),
        ("a,b\r1,2\r", ("a", "b")),
    ],
)
def test_headers(read, text, names):
    assert read(text).columns == names


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1252"])
def test_encodings(read, encoding):
    table = read("Öl °C;b\n1,5;2\n", encoding)
    assert table.columns == ("Öl °C", "b") and table.values.tolist() == [[1.5, 2]]
    assert {"cp1252": "Windows-1252", "utf-16": "UTF-16", "utf-32": "UTF-32"}.get(encoding, "") in table.notes[0]
    with pytest.raises(UserError, match="UTF-16 without a byte order mark"):
        read("a;b\n1,5;2\n", "utf-16-le")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (
            "a;b\n1.234;5\n2.345;6\n",
            r"column 'a' holds '1.234' in row 1, which may be 1.234 or 1234.*data.csv=semicolon,",
        ),
        (
            "a;b\n5;1,234\n",
            r"column 'b' holds '1,234' in row 1, .*semicolon,decimal-comma \(--csv for predict",
        ),
        ('a,b\n1,"1,000"\n', r"holds '1,000' in row 1, which may be 1000 or 1; .*data.csv=comma,decimal-point or"),
        ("a;b\n1,5;2.5\n", "column 'b' '2.5' .row 1. and column 'a' '1,5' .row 1. have different decimal marks"),
        ("a;b\n1,5;2\n2.5;3\n", "column 'a' '2.5' .row 2. and column 'a' '1,5' .row 1. have different decimal marks"),
        ("a;b|c\n1;2|3\n", "separated by semicolons or pipes: state which with --config.data.csv=semicolon or"),
        ("a;b\n1,5;2\n3,5\n", "row 2 has 1 values, the header 2, separated by semicolons"),
        (
            "a;b\n1,5;12 bar\n1,5;13 bar\n",
            "column 'b' holds text with digits, such as '12 bar' in row 1.*columns=-NAME",
        ),
        ("a;b\n1,5;ERR\n2;3\n", "column 'b' holds 'ERR' in row 1: expected numbers"),
        ("a;b\n1.2.3;1\n4.5.6;2\n", "column 'a' holds text with digits, such as '1.2.3'"),
    ],
)
def test_what_is_ambiguous_or_contradicts_itself_is_refused(read, text, match):
    with pytest.raises(UserError, match=match):
        read(text)


def test_what_is_stated_decides_what_the_file_leaves_open_and_nothing_else(read):
    text = "a;b\n1.234;5\n2.345;6\n"
    assert read(text, stated="semicolon,decimal-point").values[0, 0] == 1.234
    assert read(text, stated="semicolon,decimal-comma,thousands-point").values[0, 0] == 1234
    # Thousands that were never there may be the decimal mark of somebody else.
    for stated in ("semicolon,decimal-comma", "tab,decimal-point"):
        with pytest.raises(UserError, match="which may be"):
            read(text, stated=stated)
    assert read("a;b\n1.5;2\n", stated="semicolon,decimal-comma").values.tolist() == [[1.5, 2]]
    assert read("a;b|c\n1;2|3\n", stated="pipe").columns == ("c",)
    assert read("druck\n1,5\n", stated="semicolon").values.tolist() == [[1.5]]
    for wrong in ("colon", "comma,tab", "decimal-comma,decimal-point", "decimal-comma,thousands-comma"):
        with pytest.raises(UserError, match=r"data\.csv="):
            dialects.of_words(wrong)
    for words in (dialects.AUTO, "semicolon,decimal-comma,thousands-point,thousands-space", "tab"):
        assert dialects.to_words(dialects.of_words(words)) == words


def test_the_mark_may_appear_in_any_block(tmp_path, monkeypatch):
    """Blocks that do not tell are kept under both marks until one does."""
    monkeypatch.setattr("ganomaly_jax.data.rows.csv_files._BLOCK_CELLS", 4)
    path = tmp_path / "a.csv"
    path.write_text("t;a;label\n" + "1.234;1;0\n" * 5 + "7;0,5;0\n" + "2.345.678;;1\n" * 3)
    table = tables.read(path)
    assert table.values[:, 0].tolist() == [1234] * 5 + [7] + [2345678] * 3 and table.values[5, 1] == 0.5
    assert table.labels.tolist() == ["0"] * 6 + ["1"] * 3
    path.write_text("t;a\n" + "1.234;1\n" * 5 + "7;0.5\n" + "1;2,5\n")
    with pytest.raises(UserError, match=r"'2,5' \(row 7\) have different decimal marks"):
        tables.read(path)


def test_headers_of_many_columns_take_linear_time(tmp_path):
    n = 100_000
    path = tmp_path / "wide.csv"
    rows = (",".join(["1"] * n) + "\n") * 2
    signal.alarm(60)  # two seconds; four minutes where each name is compared with all others
    path.write_text(",".join(f"c{i}" for i in range(n)) + "\n" + rows)
    assert len(tables.read(path).columns) == n
    path.write_text(",".join(f"c{i % (n // 2)}" for i in range(n)) + "\n" + rows)
    with pytest.raises(UserError, match=r"several columns are called c0, .* and 49992 more"):
        tables.read(path)
    signal.alarm(0)


# Times


@pytest.mark.parametrize(
    ("cell", "iso"),
    [
        ("2024-05-12", "2024-05-12T00:00:00"),
        ("2024-05-12 10:30:05", "2024-05-12T10:30:05"),
        ("2024-05-12T10:30:05.25", "2024-05-12T10:30:05.250000"),
        ("2024/05/12 10:30", "2024-05-12T10:30:00"),
        ("2024-05-12T10:30:00+02:00", "2024-05-12T08:30:00Z"),
        ("12.05.2024 10:30", "2024-05-12T10:30:00"),
        ("1.5.2024", "2024-05-01T00:00:00"),
        ("31.12.2024 23:59:59,5", "2024-12-31T23:59:59.500000"),
        *(
            (cell, None)
            for cell in (
                "05/12/2024",
                "12.13.2024",
                "20240512",
                "1715509800",
                "10:30",
                "noon",
                "",
                "0001-01-01T00:00:00+09:00",
            )
        ),
    ],
)
def test_forms_of_times(cell, iso):
    found = clock.parse(cell)
    assert (None if found is None else clock.iso(found)) == iso


@pytest.mark.parametrize(
    ("text", "times"),
    [
        ("datetime,a\n2024-05-12 10:30:00,1\n,2\n", ["2024-05-12T10:30:00", ""]),
        ("a;Zeit\n1,5;12.05.2024 10:30\n2;12.05.2024 10:31\n", ["2024-05-12T10:30:00", "2024-05-12T10:31:00"]),
        (
            "x,a\n2024-01-01T00:00:00Z,1\n2024-01-02 00:00:00+01:00,2\n",
            ["2024-01-01T00:00:00Z", "2024-01-01T23:00:00Z"],
        ),
        ("timestamp,a\n1700000000,1\n1700000000.5,2\n", ["1700000000", "1700000000.5"]),
        ("date,a\n20240101,1\n20240102,2\n", None),  # numbers are times only under names that say so
        ("index,a\n0,1\n1,2\n", None),
        ("x,a\n2024-01-01T00:00:00Z,1\n2024-01-02 00:00:00,2\n", "refused"),  # some with a zone, some without
    ],
)
def test_a_column_of_times_is_the_time_axis(read, text, times):
    if times == "refused":
        with pytest.raises(UserError, match="column 'x' holds text with digits"):
            read(text)
        return
    table = read(text)
    assert table.columns == ("a",) and (table.times and table.times.text()) == times
    if times:
        assert table.notes[-1].startswith("a.csv: the time of a row is ")


def test_times_that_cannot_be_read_and_times_of_day_are_named(read):
    table = read("time,a\n5/6/24,1\n5/7/24,2\n")
    assert table.times is None and "time holds '5/6/24', which is not a time: expected ISO 8601" in table.notes[-1]
    table = read("Datum;Uhrzeit;a\n01.02.2024;10:30;1\n02.02.2024;10:31;2\n")
    assert table.columns == ("a",) and table.times.text()[0] == "2024-02-01T00:00:00"
    assert "because they contain words: Uhrzeit ('10:30')" in table.notes[1]


def test_items_keep_the_times_of_their_last_rows(tmp_path):
    lines = [f"2024-01-01 00:00:{i:02},{i}" for i in range(20)]
    (tmp_path / "a.csv").write_text("\n".join(["time,a", *lines]) + "\n")
    made = windows.load(tmp_path / "a.csv", config.Data(window=4, stride=3))
    assert made.layout.times.text() == [f"2024-01-01T00:00:{i:02}" for i in range(3, 20, 3)]
    (tmp_path / "b.csv").write_text("a\n1\n2\n3\n4\n")
    assert windows.load(tmp_path, config.Data()).layout.times is None  # not all files have times


def test_what_was_learnt_of_a_plant_is_known_afterwards(tmp_path):
    (tmp_path / "a.csv").write_text("a;b\n1,5;2\n1.234,5;3\n")
    (tmp_path / "b.csv").write_text("a;b\n1.234;2\n")  # by itself this file does not tell
    made = windows.load(tmp_path, config.Data())
    assert made.images[2, 0] == 1234 and made.layout.csv == "semicolon,decimal-comma,thousands-point"
    (tmp_path / "a.csv").write_text("a,b\n1.5,2\n")
    (tmp_path / "b.csv").unlink()
    assert windows.load(tmp_path, config.Data()).layout.csv == dialects.AUTO  # as configurations always were


# Files with types


def test_parquet_decimals_text_and_times_are_sensors_and_times(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    when = datetime.datetime(2024, 5, 12, 10, 30)
    held = {
        "a": [decimal.Decimal("1.50"), None],
        "b": ["1,5", "1.000,25"],
        "c": pyarrow.array(["x", "y"]).dictionary_encode(),
        "at": [when, when + datetime.timedelta(seconds=90)],
        "d": pyarrow.array([None, None], pyarrow.null()),
    }
    parquet.write_table(pyarrow.table(held), tmp_path / "a.parquet")
    table = tables.read(tmp_path / "a.parquet")
    assert table.columns == ("a", "b")
    np.testing.assert_array_equal(table.values, [[1.5, 1.5], [np.nan, 1000.25]])
    assert table.times.text() == ["2024-05-12T10:30:00", "2024-05-12T10:31:30"]
    assert [note.rpartition(": ")[2] for note in table.notes[1:3]] == ["c ('x')", "d"]
    parquet.write_table(pyarrow.table({"a": [1.0, 2.0], "b": ["12 bar", "13 bar"]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="column 'b' holds text with digits, such as '12 bar'"):
        tables.read(tmp_path / "a.parquet")


def test_a_parquet_file_does_not_promise_more_than_the_memory(tmp_path, monkeypatch):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"a": np.zeros(100_000)}), tmp_path / "a.parquet")  # 800,000 bytes become 2,000
    monkeypatch.setattr(memory, "free_memory", lambda: 700_000)
    with pytest.raises(UserError, match="declares 100000 rows of 1 columns"):
        tables.read(tmp_path / "a.parquet")


def test_frames_are_read_as_files_are():
    pandas = pytest.importorskip("pandas")
    at = pandas.date_range("2024-05-12 10:30", periods=2, freq="1min")
    held = {"a": [decimal.Decimal("1.5"), None], "b": ["1,000", "0.5"], "at": at, "on": [True, False]}
    table = tables.as_table(pandas.DataFrame(held), "the frame")
    assert table.columns == ("a", "b", "on") and table.times.text()[1] == "2024-05-12T10:31:00"
    np.testing.assert_array_equal(table.values, [[1.5, 1000, 1], [np.nan, 0.5, 0]])
    held["at"] = at.tz_localize("Europe/Berlin")
    assert tables.as_table(pandas.DataFrame(held), "the frame").times.text()[0] == "2024-05-12T08:30:00Z"


def test_the_dialect_does_not_depend_on_the_order_of_rows_or_columns():
    random = np.random.default_rng(0)
    cells = ["1.234", "0,5", "1.234.567", "12", "", "x"]
    for _ in range(50):
        rows = [random.permutation([*cells[:2], str(random.choice(cells))]).tolist() for _ in range(5)]
        growing = columns.begin("t", ["a", "b", "c"], (), (), "label")
        for i in range(0, 5, 2):
            columns.add(growing, rows[i : i + 2])
        found, dialect = columns.finished(growing, Dialect(), ";")
        assert dialect.decimal == ","
        for k, column in enumerate(found):
            wanted = [dialects.parsed(row[k], ",") for row in rows]
            np.testing.assert_array_equal(column.numbers, [np.nan if one is None else one[0] for one in wanted])


def test_a_quote_that_swallows_lines_is_refused(read):
    """Half of the rows would be gone, and the sensor left out as a column of words."""
    for text in ("a,b\n" + '1,"2\n' * 6, 'a,b\n1,"2\n3,4\n'):
        with pytest.raises(UserError, match="cannot be read"):
            read(text)
    assert read('a,5" pipe\n1,2\n3,4\n').columns == ("a", '5" pipe')
