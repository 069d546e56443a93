"""Queues of events: what is down, full, broken, killed or used twice loses nothing, or says so."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ganomaly_jax.core import atomic_files
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.streaming import event_queue, sinks
from ganomaly_jax.streaming.event_queue import Limits
from tests.streaming.test_webhook import OK, receiving

ROOT = Path(__file__).resolve().parents[2]
REFUSED, FAILS = b"HTTP/1.1 400 No\r\n\r\n", b"HTTP/1.1 500 Oh\r\n\r\n"


def quiet(line):
    pass


def ids(requests):
    return [json.loads(one.partition("\r\n\r\n")[2])["id"] for one in requests]


def sink_to(target, spool, log=quiet, **more):
    return sinks.Sink(sinks.receiver(str(target)), spool, log, first_wait=0.001, **more)


def delivered(sink):
    """Waits until a sink has delivered everything, closes it and returns what is left."""
    sink.drain(float("inf"))
    return sink.close()


class Held:
    """A receiver that takes nothing until it is told to, and then everything."""

    def __init__(self, folder):
        self.open, self.got, self.folder = threading.Event(), [], folder

    def sink(self, log=quiet, **limits):
        receiver = sinks.Receiver("held", "held", self.deliver)
        return sinks.Sink(receiver, self.folder, log, limits=Limits(**limits), first_wait=0.001)

    def deliver(self, data, name, timeout):
        if not self.open.is_set():
            raise sinks.DeliveryError("is shut")
        self.got.append(name)


def files(sink, part="."):
    return sorted(path.name for path in (sink.queue.folder / part).glob("*.json"))


def test_a_webhook_that_is_down_loses_nothing_and_holds_nothing_up(tmp_path):
    said = []
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    sink = sink_to(f"http://127.0.0.1:{port}/secret", tmp_path, said.append)
    for i in range(3):
        assert sink.put(f"s-{i}-0", {"event": "alarm", "row": i})
    assert sink.put("s-0-0", {"event": "alarm", "row": 0})  # the same again
    sinks.close_all([sink], 0.1)
    assert "cannot be reached" in said[0] and "3 events" in said[1] and "secret" not in "".join(said)
    with receiving(FAILS, OK, REFUSED, OK) as (port, got):
        receiver = sinks.receiver(f"http://127.0.0.1:{port}/")
        again = sinks.Receiver(receiver.name, f"http://127.0.0.1:{free_port(sink)}/secret", receiver.deliver)
        sink = sinks.Sink(again, tmp_path, said.append, first_wait=0.001)
        sink.put("s-3-0", {"event": "alarm", "row": 3})
        assert delivered(sink) == 0
        assert ids(got) == ["s-0-0", "s-0-0", "s-1-0", "s-2-0", "s-3-0"]
    assert files(sink) == [] and files(sink, "refused") == ["000000000001-s-1-0.json"]


def free_port(sink):
    return sink.name.rpartition(":")[2]


def test_a_queue_is_of_one_monitor(tmp_path):
    held = Held(tmp_path)
    sink = held.sink()
    try:
        with pytest.raises(UserError, match="another monitor"):
            held.sink()
    finally:
        sink.close()
    held.sink().close()


# Bounds


@pytest.mark.parametrize("limits", [{"events": 10}, {"size": 10 * 35}])
def test_a_queue_is_bounded_and_keeps_room_for_alarms(tmp_path, limits):
    held, said = Held(tmp_path), []
    sink = held.sink(said.append, **limits)
    kept = [sink.put(f"s-{i:02}-0", {"event": "drift"}) for i in range(11)]
    assert kept == [True] * 9 + [False] * 2 and sink.queue.dropped == 2
    assert [sink.put(f"s-{i}-0", {"event": "alarm"}) for i in (11, 12)] == [True, False]
    said = [line for line in said if "is shut" not in line]
    assert len(said) == 2
    assert "holds 8 events" in said[0] and "new events will soon be dropped, alarms last" in said[0]
    assert "is full (9 events" in said[1] and "until there is room, alarms last" in said[1]
    held.open.set()
    log = []
    sink.queue._log = sink._log = log.append
    assert delivered(sink) == 0 and len(held.got) == 10
    assert "the queue of held has room again; 3 events were dropped" in log
    assert "3 events for held were dropped because the queue was full" in log


def test_rejected_events_are_bounded_the_oldest_go_first(tmp_path):
    said = []
    with receiving(REFUSED) as (port, _):
        sink = sink_to(f"http://127.0.0.1:{port}/", tmp_path, said.append, limits=Limits(refused=2))
        for i in range(4):
            sink.put(f"s-{i}-0", {"event": "alarm"})
        assert delivered(sink) == 0
        assert files(sink, "refused") == ["000000000002-s-2-0.json", "000000000003-s-3-0.json"]
        # Numbers go on, so that after a restart the oldest are still known.
        sink = sink_to(f"http://127.0.0.1:{port}/", tmp_path, said.append, limits=Limits(refused=2))
        sink.put("s-9-0", {"event": "alarm"})
        assert delivered(sink) == 0
    assert files(sink, "refused") == ["000000000003-s-3-0.json", "000000000004-s-9-0.json"]
    assert [line for line in said if "is full" in line] == [
        f"{sink.queue.folder / 'refused'} is full (2 events): the oldest are deleted"
    ] * 2
    assert sum("s-1-0: HTTP 400; the event is kept in" in line for line in said) == 1
    assert "2 rejected events were deleted" in "".join(said)


# A disk that is full


def full_disk(monkeypatch):
    def write(path, text):
        raise UserError(f"{path} cannot be written: {os.strerror(errno.ENOSPC)}")

    broken = monkeypatch.context()
    patched = broken.__enter__()
    patched.setattr(atomic_files, "write_text", write)
    return lambda: broken.__exit__(None, None, None)


def test_with_a_full_disk_events_are_delivered_from_memory(tmp_path, monkeypatch):
    held, said = Held(tmp_path), []
    sink = held.sink(said.append, in_memory=3)
    again = full_disk(monkeypatch)
    try:
        assert [sink.put(f"s-{i}-0", {"event": "alarm"}) for i in range(4)] == [True, True, True, False]
        held.open.set()
        sink.drain(float("inf"))
    finally:
        again()
    assert held.got == ["s-0-0", "s-1-0", "s-2-0"] and sink.close() == 0
    said = [line for line in said if "is shut" not in line]
    assert "No space left" in said[0] and "up to 3 events for held are held in memory" in said[0]
    assert "3 of its events are held in memory: new events are dropped" in said[1]


def test_what_is_held_in_memory_is_written_as_soon_as_possible(tmp_path, monkeypatch):
    held, said = Held(tmp_path), []
    sink = held.sink(said.append)
    again = full_disk(monkeypatch)
    sink.put("s-0-0", {"event": "alarm"})
    again()
    sink.put("s-1-0", {"event": "alarm"})
    assert sink.close() == 2
    assert files(sink) == ["000000000000-s-0-0.json", "000000000001-s-1-0.json"]
    assert json.loads((sink.queue.folder / "000000000000-s-0-0.json").read_text())["id"] == "s-0-0"
    sink = held.sink(said.append)
    again = full_disk(monkeypatch)
    try:
        sink.put("s-2-0", {"event": "alarm"})
        assert sink.close() == 3
    finally:
        again()
    assert "1 events for held are lost" in said[-2] and "2 events for held are waiting" in said[-1]


def test_a_line_that_does_not_fit_is_taken_back(tmp_path, monkeypatch):
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"id": "before"}\n{"id": "hal')  # its writer was killed
    deliver = sinks.receiver(str(path)).deliver

    class Short:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, data):
            return self.file.write(data[:5])

        def __getattr__(self, name):
            return getattr(self.file, name)

    with monkeypatch.context() as full:
        full.setattr(sinks, "open", lambda *call: Short(os.fdopen(*call)), raising=False)
        with pytest.raises(sinks.DeliveryError, match="cannot be written: no space"):
            deliver(b'{"id": "s-0-0"}\n', "s-0-0", 1)
    deliver(b'{"id": "s-0-0"}\n', "s-0-0", 1)
    assert path.read_bytes() == b'{"id": "before"}\n{"id": "hal\n{"id": "s-0-0"}\n'


def test_a_named_pipe_that_nobody_reads_holds_no_sink(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(sinks.DeliveryError, match="cannot be written"):
        sinks.receiver(str(tmp_path / "pipe")).deliver(b"{}\n", "s-0-0", 1)


# What else may be in the way


def test_a_sink_survives_what_it_finds_in_its_folder(tmp_path):
    held, said = Held(tmp_path), []
    sink = held.sink(said.append)
    for i in range(4):
        sink.put(f"s-{i}-0", {"event": "alarm"})
    folder = sink.queue.folder
    (folder / files(sink)[0]).unlink()
    (folder / files(sink)[0]).write_bytes(b"")  # as a power failure may leave it
    held.open.set()
    assert delivered(sink) == 0 and held.got == ["s-2-0", "s-3-0"]
    assert "s-0-0.json was deleted" in "".join(said) and "rejects s-1-0: its file is damaged" in "".join(said)
    for name in ("5.json", "000000000007-.json", "000000000008-a_b.json", ".abc.tmp", "notes"):
        (folder / name).write_text("{}")
    (folder / "000000000009-..json").mkdir()
    sink = held.sink(said.append)
    assert sink.put("s-4-0", {"event": "alarm"}) and delivered(sink) == 0
    assert held.got[2:] == ["s-4-0"] and not (folder / ".abc.tmp").exists()


def test_no_error_ends_the_thread_of_a_sink(tmp_path):
    said, problems = [], [OSError("disk"), RuntimeError("odd"), UnicodeError("\x1b[2J"), OSError("disk")]

    def deliver(data, name, timeout):
        if problems:
            raise problems.pop(0)

    sink = sinks.Sink(sinks.Receiver("it", "it", deliver), tmp_path, said.append, first_wait=0.001)
    sink.put("s-0-0", {"event": "alarm"})
    assert delivered(sink) == 0
    assert [line.partition(";")[0] for line in said] == [
        "it fails: disk",
        "it fails: odd",
        "it fails: \\x1b[2J",
        "it accepts events again",
    ]


def test_rejected_events_that_cannot_be_moved_stay(tmp_path):
    said = []
    with receiving(REFUSED) as (port, got):
        sink = sink_to(f"http://127.0.0.1:{port}/", tmp_path, said.append)
        (sink.queue.folder / "refused").rmdir()
        sink.put("s-0-0", {"event": "alarm"})
        while len(got) < 3:
            sink._stop.wait(0.001)
        assert sink.close() == 1
    assert files(sink) == ["000000000000-s-0-0.json"] and "fails: [Errno 2]" in said[0]


def test_a_monitor_that_is_killed_while_it_delivers(tmp_path):
    """The receiver has the event, but its answer never came: it is sent again, with the same id."""
    arrived, end = threading.Event(), threading.Event()
    script = """
