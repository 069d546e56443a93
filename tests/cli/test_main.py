"""The command: its verbs on a folder of images, what it prints, its exit codes."""

import csv  # noqa: I001
import json

import jax
import numpy as np
import pytest
from PIL import Image
from tests.support import blobs

from ganomaly_jax.cli import environment, main

SMALL = [
    "--config.data.height=16",
    "--config.data.width=16",
    "--config.model.features=4",
    "--config.model.latent_size=4",
    "--config.optimizer.learning_rate=2e-3",
    "--config.train.batch_size=8",
    "--config.train.epochs=20",
    "--config.mesh.devices=1",
]


def save(images, folder):
    folder.mkdir(parents=True)
    for i, image in enumerate(images):
        Image.fromarray(image[..., 0]).save(folder / f"{i:03}.png")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """good/ and bad/."""
    root = tmp_path_factory.mktemp("images")
    save(blobs(120, 0), root / "good")
    save(blobs(20, 1, anomalous=True), root / "bad")
    return root


@pytest.fixture(scope="module")
def workdir(folder, tmp_path_factory):
    """A run made by the command."""
    made = tmp_path_factory.mktemp("cli") / "run"
    assert main.main(["train", str(folder), "--workdir", str(made), *SMALL]) == 0
    return made


def test_train_prints_little_and_leaves_everything(folder, workdir, capsys):
    assert main.main(["train", str(folder), "--workdir", str(workdir), *SMALL]) == 0
    out = capsys.readouterr().out
    assert "1 of 8 devices" in out
    assert "AUROC 0." in out or "AUROC 1." in out
    assert "promise" in out
    for name in ("config.json", "env.json", "history.jsonl", "metrics.json", "predictions.csv", "report.html"):
        assert (workdir / name).stat().st_size > 100, name
    assert json.loads((workdir / "metrics.json").read_text())["auroc"] > 0.8


def test_evaluate_again_gives_the_same(workdir, capsys):
    before = (workdir / "predictions.csv").read_bytes()
    assert main.main(["evaluate", "--workdir", str(workdir)]) == 0
    assert (workdir / "predictions.csv").read_bytes() == before
    assert "report in" in capsys.readouterr().out


def test_predict_scores_what_it_can(workdir, tmp_path, capsys):
    save(blobs(5, 3), tmp_path / "new")
    save(blobs(5, 4, anomalous=True), tmp_path / "new" / "odd ü")
    (tmp_path / "new" / "empty.png").write_bytes(b"")
    (tmp_path / "new" / "text.jpg").write_text("no image")
    out = tmp_path / "rows.csv"
    code = main.main(["predict", "--workdir", str(workdir), "--out", str(out), str(tmp_path / "new")])
    assert code == 3
    with out.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    invalid = {row["path"].rpartition("/")[2]: row for row in rows if row["verdict"] == "invalid"}
    assert set(invalid) == {"empty.png", "text.jpg"}
    assert all(row["reason"] and not row["score"] for row in invalid.values())
    odd = [float(row["score"]) for row in rows if "odd ü" in row["path"]]
    usual = [float(row["score"]) for row in rows if "odd ü" not in row["path"] and row["score"]]
    assert np.mean(odd) > np.mean(usual)
    printed = capsys.readouterr().out
    assert "2 invalid" in printed
    assert "empty.png" in printed


def own_results(workdir):
    """The bytes of the files that `train` and `evaluate` of the test set have written."""
    return {
        path: path.read_bytes() for path in (*workdir.glob("*.*"), *(workdir / "pictures").rglob("*")) if path.is_file()
    }


def test_predict_of_other_data_leaves_the_run_as_it_is(workdir, folder, capsys):
    before, call = own_results(workdir), ["predict", "--workdir", str(workdir), str(folder / "good" / "000.png")]
    assert main.main(call) == 0
    out = workdir / "predictions" / "000.csv"
    with out.open(encoding="utf-8") as file:
        assert [row["path"] for row in csv.DictReader(file)] == [str(folder / "good" / "000.png")]
    assert f"rows in {out}" in capsys.readouterr().out
    assert main.main(call) == 2
    assert capsys.readouterr().err.startswith(f"ganomaly: {out} already exists: add --over")
    out.write_text("")
    assert main.main([*call, "--overwrite"]) == 0
    assert out.stat().st_size
    several = [str(folder / "good" / f"00{i}.png") for i in (1, 2)]
    assert main.main(["predict", "--workdir", str(workdir), *several]) == 0
    assert (workdir / "predictions" / "good.csv").exists()
    assert own_results(workdir) == before
    assert main.main(["compare", str(workdir), str(workdir)]) == 0


def test_predict_of_nothing_leaves_nothing(workdir, tmp_path, capsys):
    before = own_results(workdir)
    assert main.main(["predict", "--workdir", str(workdir), "nosuchdir"]) == 3
    printed = capsys.readouterr().out
    assert "nosuchdir: no such file" in printed
    assert "nothing could be scored, so no file was written" in printed
    assert not (workdir / "predictions" / "nosuchdir.csv").exists()
    out = tmp_path / "reasons.csv"
    assert main.main(["predict", "--workdir", str(workdir), "nosuchdir", "--out", str(out)]) == 3
    assert "no such file" in out.read_text()
    assert own_results(workdir) == before


