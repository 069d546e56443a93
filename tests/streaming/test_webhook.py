"""Webhooks: what counts as a delivery, the deadline of all of it, addresses that cannot be, proxies, TLS."""

import base64
import contextlib
import re
import shutil
import socket
import ssl
import subprocess
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ganomaly_jax.core.errors import UserError
from ganomaly_jax.streaming import sinks, webhook

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@contextlib.contextmanager
def receiving(*answers, tls=None, drip=None):
    """(port, requests so far) of a server that gives these answers, the last of them again and again.

    Args:
      tls: context, for https.
      drip: event; its answers come byte by byte, one every 10 ms, until it is set.
    """
    got, left = [], list(answers)
    listening = socket.create_server(("127.0.0.1", 0))

    def serve(connection):
        with contextlib.suppress(OSError), connection:
            if tls is None:
                answer_on(connection)
            else:
                with tls.wrap_socket(connection, server_side=True) as inside:
                    answer_on(inside)

    def answer_on(connection):
        with contextlib.suppress(OSError):
            request = b""
            while not request.startswith(b"CONNECT") or b"\r\n\r\n" not in request:
                if b"\r\n\r\n" in request:
                    length = re.search(rb"Content-Length: (\d+)", request)
                    if len(request.partition(b"\r\n\r\n")[2]) >= int(length[1]):
                        break
                more = connection.recv(2**16)
                if not more:
                    return
                request += more
            got.append(request.decode())
            answer = left.pop(0) if len(left) > 1 else left[0]
            if callable(answer):
                answer(connection)
            elif drip is None:
                connection.sendall(answer)
            else:
                for byte in answer:
                    connection.sendall(bytes([byte]))
                    if drip.wait(0.01):
                        return

    def run():
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listening.accept()[0],), daemon=True).start()

    threading.Thread(target=run, daemon=True).start()
    try:
        yield listening.getsockname()[1], got
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()


def post(url, timeout=10.0):
    webhook.post(webhook.connect_through(webhook.parse(url)), b'{"id": "s-1-0"}\n', "s-1-0", timeout)


def failure(url, timeout=10.0):
    with pytest.raises(webhook.DeliveryError) as raised:
        post(url, timeout)
    return str(raised.value)


def answered(answer):
    """What is said of one answer."""
    with receiving(answer) as (port, _):
        return failure(f"http://127.0.0.1:{port}/hook")


# What counts


@pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 307, 308])
def test_no_redirect_is_followed(status):
    with receiving(OK) as (elsewhere, got):
        location = f"Location: http://u:pw@127.0.0.1:{elsewhere}/hook/v2?token=t\r\n".encode()
        with receiving(b"HTTP/1.1 %d Moved\r\n%sContent-Length: 0\r\n\r\n" % (status, location)) as (port, asked):
            said = failure(f"http://127.0.0.1:{port}/hook")
    assert f"HTTP {status} with Location http://127.0.0.1:{elsewhere}/.../v2; redirects are not followed" in said
    assert len(asked) == 1 and got == []


def test_a_redirect_is_said_once_and_its_event_stays(tmp_path):
    said, tried = [], threading.Semaphore(0)
    with receiving(b"HTTP/1.1 302 Found\r\nLocation: /\x1b[2Jlogin\r\n\r\n") as (port, got):
        receiver = sinks.receiver(f"http://127.0.0.1:{port}/hook")
        counted = sinks.Receiver(receiver.name, receiver.key, lambda *one: (tried.release(), receiver.deliver(*one)))
        sink = sinks.Sink(counted, tmp_path, said.append, first_wait=0.001)
        sink.put("s-1-0", {"event": "alarm"})
        for _ in range(4):
            assert tried.acquire(timeout=30)
        assert sink.close() == 1
    assert len(got) >= 3 and {one.split()[0] for one in got} == {"POST"}
    assert said[0].count("HTTP 302 with Location /\\x1b[2Jlogin") == 1 and "waiting" in said[1] and len(said) == 2
    assert [path.name for path in sink.queue.folder.glob("*.json")] == ["000000000000-s-1-0.json"]