import sys
from pathlib import Path
from ganomaly_jax.streaming import sinks
sink = sinks.Sink(sinks.receiver(sys.argv[1]), Path(sys.argv[2]), print)
for i in range(3):
    sink.put(f"s-{i}-0", {"event": "alarm", "row": i})
print("there", flush=True)
sys.stdin.read()
"""

    def hang(connection):
        arrived.set()
        end.wait(60)

    with receiving(hang, OK) as (port, got):
        url = f"http://127.0.0.1:{port}/"
        call = [sys.executable, "-c", script, url, str(tmp_path)]
        with subprocess.Popen(call, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
            assert child.stdout.readline() == b"there\n" and arrived.wait(60)
            child.send_signal(signal.SIGKILL)
        end.set()
        assert delivered(sink_to(url, tmp_path)) == 0
    assert ids(got) == ["s-0-0", "s-0-0", "s-1-0", "s-2-0"]


def test_queues_of_other_receivers_are_found(tmp_path):
    held = Held(tmp_path)
    sink = held.sink()
    sink.put("s-0-0", {"event": "alarm"})
    sink.close()
    (tmp_path / "notes").mkdir()
    (tmp_path / ("0" * 16)).mkdir()
    assert event_queue.waiting_elsewhere(tmp_path, set()) == [(sink.queue.folder, 1, "held")]
    assert event_queue.waiting_elsewhere(tmp_path, {sink.queue.folder}) == []
    assert event_queue.waiting_elsewhere(tmp_path / "none", set()) == []
    # As the message says, its files may be moved into another queue.
    other = tmp_path / "other"
    other.mkdir()
    (sink.queue.folder / files(sink)[0]).rename(other / "000000000000-s-0-0.json")
    queue = event_queue.Queue(other, "other", Limits(), quiet)
    assert queue.first().name == "s-0-0"
    queue.close()
