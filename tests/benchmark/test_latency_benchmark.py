"""latency.py: its sides give one another's scores, turns alternate, a side that fails is named; its page."""

import argparse
import importlib.util
import json
import sys

import numpy as np
import pytest

from benchmarks.speed import latency, latency_make, latency_page, latency_sides
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.scoring import scorer as scoring_scorer

SIDE, COUNT, SHAPE = 20, 10, (16, 16, 3)
# A side without JAX: the mean of the images, 0 for files.
_MEAN = """
import sys
from benchmarks.speed import latency_sides as sides
def mean(folder):
    print("chatter")
    score = lambda x: x.reshape(len(x), -1).mean(1)
    return sides.Ways(lambda x: x, score, score, lambda paths: paths[0].mean(), folder[-1])
sides.SIDES = {"mean": (mean, "x")}
sides.serve(*sys.argv[1:])
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(folder of artefacts, folder of images): a detector of 16x16x3 and its exports; ten images of 20x20."""
    artefacts, images = (tmp_path_factory.mktemp(name) for name in ("artefacts", "images"))
    failed = latency_make.ours(str(artefacts), SHAPE, 4, 4)
    assert set(failed) == (set() if importlib.util.find_spec("jax2onnx") else {"onnx"})
    size = latency_make.images(str(images), COUNT, SIDE, SHAPE)
    files = sorted((images / "files").iterdir())
    assert [path.suffix for path in files] == [".jpg", ".png"] * 5
    assert size == sum(path.stat().st_size for path in files) // COUNT
    return artefacts, images


@pytest.mark.parametrize("name", ["ours", "StableHLO", "onnxruntime"])
def test_every_way_gives_the_scores_of_the_scorer(name, made):
    make, folder = latency_sides.SIDES[name]
    if not (made[0] / folder).exists():
        pytest.skip("no ONNX export without jax2onnx")
    scorer, ways = scoring_scorer.load(made[0] / "detector"), make(str(made[0] / folder))
    small, large = (np.load(made[1] / f"{mode}.npy") for mode in ("device", "arrays"))
    files = [str(path) for path in sorted((made[1] / "files").iterdir())]
    assert small.shape == (COUNT, *SHAPE) and large.shape == (COUNT, SIDE, SIDE, 3)
    for found, expected in (
        (ways.device(ways.place(small)), scorer(small)),
        (ways.arrays(large), scorer(large)),
        (ways.files(files), scorer(files)),
        (ways.files(files[:1]), scorer(files[:1])),
    ):
        assert np.ptp(expected) > 0 or len(expected) == 1
        np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_a_worker_answers_until_it_is_closed(tmp_path, monkeypatch):
    monkeypatch.setattr(latency, "_SCRIPT", _MEAN)
    np.save(tmp_path / "device.npy", np.arange(24.0).reshape(6, 2, 2, 1))
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a.png").touch()
    with latency.worker(sys.executable, "mean", tmp_path, tmp_path, tmp_path) as side:
        answer = side.ask("device", 3, 4)
        assert answer["scores"] == [1.5, 5.5, 9.5] and len(answer["seconds"]) == 4 and min(answer["seconds"]) > 0
        assert answer["note"] == "x" and "numpy" in answer["versions"]
        with pytest.raises(RuntimeError, match="AttributeError: 'str' object has no attribute 'mean'"):
            side.ask("files", 1, 1)
        answer = side.ask("device", 1, 2, warm=False)  # an error is that call's alone
        assert len(answer["seconds"]) == 2 and answer["scores"] is None
    assert side._process.returncode is not None
    with (
        latency.worker(sys.executable, "unknown", tmp_path, tmp_path, tmp_path) as side,
        pytest.raises(RuntimeError, match="KeyError: 'unknown'"),
    ):
        side.ask("device", 1, 1)


class Fake:
    """A worker whose calls take `ms`; the n-th and later ones fail where `fails` is n."""

    def __init__(self, name, log, ms, scores=(1.0, 2.0), fails=0):
        self.name, self.log, self.ms, self.scores, self.fails, self.asked = name, log, ms, scores, fails, 0
        self.closed = False

    def ask(self, mode, batch, calls, warm=True):
        assert warm or self.asked
        self.asked += 1
        self.log.append((self.name, calls))
        if self.fails and self.asked >= self.fails:
            raise RuntimeError("out of order")
        return {"seconds": [self.ms / 1000] * calls, "scores": list(self.scores), "note": "", "versions": {}}

    def close(self):
        self.closed = True


def options(**more):
    return argparse.Namespace(**{"rounds": 3, "turn": 0.1, "versions": {}} | more)


def quiet(line):
    pass


def test_sides_take_turns_and_one_that_fails_is_left_out():
    log = []
    bad = Fake("onnxruntime", log, 5, fails=3)
    workers = {"ours": Fake("ours", log, 2), "onnxruntime": bad, "StableHLO": Fake("StableHLO", log, 4)}
    case = latency.measure(workers, "device", 8, options(), quiet)
    warm = [("ours", 1), ("onnxruntime", 1), ("StableHLO", 1)]
    turn = [("ours", 50), ("onnxruntime", 20), ("StableHLO", 25)]
    assert log == warm + turn + turn[:2] + turn[2:] + [turn[0], turn[2]]
    assert case["left_out"] == {"onnxruntime": "out of order"} and bad.closed and set(workers) == {"ours", "StableHLO"}
    assert set(case["sides"]) == {"ours", "StableHLO"}
    assert case["sides"]["StableHLO"]["times_as_fast"]["median"] == pytest.approx(2)
    assert case["sides"]["ours"]["images_per_s"] == pytest.approx(4000)


