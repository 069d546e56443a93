"""The server under load: bounded connections, slow clients, large images, forms, and steady scores."""

import contextlib
import dataclasses
import errno
import io
import json
import socket
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from ganomaly_jax.cli import main
from ganomaly_jax.data.images import decode
from ganomaly_jax.data.images import files as image_files
from ganomaly_jax.deploy import http_app, http_connections, http_log
from ganomaly_jax.scoring import inference
from tests.served import Served, png, wait_for
from tests.support import blobs

pytest.importorskip("uvicorn", reason="serving needs the extra `serve`")

LIMITS = http_app.Limits(body=3_000_000, pixels=10_000, batch=8, queue=12, body_s=20, connections=20, large=2, files=12)
BODY = png(blobs(1, 1)[0])


@pytest.fixture(scope="module")
def served(trained):
    """A server whose batches are all of one size."""
    running = Served(http_app.application(trained[1], LIMITS, fixed_batch=True), LIMITS)
    running.until_ready()
    yield running
    running.close()


@pytest.fixture(autouse=True)
def log(monkeypatch):
    """Nothing was said yet."""
    monkeypatch.setattr(http_log, "_said", {})


@contextlib.contextmanager
def idle(served, count):
    """Sockets that are connected and say nothing."""
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(socket.create_connection(("127.0.0.1", served.port), timeout=10)) for _ in range(count)
        ]


def until(raw, end):
    """What arrives on a socket, up to certain bytes."""
    found = b""
    while not found.endswith(end):
        found += raw.recv(2000) or pytest.fail(f"closed after {found}")
    return found


def test_idle_connections_take_no_place_from_requests(served, capsys):
    with idle(served, 5 * LIMITS.connections) as sockets:
        for _ in range(3):
            assert served.ask("POST", "/score", BODY)[0] == 200
        assert len(served.server.server_state.connections) <= LIMITS.connections
        assert sockets[0].recv(100) == b""  # the first was closed for a later one
    said = "20 connections are open, the maximum: the longest idle are closed, new ones wait"
    assert capsys.readouterr().err == f"ganomaly: {said}\n"