@pytest.mark.parametrize(
    "answer",
    [
        OK,
        b"HTTP/1.0 200 OK\r\n\r\nuntil the end",
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" + OK,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10000000\r\n\r\n" + b"x" * 2**17,  # enough of it was read
    ],
)
def test_an_event_is_delivered_with_a_complete_answer(answer):
    with receiving(answer) as (port, got):
        post(f"http://127.0.0.1:{port}/hook?a=b")
    [request] = got
    assert request.startswith("POST /hook?a=b HTTP/1.1\r\n") and request.endswith('\r\n\r\n{"id": "s-1-0"}\n')
    for header in (f"Host: 127.0.0.1:{port}", "Idempotency-Key: s-1-0", "Content-Length: 16", "Connection: close"):
        assert f"\r\n{header}\r\n" in request


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", "without a response"),
        (b"HTTP/1.1 2", "invalid HTTP"),
        (b"SSH-2.0-OpenSSH\r\n", "invalid HTTP"),
        (b"HTTP/1.1 200", "incomplete headers"),
        (b"HTTP/1.1 200 OK\r\nContent-Len", "incomplete headers"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhalf", "ends after 4 bytes"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nha", "invalid HTTP"),
        (b"HTTP/1.1 500 Oh\r\nContent-Length: 50\r\n\r\nhalf", "responded with HTTP 500"),
        (b"HTTP/1.1 103 Early\r\n\r\n", "responded with HTTP 103"),
        (b"HTTP/1.1 405 Not Allowed\r\n\r\n", "responded with HTTP 405"),  # of the receiver, not of the event
        (b"HTTP/1.1 410 Gone\r\n\r\n", "responded with HTTP 410"),
        (b"HTTP/1.1 301 Moved\r\n\r\n", "HTTP 301 without a Location"),
        (b"HTTP/1.1 301 Moved\r\nLocation: //[x\r\n\r\n", "HTTP 301 with an invalid Location"),
    ],
)
def test_anything_else_is_none(answer, words):
    assert words in answered(answer)


def test_an_event_that_the_receiver_cannot_take_is_refused():
    with receiving(b"HTTP/1.1 422 No\r\n\r\n") as (port, _), pytest.raises(webhook.RefusedError, match="HTTP 422"):
        post(f"http://127.0.0.1:{port}/")


# The deadline


def test_an_answer_that_comes_in_pieces_is_complete_with_the_last():
    with receiving(OK, drip=threading.Event()) as (port, got):
        post(f"http://127.0.0.1:{port}/")
    assert len(got) == 1


@pytest.mark.parametrize("answer", [OK + b"x", b"HTTP/1.1 100 Continue\r\n\r\n" * 99])
def test_a_receiver_that_drips_does_not_hold_a_sink(answer):
    end = threading.Event()
    with receiving(answer.replace(b"Content-Length: 2", b"Content-Length: 99"), drip=end) as (port, _):
        try:
            said = failure(f"http://127.0.0.1:{port}/", 0.2)
        finally:
            end.set()
    assert said == "did not respond completely within 0.2 s (--sink-timeout)"


def test_a_receiver_that_takes_the_connection_and_no_more():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for scheme in ("http", "https"):
            assert "within 0.1 s" in failure(f"{scheme}://127.0.0.1:{silent.getsockname()[1]}/", 0.1)


def test_a_look_up_that_hangs(monkeypatch):
    end = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: end.wait(60))
    try:
        assert "within 0.05 s" in failure("http://alarms.example/", 0.05)
    finally:
        end.set()


def test_an_address_that_nobody_answers_leaves_time_for_the_next(monkeypatch):
    with receiving(OK) as (port, got), socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        waiting = [socket.socket() for _ in range(4)]  # the queue of connections is full: further ones hang
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        places = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", at) for at in (full.getsockname(), ("127.0.0.1", port))]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: places)
        post("http://alarms.example/", 2.0)
        for one in waiting:
            one.close()
    assert "\r\nHost: alarms.example\r\n" in got[0]