def test_other_scores_are_no_peer():
    def workers():
        return {"ours": Fake("ours", [], 1), "StableHLO": Fake("StableHLO", [], 1, scores=(1.0, 2.001))}

    with pytest.raises(UserError, match=r"StableHLO gives other scores than ours: they differ by 5\.0e-04"):
        latency.measure(workers(), "device", 1, options(), quiet)
    found = latency.measure(workers(), "files", 1, options(), quiet)  # each resizes by its own means
    assert found["differences"] == {"StableHLO": pytest.approx(5e-4)}


def test_quantiles_by_hand_and_none_of_too_few_calls():
    ours, theirs = [[0.001 * i for i in range(1, 102)]], [[0.002] * 19]
    found = latency.summarise(4, {"ours": ours, "onnxruntime": theirs})
    assert [found["ours"][key] for key in ("p50", "p95", "p99")] == pytest.approx([51, 96, 100])
    assert found["onnxruntime"]["p50"] == pytest.approx(2) and found["onnxruntime"]["p95"] is None
    assert found["onnxruntime"]["images_per_s"] == pytest.approx(2000) and found["ours"]["times_as_fast"] is None
    assert found["onnxruntime"]["times_as_fast"]["median"] == pytest.approx(2 / 51)
    assert latency.summarise(1, {"ours": [[0.001] * 20]})["ours"]["p99"] is None


def test_a_start_is_measured_with_an_empty_cache_and_with_that_one(tmp_path, monkeypatch):
    seen = []

    class Started:
        begun = 0.0

        def __init__(self, python, side, artefacts, images, cache):
            self.seen = (side, cache.exists() and any(cache.iterdir()))
            (cache / "program").touch()

        def ask(self, mode, batch, calls):
            assert (mode, batch, calls) == ("files", 1, 0)
            seen.append(self.seen)

        def close(self):
            pass

    monkeypatch.setattr(latency, "Worker", Started)
    names = ["ours", "onnxruntime"]
    found = latency.cold_starts(names, dict.fromkeys(names, "python"), tmp_path, tmp_path, tmp_path, 2)
    assert seen == [("ours", False), ("ours", True), ("onnxruntime", False)] * 2
    assert [len(times) for times in found["ours"].values()] == [2, 2] and found["onnxruntime"]["filled"] == []
    assert not (tmp_path / "cold").exists()


def test_the_page_has_every_case_and_what_was_left_out(tmp_path, monkeypatch):
    machine = {"jax": {"device": "cpu"}, "processor": "P", "cores": 2, "commit": None, "versions": {"jax": "1"}}
    monkeypatch.setattr(latency.timing, "in_own_process", lambda *args, **more: machine)
    monkeypatch.setattr(latency, "make", lambda o, *_: ({"ours": "p", "onnxruntime": "p"}, {"StableHLO": "not there"}))
    monkeypatch.setattr(latency, "Worker", lambda python, name, *_: Fake(name, [], 2))
    monkeypatch.setattr(latency, "cold_starts", lambda sides, *_: {sides[0]: {"empty": [5.0], "filled": []}})
    given = latency.arguments(["--quick", "--out", str(tmp_path / "out")])
    given.bytes_a_file = 1000
    latency.run(given, quiet)
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["finished"] and [(case["mode"], case["batch"]) for case in report["cases"]] == [
        (mode, batch) for mode in latency_sides.MODES for batch in (1, 8)
    ]
    page = (tmp_path / "out.md").read_text()
    assert page == latency_page.markdown(report)
    assert page.count("| 8 | onnxruntime | 2 | 2 | - | 4,000 | 1.00 (1.00-1.00) |") == 3
    assert "| ours | 5 (5-5) | no cache |" in page and "- StableHLO: not there" in page and "Quick" in page


def test_sides_that_cannot_be_made_are_left_out_with_the_reason(tmp_path, monkeypatch):
    def made(function, given, timeout_s, python=None):
        if function.endswith("anomalib"):
            assert python == "other"
            raise RuntimeError("No module named 'anomalib'")
        return {"onnx": "it needs jax2onnx"} if function.endswith("ours") else 7

    monkeypatch.setattr(latency.timing, "in_own_process", made)
    given = latency.arguments(["--quick", "--out", "x", "--anomalib", "other"])
    pythons, left_out = latency.make(given, tmp_path, tmp_path, quiet)
    assert pythons == dict.fromkeys(["ours", "StableHLO"], sys.executable) and given.bytes_a_file == 7
    assert (
        left_out["onnxruntime"] == "it needs jax2onnx" and left_out["anomalib, PyTorch"] == left_out[latency.IMPORTED]
    )
    given = latency.arguments(["--quick", "--out", "x", "--only", "ours"])
    assert list(latency.make(given, tmp_path, tmp_path, quiet)[0]) == ["ours"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--only", "keras"], "--only: got ['keras']"),
        (["--modes", "disk"], "--modes: got ['disk']"),
        (["--rounds", "0"], "--rounds: got 0"),
        (["--starts", "-1"], "--starts: got -1"),
        (["--turn", "0"], "--turn: got 0.0"),
        (["--shape", "9x8x3"], "expected square images"),
    ],
)
def test_bad_flags(flags, said, tmp_path, capsys):
    assert latency.main(["--out", str(tmp_path / "out"), *flags]) == 2
    assert said in capsys.readouterr().err
