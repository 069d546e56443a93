"""The summary of a sweep by hand."""

import json
from pathlib import Path

import numpy as np
import pytest

from ganomaly_jax.evaluation import sweep_summary
from ganomaly_jax.evaluation.evaluate import Evaluation
from ganomaly_jax.runs.sweep import Member


def summary_of(aurocs):
    """A summary of {class: {seed: AUROC, None where it diverged, "undefined"}}."""
    members, found = [], {}
    for name, by_seed in aurocs.items():
        for seed, auroc in by_seed.items():
            members.append(Member(f"{name or 'own'}-{seed}", name, seed))
            values = {
                "auroc": None if auroc == "undefined" else auroc,
                "protocol": "a: b; c",
                "true_positive_rate": 0.5,
            }
            found[members[-1].name] = None if auroc is None else Evaluation(values, Path(), None, [])
    return sweep_summary.summarise(members, found)


TWO = {"cat": {0: 0.5, 1: 0.75}, "a name that is too long": {0: 0.9, 1: 0.95, 2: None}}


def test_means_are_over_classes_and_spreads_over_seeds_that_all_share():
    found = summary_of(TWO)
    assert found["per_class"]["cat"] == {"mean": 0.625, "spread": pytest.approx(0.25 / 2**0.5), "seeds": 2}
    assert found["per_class"]["a name that is too long"]["seeds"] == 2
    assert found["auroc"] == pytest.approx((0.625 + 0.925) / 2)
    assert found["spread"] == pytest.approx(np.std([0.7, 0.85], ddof=1))
    assert found["diverged"] == ["a name that is too long-2"] and found["protocol"] == "a: b"
    assert found["members"][0] == {
        "name": "cat-0", "abnormal": "cat", "seed": 0,
        "auroc": 0.5, "average_precision": None, "false_positive_rate": None, "true_positive_rate": 0.5,
    }  # fmt: skip
    one = summary_of({"cat": {0: 0.5, 1: 0.7}, "dog": {1: 0.9}})
    assert one["spread"] is None and one["auroc"] == pytest.approx(0.75)  # one shared seed has no spread


@pytest.mark.parametrize("missing", [None, "undefined"])
def test_a_class_without_figures_leaves_no_mean(missing):
    found = summary_of({"cat": {0: 0.5}, "dog": {0: missing}})
    assert found["auroc"] is None and found["spread"] is None
    assert found["per_class"]["dog"] == {"mean": None, "spread": None, "seeds": 0}
    assert found["diverged"] == (["dog-0"] if missing is None else [])


def test_the_table_has_a_row_for_each_class_and_their_mean():
    rows = [line.split() for line in sweep_summary.lines(summary_of(TWO))]
    assert rows[0] == ["abnormal", "seed", "0", "seed", "1", "seed", "2", "mean", "spread"]
    assert rows[1] == ["cat", "0.5000", "0.7500", "-", "0.6250", "0.1768"]
    assert rows[2][-5:] == ["0.9000", "0.9500", "-", "0.9250", "0.0354"] and rows[3] == ["mean", "0.7750", "0.1061"]
    [_, alone] = sweep_summary.lines(summary_of({"": {0: 0.5}}))
    assert alone.split() == ["as", "labelled", "0.5000", "0.5000", "-"]


def test_the_plot_has_a_dot_for_each_seed_and_a_bar_at_the_mean():
    plot = sweep_summary._plot(summary_of(TWO | {"none": {0: None}}))
    assert (plot["width"], plot["height"], plot["top"], plot["bottom"]) == (470, 108, 24, 102)
    first, second, third = plot["rows"]
    assert first == {"name": "cat", "y": 37, "baseline": 42, "dots": [270, 340], "mean": "0.625", "mean_x": 305}
    assert (second["name"], second["y"], second["dots"]) == ("a name that is …", 63, [382, 396])
    assert (third["dots"], third["mean"], third["mean_x"]) == ([], "", 0)
    assert [(tick["x"], tick["label"], tick["dashes"]) for tick in plot["ticks"]] == [
        (130, "0", ""), (200, "0.25", ""), (270, "0.5", "4 3"), (340, "0.75", ""), (410, "1", ""),
    ]  # fmt: skip
    assert len({tick["colour"] for tick in plot["ticks"]}) == 2


def test_the_page_names_members_that_diverged(tmp_path):
    pytest.importorskip("jinja2")
    found = summary_of(TWO)
    page = sweep_summary.write(tmp_path, found).read_text(encoding="utf-8")
    assert "5 members: AUROC 0.775 ± 0.106" in page and page.count("diverged and is left out of all metrics") == 1
    assert page.count(">diverged<") == 1 and "<td>50 %</td>" in page and "members/cat-0/report.html" in page
    assert json.loads((tmp_path / "metrics.json").read_text()) == json.loads(json.dumps(found))
    plain = sweep_summary.write(tmp_path, summary_of({"cat": {0: 0.5}})).read_text(encoding="utf-8")
    assert "1 members: AUROC 0.500<" in plain and "±" not in plain