def test_requests_in_work_keep_their_places(served):
    """They are not closed for others, as those are that only stay, or whose answer was sent before all of them came."""
    with contextlib.ExitStack() as stack:
        working = stack.enter_context(idle(served, 3))
        for raw in working:
            raw.sendall(b"POST /score HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(BODY))
        wait_for(lambda: served.state.inside == 3)
        for _ in range(LIMITS.connections):
            (raw,) = stack.enter_context(idle(served, 1))
            raw.sendall(b"POST /nothing HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\n")
            assert b" 404 " in until(raw, b"}")
        stack.enter_context(idle(served, LIMITS.connections))
        for raw in working:
            raw.sendall(BODY)
            assert b" 200 " in until(raw, b"}")


def test_no_more_file_descriptors_are_one_line(served, monkeypatch, capsys):
    tries = []

    def accept(listener):
        tries.append(listener)
        if len(tries) < 4:
            raise OSError(errno.EMFILE, "Too many open files")
        return listener.accept()[0]

    monkeypatch.setattr(http_connections, "accept", accept)
    assert served.ask("POST", "/score", BODY)[0] == 200
    assert len(tries) < 10  # and not thousands
    assert capsys.readouterr().err == "ganomaly: cannot accept connections: too many open files\n"


@pytest.fixture
def impatient(trained):
    """A server that waits for headers half a second."""
    limits = dataclasses.replace(LIMITS, header_s=0.5)
    running = Served(http_app.application(trained[1], limits), limits)
    running.until_ready()
    yield running
    running.close()


def test_headers_that_do_not_come(impatient):
    begin = time.monotonic()
    with idle(impatient, 3) as (silent, slow, later):
        slow.sendall(b"GET /healthz HTTP/1.1\r\nHost: local")
        later.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert until(later, b'"alive"}').startswith(b"HTTP/1.1 200 ")
        later.sendall(b"GET /healthz HTTP/1.1\r\nHost: local")  # the second on this connection
        trickle = threading.Event()

        def drop():
            while not trickle.wait(0.1):
                with contextlib.suppress(OSError):
                    slow.sendall(b"h")

        with ThreadPoolExecutor(1) as pool:
            pool.submit(drop)
            try:
                assert silent.recv(100) == b""
                assert b" 408 " in until(slow, b"in time") and b" 408 " in until(later, b"in time")
            finally:
                trickle.set()
    assert time.monotonic() - begin < 9  # the sockets' own patience is 10 s


def test_more_connections_than_the_system_allows(trained, capsys):
    assert main.main(["serve", "--workdir", str(trained[0]), "--port", "0", "--max-connections", "2000000000"]) == 2
    assert "ulimit -n" in capsys.readouterr().err


def test_small_images_do_not_wait_for_large_ones(served, monkeypatch):
    """Large ones wait for each other, a few at most, while small ones pass them."""
    large, go, decoded = Image.fromarray(np.zeros((90, 90), np.uint8)), threading.Event(), image_files.decode_file

    def waiting(source, **settings):
        if decode.image_size(io.BytesIO(source.getvalue())) == (90, 90):
            assert go.wait(30)
        return decoded(source, **settings)

    monkeypatch.setattr(decode, "LARGE", 5_000)
    monkeypatch.setattr(image_files, "decode_file", waiting)
    kept = io.BytesIO()
    large.save(kept, "PNG")
    with ThreadPoolExecutor(LIMITS.large) as pool:
        held = [pool.submit(served.ask, "POST", "/score", kept.getvalue()) for _ in range(LIMITS.large)]
        try:
            wait_for(lambda: served.state.large == LIMITS.large)
            for _ in range(image_files.WORKERS + 1):
                assert served.ask("POST", "/score", BODY)[0] == 200
            status, headers, said = served.ask("POST", "/score", kept.getvalue())
            assert status == 429 and headers["Retry-After"] == "5" and b"2 large images are in progress" in said
        finally:
            go.set()
        assert [answer.result()[0] for answer in held] == [200, 200]
    assert served.state.large == 0
    # The large images of one form take their places one after another.
    assert served.ask("POST", "/score", *form(*[("a.png", kept.getvalue())] * 5))[2].count(b"verdict") == 5


def test_scores_do_not_depend_on_the_load(served, trained):
    """With --fixed-batch they are those of one program, to the last bit, however many requests there are at once."""
    scorer, images = trained[1], np.concatenate([blobs(12, 5), blobs(12, 6, anomalous=True)])
    alone = [scorer(inference.pad(image[None], 8))[0] for image in images]
    np.testing.assert_array_equal(alone, np.concatenate([scorer(images[i : i + 8]) for i in (0, 8, 16)]))
    with ThreadPoolExecutor(LIMITS.queue) as pool:
        for _ in range(3):
            answers = list(pool.map(lambda image: served.ask("POST", "/score", png(image)), images))
            np.testing.assert_array_equal([json.loads(answer[2])["score"] for answer in answers], alone)
    found = served.ask("POST", "/score", *form(*((f"{i}.png", png(images[i])) for i in range(12))))
    np.testing.assert_array_equal([one["score"] for one in json.loads(found[2])["results"]], alone[:12])


def form(*files, end=b"--limit--\r\n"):
    """(body, headers) of a form as curl -F sends it."""
    parts = [
        b'--limit\r\nContent-Disposition: form-data; name="file"; filename="%s"\r\n'
        b"Content-Type: image/png\r\n\r\n%s\r\n" % (name.encode(), content)
        for name, content in files
    ]
    return b"".join(parts) + end, {"Content-Type": "multipart/form-data; boundary=limit"}


def test_a_form_with_files(served, monkeypatch):
    def refuse(*given):
        raise AssertionError("an image is written to the disk")

    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", refuse)
    alone = json.loads(served.ask("POST", "/score", BODY)[2])
    found = json.loads(served.ask("POST", "/score", *form(("a.png", BODY)))[2])
    assert found == {"results": [{"name": "a.png", **alone}]}
    bomb = png(np.zeros((101, 100, 1), np.uint8))
    names = [("a.png", BODY), ("notes\x1b.txt", b"hello"), ("", bytes(2_000_000)), ("\u00fc.png", BODY), ("b", bomb)]
    status, headers, said = served.ask("POST", "/score", *form(*names))
    assert status == 200 and headers["Content-Type"] == "application/json" and said.isascii() and b"\x1b" not in said
    results = json.loads(said)["results"]
    assert [one["name"] for one in results] == [name for name, _ in names]
    assert {**alone, "name": "a.png"} == results[0] and {**alone, "name": "\u00fc.png"} == results[3]
    assert [one.get("status") for one in results] == [None, 422, 422, None, 413]
    assert "not an image" in results[1]["error"]
    status, headers, said = served.ask("POST", "/explain", *form(("a.png", BODY)))
    assert status == 200 and headers["Content-Type"] == "image/png" and said.startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("files", "change", "status", "wanted"),
    [
        ([("a", b"hello")], {}, 422, "not an image"),  # as if it had been sent alone
        ([("a", b"hello"), ("b", b"")], {}, 422, "not an image"),
        ([], {}, 400, "expected curl -F file=@image.png, with the @"),
        ([("a", b"x")] * 13, {}, 400, "Maximum number of files is 12"),
        ([("a", bytes(1_600_000))] * 2, {}, 413, "more than 3,000,000 bytes"),
        ([("a", BODY)], {"end": b"--limit\r\nContent-Disp"}, 400, "incomplete"),
        ([("a", BODY), ("b", BODY[:50])], {"end": b""}, 400, "incomplete"),
    ],
)
def test_bad_forms(served, files, change, status, wanted):
    answer = served.ask("POST", "/score", *form(*files, **change))
    assert answer[0] == status and wanted in json.loads(answer[2])["error"], answer
    assert served.state.inside == 0


def test_forms_that_are_none(served):
    whole = form(("a.png", BODY))[0]
    for kind in ("multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=other"):
        assert served.ask("POST", "/score", whole, {"Content-Type": kind})[0] == 400
    for part in (b"Content-Disposition: form-data", b"\x00: \xff", b"A: " + b"b" * 100_000):
        sent = b"--limit\r\n" + part + b"\r\n\r\nx\r\n--limit--\r\n"
        answer = served.ask("POST", "/score", sent, form()[1])
        assert answer[0] == 400 and "form" in json.loads(answer[2])["error"]
    assert served.ask("POST", "/explain", *form(("a", BODY), ("b", BODY)))[0] == 422
