"""benchmarks/speed/stream.py: its rows, its percentiles, its page; and bad input."""

import itertools
import json
import os

import numpy as np
import pytest

from benchmarks.speed import stream


def test_rows_come_again_with_a_time_that_goes_on():
    lines = itertools.islice(stream.stream_of(["a", "b"], [b",1,2\n", b",3,4\n"]), 5)
    assert list(lines) == [b"time,a,b\n", b"0,1,2\n", b"1,3,4\n", b"2,1,2\n", b"3,3,4\n"]


def test_percentiles_by_hand():
    assert stream.percentiles(np.arange(1001.0)) == {"p50": 500, "p99": 990, "p999": 999, "max": 1000}


def test_the_page_says_whether_the_aim_is_met():
    ms = {"p50": 1.0, "p99": 2.5, "p999": 3.0, "max": 4.0}
    own = {
        "latency": {"100": {"rows": 10, "rate": 100, "ms": ms, "own_ms": ms}},
        "flood": {"rows": 100_000, "verdicts": 1, "seconds": 10.0, "memory": [[50_000, 2**27], [100_000, 2**28]]},
        "many": {"streams": 7, "ms": ms, "rows_a_second": 7000.0, "compile_s": 1.0},
    }
    report = {
        "machine": {"jax": {"device": "cpu"}, "processor": "P", "cores": 1, "commit": None, "versions": {}},
        "load_average": {"before": [0], "after": [0]},
        "date": "today",
        "settings": {"streams": 7},
        "found": {"rows": own},
    }
    page = stream.markdown(report)
    assert "the highest here is 2.50 ms" in page
    assert "| rows | 100,000 | 10,000 | 128.0 | 256.0 | 256.0 |" in page
    assert "7 streams in one program" in page
    json.dumps(report, allow_nan=False)


@pytest.mark.parametrize(
    "flags", [["--source", "none"], ["--source", "none", "--cores", "0,999999"], [], ["--rates", "0"]]
)
def test_what_cannot_be_is_one_sentence(flags, tmp_path, capsys):
    allowed = os.sched_getaffinity(0)
    core = str(min(allowed))
    assert stream.main(["--cores", f"{core},{core}", *flags, "--out", str(tmp_path / "out")]) == 2
    assert "error: --" in capsys.readouterr().err
    assert os.sched_getaffinity(0) == allowed and not list(tmp_path.iterdir())
