"""`ganomaly check`: what is wrong with data is found, named, and told apart from what is only odd."""

import json  # noqa: I001

import numpy as np
import pytest
from PIL import Image
from tests.support import blobs

from ganomaly_jax.cli import main
from ganomaly_jax.core import config, config_values
from ganomaly_jax.data import lazy, sources
from ganomaly_jax.evaluation.two_sample import kolmogorov_smirnov
from ganomaly_jax.training import data_check


def write(folder, images, start=0):
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images, start):
        Image.fromarray(image).save(folder / f"{i:03}.png")


def settings(source, **values):
    made = config.Config()
    made.data.source = str(source)
    for path, value in values.items():
        config_values.set_value(made, path.replace("__", "."), value)
    return made


def codes(found):
    return {finding.code: finding for finding in found.findings}


@pytest.fixture
def good(tmp_path):
    """Enough normals for a rate of 1 %: no finding."""
    write(tmp_path / "good" / "normal", np.random.default_rng(0).integers(0, 256, (40, 16, 16), np.uint8))
    write(tmp_path / "good" / "bad", blobs(12, 1, anomalous=True)[..., 0])
    return tmp_path / "good"


@pytest.fixture
def faulty(tmp_path):
    """MVTec's layout with one of everything."""
    normals, root = blobs(60, 0)[..., 0], tmp_path / "faulty"
    write(root / "train" / "good", normals[:40])
    write(root / "train" / "bad", blobs(2, 1, anomalous=True)[..., 0])
    write(root / "test" / "good", [*normals[40:], normals[0]])  # one is trained on as well
    write(root / "test" / "bad", [*blobs(11, 2, anomalous=True)[..., 0], normals[50]])  # one is normal as well
    write(root / "test" / "hole", blobs(3, 3, anomalous=True)[..., 0])
    write(root / "test" / "good", [np.full((16, 16), 7, np.uint8), np.zeros((8, 60), np.uint8)], 90)
    write(root / "train" / "good", [np.zeros((16, 16, 3), np.uint8) + 5], 90)
    (root / "train" / "good" / "cut.png").write_bytes((root / "train" / "good" / "000.png").read_bytes()[:60])
    return root


def test_good_data_have_no_finding(good):
    asked = settings(good, train__batch_size=8, evaluate__false_positive_rate=0.25)
    found = data_check.check(asked)
    assert codes(found).keys() <= {"few_normal"}
    assert found.usable
    assert {(row["class"], row["taken_as"], row["items"]) for row in found.table} == {
        ("normal", "normal", 40),
        ("bad", "anomalous", 12),
    }


def test_each_fault_is_found_and_named(faulty):
    found = codes(data_check.check(settings(faulty)))
    assert {"unreadable", "anomalous_in_training", "overlap", "contradiction", "constant", "aspect"} <= found.keys()
    assert {"mixed", "small_class", "duplicates", "few_for_rate", "batch"} <= found.keys()
    assert "cut.png: damaged" in found["unreadable"].items[0]
    assert len(found["anomalous_in_training"].items) == 2
    assert [path for path in found["overlap"].items if path.endswith("test/good/020.png")]
    assert {path.rpartition("test/")[2] for path in found["contradiction"].items} == {"good/010.png", "bad/011.png"}
    assert {path[-12:] for path in found["constant"].items} == {"good/090.png", "good/091.png"}
    assert found["aspect"].items[0].endswith("good/091.png")
    assert "hole (3)" in found["small_class"].what
    assert "990 normal items" in found["few_for_rate"].do


