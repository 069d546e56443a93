"""Every command and every snippet of README, docs/ and benchmarks/ is executed as it stands, or listed with a reason.

Python blocks of a page share one namespace, commands and blocks one folder that holds what the page talks about. The
comments in Python blocks that state a shape or dtype are compared with what is there.
"""

import ast  # noqa: I001
import inspect
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from tests import document_world as world
from tests import documents

import ganomaly_jax as gj
from ganomaly_jax.core import config, presets

pytest.importorskip("soundfile", reason="the extra `audio` is not installed")

# What is not executed, by page and by how it begins, and why. It is still parsed, with every option in it.
INSTALLS = "installs packages"
HOSTS = "needs several hosts; tests/parallel/test_pods.py runs two processes"
NOT_RUN = {
    "README.md": {
        "python -m pip install -e '.[demo]'": INSTALLS,
        "python -m pip install -e '.[test]'": INSTALLS,
    },
    "docs/architecture.md": {
        "class Detector(Protocol)": "a definition; compared with the package's below",
        "cli.main.command": "no command; tests/test_walks.py takes these walks",
        "training.trainer.resolve": "no command; tests/test_walks.py takes these walks",
    },
    "docs/audio.md": {"python -m pip": INSTALLS},
    "docs/export.md": {
        **dict.fromkeys(
            ("import jax\n", "def worst_so_far", "import flax", "import grain", "from jax.sharding"),
            "tests/scoring/test_embedding.py executes it and compares what it computes",
        ),
        "python -m pip": INSTALLS,
        "ganomaly export --workdir runs/mine --out mine_onnx": "needs jax2onnx; tests/deploy/test_export.py uses it",
        "import tensorflow": "needs TensorFlow, which is no dependency of the tests",
        "ganomaly import netG.pth": "needs PyTorch; tests/deploy/test_import_pytorch.py imports such a file",
        "ganomaly predict --workdir runs/theirs": "needs the import above",
    },
    "docs/pods.md": {
        "ganomaly train DATA": HOSTS,
        "#!/bin/bash": "needs SLURM",
        "apiVersion": "needs Kubernetes",
        "gcloud": "needs Cloud TPUs",
        "ganomaly predict --workdir runs/mine --engine ray": "tests/deploy/test_ray_engine.py scores with Ray",
        "ganomaly predict --workdir /mnt": "needs a Ray cluster",
    },
    "docs/python-api.md": {"detector = gj.Ganomaly(shape=(32, 32, 3))\nstate = gj.from_pytorch": "needs PyTorch"},
    "docs/scores.md": {
        "ganomaly train DATA --workdir runs/pretrained": "takes long; tests/scoring/test_feature_distance.py trains so",
    },
    "docs/serving.md": {
        "python -m pip": INSTALLS,
        "ganomaly serve --workdir runs/mine --host": "listens to everybody; tests/deploy/test_http_gate.py asks hosts",
        "# Kubernetes": "needs Kubernetes",
        "# /etc/systemd": "needs systemd",
        "import sys": "needs LitServe, which needs another environment",
        "curl -F image=@zero.png http://127.0.0.1:8124": "needs LitServe, which needs another environment",
    },
    "docs/training.md": {"ganomaly: runs/mine is in use": "a message; tests/runs/test_lock.py provokes it"},
    "docs/watch.md": {"# /etc/systemd": "needs systemd"},
}
# Pages that begin without finished runs, and what they have beside the common things.
WITHOUT_RUNS = ("README.md", "docs/training.md", "docs/audio.md", "docs/rows.md")
MORE = {"docs/training.md": world.digits, "docs/your-data.md": world.digits, "docs/rows.md": world.tables}


@pytest.fixture(scope="module")
def common(tmp_path_factory):
    """The folder that all pages begin with, and that of the command `ganomaly`."""
    folder = tmp_path_factory.mktemp("documents")
    documents.write_command(folder / "bin")
    (folder / "world").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        world.shrink(patch)
        patch.chdir(folder / "world")
        world.build(folder / "world")
        yield folder


def furnish(folder, world_folder, page):
    """Links what is only read, and copies the runs that a page begins with."""
    text = (documents.ROOT / page).read_text(encoding="utf-8")
    for path in world_folder.iterdir():
        if path.name != "runs":
            (folder / path.name).symlink_to(path)
    for path in (world_folder / "runs").iterdir():
        if page not in WITHOUT_RUNS and f"runs/{path.name}" in text:
            shutil.copytree(path, folder / "runs" / path.name)


def listed(item):
    """Why an item is not executed, or None."""
    reasons = NOT_RUN.get(item.page, {})
    return next((reason for begin, reason in reasons.items() if item.text.startswith(begin)), None)


