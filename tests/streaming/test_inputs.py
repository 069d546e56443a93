"""Where a stream comes from: files that grow, are cut, replaced or turned over, and what is no source."""

import json
import os

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


def test_the_longest_line_is_still_one(monkeypatch):
    monkeypatch.setattr(inputs, "MAX_LINE", 4)
    lines = inputs.LineBuffer()
    for data in (b"abcd", b"\nabcde", b"f\ng", b"\n"):
        lines.add(data)
    assert [line.problem or line.text for line in lines.take()] == [b"abcd", "a line longer than 4 bytes", b"g"]


def test_a_file_that_was_written_anew_before_its_first_read_after_a_restart(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("a\n1\n")
    source = inputs.open_lines(str(path), False)
    read_all(source)
    again = inputs.open_lines(str(path), False)
    assert again.seek(source.position()) == []
    path.write_text("b\n2\n3\n")
    assert read_all(again) == ["source_truncated", "b", "2", "3"]


@pytest.fixture
def waits(monkeypatch):
    """The seconds that a source would have slept."""
    slept = []
    monkeypatch.setattr(inputs.time, "sleep", slept.append)
    return slept


def texts(lines):
    return [line.text.decode() for line in lines]


def test_a_pipe_ends_with_its_writer_and_gives_its_last_line(waits):
    reading, writing = os.pipe()
    source = inputs.Pipe(reading)
    assert source.read(0.0) == [] and not source.ended and waits == []
    os.write(writing, b"a\n1\n2")
    assert texts(source.read(0.0)) == ["a", "1"]
    assert source.position() == {"kind": "pipe", "rest": "2"}
    os.close(writing)
    assert texts(source.read(0.0)) == ["2"] and source.ended and waits == []
    os.close(reading)
    again = inputs.Pipe(os.open(os.devnull, os.O_RDONLY))
    assert again.seek({"rest": "2"}) == [] and again.position()["rest"] == "2"
    assert texts(again.read(0.0)) == ["2"] and again.ended  # the line that the writer never ended
    os.close(again.descriptor)
    with pytest.raises(UserError, match="standard input is closed"):
        inputs.Pipe(again.descriptor)


def test_what_a_stopped_pipe_has_read_is_still_given():
    reading, writing = os.pipe()
    source = inputs.Pipe(reading)
    os.write(writing, b"".join(b"%d\n" % i for i in range(100)))
    assert len(source.read(0.0)) == inputs.MAX_LINES == 64
    source.stop()
    assert not source.ended
    os.write(writing, b"more\n")
    assert texts(source.read(0.0)) == [str(i) for i in range(64, 100)] and source.ended
    assert source.read(0.0) == []
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("once", [False, True])
def test_a_named_pipe_waits_for_its_first_writer_and_for_others(tmp_path, waits, once):
    path = tmp_path / "rows"
    os.mkfifo(path)
    source = inputs.open_lines(str(path), once)
    assert isinstance(source, inputs.Pipe) and source.read(0.0) == [] and not source.ended
    writing = os.open(path, os.O_WRONLY)
    os.write(writing, b"a\n1")
    assert texts(source.read(0.0)) == ["a"]
    os.close(writing)
    assert texts(source.read(0.1)) == (["1"] if once else []) and source.ended == once
    assert waits == ([] if once else [0.1])  # without a writer it is readable all the time
    os.close(source.descriptor)


def test_a_file_read_once_ends_at_its_end(tmp_path, waits):
    path = tmp_path / "rows.csv"
    path.write_text("a\n1\n2")
    source = inputs.open_lines(str(path), True)
    assert texts(source.read(0.1)) == ["a", "1"] and not source.ended
    assert texts(source.read(0.1)) == ["2"] and source.ended and waits == []
    assert source.position()["end"] == 5
    waiting = inputs.open_lines(str(path), False)
    assert texts(waiting.read(0.1)) == ["a", "1"] and waiting.read(0.1) == [] and waits == [0.1]
    assert not waiting.ended and waiting.position()["end"] == 4


def test_a_stopped_file_is_read_again_from_where_its_lines_were_taken(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("".join(f"{i}\n" for i in range(100)))
    source = inputs.open_lines(str(path), False)
    assert source.position() == {"kind": "file", "end": 0, "tail": "", "inode": path.stat().st_ino}
    assert texts(source.read(0.0)) == [str(i) for i in range(64)]
    source.stop()
    assert source.ended and source.read(0.0) == []
    place = source.position()
    assert place["end"] == len("".join(f"{i}\n" for i in range(64))) and place["tail"].endswith("\n63\n")
    assert len(place["tail"]) == 64 and place["inode"] == path.stat().st_ino
    again = inputs.open_lines(str(path), False)
    assert again.seek(place) == [] and again.position() == place
    assert texts(again.read(0.0)) == [str(i) for i in range(64, 100)]
    assert read_all(again) == []  # the bytes before are known: nothing looks truncated
    # A file that is not there yet is read from its beginning, whatever was read before.
    later = inputs.open_lines(str(tmp_path / "later.csv"), False)
    assert later.seek(place) == [] and later.position() == {"kind": "file", "end": 0, "tail": "", "inode": 0}
    (tmp_path / "later.csv").write_text("x\n")
    assert texts(later.read(0.0)) == ["x"]
    # One that is shorter now is another one.
    path.write_text(place["tail"])
    other = inputs.open_lines(str(path), False)
    assert [line.event["event"] for line in other.seek(place)] == ["source_replaced"]
    assert other.seek({"end": 0, "tail": "", "inode": 0}) == []


def put(folder, name, second, size=1):
    (folder / name).write_bytes(b"x" * size)
    os.utime(folder / name, (second, second))


def names(lines):
    return [os.path.basename(line.text.decode()) for line in lines]


def test_a_folder_gives_each_image_once_oldest_first(tmp_path, waits):
    for second, name in enumerate(["b.png", "a.JPG", ".hidden.png", "c.png.part", "notes.txt", "d.tif"]):
        put(tmp_path, name, 1e9 + second)
    source = inputs.open_folder(str(tmp_path), False)
    found = source.read(0.3)
    assert names(found) == ["b.png", "a.JPG", "d.tif"] and all(line.path for line in found) and waits == []
    assert source.read(0.3) == [] and waits == [0.3] and not source.ended
    put(tmp_path, "e.png", 1e9)
    assert names(source.read(0.3)) == ["e.png"]
    assert source.position() == {"kind": "folder", "done": ["a.JPG", "b.png", "d.tif", "e.png"]}
    again = inputs.open_folder(str(tmp_path), True)
    assert again.seek(source.position()) == []
    # A file that has gone is forgotten: one of its name is another image.
    (tmp_path / "b.png").unlink()
    assert again.read(0.0) == [] and again.ended and "b.png" not in again.done
    put(tmp_path, "b.png", 1e9)
    last = inputs.open_folder(str(tmp_path), True)
    last.seek(again.position())
    assert names(last.read(0.0)) == ["b.png"]


def test_a_folder_gives_a_few_at_a_time_and_forgets_them_when_it_stops(tmp_path):
    for i in range(11):
        put(tmp_path, f"{i:02}.png", 1e9 + i)
    source = inputs.open_folder(str(tmp_path), True)
    assert names(source.read(0.0)) == [f"{i:02}.png" for i in range(8)]
    source.stop()
    assert source.ended and source.read(0.0) == [] and len(source.position()["done"]) == 8
    again = inputs.open_folder(str(tmp_path), True)
    again.seek(source.position())
    assert names(again.read(0.0)) == ["08.png", "09.png", "10.png"] and not again.ended
    assert again.read(0.0) == [] and again.ended


def test_an_image_that_still_grows_waits_until_its_size_stays(tmp_path, monkeypatch, waits):
    monkeypatch.setattr(inputs.time, "time", lambda: 1e9)
    put(tmp_path, "a.png", 1e9 - 0.5)
    source = inputs.open_folder(str(tmp_path), True)
    assert source.read(0.2) == [] and not source.ended and waits == [0.2]
    put(tmp_path, "a.png", 1e9 - 0.4, size=2)
    assert source.read(0.2) == [] and not source.ended
    assert names(source.read(0.2)) == ["a.png"]
    assert source.read(0.2) == [] and source.ended
    put(tmp_path, "b.png", 1e9 - inputs._SETTLE_S)
    other = inputs.open_folder(str(tmp_path), False)
    assert "b.png" in names(other.read(0.0))
    for path in tmp_path.iterdir():
        path.unlink()
    tmp_path.rmdir()
    with pytest.raises(UserError, match="cannot be read"):
        other.read(0.0)
