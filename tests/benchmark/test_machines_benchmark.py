"""benchmarks/accuracy/machines.py: the split in time, the trivial score, the page; and bad input."""

import numpy as np
import pytest

from benchmarks.accuracy import machines, machines_seconds
from ganomaly_jax.data.audio.spectrogram import Spectrogram


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


def fan_of(length):
    """Two normal conditions and one anomalous, `length` windows each of which every sample is its number."""
    kinds = np.array(["fan_0_low_0_weight", "fan_0_low_1_weight", "fan_0_off_0_weight"])
    number = np.arange(3.0 * length)
    return {"x": number[:, None, None] * np.ones((1, 200, 3)), "y": np.repeat([0, 1, 2], length), "condition": kinds}


@pytest.mark.parametrize("count", machines_seconds.CUTS.values())
def test_what_is_judged_together_is_of_one_block_and_apart_from_the_training(count):
    held, tested = fan_of(120), []
    number = held["x"][:, 0]
    for part in range(3):
        train, test = machines_seconds.blocks(held, part, count)
        used, judged = (np.concatenate([own for _, own in runs]) for runs in (train, test))
        assert len(set(judged)) == len(judged) and not set(used) & set(judged)
        normal = np.concatenate([own for kind, own in test if not kind])
        assert len(normal) == 80 and {kind for kind, _ in test} == {"", "fan_0_low_1_weight"}
        assert np.abs(used[:, None] - normal).min() == machines_seconds.GAP + 1
        tested.append(normal)
        found = machines_seconds.together(number, test, 5, 5)
        assert len(found.rows) == 16 + 24 and found.kinds.count("") == 16
        # Five numbers one after the other: their mean is the one in the middle, and none is used twice.
        assert (np.diff(np.sort(found.rows[:, 0])) >= 5).all()
    assert sorted(np.concatenate(tested).tolist()) == [*range(120), *range(240, 360)]


def test_the_spectra_know_nothing_of_gravity_and_the_change_is_in_one_axis():
    waves = np.random.default_rng(0).normal(size=(6, 200, 3))
    rows = machines_seconds.spectra(waves)
    assert rows.shape == (6, 150)
    np.testing.assert_allclose(rows, machines_seconds.spectra(waves + np.array([0.1, -3.0, 9.8])), atol=1e-3)
    loud = machines_seconds.spectra(waves * [1.0, 10.0, 1.0]) - rows
    np.testing.assert_allclose(loud.reshape(6, 3, 50).mean(axis=(0, 2)), [0, 2, 0], atol=1e-3)
    moved = machines_seconds.changed(rows, 0) - rows
    assert (np.abs(moved) > 0.05).sum(axis=1).tolist() == [10] * 6
    assert np.abs(moved).max() == pytest.approx(machines_seconds.CHANGE, rel=1e-3)


def test_the_choice_looks_at_the_made_up_change_alone():
    found = machines_seconds.figures(np.array([0.0, 1, 2, 3, 1, 2]), ["", "", "a", "a"], 2)
    assert found == pytest.approx({"all": 1, "a": 1, "change": 7 / 8})
    good, lucky = {"all": 0.5, "a": 0.5, "change": 0.9}, {"all": 1.0, "a": 1.0, "change": 0.6}
    methods = {"raw density": [lucky], "ganomaly, pixel": [lucky], "autoencoder, pixel": [good]}
    table = {"thirds": {"1": {"judged": [[9, 5, 6]], "methods": methods}}}
    assert machines_seconds.chosen(table) == "autoencoder, pixel"
    assert "| ganomaly, pixel | 1.0000 | 1.0000 (a) | 0.600 |" in machines_seconds.lines(table)


def test_what_is_not_measured_anew_is_kept_with_its_date(tmp_path):
    before = {"date": "then", "machine": {"commit": "abc"}, "settings": {"steps": 7}, "found": {"fan": 1, "bearing": 2}}
    (tmp_path / "out.json").write_text(machines.json.dumps(before))
    when = {"date": "then", "commit": "abc", "steps": 7}
    assert machines.kept(str(tmp_path / "out"), ["fan", "seconds"]) == {
        "found": {"bearing": 2},
        "kept": {"bearing": when},
    }
    assert machines.kept(str(tmp_path / "none"), ["fan"]) == {"found": {}, "kept": {}}
    assert machines_seconds.joined({"a": {"5": 1, "10": 2}}, {"a": {"20": 3, "5": 4}}) == {
        "a": {"5": 4, "10": 2, "20": 3}
    }


def test_bad_input_is_a_sentence(tmp_path, capsys):
    def said(*more):
        assert machines.main(["--source", str(tmp_path), "--out", str(tmp_path / "out"), *more]) == 2
        return capsys.readouterr().err

    assert "expected a folder with cwru/" in said()
    assert "expected some of bearing, fan" in said("--sets", "pump")
    assert "at most 3" in said("--splits", "4")
    assert "expected at most 20" in said("--seconds", "1,30")
    assert "expected whole numbers" in said("--seconds", "0.5")
    (tmp_path / "ceiling_fan").mkdir()
    np.savez(tmp_path / "ceiling_fan" / "ceiling_fan_accel.npz", a=np.ones(2))
    assert "holds a: expected x, y, condition" in said("--sets", "fan")
