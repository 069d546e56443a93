"""benchmarks/machines.py: the split in time, the trivial score, the page; and bad input."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import machines
from ganomaly_jax.spectrogram import Spectrogram


def test_a_bearings_test_shares_no_sample_with_what_is_trained_on():
    held = {"1797_Normal": np.arange(9000.0), "1797_IR_7_DE48": -1 - np.arange(1000.0)}
    for part in range(machines.PARTS):
        split = machines.bearing(held, 400, part)
        normal = split.test[[kind == "" for kind in split.kinds]]
        assert len(normal) == 7 and set(split.kinds) == {"", "IR_7"}
        assert normal.min() >= 3000 * part and normal.max() < 3000 * (part + 1)
        assert not set(split.train.ravel()) & set(normal.ravel())
        assert len(np.unique(normal)) == normal.size  # nor do they share any
        assert (split.test[[kind != "" for kind in split.kinds]] < 0).all()
        assert len(split.train) == 2 * ((3000 - 400) // 50 + 1)


def test_a_fans_test_is_a_third_of_each_condition_with_a_gap():
    kinds = np.array(["fan_0_low_0_weight", "fan_0_low_1_weight", "fan_0_off_0_weight"])
    number = np.arange(90.0)
    held = {"x": np.broadcast_to(number[:, None, None], (90, 20, 3)), "y": np.repeat([0, 1, 2], 30), "condition": kinds}
    split = machines.fan(held, 10, 1)
    assert split.test.shape == (50, 10, 3) and split.kinds.count("fan_0_low_1_weight") == 30
    normal = split.test[[kind == "" for kind in split.kinds], 0, 0]
    assert normal.tolist() == [*range(10, 20), *range(70, 80)]
    assert split.train[:, 0, 0].tolist() == [*range(8), *range(22, 30), *range(60, 68), *range(82, 90)]


def test_pixels_are_in_units_of_the_spread_in_training():
    waves = np.random.default_rng(0).normal(size=(200, 100, 2)).astype(np.float32)
    settings = Spectrogram(100, 0.2, 0.1, 4, scale="linear")
    train, test = machines.pictures(waves, 1e6 * waves[:3], settings)
    assert train.shape == (200, 4, 9, 2) and test.shape == (3, 4, 9, 2) and train.dtype == np.uint8
    assert abs(train.mean() - 127.5) < 1 and train.std(axis=(0, 2)) == pytest.approx(127.5 / machines.SCALE, rel=0.05)
    assert (test == 255).all()


def test_energy_and_figures_by_hand():
    waves = np.array([[[1.0], [3.0]], [[0.0], [4.0]]])
    assert machines.energy(waves).tolist() == [1, 2]
    found = machines.figures(np.array([0.0, 1, 2, 3, 0.5]), ["", "", "a", "a", "b"])
    assert found == pytest.approx({"all": 5 / 6, "a": 1, "b": 0.5})


def test_the_page_names_the_least_kind():
    one = {"all": 0.9, "a": 1.0, "b": 0.25}
    report = machines.command.begin(
        "machines", machine=machines.timing.machine(), load_average={"before": [0], "after": [0]},
        settings={"splits": 1, "steps": 1}, found={"fan": {"windows": [[10, 5, 20]], "methods": {"energy": [one]}}},
    )  # fmt: skip
    assert "| energy | 0.9000 | 0.2500 | b |" in machines.markdown(report)


def test_bad_input_is_a_sentence(tmp_path, capsys):
    def said(*more):
        assert machines.main(["--source", str(tmp_path), "--out", str(tmp_path / "out"), *more]) == 2
        return capsys.readouterr().err

    assert "wanted a folder with cwru/" in said()
    assert "wanted some of bearing, fan" in said("--sets", "pump")
    assert "at most 3" in said("--splits", "4")
    (tmp_path / "ceiling_fan").mkdir()
    np.savez(tmp_path / "ceiling_fan" / "ceiling_fan_accel.npz", a=np.ones(2))
    assert "holds a: wanted x, y, condition" in said("--sets", "fan")
