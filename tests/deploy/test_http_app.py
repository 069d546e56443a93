"""The server, over real sockets: the scorer's own verdicts, in batches, within limits, and an orderly end."""

import asyncio  # noqa: I001
import contextlib
import http.client
import io
import json
import math
import re
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from tests.served import Served, png, wait_for
from tests.support import assert_scores_close, blobs

import ganomaly_jax
from ganomaly_jax.cli import main
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data import modalities
from ganomaly_jax.deploy import batching, http_app, openapi
from ganomaly_jax.deploy import page as deploy_page
from ganomaly_jax.report import html
from ganomaly_jax.scoring import scorer as scoring_scorer

pytest.importorskip("uvicorn", reason="serving needs the extra `serve`")

LIMITS = http_app.Limits(body=20_000, pixels=10_000, batch=8, queue=6, body_s=0.5)


@pytest.fixture(scope="module")
def scorer(trained):
    return trained[1]


@pytest.fixture(scope="module")
def served(scorer):
    running = Served(http_app.application(scorer, LIMITS), LIMITS)
    running.until_ready()
    yield running
    running.close()


@pytest.fixture
def held(served, monkeypatch):
    """Set it, and the device goes on: until then it works on its first batch."""
    answers, go = batching.score_batch, threading.Event()

    def waiting(*given):
        assert go.wait(30)
        return answers(*given)

    monkeypatch.setattr(batching, "score_batch", waiting)
    yield go
    go.set()


def error(answer, status):
    assert answer[0] == status, answer
    said = json.loads(answer[2])
    assert set(said) == {"error"}
    return said["error"]


def test_the_scorers_own_verdicts(served, scorer):
    images = np.concatenate([blobs(3, 5), blobs(3, 6, anomalous=True)])
    assert len(set(scorer.judge(images).verdicts)) > 1
    for image in images:
        judged = scorer.judge(image[None])
        status, headers, body = served.ask("POST", "/score", png(image))
        found = json.loads(body)
        assert status == 200 and headers["X-Content-Type-Options"] == "nosniff"
        assert (found["score"], found["p_value"]) == (judged.scores[0], judged.p_values[0])  # JSON keeps all digits
        assert (found["verdict"], found["threshold"]) == (judged.verdicts[0], scorer.threshold)


def test_what_came_meanwhile_is_one_batch(served, held, scorer):
    images = blobs(6, 7)
    before = batch_count(served)
    with ThreadPoolExecutor(6) as pool:
        answers = [pool.submit(served.ask, "POST", "/score", png(images[0]))]
        wait_for(lambda: served.state.inside == 1 and served.state.jobs.empty() and batch_count(served) > before)
        answers += [pool.submit(served.ask, "POST", "/score", png(image)) for image in images[1:]]
        wait_for(lambda: served.state.jobs.qsize() == 5)
        held.set()
        found = [json.loads(answer.result()[2])["score"] for answer in answers]
    np.testing.assert_array_equal(found[:1], scorer(images[:1]))  # two batches, and the scores of each to the bit
    np.testing.assert_array_equal(found[1:], scorer(images[1:]))
    assert_scores_close(scorer, images, found, scorer(images))
    assert batch_count(served) == before + 2


def batch_count(served):
    return served.state.registry.get_sample_value("ganomaly_batch_images_count") or 0


def test_more_than_may_wait_is_told_to_come_again(served, held):
    body = png(blobs(1, 8)[0])
    with ThreadPoolExecutor(6) as pool:
        waiting = [pool.submit(served.ask, "POST", "/score", body) for _ in range(LIMITS.queue)]
        wait_for(lambda: served.state.inside == LIMITS.queue)
        refused = served.ask("POST", "/score", body)
        assert "6 requests are in progress" in error(refused, 429) and refused[1]["Retry-After"] == "1"
        assert served.ask("GET", "/healthz")[0] == 200  # it still answers those who look after it
        held.set()
        assert {answer.result()[0] for answer in waiting} == {200}
    assert served.state.inside == 0
    assert served.ask("POST", "/score", body)[0] == 200