def stated_in_readme(names):
    assert names["scores"].dtype == names["scorer"](names["images"]).dtype == np.float32
    np.testing.assert_allclose(names["scores"], names["scorer"](names["images"]), rtol=1e-4)
    for name in ("scores", "p_values", "verdicts"):
        assert len(getattr(names["judged"], name)) == len(names["images"]) == 64
    assert Path("runs/mine/predictions/NEW.csv").exists() and Path("runs/mine/maps/7.png").exists()


def stated_in_python_api(names):
    assert isinstance(names["scorer"], gj.Scorer) and isinstance(names["judged"], gj.Judgement)
    assert isinstance(names["evaluation"], gj.Evaluation) and isinstance(names["state"], gj.TrainState)
    assert set(names["losses"]) == {"adversarial", "contextual", "encoder", "generator", "discriminator"}


def stated_in_training(names):
    later = {"predictions/", "evaluations/"}
    for name in documents.first_column("docs/training.md", "## What a run writes") - later:
        assert Path("runs/mine", name).exists(), name
    assert len(list(Path("runs/table/members").iterdir())) == 6  # 2 classes, 3 seeds


def stated_in_evaluating(names):
    for folder in ("runs/mine", "runs/mine/evaluations/LABELLED"):
        for name in ("metrics.json", "predictions.csv", "pictures", "report.html"):
            assert Path(folder, name).exists(), f"{folder}/{name}"
    assert Path("runs/mine/predictions/NEW.csv").exists()


def stated_in_export(names):
    files = documents.first_column("docs/export.md", "## As a file: StableHLO") - {"weights.npz", "--weights beside"}
    assert files == {path.name for path in Path("mine").iterdir()}
    assert names["manifest"]["program"] == "score.stablehlo"


def stated_in_rows(names):
    assert names["scorer"].input_shape == (20, 3)
    top = gj.contributions(names["scorer"], names["rows"][-20:]).top(0)
    assert {name for name, _ in top} == set(world.SENSORS) and all(isinstance(value, float) for _, value in top)


def stated_in_watch(names):
    lines = [json.loads(line) for line in Path("plant.jsonl").read_text().splitlines()]
    verdict = next(line for line in lines if "verdict" in line)
    assert set(verdict) == documents.first_column("docs/watch.md", "## Output") - {"path", "time"}
    total = verdict["base"] + sum(value for _, value in verdict["top"]) + verdict["others"] + verdict["error"]
    assert verdict["score"] == pytest.approx(total, rel=1e-4, abs=1e-6)
    assert Path("plant.state").exists() and Path("parts.state").exists() and Path("plant.png").exists()


def stated_in_configuration(names):
    assert documents.first_column("docs/configuration.md", "## Shipped configurations") == set(presets.names())


STATED = {
    "README.md": stated_in_readme,
    "docs/configuration.md": stated_in_configuration,
    "docs/evaluating-and-comparing.md": stated_in_evaluating,
    "docs/export.md": stated_in_export,
    "docs/python-api.md": stated_in_python_api,
    "docs/rows.md": stated_in_rows,
    "docs/training.md": stated_in_training,
    "docs/watch.md": stated_in_watch,
}


@pytest.mark.parametrize("page", [page for page in documents.pages() if not page.startswith("benchmarks")])
def test_it_runs_as_it_stands(page, common, tmp_path, monkeypatch):
    furnish(tmp_path, common / "world", page)
    if page in MORE:
        MORE[page](tmp_path / "DIR")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    if page == "docs/your-data.md":
        monkeypatch.setattr(config.Data.__init__, "__defaults__", world.SIZES)
    shell, names = documents.Shell(tmp_path, common / "bin"), {}
    try:
        for item in documents.items(page):
            if listed(item):
                documents.check(item)
            elif item.language == "python":
                documents.run_python(item, names)
            elif item.language == "pycon":
                documents.run_session(item, names)
            else:
                documents.check(item)
                documents.check_answer(item, shell.run(item))
    finally:
        shell.close()
    STATED.get(page, lambda names: None)(names)


def test_the_interface_is_that_of_the_package():
    [shown] = [item for item in documents.items("docs/architecture.md") if item.language == "python"]
    for method in ast.parse(shown.text).body[0].body:
        found = inspect.signature(getattr(gj.Detector, method.name))
        assert [argument.arg for argument in method.args.args] == list(found.parameters), method.name


@pytest.mark.parametrize("page", documents.pages())
def test_no_block_is_indented(page):
    """Only fenced blocks are found."""
    assert not documents.indented(page)


def test_what_is_listed_exists():
    for page, reasons in NOT_RUN.items():
        for begin in reasons:
            assert any(item.text.startswith(begin) for item in documents.items(page)), f"{page}: {begin}"


@pytest.mark.parametrize("page", [page for page in documents.pages() if page.startswith("benchmarks")])
def test_benchmarks_take_their_options(page, monkeypatch):
    monkeypatch.chdir(documents.ROOT)
    for item in documents.items(page):
        documents.parse_benchmark(item)
