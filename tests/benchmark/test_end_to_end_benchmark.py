"""The end-to-end benchmark: its split of the seconds, the parts of predict, its reports and refusals."""

import csv
import json
import os
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
from benchmarks.common import (  # noqa: E402
    prediction,
    timing,
)
from benchmarks.speed import end_to_end  # noqa: E402
from ganomaly_jax.core.errors import UserError  # noqa: E402
from ganomaly_jax.data.images import files as image_files  # noqa: E402
from ganomaly_jax.scoring import inference, scorer  # noqa: E402


def spread(value):
    return timing.spread([value])


PARTS = {
    "listing_s": 0.01,
    "decoding_s": 0.5,
    "scoring_s": 0.4,
    "writing_s": 0.09,
    "total_s": 1.0,
    "decoding_cpu_s": 0.8,
    "device_busy_s": 0.6,
    "device_idle_for_decoding_s": 0.3,
}
MEASURED = {
    "shape": [32, 32, 1],
    "workers": {"one": 1, "all": 2},
    "files_per_s": {"one": spread(100.0), "all": spread(200.0)},
    "ratio_all_to_one": spread(2.0),
    "parts": {name: {part: spread(value) for part, value in PARTS.items()} for name in ("one", "all")},
}
MACHINE = {"processor": "P", "cores": 2, "versions": {"jax": "1"}, "commit": None, "jax": {"device": "cpu"}}


def fake_run(workdir, begin=1000.0):
    """A folder as `train` leaves it, and what it printed: 2 s start, then 3, 5, 7, 11 and 13 s of the stages."""
    (workdir / "checkpoints" / "step_8").mkdir(parents=True)
    (workdir / "checkpoints" / "step_4").mkdir()
    (workdir / "metrics.json").write_text('{"step": 8, "auroc": 0.75, "n_normal": 20, "n_anomalous": 10}')
    (workdir / "config.json").write_text('{"train": {"batch_size": 7}}')
    os.utime(workdir / "config.json", (begin + 5, begin + 5))
    for name, at in (("step_4/data", 13), ("step_8/data", 17)):
        (workdir / "checkpoints" / name).write_text("x")
        os.utime(workdir / "checkpoints" / name, (begin + at, begin + at))
    lines = [(6, "1 of 1 devices | parameters 4 M"), (10, "compiled in 4.0 s"), (28, "threshold 0.5: the scores")]
    return end_to_end.Ran(begin, begin + 41, [(begin + at, line) for at, line in lines])


def test_seconds_are_split_by_what_the_command_leaves(tmp_path):
    ran = fake_run(tmp_path)
    found = end_to_end.stages(ran, tmp_path, 2.0)
    assert found == dict(zip(end_to_end.STAGES, (2, 3, 5, 7, 11, 13), strict=True))
    assert sum(found.values()) == ran.end - ran.begin
    slow = end_to_end.stages(ran, tmp_path, 9.0)
    assert (slow["start"], slow["data"]) == (5, 0) and sum(slow.values()) == 41
    with pytest.raises(UserError, match="did not print 'compiled'"):
        end_to_end.stages(end_to_end.Ran(0, 1, []), tmp_path, 0.1)


def test_a_command_that_fails_gives_its_own_sentence(tmp_path):
    said = []
    with pytest.raises(UserError, match=r"^`ganomaly predict` failed: .*nowhere does not exist.*$") as refused:
        end_to_end.cli(["predict", "a.png", "--workdir", str(tmp_path / "nowhere")], said.append)
    assert "\n" not in str(refused.value) and not said
    begin = time.time()
    ran = end_to_end.cli(["--version"], said.append)
    assert begin <= ran.begin <= ran.at("ganomaly-jax") <= ran.end and said == ["  " + ran.lines[0][1]]


def test_overlaps_by_hand():
    assert prediction.overlap([(0, 2), (3, 5), (6, 7)], [(1, 4), (4.5, 6.5)]) == pytest.approx(1 + 1 + 0.5 + 0.5)
    assert prediction.overlap([(0, 1)], []) == prediction.overlap([], [(0, 1)]) == 0
    assert prediction.overlap([(0, 10)], [(1, 2), (3, 4)]) == 2


