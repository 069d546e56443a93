"""The benchmark of a set larger than memory: what it packs, what it measures, and that it can fail."""

import copy

import numpy as np
import pytest

from benchmarks.speed import bounded
from ganomaly_jax.core import config
from ganomaly_jax.data import sources

OF_ONE = {"peak_rss": 2**29, "peak_anonymous": 2**28, "peak_addresses": 2**31, "seconds": 9.0, "scored": 70}
FOUND = {
    "auto": OF_ONE | {"exit_code": 0, "read_meanwhile": True, "last_line": "report in run"},
    "never": OF_ONE | {"exit_code": 2, "read_meanwhile": False, "last_line": "ganomaly: Unable to allocate"},
}
REPORT = {
    "date": "today",
    "machine": {"processor": "one", "cores": 2, "commit": "", "versions": {"jax": "1"}},
    "load_average": {"before": [0.1], "after": [0.2]},
    "settings": {"shape": (64, 64, 3), "limit_gib": 3.5, "steps": 60, "batch": 64, "features": 4},
    "images": 350_000,
    "bytes": 2**32,
    "found": FOUND,
}


def changed(way, **values):
    report = copy.deepcopy(REPORT)
    report["found"][way] |= values
    return report


def test_what_did_not_hold_is_said():
    assert bounded.broken(REPORT) == []
    page = bounded.markdown(REPORT)
    assert "| `auto` | 0 | 70 | 512 | 256 | 2,048 | 9.0 | report in run |" in page and "All of it held." in page
    for report, said in (
        (changed("auto", exit_code=1, last_line="MemoryError"), "did not come to its end: MemoryError"),
        (changed("auto", read_meanwhile=False), "did not come to its end"),
        (changed("never", exit_code=0), "held in memory: exit code 0"),
        (REPORT | {"bytes": 2**31}, "not larger than the limit"),
    ):
        assert said in bounded.broken(report)[0] and f"- {bounded.broken(report)[0]}" in bounded.markdown(report)


def test_a_process_is_limited_and_looked_at(tmp_path, monkeypatch):
    """Of 1 GiB it can hold half and not twice as much, and that is seen."""
    program = bounded._LIMITED.split("from ganomaly_jax")[0] + "x = b'1' * (2**29 {0}); import time; time.sleep(0.5)"
    options = bounded.arguments(["--out", "x", "--limit-gib", "1", "--set-gib", "2"])
    found = {}
    for name, more in (("half", ""), ("twice", "* 4")):
        monkeypatch.setattr(bounded, "_LIMITED", program.replace("2**29 {0}", f"2**29 {more}"))
        found[name] = bounded.trained("auto", tmp_path, tmp_path / name, options)
    assert found["half"]["exit_code"] == 0 and found["half"]["peak_anonymous"] > 2**29
    assert found["twice"]["exit_code"] == 1 and found["twice"]["last_line"] == "MemoryError"
    assert found["twice"]["peak_rss"] < 2**29


def test_shards_hold_what_is_asked_for_and_hardly_an_image_twice(tmp_path, monkeypatch):
    pytest.importorskip("array_record", reason="array_record is not installed")
    monkeypatch.setattr(bounded, "_SHARD_BYTES", 2**14)
    options = bounded.arguments(["--out", "x", "--shape", "16x16x1", "--set-gib", "0.00004", "--limit-gib", "0.00002"])
    count, size = bounded.packed(tmp_path, options, lambda line: None)
    assert len(list(tmp_path.iterdir())) == 6 and size == 3 * 2**14
    dataset = sources.load(config.Data(source=str(tmp_path), stream="never"))
    assert len(np.unique(dataset.images.reshape(count, -1), axis=0)) > 0.95 * count
    assert dataset.labels.sum() == 6


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--set-gib", "3"), "--set-gib 3: expected more than --limit-gib, 3.5"),
        (("--steps", "1"), "--steps: got 1, expected 2 or more"),
    ],
)
def test_options_are_checked(flags, said, tmp_path, capsys):
    assert bounded.main(["--out", str(tmp_path / "x"), *flags]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