def test_the_command_says_it_and_exits_by_it(good, faulty, tmp_path, capsys):
    out = tmp_path / "found.json"
    assert main.main(["check", str(faulty), "--json", str(out)]) == 3
    said = capsys.readouterr().out
    assert "unusable: 1 files cannot be read" in said
    assert "what to do:" in said
    held = json.loads(out.read_text())
    assert not held["usable"]
    assert held["findings"][0]["code"] == "unreadable"  # the worst first
    assert main.main(["check", str(good)]) == 0
    assert "calibration items can guarantee" in capsys.readouterr().out
    assert main.main(["check", str(tmp_path / "nowhere")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert main.main(["check"]) == 2


def test_values_that_use_little_of_their_type(tmp_path):
    np.savez(tmp_path / "eight.npz", images=blobs(30, 0).astype(np.uint16), labels=np.zeros(30, int))
    found = codes(data_check.check(settings(tmp_path / "eight.npz")))
    assert "8 bits" in found["narrow_range"].what
    twelve = blobs(30, 0).astype(np.uint16) * 16
    np.savez(tmp_path / "twelve.npz", images=twelve)
    found = codes(data_check.check(settings(tmp_path / "twelve.npz")))
    assert "--config.data.high=4095" in found["narrow_range"].do
    images = (blobs(30, 0) / 255).astype(np.float32)
    images[4] = np.nan
    np.savez(tmp_path / "nan.npz", images=images)
    found = data_check.check(settings(tmp_path / "nan.npz"))
    assert len(codes(found)["not_finite"].items) == 1
    assert not found.usable


def test_classes_that_are_not_said_to_be_normal(tmp_path):
    np.savez(tmp_path / "digits.npz", images=blobs(40, 0), labels=np.arange(40) % 3 + 5)
    found = data_check.check(settings(tmp_path / "digits.npz"))
    assert "data.abnormal" in codes(found)["classes"].what
    assert not found.usable
    assert data_check.check(settings(tmp_path / "digits.npz", data__abnormal=5)).usable
    images, labels = blobs(40, 0), np.arange(40) % 3 + 5
    np.savez(tmp_path / "parts.npz", x_train=images[:30], y_train=labels[:30], x_test=images[30:], y_test=labels[30:])
    pooled = data_check.check(settings(tmp_path / "parts.npz", data__abnormal=5))
    assert "anomalous_in_training" not in codes(pooled)  # the protocol of the tables pools the parts


def test_files_are_looked_through_and_let_go(good, monkeypatch):
    """Memory does not grow with the set: no array of all images is made."""
    read, real = [], sources.read
    monkeypatch.setattr(sources, "read", lambda *given, **named: read.append(real(*given, **named)) or read[-1])
    data_check.check(settings(good))
    assert isinstance(read[0].images, lazy.LazyImages)


def test_data_beside_a_detector(trained, tmp_path, capsys):
    workdir, scorer = trained
    write(tmp_path / "same", blobs(60, 50)[..., 0])
    write(tmp_path / "brighter", np.minimum(blobs(60, 51)[..., 0].astype(int) + 60, 255).astype(np.uint8))
    same = codes(data_check.check(settings(tmp_path / "same"), scorer))
    assert "shifted" not in same
    assert "distributed like those of the calibration" in same["scores"].what
    assert main.main(["check", str(tmp_path / "brighter"), "--workdir", str(workdir)]) == 0
    said = capsys.readouterr().out
    assert "the scores are not distributed like those of the calibration items" in said
    assert "ganomaly update" in said
    write(tmp_path / "colour", np.repeat(blobs(20, 52), 3, axis=3))
    colour = data_check.check(settings(tmp_path / "colour"), scorer)
    assert len(codes(colour)["channels"].items) == 20
    np.savez(tmp_path / "deep.npz", images=blobs(20, 53).astype(np.uint16) * 257)
    deep = data_check.check(settings(tmp_path / "deep.npz"), scorer)
    assert "uint16" in codes(deep)["type"].what


def test_kolmogorov_smirnov_by_hand():
    """Worked by hand: of {1, 2} and {3, 4} the distance is 1; with four equal ones it is 0."""
    assert kolmogorov_smirnov(np.array([1.0, 2]), np.array([3.0, 4]))[0] == 1
    assert kolmogorov_smirnov(np.arange(4.0), np.arange(4.0)) == (0.0, 1.0)
    # scipy 1.16: ks_2samp(arange(50), arange(50) + 15, method="exact").
    distance, p_value = kolmogorov_smirnov(np.arange(50.0), np.arange(50.0) + 15)
    assert distance == pytest.approx(0.3)
    assert p_value == pytest.approx(0.02170784069014051, rel=1e-9)


def table(path, x):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savetxt(path, x, delimiter=",", header=",".join("abcd"[: x.shape[1]]), comments="", fmt="%.6g")


def test_rows_are_split_in_time_and_a_column_that_stands_still_in_training_is_named(tmp_path):
    x = np.random.default_rng(0).normal(size=(120, 3))
    x[:, 1] = 5.0
    x[110:] = x[:10]  # the last fifth is tested on, and only in time
    table(tmp_path / "rows.csv", x)
    found = codes(data_check.check(settings(tmp_path / "rows.csv", data__test=0.1)))
    assert found["constant_column"].items == ("b",)
    assert len(found["overlap"].items) == 10
    assert "in every value" in found["duplicates"].what
    anomalous = x.copy()
    anomalous[:, 1] = 6.0  # it changes there, and still nothing of it can be learned
    table(tmp_path / "plant" / "train" / "normal" / "a.csv", x)
    table(tmp_path / "plant" / "test" / "fault" / "b.csv", anomalous)
    assert codes(data_check.check(settings(tmp_path / "plant")))["constant_column"].items == ("b",)


@pytest.mark.parametrize("missing", ["refuse", "last", "mask"])
def test_missing_values_are_judged_by_the_policy_that_is_asked_for(tmp_path, missing):
    x = np.random.default_rng(1).normal(size=(120, 3))
    table(tmp_path / "rows.csv", x)
    lines = (tmp_path / "rows.csv").read_text().splitlines()
    lines[20] = "," + lines[20].partition(",")[2]
    (tmp_path / "rows.csv").write_text("\n".join(lines))
    found = data_check.check(settings(tmp_path / "rows.csv", data__missing=missing))
    assert found.usable == (missing != "refuse")
    if missing == "refuse":
        assert "missing or infinite values of a" in codes(found)["split"].what
    assert ("missing" in codes(found)) == (missing != "last")