def test_the_parts_of_predict_are_measured_where_they_happen(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(inference, "BUCKETS", (1, 8))
    size = prediction.write_pictures(tmp_path / "files", 20, 24)
    assert size == sum(path.stat().st_size for path in (tmp_path / "files").iterdir())
    decoded, started, listed = image_files.decode_file, scorer.Scorer._started, image_files.list_images

    def slow(function, seconds):
        return lambda *args: (time.sleep(seconds), function(*args))[1]

    def hard(*args):
        end = time.thread_time() + 0.002
        while time.thread_time() < end:
            pass
        return decoded(*args)

    monkeypatch.setattr(image_files, "decode_file", hard)
    monkeypatch.setattr(image_files, "list_images", slow(listed, 0.03))
    monkeypatch.setattr(scorer.Scorer, "_started", slow(started, 0.02))
    out = tmp_path / "rows.csv"
    found = prediction.measure(str(trained[0]), str(tmp_path / "files"), str(out), rounds=2)
    with out.open(encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 20
    assert found["shape"] == [16, 16, 1] and found["workers"] == {"one": 1, "all": image_files.WORKERS}
    for name, parts in found["parts"].items():
        low = {part: values["min"] for part, values in parts.items()}
        assert low["listing_s"] >= 0.03 and low["decoding_cpu_s"] >= 20 * 0.002 and low["writing_s"] > 0
        assert low["scoring_s"] >= 3 * 0.02  # three blocks
        assert 0 <= low["device_idle_for_decoding_s"] <= low["decoding_s"]
        assert found["files_per_s"][name]["max"] == pytest.approx(20 / low["total_s"])
    assert found["ratio_all_to_one"]["median"] > 0
    assert image_files.decode_file is hard and image_files.read_ahead.__name__ == "read_ahead"
    alone = prediction._one_pass(scorer.load(trained[0]), str(tmp_path / "files"), str(out), 1)
    parts = sum(alone[part] for part in ("listing_s", "decoding_s", "scoring_s", "writing_s"))
    assert parts == pytest.approx(alone["total_s"])


@pytest.fixture
def calls(monkeypatch):
    """The commands that were asked for, none of which runs."""
    made = []

    def cli(arguments, log=print):
        made.append(arguments)
        if arguments[0] == "train":
            return fake_run(Path(arguments[arguments.index("--workdir") + 1]))
        return end_to_end.Ran(0.0, 4.0, [])

    def own_process(function, given, timeout_s=0):
        return {"machine": MACHINE, "ready": None, "measure": MEASURED}[function.partition(":")[2]]

    monkeypatch.setattr(end_to_end, "cli", cli)
    monkeypatch.setattr(end_to_end, "start_seconds", lambda: 2.0)
    monkeypatch.setattr(timing, "in_own_process", own_process)
    return made


def test_one_command_writes_a_whole_report(tmp_path, calls, capsys):
    out = tmp_path / "results" / "here"
    flags = ["--source", "DIR", "--epochs", "2", "--images", "100", "--config.data.abnormal=5"]
    before = dict(os.environ)
    assert end_to_end.main(["--out", str(out), "--files", "10", "--side", "16", *flags]) == 0
    assert os.environ == before
    assert [call[0] for call in calls] == ["train", "evaluate", "train", "predict", "predict"]
    assert {"--data", "DIR", "--config.train.epochs=2", "--config.data.limit=100"} <= set(calls[0])
    assert {"--config.train.steps=1", "--config.data.abnormal=5"} <= set(calls[2])
    report = json.loads((tmp_path / "results" / "here.json").read_text())
    assert report["finished"] and report["settings"]["config"] == "configs/mnist.py"
    found = report["train"]
    assert found["total_s"] == 41 == sum(found["stages_s"].values()) and found["auroc"] == 0.75
    assert found["training_images_per_s"] == 8 * 7 / 7
    assert report["predict"]["command_files_per_s"] == 10 / 4
    page = (tmp_path / "results" / "here.md").read_text()
    assert "| nothing compiled before | 2.0 | 3.0 | 5.0 | 7.0 | 11.0 | 13.0 | 41.0 |" in page
    assert "| 2 | 200 (200-200) | 1% | 50% | 40% | 9% | 60% | 30% | 0.80 |" in page
    assert "AUROC 0.750 on 30 images" in page and "All threads / one: 2.00" in page
    assert str(ROOT) not in page + json.dumps(report)
    assert "here.json" in capsys.readouterr().out


def test_predict_alone_trains_one_step_first(tmp_path, calls):
    assert end_to_end.main(["--out", str(tmp_path / "a"), "--works", "predict", "--files", "3", "--side", "16"]) == 0
    assert [call[0] for call in calls] == ["train", "predict", "predict"] and "--config.train.steps=1" in calls[0]


def test_a_stopped_run_keeps_what_it_has(tmp_path, calls, monkeypatch, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(end_to_end, "predict", stop)
    assert end_to_end.main(["--out", str(tmp_path / "a")]) == 130
    assert "stopped" in capsys.readouterr().err
    report = json.loads((tmp_path / "a.json").read_text())
    assert "train" in report and not report["finished"] and "Not finished" in (tmp_path / "a.md").read_text()


def test_a_place_that_cannot_be_written_to_is_found_first(tmp_path, calls, capsys):
    (tmp_path / "results").write_text("a file where the folder would be")
    assert end_to_end.main(["--out", str(tmp_path / "results" / "a")]) == 2
    assert "cannot be written" in capsys.readouterr().err and not calls


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--works", "train,sleep"], "--works"),
        (["--works", ""], "--works"),
        (["--epochs", "0"], "--epochs"),
        (["--images", "-1"], "--images"),
        (["--files", "0"], "--files"),
        (["--rounds", "0"], "--rounds"),
        (["--file=5"], "'--file=5' is not understood"),
        (["--config.train.epochs"], "--config.KEY=VALUE"),
    ],
)
def test_bad_arguments_are_one_sentence(tmp_path, calls, capsys, arguments, words):
    assert end_to_end.main(["--out", str(tmp_path / "a"), *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1 and not calls