def test_an_error_of_the_device_is_one_answer(served, monkeypatch, capsys):
    def broken(*given):
        raise RuntimeError("out of memory")

    body = png(blobs(1, 8)[0])
    with monkeypatch.context() as patch:
        patch.setattr(batching, "score_batch", broken)
        said = error(served.ask("POST", "/score", body), 500)
    assert said == "the detector failed: RuntimeError: out of memory"
    assert said in capsys.readouterr().err
    assert 'requests_total{path="/score",status="500"} 1.0' in served.ask("GET", "/metrics")[2].decode()
    assert served.ask("POST", "/score", body)[0] == 200


@pytest.mark.parametrize(
    ("body", "headers", "status", "wanted"),
    [
        (b"", {}, 400, "no body"),
        (b"hello", {}, 422, "not an image"),
        (png(blobs(1, 1)[0])[:-40], {}, 422, "damaged image"),
        (b"\x89PNG" + bytes(LIMITS.body), {}, 413, "more than 20,000 bytes"),
        (iter([bytes(15_000), bytes(15_000)]), {}, 413, "more than 20,000 bytes"),
        (png(np.zeros((101, 100, 1), np.uint8)), {}, 413, "100 x 101 pixels: expected at most 10,000"),
        (b"--a", {"Content-Type": "multipart/mixed; boundary=a"}, 415, "expected the bytes"),
        (b"\x1f\x8b", {"Content-Encoding": "gzip"}, 415, "content encoding 'gzip'"),
    ],
)
def test_bad_bodies(served, body, headers, status, wanted):
    assert wanted in error(served.ask("POST", "/score", body, headers), status)
    assert served.state.inside == 0


def test_pixels_that_are_not_numbers_are_invalid(served):
    kept = io.BytesIO()
    Image.fromarray(np.full((16, 16), np.nan, np.float32)).save(kept, "TIFF")
    # This detector is of uint8 images: what a floating-point pixel means in them is not known.
    assert "no common scale" in error(served.ask("POST", "/score", kept.getvalue()), 422)


def test_a_body_that_does_not_come(served):
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as slow:
        slow.sendall(b"POST /score HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nx")
        assert b" 408 " in slow.recv(2000)
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as gone:
        gone.sendall(b"POST /score HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nx")
    wait_for(lambda: served.state.inside == 0)
    assert served.ask("POST", "/score", png(blobs(1, 1)[0]))[0] == 200


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"Content-Length: abc", b"400"),
        (b"Content-Length: -1", b"400"),
        (b"Content-Length: " + b"9" * 5000, b"400"),
        (b"Content-Length: 3\r\nContent-Length: 4", b"400"),
        (b"Transfer-Encoding: gzip", b"400"),
        (b"Content-Length: 99999999999", b"413"),
        (b"Cookie: " + b"a" * 100_000, b"400"),
        (b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nContent-Length: 0", b"400"),
        (b"Expect: 100-continue\r\nContent-Length: 99999", b"413"),
    ],
)
def test_heads_that_are_not_as_they_should_be(served, head, status):
    assert told(served, b"POST /score HTTP/1.1\r\nHost: localhost\r\n" + head + b"\r\n\r\n").startswith(
        b"HTTP/1.1 " + status
    )
    assert served.state.inside == 0 and served.ask("GET", "/readyz")[0] == 200


