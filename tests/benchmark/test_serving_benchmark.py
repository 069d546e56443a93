"""serving.py: what it reads from wrk and from the server, its page; and bad input. No wrk is needed."""

import json  # noqa: I001
import shutil

import numpy as np
import pytest
from tests.support import blobs

from benchmarks.speed import serving
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.deploy import batching

# As wrk and the script print it: what they say before the last line is for people.
PRINTED = """Running 2s test @ http://127.0.0.1:8000/score
  1 threads and 8 connections
  Requests/sec:   60.00
{"seconds": 2.0, "p50": 1200, "p95": 2500, "p99": 9000, "max": 20000, "broken": 1, "timeouts": 2, \
"statuses": {"200": 100, "429": 15, "500": 5}}
"""


def test_what_wrk_prints():
    found = serving.parsed(PRINTED)
    assert (found["requests"], found["scored"], found["refused"], found["others"]) == (120, 100, 15, 5)
    assert (found["broken"], found["scored_a_second"], found["requests_a_second"]) == (3, 50, 60)
    assert found["ms"] == {"p50": 1.2, "p95": 2.5, "p99": 9, "max": 20}
    assert serving.parsed(PRINTED.replace('"200": 100, "429": 15, "500": 5', ""))["scored"] == 0
    for text in ("", "unable to connect to 127.0.0.1:1\n"):
        with pytest.raises(UserError, match="no figures"):
            serving.parsed(text)


def test_what_the_server_counts():
    prometheus = pytest.importorskip("prometheus_client", reason="serving needs the extra `serve`")
    registry = prometheus.CollectorRegistry()
    sizes = prometheus.Histogram("ganomaly_batch_images", "Images.", buckets=(1, 8), registry=registry)
    for size in (3, 5, 1):
        sizes.observe(size)
    assert serving.batches(prometheus.generate_latest(registry).decode()) == {"images": 9, "batches": 3}


def test_the_files_are_the_images():
    import io

    from PIL import Image

    images = blobs(3, 0)
    read = [np.asarray(Image.open(io.BytesIO(content))) for content in serving.pngs(images)]
    np.testing.assert_array_equal(read, images[..., 0])


def test_the_same_in_process(trained, monkeypatch):
    sizes, answers = [], batching.score_batch

    def counted(scorer, read, mapped):
        sizes.append(len(read))
        found = answers(scorer, read, mapped)
        assert all(isinstance(one, batching.Answer) for one in found)
        return found

    monkeypatch.setattr(batching, "score_batch", counted)
    found = serving.in_process(trained[1], serving.pngs(blobs(5, 0)), 8, 0.05)
    assert set(sizes) == {8} and found["images_a_second"] == pytest.approx(8e3 / found["ms"])


def test_the_page():
    turn = serving.parsed(PRINTED) | {"batch": 2.5, "alone": {"images_a_second": 1500.0, "ms": 5.3}}
    found = {
        "turns": {"8": [turn, turn | {"scored_a_second": 70.0}]},
        "bytes": 800.0,
        "start_s": 12.34,
        "memory": [[0, 2**28], [5000, 2**28 + 2**20], [10_000, 2**28 + 3 * 2**20]],
        "overload": turn,
        "exit": 0,
    }
    report = {
        "machine": {"jax": {"device": "cpu"}, "processor": "P", "cores": 2, "commit": None, "versions": {}},
        "load_average": {"before": [0], "after": [0]},
        "date": "today",
        "settings": {"rounds": 2, "seconds": 3, "queue": 4},
        "found": found,
    }
    page = serving.markdown(report)
    row = "| 8 | 60 (50-70) | 1.20 (1.20-1.20) | 2.50 (2.50-2.50) | 9.00 (9.00-9.00) | 2.5 | 46 | 1,500 (1,500-1,500) |"
    assert row in page
    assert "share 2 cores" in page and "8 connections where 4 requests may be in work" in page
    assert "15 of 120 answers 429" in page and "+2.0 MiB" in page and "exit code 0" in page
    json.dumps(report, allow_nan=False)


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        (["--connections", "0"], "--connections"),
        (["--connections", "8,65"], "at most 64"),
        (["--queue", "4"], "at most 64 and --queue"),
        (["--seconds", "0"], "--seconds"),
        (["--rounds", "0"], "--rounds"),
        ([], "apt-get install wrk"),
    ],
)
def test_what_cannot_be_is_one_sentence(flags, wanted, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    given = [*flags, "--out", str(tmp_path / "out")]
    assert serving.command.main(serving.arguments, serving.run, given) == 2
    assert wanted in capsys.readouterr().err and not list(tmp_path.iterdir())
