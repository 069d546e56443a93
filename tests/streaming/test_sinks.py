"""Where events go: a webhook that is down, a queue on disk that is bounded and of one monitor."""

import http.server
import json
import socket
import threading

import pytest

from ganomaly_jax.core.errors import UserError
from ganomaly_jax.streaming import sinks


def quiet(line):
    pass


class Receiver(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.got.append(body["id"])
        self.send_response(self.server.answers.pop(0) if self.server.answers else 200)
        self.end_headers()

    def log_message(self, *_):
        pass


def receiver(port, answers=()):
    http.server.ThreadingHTTPServer.allow_reuse_address = True
    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Receiver)
    server.got, server.answers = [], list(answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def stopped(server):
    server.shutdown()
    server.server_close()


def test_a_webhook_that_is_down_loses_nothing_and_holds_nothing_up(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address, said = f"http://127.0.0.1:{port}/secret", []
    sink = sinks.Sink(address, tmp_path, said.append, first_wait=0.02)
    for i in range(3):
        assert sink.put(f"s-{i}-0", {"event": "alarm", "row": i})
    assert sink.put("s-0-0", {"event": "alarm", "row": 0})  # the same again
    assert sink.close(0.1) == 3
    assert "cannot be reached" in said[0] and "secret" not in "".join(said)
    # Another run: 500 first, one that is refused, then all is well.
    server = receiver(port, [500, 200, 400])
    try:
        sink = sinks.Sink(address, tmp_path, said.append, first_wait=0.02)
        sink.put("s-3-0", {"event": "alarm", "row": 3})
        assert sink.close(10) == 0
        assert server.got == ["s-0-0", "s-0-0", "s-1-0", "s-2-0", "s-3-0"]
    finally:
        stopped(server)
    assert [path.name.split("-", 1)[1] for path in tmp_path.glob("*/refused/*")] == ["s-1-0.json"]
    assert sink.waiting() == []


def test_a_queue_is_bounded_and_of_one_monitor(tmp_path):
    sink = sinks.Sink("http://127.0.0.1:9/", tmp_path, quiet, max_queued=2, first_wait=30)
    try:
        assert [sink.put(f"s-{i}-0", {}) for i in range(3)] == [True, True, False] and sink.dropped == 1
        with pytest.raises(UserError, match="another monitor"):
            sinks.Sink("http://127.0.0.1:9/", tmp_path, quiet)
    finally:
        sink.close(0)
