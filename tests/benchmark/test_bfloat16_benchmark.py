"""The comparison of the two types: the same members in both, differences as by hand."""

import json  # noqa: I001

import numpy as np
import pytest
from tests.support import blobs

from benchmarks.accuracy import bfloat16
from ganomaly_jax.evaluation import evaluate
from ganomaly_jax.report import modalities


def test_differences_are_those_of_the_members():
    def summary(*values):
        return {"members": [{"name": str(i), "auroc": value} for i, value in enumerate(values)]}

    found = {"float32": summary(0.5, 0.7, None), "bfloat16": summary(0.6, 0.6, 0.9)}
    change = bfloat16.differences(found)
    assert change["members"] == {"0": pytest.approx(0.1), "1": pytest.approx(-0.1)}
    assert change["mean"] == pytest.approx(0)
    assert change["standard_error"] == pytest.approx(0.1)


def test_from_end_to_end(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evaluate.run_report, "write", lambda workdir, *_: workdir / "report.html")
    monkeypatch.setattr(modalities.Images, "examples", lambda *_: None)
    images = np.concatenate([blobs(60, 0), blobs(60, 1, anomalous=True)])
    np.savez(tmp_path / "data.npz", images=images, labels=np.repeat(["a", "b"], 60))
    call = ["--source", str(tmp_path / "data.npz"), "--out", str(tmp_path / "out"), "--side", "16"]
    call += ["--classes", "a", "--seeds", "0,1", "--images", "100", "--features", "2"]
    assert bfloat16.main(call) == 0
    report = json.loads((tmp_path / "out.json").read_text())
    rows = [[row["auroc"] for row in report["found"][dtype]["members"]] for dtype in ("float32", "bfloat16")]
    assert len(rows[0]) == len(rows[1]) == 2
    assert rows[0] != rows[1]
    assert str(tmp_path) not in json.dumps(report)
    assert "| a-seed1 |" in (tmp_path / "out.md").read_text()
    assert bfloat16.main([*call, "--images", "3"]) == 2
    assert bfloat16.main([*call, "--classes", "z"]) == 2
    assert "is not a class" in capsys.readouterr().err