@pytest.mark.parametrize("verb", ["explain", "check", "pack"])
def test_no_verb_overwrites_unasked(verb, workdir, folder, tmp_path, capsys):
    out = tmp_path / ("out.array_record" if verb == "pack" else "out")
    out.write_text("precious")
    call = {
        "explain": ["explain", str(folder / "good" / "000.png"), "--workdir", str(workdir), "--out", str(out)],
        "check": ["check", str(folder), "--json", str(out)],
        "pack": ["pack", str(folder), str(out)],
    }[verb]
    assert main.main(call) == 2
    assert f"{out} already exists: add --overwrite" in capsys.readouterr().err
    assert out.read_text() == "precious"


def test_a_folder_of_one_class_alone(workdir, tmp_path, capsys):
    """Anomalous images only: AUROC is not defined, and says so."""
    save(blobs(2, 5), tmp_path / "set" / "train" / "good")
    save(blobs(6, 5, anomalous=True), tmp_path / "set" / "test" / "bad")
    before, call = own_results(workdir), ["evaluate", "--workdir", str(workdir), "--data", str(tmp_path / "set")]
    assert main.main(call) == 0
    printed = capsys.readouterr().out
    assert "AUROC not defined" in printed
    assert "no normal images" in printed
    made = workdir / "evaluations" / "set"
    assert json.loads((made / "metrics.json").read_text())["auroc"] is None
    assert {path.name for path in made.iterdir()} == {"metrics.json", "predictions.csv", "pictures", "report.html"}
    assert f"report in {made / 'report.html'}" in printed
    assert own_results(workdir) == before
    assert main.main(call) == 2
    assert "add --overwrite to replace it, or choose another location with --out" in capsys.readouterr().err
    assert main.main([*call, "--out", str(tmp_path / "other")]) == 0
    assert (tmp_path / "other" / "predictions.csv").read_bytes() == (made / "predictions.csv").read_bytes()
    assert own_results(workdir) == before
    assert main.main(["compare", str(made), str(made)]) == 2  # one class only


def test_a_damaged_detector_has_its_own_exit_code(workdir, tmp_path, capsys):
    import shutil

    shutil.copytree(workdir, tmp_path / "run")
    (tmp_path / "run" / "detector" / "manifest.json").unlink()
    assert main.main(["evaluate", "--workdir", str(tmp_path / "run")]) == 5
    assert "manifest" in capsys.readouterr().err


def test_huge_pages_are_asked_for_once_and_visibly(tmp_path, monkeypatch, capsys):
    """The command starts itself again with the setting, unless it was told not to, has it, or cannot have it."""
    started = []
    monkeypatch.setattr(environment.os, "execve", lambda *call: started.append(call))
    monkeypatch.setattr(environment.sys, "orig_argv", ["python", "-m", "ganomaly_jax", "evaluate"])
    thp = tmp_path / "enabled"
    thp.write_text("always [madvise] never\n")
    monkeypatch.setattr(environment, "_THP", thp)
    monkeypatch.setattr(environment.os, "confstr", lambda name: "glibc 2.36")
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)

    def command(*more):
        monkeypatch.setattr(main.sys, "argv", ["ganomaly", "evaluate", "--workdir", str(tmp_path / "none"), *more])
        assert main.main() == 2  # there is no such run; the started command would say so
        return capsys.readouterr().err

    said = command()
    assert said.count("glibc.malloc.hugetlb=1 (--no-huge-pages leaves it out)") == 1
    ((program, words, passed_on),) = started
    assert program == words[0] == environment.sys.executable
    assert words[1:] == ["-m", "ganomaly_jax", "evaluate"]
    assert passed_on["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"
    assert passed_on["PATH"]
    command("--no-huge-pages")
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=0")
    assert "in huge pages" not in command()
    monkeypatch.delenv("GLIBC_TUNABLES")
    for text, library in (("[always] madvise never", "glibc 2.36"), ("always [madvise] never", "glibc 2.31")):
        thp.write_text(text)
        monkeypatch.setattr(environment.os, "confstr", lambda name, library=library: library)
        assert "in huge pages" not in command()
    thp.unlink()
    command()
    assert main.main(["evaluate", "--workdir", str(tmp_path / "none")]) == 2  # called from Python: never
    assert len(started) == 1


@pytest.mark.parametrize("error", [RuntimeError("Unable to initialize backend 'foo'\nmore"), AssertionError()])
def test_a_backend_that_is_not_there_is_one_sentence(error, folder, workdir, tmp_path, monkeypatch, capsys):
    def fail():
        raise error

    monkeypatch.setattr(jax, "local_devices", fail)
    train = ["train", str(folder), "--workdir", str(tmp_path / "new")]
    for call in (train, ["predict", str(folder), "--workdir", str(workdir)], ["evaluate", "--workdir", str(workdir)]):
        assert main.main(call) == 2
        assert "no such device here" in capsys.readouterr().err