# Addresses


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://h:0/", "port"),
        ("http://h:65536/", "port"),  # the resolver would take it for port 0
        ("http://h:-1/", "port"),
        ("http://h:80:80/", "port"),
        ("https://user:hunter/2@h/", "port"),
        ("http:///path", "no host"),
        ("http://:80/", "no host"),
        ("https://user:hunter2@/", "no host"),
        ("https:user:hunter2@h", "no host"),
        ("HTTPS:/user:hunter2@h", "no host"),
        ("http://a..b/", "host is invalid"),
        (f"http://{'a' * 64}/", "host is invalid"),
        ("http://[::1/", "host is invalid"),
        ("http://[fe80]/", "host is invalid"),
        ("http://a|b/", "host is invalid"),
        ("http://h/a\r\nX-Header: 1", "percent-encoded"),
        ("http://h/a\tb", "percent-encoded"),
        ("http://h\n/", "percent-encoded"),
        ("http://h/a b", "percent-encoded"),
        ("http://h/\x7f", "percent-encoded"),
        ("http://h/\xe4", "percent-encoded"),
        ("http://u:hunter2%0a@h/", "control characters"),
        ("http://u%3a:hunter2@h/", "colon"),
        ("ftp://u:hunter2@h/", "unknown scheme"),
        ("file:///etc/x", "unknown scheme"),
        ("://h/", "no scheme"),
        ("localhost:8080", "http://localhost:8080"),
        ("events\n.jsonl", "file in an existing folder"),
        ("", "file in an existing folder"),
        ("none/", "file in an existing folder"),
        ("a" * 300, "file in an existing folder"),
        ("\ud800", "file in an existing folder"),
    ],
)
def test_addresses_that_cannot_be_are_refused_at_the_start(url, words):
    with pytest.raises(UserError, match=re.escape(words)) as raised:
        sinks.receiver(url)
    assert "expected" in str(raised.value) and "hunter" not in str(raised.value) and "\n" not in str(raised.value)


PIECES = (
    *(
        "http",
        "HTTPS",
        "ftp",
        "://",
        ":",
        "//",
        "/",
        "@",
        "user",
        "[",
        "]",
        "::1",
        "80",
        "99999",
        "%0a",
        "%",
        "?",
        "#",
        ".",
    ),
    *("..", "\n", "\r", "\0", " ", "\xe4", "\ud800", "-", "a" * 300, "\\", "xn--", "127.0.0.1", "_", "\x1b[2J"),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=9).map("".join) | st.text(max_size=20).map("http://".__add__))
def test_an_address_of_any_pieces_is_used_or_refused(target):
    try:
        receiver = sinks.receiver(target)
    except UserError as error:
        assert str(error).isprintable()
        return
    assert receiver.name.isprintable()


def test_user_and_password_are_sent_and_never_said(tmp_path):
    said = []
    with receiving(b"HTTP/1.1 401 No\r\n\r\n", OK) as (port, got):
        sink = sinks.Sink(
            sinks.receiver(f"http://m%40e:p%C3%A4ss@127.0.0.1:{port}/"), tmp_path, said.append, first_wait=0.001
        )
        sink.put("s-1-0", {"event": "alarm"})
        sinks.close_all([sink], 30)
    header = "Authorization: Basic " + base64.b64encode("m@e:p\xe4ss".encode()).decode()
    assert len(got) == 2 and all(header in one for one in got)
    assert said == [
        f"http://127.0.0.1:{port} responded with HTTP 401; events wait in {sink.queue.folder}",
        f"http://127.0.0.1:{port} accepts events again",
    ]
    for shown in (webhook.parse("http://m:pw@h/"), webhook.connect_through(webhook.parse("http://m:pw@h/"))):
        assert "pw" not in repr(shown) and base64.b64encode(b"m:pw").decode() not in repr(shown)
    # A new password finds what waits for the old one.
    assert sinks.receiver("http://m:new@h/x@y").key == sinks.receiver("http://h/x@y").key == "http://h/x@y"