def told(served, request):
    """The first bytes of the answer to a request as it is."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as raw:
        with contextlib.suppress(OSError):  # it may answer and close before all is sent
            raw.sendall(request)
        return raw.recv(5000)


def test_who_still_sends_sees_why_not(served):
    """The refusal comes before the body is here, and is not lost for it: the connection stays."""
    body = bytes(5_000_000)
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=30)
    with contextlib.closing(connection):
        for _ in range(2):
            for path, status in (("/score", 413), ("/nothing", 404)):
                connection.request("POST", path, body)
                answer = connection.getresponse()
                assert answer.status == status and "error" in json.loads(answer.read())
        connection.request("POST", "/score", png(blobs(1, 1)[0]))
        assert connection.getresponse().status == 200


def test_several_requests_at_once_on_one_connection(served):
    body = png(blobs(1, 1)[0])
    request = b"POST /score HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    last = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as raw:
        raw.sendall(request * 3 + last)
        said = b"".join(iter(lambda: raw.recv(5000), b""))
    assert said.count(b"HTTP/1.1 200") == 4 and said.count(b'"verdict"') == 3 and said.endswith(b'{"status":"alive"}')


def test_who_asks_for_heads_alone(served):
    status, headers, body = served.ask("HEAD", "/healthz")
    assert (status, body) == (200, b"") and int(headers["Content-Length"]) == len(b'{"status":"alive"}')


def test_a_threshold_that_nothing_passes(served, scorer, monkeypatch):
    monkeypatch.setattr(scoring_scorer.Scorer, "threshold", math.inf)
    assert json.loads(served.ask("POST", "/score", png(blobs(1, 1)[0]))[2])["threshold"] is None


def test_batches_are_not_mostly_padding():
    taken = {waiting: batching.next_batch_size(waiting, 64) for waiting in (1, 3, 4, 8, 9, 31, 32, 64, 65, 1000)}
    assert taken == {1: 1, 3: 1, 4: 4, 8: 8, 9: 8, 31: 8, 32: 32, 64: 64, 65: 64, 1000: 64}
    assert [batching.next_batch_size(50, most) for most in (1, 5, 8, 20)] == [1, 5, 8, 8]


def test_other_paths_and_methods(served):
    assert error(served.ask("POST", "/score/", b"x"), 404)
    assert error(served.ask("GET", "/nothing"), 404) == "Not Found"
    refused = served.ask("GET", "/score")
    assert error(refused, 405) and refused[1]["Allow"] == "POST"


def test_the_picture(served):
    status, headers, body = served.ask("POST", "/explain", png(blobs(1, 6, anomalous=True)[0]))
    assert status == 200 and headers["Content-Type"] == "image/png"
    with Image.open(io.BytesIO(body)) as picture:
        assert picture.width > 4 * 190 and np.asarray(picture).std() > 10
    assert "not an image" in error(served.ask("POST", "/explain", b"x"), 422)


def test_figures_for_prometheus(served):
    served.ask("POST", "/score", png(blobs(1, 1)[0]))
    text = served.ask("GET", "/metrics")[2].decode()
    for wanted in ('requests_total{path="/score",status="200"}', "ganomaly_verdicts_total", "ganomaly_ready 1.0"):
        assert wanted in text
    assert float(re.search(r'ganomaly_request_seconds_count\{path="/score"\} (\S+)', text)[1]) >= 1


def test_the_document_holds_every_path(served):
    said = json.loads(served.ask("GET", "/openapi.json")[2])
    assert said == openapi.document()
    assert said["info"]["version"] == ganomaly_jax.__version__
    verdicts = said["components"]["schemas"]["Verdict"]["properties"]["verdict"]["enum"]
    assert verdicts == ["normal", "review", "anomalous", "invalid"]
    for path, operations in said["paths"].items():
        (method,) = operations
        status = str(served.ask(method.upper(), path)[0])
        assert status in operations[method]["responses"]


def test_the_page_runs_nothing_but_its_own_script(served):
    status, headers, body = served.ask("GET", "/")
    page, policy = body.decode(), headers["Content-Security-Policy"]
    assert status == 200 and (page, policy) == deploy_page.page()
    assert page.count("<script>") == 1 and "http:" not in page and "https:" not in page
    assert "unsafe" not in policy and policy.startswith("default-src 'none'; ")
    for kind in ("script", "style"):
        inline = re.search(rf"<{kind}>(.*)</{kind}>", page, re.DOTALL)[1]
        assert f"{kind}-src '{html.digest(inline)}'" in policy


def test_the_interface_as_a_page(served):
    status, headers, body = served.ask("GET", "/docs")
    page, policy = body.decode(), headers["Content-Security-Policy"]
    assert status == 200 and (page, policy) == deploy_page.docs(openapi.document())
    assert "<script" not in page and "script-src" not in policy and policy.startswith("default-src 'none'; ")
    assert not re.search(r"(?:src|href)=.(?:https?:)?//", page)  # it works where there is no network
    for inline in re.findall("<style>(.*?)</style>", page, re.DOTALL):
        assert html.digest(inline) in policy
    for path, operations in openapi.document()["paths"].items():
        for operation in operations.values():
            assert f"<code>{path}</code>" in page and operation["summary"] in page
            assert all(f"<th>{answer}</th>" in page for answer in operation["responses"])
    assert "Authorization: Bearer TOKEN" not in page
    assert "Authorization: Bearer TOKEN" in deploy_page.docs(openapi.document(with_token=True))[0]


def test_before_it_is_ready_and_after_it_broke(scorer, monkeypatch, capsys):
    go = threading.Event()
    monkeypatch.setattr(batching, "warm_up", lambda *given: go.wait(30) and 1 / 0)
    running = Served(http_app.application(scorer, LIMITS), LIMITS)
    try:
        wait_for(lambda: running.server.started)
        assert running.ask("GET", "/healthz")[0] == 200 and running.ask("GET", "/readyz")[0] == 503
        assert "starting" in error(running.ask("POST", "/score", b"x"), 503)
        go.set()
        wait_for(lambda: running.state.error)
        assert running.ask("GET", "/healthz")[0] == 500
        assert "ZeroDivisionError" in error(running.ask("POST", "/score", b"x"), 503)
    finally:
        go.set()
        running.close()
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_who_has_gone_is_passed_over(scorer):
    async def scene():
        loop, jobs = asyncio.get_running_loop(), asyncio.Queue()
        given = [batching.Job((image, (0.0, 255.0)), False, loop.create_future()) for image in blobs(2, 3)]
        given[0].answer.cancel()
        for job in given:
            jobs.put_nowait(job)
        working = asyncio.create_task(batching.serve_jobs(scorer, jobs, 8, lambda size: None))
        found = await given[1].answer
        working.cancel()
        return found

    assert asyncio.run(scene()).verdict in ("normal", "review", "anomalous")


def test_what_cannot_be_served(trained, scorer, capsys, monkeypatch, tmp_path):
    workdir = str(trained[0])
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main.main(["serve", "--workdir", workdir, "--port", port]) == 2
        assert f"127.0.0.1 port {port}: address already in use" in capsys.readouterr().err
    for flags, wanted in (
        (["--host", "no.such.host.invalid"], "expected --host"),
        (["--port", "70000"], "expected 0 to 65535"),
        (["--max-batch", "1000"], "expected 1 to 256"),
        (["--queue", "0"], "limit queue 0"),
        (["--drain", "-1"], "--drain -1"),
        (["--drain", "nan"], "--drain nan"),
        (["--max-body", "inf"], "--max-body inf"),
        (["--max-body", "0"], "--max-body 0"),
        (["--body-timeout", "inf"], "--body-timeout inf"),
        (["--max-pixels", "64000001"], "expected at most 64,000,000"),
        (["--host", "a" * 70], "expected --host"),
    ):
        assert main.main(["serve", "--workdir", workdir, *flags]) == 2
        assert wanted in capsys.readouterr().err
    assert main.main(["serve", "--workdir", str(tmp_path)]) == 2
    monkeypatch.setitem(sys.modules, "starlette.applications", None)
    with pytest.raises(UserError, match=r"pip install 'ganomaly-jax\[serve\]'"):
        http_app.application(scorer)


def test_sensors_are_refused(scorer, monkeypatch):
    monkeypatch.setattr(scoring_scorer.Scorer, "modality", modalities.named("rows"))
    with pytest.raises(UserError, match="ganomaly monitor"):
        http_app.application(scorer)
