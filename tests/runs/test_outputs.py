"""Where results of other data go, and that nothing is overwritten unasked."""

import pytest

from ganomaly_jax.core.errors import UserError
from ganomaly_jax.runs import outputs


def test_results_are_named_after_their_data(tmp_path, monkeypatch):
    (tmp_path / "line.1").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "line.1" / name).touch()
    (tmp_path / "day.csv").touch()
    monkeypatch.chdir(tmp_path)
    names = {
        "line.1": ["line.1"],
        "line.1/": ["line.1"],
        "line.1/a.png": ["a"],
        "day.csv": ["day"],
        "nosuchdir": ["nosuchdir"],
        "tfds:mnist/split": ["tfds_mnist_split"],
    }
    for source, (name,) in names.items():
        assert outputs.name_of([source]) == name, source
    assert outputs.name_of(["line.1/a.png", "line.1/b.png"]) == "line.1"
    assert outputs.name_of(["line.1/a.png", "day.csv"]) == tmp_path.name
    assert outputs.name_of(["."]) == tmp_path.name
    assert outputs.name_of(["/"]) == "root"
    assert outputs.name_of(["x" * 255]) == "x" * 200


def test_what_exists_is_refused_unless_asked(tmp_path):
    file, empty, full = tmp_path / "file", tmp_path / "empty", tmp_path / "full"
    file.touch()
    empty.mkdir()
    (full / "inside").mkdir(parents=True)
    (tmp_path / "link").symlink_to("nowhere")
    outputs.refuse_existing([tmp_path / "new", empty], overwrite=False)
    for path in (file, full, tmp_path / "link"):
        with pytest.raises(UserError, match="already exists: add --overwrite to replace it, or"):
            outputs.refuse_existing([empty, path], overwrite=False)
        outputs.refuse_existing([path], overwrite=True)