# Proxies and TLS


@pytest.fixture
def no_proxies(monkeypatch):
    for name in ("http_proxy", "https_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return monkeypatch


def test_a_proxy_gets_the_whole_address_and_its_own_password(no_proxies):
    with receiving(OK) as (port, got):
        no_proxies.setenv("http_proxy", f"http://me:secret@127.0.0.1:{port}")
        post("http://u:p@alarms.example:81/hook")
        no_proxies.setenv("no_proxy", "alarms.example")
        assert webhook.connect_through(webhook.parse("http://alarms.example:81/")).proxy is None
    assert got[0].startswith("POST http://alarms.example:81/hook HTTP/1.1\r\nHost: alarms.example:81\r\n")
    for user in ("me:secret", "u:p"):
        assert f"uthorization: Basic {base64.b64encode(user.encode()).decode()}\r\n" in got[0]


def test_a_proxy_that_refuses_or_cannot_be(no_proxies):
    with receiving(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n") as (port, got):
        no_proxies.setenv("https_proxy", f"127.0.0.1:{port}")
        said = failure("https://u:p@alarms.example/")
    assert said == f"cannot be reached: the proxy http://127.0.0.1:{port} responded with HTTP 407"
    assert got[0].startswith("CONNECT alarms.example:443 HTTP/1.1\r\n") and "Authorization" not in got[0]
    for wrong in ("https://me:secret@h:1", "http://me:secret@h:99999", "socks5://me:secret@h"):
        no_proxies.setenv("https_proxy", wrong)
        with pytest.raises(UserError, match=r"^https_proxy ") as raised:
            sinks.receiver("https://alarms.example/")
        assert "secret" not in str(raised.value)


def test_tls_errors_leave_the_event_where_it_is(no_proxies):
    with receiving(OK) as (port, got):
        said = failure(f"https://127.0.0.1:{port}/", 0.5)  # TLS to a receiver without, which waits for a request
    assert "within 0.5 s" in said and got == []

    def speak():
        connection, _ = listening.accept()
        with connection:
            connection.sendall(b"220 mail.example ready\r\n")
            connection.recv(2**16)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=speak)
        thread.start()
        assert "cannot be reached: [SSL" in failure(f"https://127.0.0.1:{listening.getsockname()[1]}/")
        thread.join()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate")
def test_only_a_certificate_that_is_trusted_gets_the_event(no_proxies, tmp_path):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    call = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
    files = ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*call.split(), *files], check=True, capture_output=True)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    end = threading.Event()
    with receiving(OK, tls=tls) as (port, got), receiving(OK + b"x" * 99, tls=tls, drip=end) as (slow, _):
        assert "certificate verify failed" in failure(f"https://localhost:{port}/")
        assert got == []
        no_proxies.setenv("SSL_CERT_FILE", str(certificate))
        assert "certificate verify failed" in failure(f"https://127.0.0.1:{port}/")  # another name
        post(f"https://localhost:{port}/")
        try:
            said = failure(f"https://localhost:{slow}/", 0.3)
        finally:
            end.set()
    assert len(got) == 1 and "within 0.3 s" in said
    with receiving(lambda c: tunnelled(c, tls)) as (proxy, asked):
        no_proxies.setenv("https_proxy", f"http://me:secret@127.0.0.1:{proxy}")
        post("https://localhost:5000/hook")
    assert asked[0].startswith("CONNECT localhost:5000 HTTP/1.1\r\nHost: localhost:5000\r\n")
    assert "Proxy-Authorization: Basic" in asked[0]


def tunnelled(connection, tls):
    """What a proxy does after CONNECT, and the receiver behind it."""
    connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
    with tls.wrap_socket(connection, server_side=True) as inside:
        request = b""
        while not request.endswith(b"}\n"):
            request += inside.recv(2**16)
        assert request.startswith(b"POST /hook HTTP/1.1\r\n") and b"Proxy-" not in request
        inside.sendall(OK)
