"""The process of the server: its address, signals, and an end that loses no accepted request."""

import asyncio  # noqa: I001
import contextlib
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.served import Served, png, wait_for
from tests.support import blobs

from ganomaly_jax.core.errors import UserError
from ganomaly_jax.deploy import http_app, http_process

pytest.importorskip("uvicorn", reason="serving needs the extra `serve`")

LIMITS = http_app.Limits(body=20_000, batch=8, queue=6)


@contextlib.contextmanager
def command(workdir, *flags):
    """(process, port, ask) of the command itself, ready; it is told to end where it has not."""
    call = [sys.executable, "-c", "import sys; from ganomaly_jax.cli import main; sys.exit(main.command())", "serve"]
    call += ["--workdir", str(workdir), "--port", "0", *flags]
    with subprocess.Popen(
        call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"GLIBC_TUNABLES": ""}
    ) as process:
        try:
            port = int(re.search(r"127\.0\.0\.1:(\d+)", process.stdout.readline())[1])

            def ask(method, path, body=None):
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
                with contextlib.closing(connection):
                    connection.request(method, path, body)
                    answer = connection.getresponse()
                    return answer.status, answer.read()

            wait_for(lambda: ask("GET", "/readyz")[0] == 200)
            yield process, port, ask
        finally:
            process.kill()


def test_a_verb_that_ends_in_order(trained):
    """A real process: it is told to end while a request is in work, which is still answered."""
    with command(trained[0], "--max-batch", "1", "--drain", "0.5") as (process, port, ask):
        body = png(blobs(1, 1)[0])
        with socket.create_connection(("127.0.0.1", port), timeout=30) as slow:
            slow.sendall(b"POST /score HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body))
            slow.sendall(body[:50])
            wait_for(lambda: b"in_work 1.0" in ask("GET", "/metrics")[1])
            process.send_signal(signal.SIGTERM)
            wait_for(lambda: ask("GET", "/readyz")[0] == 503)
            assert ask("POST", "/score", body)[0] == 200  # until others know, it serves
            time.sleep(1)  # past the drain: nothing new, but what is in work
            with pytest.raises(ConnectionRefusedError):
                ask("GET", "/healthz")
            slow.sendall(body[50:])
            assert b" 200 " in slow.recv(5000)
        assert process.wait(30) == 0
        said = process.stderr.read()
        assert (
            "draining; requests in progress: 1" in said
            and "all requests were answered" in said
            and "Traceback" not in said
        )


def test_told_to_end_under_load_it_loses_nothing(trained):
    """Clients that stay are told to leave, and then find nobody; each of their requests has its answer."""
    body, told = png(blobs(1, 1)[0]), threading.Event()

    def client(port, stays):
        connection, answers, left = http.client.HTTPConnection("127.0.0.1", port, timeout=30), 0, False
        with contextlib.closing(connection):
            while True:
                if not stays:
                    connection.close()
                try:
                    if connection.sock is None:
                        connection.connect()
                except ConnectionRefusedError:
                    assert told.is_set()
                    return answers, left
                try:
                    connection.request("POST", "/score", body)
                    answer = connection.getresponse()
                except ConnectionResetError:  # new, and at the door in the instant in which it was closed
                    assert told.is_set() and not stays
                    return answers, left
                assert answer.status == 200 and answer.read()
                answers, left = answers + 1, left or answer.headers["Connection"] == "close"

    with command(trained[0], "--drain", "0.5") as (process, port, _), ThreadPoolExecutor(6) as pool:
        clients = [pool.submit(client, port, stays=i % 2 == 0) for i in range(6)]
        time.sleep(0.5)
        told.set()
        process.send_signal(signal.SIGTERM)
        counts = [found.result(60) for found in clients]
        assert process.wait(30) == 0
        said = process.stderr.read()
    assert all(answers > 5 and left for answers, left in counts), counts
    assert "all requests were answered" in said and "Traceback" not in said


@pytest.mark.parametrize("seen", [False, True])
def test_who_is_at_the_door_when_it_closes_is_answered(trained, seen):
    """Connected while the loop was busy: not yet accepted, or (`seen`) accepted in the turn that closes the door."""
    loops = []
    app = http_app.application(trained[1], LIMITS, lambda: loops.append(asyncio.get_running_loop()))
    running, busy, come = Served(app, LIMITS), threading.Event(), threading.Event()

    def end():
        busy.set()
        come.wait(10)
        loops[0].call_later(0, running.connections.leave) if seen else running.connections.leave()

    try:
        running.until_ready()
        loops[0].call_soon_threadsafe(end)
        assert busy.wait(10)
        with contextlib.ExitStack() as clients:
            sockets = [socket.create_connection(("127.0.0.1", running.port), timeout=10) for _ in range(5)]
            for client in sockets:
                clients.enter_context(client)
                client.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            come.set()
            assert all(client.recv(5000).startswith(b"HTTP/1.1 200") for client in sockets)
        running.thread.join(20)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", running.port), timeout=10)
    finally:
        come.set()
        running.close()


def test_told_twice_it_cuts_off(trained):
    with (
        command(trained[0], "--drain", "60") as (process, port, ask),
        socket.create_connection(("127.0.0.1", port), timeout=30) as slow,
    ):
        slow.sendall(b"POST /score HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nx")
        wait_for(lambda: b"in_work 1.0" in ask("GET", "/metrics")[1])
        process.send_signal(signal.SIGTERM)
        wait_for(lambda: ask("GET", "/readyz")[0] == 503)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 3
        assert "1 requests were cut off" in process.stderr.read()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_an_answer_does_not_wait_for_acknowledgement(host):
    try:
        listener = http_process._listening(host, 0)
    except UserError as error:
        pytest.skip(f"no such address here: {error}")
    with listener, socket.create_connection(listener.getsockname()[:2]):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
