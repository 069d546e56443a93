"""Who may use the server, and what every request and answer has: hosts, token, framing, ids, one line a failure."""

import json
import logging
import os
import re
import socket

import pytest

from ganomaly_jax.cli import main
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.deploy import batching, http_app, http_gate, http_log
from tests.served import Served, png
from tests.support import blobs

pytest.importorskip("uvicorn", reason="serving needs the extra `serve`")

LIMITS = http_app.Limits(body=20_000, pixels=10_000, batch=8, queue=6, body_s=5)
TOKEN = b"k3yk3yk3yk3yk3yk3y"
WITH_TOKEN = {"Authorization": f"Bearer {TOKEN.decode()}"}


@pytest.fixture(scope="module")
def served(trained):
    """A server that asks for a token, knows one more name, and logs every answer."""
    access = http_gate.Access(http_gate.allowed_hosts(["detector.example"]), TOKEN)
    running = Served(http_app.application(trained[1], LIMITS, access=access, access_log=True), LIMITS)
    running.until_ready()
    yield running
    running.close()


def told(served, request):
    """Everything that is answered to a request as it is, until the server closes."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as raw:
        raw.sendall(request)
        return b"".join(iter(lambda: raw.recv(5000), b""))


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LocalHost.:8000", 200),
        ("127.0.0.1:1", 200),
        ("[::1]:8000", 200),
        ("detector.example", 200),
        ("evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("detector.example.evil.example", 421),
        ("192.168.1.9", 421),  # the address is not the one that the client is connected to
        ("evil.example@localhost", 421),
        ("localhost:80:80", 421),
        ("", 421),
    ],
)
def test_a_host_that_is_not_ours_is_refused(served, host, status):
    """So that no page of another site reaches a local server by giving its own name the address 127.0.0.1."""
    answer = served.ask("GET", "/openapi.json", headers={"Host": host})
    assert answer[0] == status
    if status == 421:
        assert "--allow-host" in json.loads(answer[2])["error"]
        assert served.ask("POST", "/score", b"x", headers={"Host": host} | WITH_TOKEN)[0] == 421
    assert served.ask("GET", "/healthz", headers={"Host": host})[0] == 200  # for probes, which have any


def test_the_address_that_a_client_is_connected_to_is_ours():
    for given, local, wanted in (("10.1.2.3:80", "10.1.2.3", True), ("10.1.2.3", "10.1.2.4", False), ("a", "a", False)):
        assert http_gate._is_host(given, {"server": (local, 80)}, http_gate.LOOPBACK) == wanted
    assert http_gate._is_host("anything at all", {}, http_gate.allowed_hosts(["*"]))
    assert http_gate.allowed_hosts(["[FE80::0:1]", "Detector.Example."]) >= {"fe80::1", "detector.example"}


@pytest.mark.parametrize("name", ["http://a", "a/b", "a:80", "", "*.example", "a b"])
def test_hosts_that_are_none_are_refused(name, capsys):
    assert main.main(["serve", "--workdir", "x", "--allow-host", name]) == 2
    assert "expected a name or address without scheme" in capsys.readouterr().err


def test_a_token_is_asked_for_where_it_is_said(served):
    for path, body in (("/score", png(blobs(1, 1)[0])), ("/explain", png(blobs(1, 1)[0])), ("/metrics", None)):
        method = "POST" if body else "GET"
        wrong = [{}, {"Authorization": ""}, {"Authorization": f"Basic {TOKEN.decode()}"}, {"Authorization": "Bearer"}]
        wrong += [{"Authorization": f"Bearer {bad}"} for bad in ("k3yk3yk3yk3yk3yk3Y", TOKEN.decode() + "y", "\xe9")]
        for headers in wrong:
            status, found, said = served.ask(method, path, body, headers)
            assert status == 401 and found["WWW-Authenticate"].startswith("Bearer"), headers
            assert TOKEN not in said and "Authorization: Bearer" in json.loads(said)["error"]
        assert served.ask(method, path, body, WITH_TOKEN)[0] == 200
        assert served.ask(method, path, body, {"authorization": f"bearer {TOKEN.decode()}"})[0] == 200
    for path in http_gate.PUBLIC:
        assert served.ask("GET", path)[0] == 200
    assert TOKEN.decode() not in repr(http_gate.Access(token=TOKEN))
    document = json.loads(served.ask("GET", "/openapi.json")[2])
    asked = {path for path, found in document["paths"].items() for one in found.values() if "security" in one}
    assert asked == {"/score", "/explain", "/metrics"} == set(document["paths"]) - http_gate.PUBLIC


def test_a_token_file_is_for_its_owner(tmp_path, capsys):
    file = tmp_path / "token"

    def refused(content, mode=0o600):
        file.write_bytes(content)
        file.chmod(mode)
        with pytest.raises(UserError) as found:
            http_gate.read_token(str(file))
        assert "k3y" not in str(found.value)  # what is in the file is not shown
        return str(found.value)

    assert "empty" in refused(b"") and "empty" in refused(b" \n\n")
    for bad in (b"k3y", b"two words of some length", b"k3y" * 10 + b"\n" + b"k3y" * 10, b"\xff" * 20, b"k" * 2000):
        assert "not a token" in refused(bad)
    for mode in (0o644, 0o620, 0o604, 0o666):
        assert f"mode {mode:04o}" in refused(TOKEN, mode) and "chmod 600" in refused(TOKEN, mode)
    for mode in (0o600, 0o640, 0o400):
        file.write_bytes(b"") if os.access(file, os.W_OK) else None
        file.chmod(0o600)
        file.write_bytes(TOKEN + b"\n")
        file.chmod(mode)
        assert http_gate.read_token(str(file)) == TOKEN
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe, 0o600)
    for path, wanted in ((pipe, "not a regular file"), (tmp_path, "directory"), (tmp_path / "no", "no such file")):
        assert main.main(["serve", "--workdir", "x", "--token-file", str(path)]) == 2
        assert wanted in capsys.readouterr().err


def test_a_request_that_ends_in_two_places_is_refused(served):
    """A proxy that goes by Content-Length and a server that goes by Transfer-Encoding see different requests."""
    hidden = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    length = b"Content-Length: %d\r\n" % (len(hidden) + 5)
    head = b"POST /healthz HTTP/1.1\r\nHost: localhost\r\n"
    said = told(served, head + length + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + hidden)
    assert said.startswith(b"HTTP/1.1 400 ") and said.count(b"HTTP/1.1") == 1  # and closed
    assert b"connection: close" in said.lower()
    old = b"POST /score HTTP/1.0\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    assert told(served, old).startswith(b"HTTP/1.1 400 ")


def test_every_answer_has_an_id_and_so_has_the_log(served, capsys):
    for given in ("abc-1.2_3", "a" * 64):
        for method, path in (("GET", "/healthz"), ("POST", "/score"), ("GET", "/nothing"), ("GET", "/score")):
            assert served.ask(method, path, headers={"X-Request-ID": given})[1]["X-Request-ID"] == given
    for given in ("", "a" * 65, "a b", "<b>", "a;b", "\xe9"):
        found = served.ask("GET", "/healthz", headers={"X-Request-ID": given})[1]["X-Request-ID"]
        assert re.fullmatch("[0-9a-f]{16}", found)
    log = capsys.readouterr().err
    assert re.search(r"^ganomaly: 127\.0\.0\.1 GET /healthz 200 \d+ ms id=abc-1\.2_3$", log, re.MULTILINE)
    assert "POST /score 401" in log and "GET /nothing 401" in log and "<b>" not in log


def test_a_failure_in_the_log_has_the_id_and_one_line(served, monkeypatch, capsys):
    monkeypatch.setattr(batching, "score_batch", lambda *given: {}["missing"])
    headers = WITH_TOKEN | {"X-Request-ID": "find-me"}
    assert served.ask("POST", "/score", png(blobs(1, 1)[0]), headers)[0] == 500
    lines = [line for line in capsys.readouterr().err.splitlines() if "find-me" in line]
    assert len(lines) == 2 and "KeyError: 'missing' (test_http_gate.py:" in lines[0] and " 500 " in lines[1]


def test_what_repeats_is_counted(capsys, monkeypatch):
    times = iter([100.0, 101.0, 109.0, 111.0])
    monkeypatch.setattr(http_log.time, "monotonic", lambda: next(times))
    for i in range(4):
        http_log.seldom(object, f"line {i}")
    assert capsys.readouterr().err == "ganomaly: line 0\nganomaly: line 3 (2 similar ones omitted)\n"


def test_libraries_write_lines_without_tracebacks(capsys):
    logger = logging.getLogger("test_http_gate")
    logger.addHandler(http_log.Handler())
    try:
        raise ValueError("of two\nlines")
    except ValueError:
        logger.exception("it failed\nat length")
    assert re.fullmatch(
        r"ganomaly: it failed: ValueError: of two lines \(test_http_gate\.py:\d+\)\n", capsys.readouterr().err
    )
