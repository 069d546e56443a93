"""Several models in one program: each is what it would be alone."""

import json  # noqa: I001
import os
import signal

import chex
import jax
import numpy as np
import pytest
from tests.support import blobs, tiny_config

import ganomaly_jax
from ganomaly_jax.runs import layout
from ganomaly_jax.cli import main
from ganomaly_jax.core.errors import DivergedError, StoppedError, UserError
from ganomaly_jax.data import sources
from ganomaly_jax.evaluation import evaluate, sweep_summary
from ganomaly_jax.report import modalities
from ganomaly_jax.runs import checkpoint, history, sealed_pytree, sweep
from ganomaly_jax.training import cost
from ganomaly_jax.training.trainer import train, train_members


def quiet(line):
    """Takes the lines of a training."""


@pytest.fixture(scope="module")
def classes():
    """(images, words): bars that lie, bars that stand, and bars of both kinds at once, as three classes."""
    lying, standing = blobs(60, 0), blobs(44, 1, anomalous=True)
    both = np.maximum(blobs(40, 2), blobs(40, 3, anomalous=True))
    words = np.repeat(["lying", "standing", "a/b"], [60, 44, 40])
    return np.concatenate([lying, standing, both]), words


def config(**train_values):
    settings = tiny_config(**{"epochs": 2, "save_every": 100, "shift": 1, "flip": True} | train_values)
    settings.members.classes, settings.members.seeds = "all", "0,3"
    return settings


@pytest.fixture(scope="module")
def together(tmp_path_factory, classes):
    """(workdir, scorers) of all six members, on one device; look, do not touch."""
    workdir = tmp_path_factory.mktemp("members")
    return workdir, train_members(config(), workdir, classes, log=quiet)


def final(workdir):
    root = workdir / "checkpoints"
    return sealed_pytree.read(root / f"{checkpoint.steps(root)[-1]:08d}")[0]


def assert_same(ours, theirs, tolerance=1e-6):
    chex.assert_trees_all_close(ours, theirs, rtol=tolerance, atol=tolerance)


def test_a_member_is_the_same_model_trained_alone(together, classes, tmp_path):
    """Weights, optimiser, running statistics, threshold and scores; their lengths differ with their class."""
    workdir, scorers = together
    team = sweep.read_members(workdir)
    assert [one.name for one in team] == list(scorers)
    assert len(team) == 6
    whole = final(workdir)
    assert len(set(whole["step"].tolist())) > 1
    for m in (3,):
        alone = tmp_path / team[m].name
        settings = sweep.member_config(config(), team[m])
        theirs = train(settings, alone, classes, log=quiet)
        assert_same(jax.tree.map(lambda leaf, m=m: leaf[m], whole), final(alone))
        ours = ganomaly_jax.load(sweep.member_folder(workdir, team[m]))
        np.testing.assert_allclose(ours(classes[0]), theirs(classes[0]), rtol=1e-5)
        assert ours.threshold == pytest.approx(theirs.threshold, rel=1e-5)
        stored = [(folder / "config.json").read_text() for folder in (sweep.member_folder(workdir, team[m]), alone)]
        assert stored[0] == stored[1]
        lines = [folder / "history.jsonl" for folder in (sweep.member_folder(workdir, team[m]), alone)]
        steps = [[json.loads(line)["step"] for line in path.read_text().splitlines()] for path in lines]
        assert steps[0] == steps[1]


def test_over_several_devices_and_through_a_stop_the_members_are_the_same(together, classes, tmp_path, monkeypatch):
    """Six members on four devices, so that two slots are empty; stopped by a signal, and then on two devices."""
    add, calls = history.History.add, []

    def add_and_stop(self, *arguments):
        add(self, *arguments)
        calls.append(1)
        if len(calls) == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    settings = config()
    settings.mesh.devices = 4
    with monkeypatch.context() as patch:
        patch.setattr(history.History, "add", add_and_stop)
        with pytest.raises(StoppedError, match="SIGTERM"):
            train_members(settings, tmp_path, classes, log=quiet)
    stopped = final(tmp_path)
    assert stopped["step"].shape == (6,)
    assert (stopped["step"] < final(together[0])["step"]).all()
    settings.mesh.devices = 2
    said = []
    train_members(settings, tmp_path, classes, log=said.append)
    assert any("2 of 8 devices" in line and ", from " in line for line in said)
    assert_same(final(tmp_path), final(together[0]), 1e-5)


def test_more_epochs_go_on_for_each_from_where_it_ended(together, classes, tmp_path):
    settings = config()
    settings.train.epochs = 1
    train_members(settings, tmp_path, classes, log=quiet)
    first = final(tmp_path)["step"]
    train_members(config(), tmp_path, classes, log=quiet)
    assert_same(final(tmp_path), final(together[0]))
    np.testing.assert_array_equal(final(tmp_path)["step"], 2 * first)


def test_a_member_that_diverged_does_not_stop_the_others(together, classes, tmp_path, monkeypatch):
    settings = config()
    settings.train.epochs = 1
    train_members(settings, tmp_path, classes, log=quiet)
    restore = checkpoint.restore

    def poisoned(*arguments):
        step, state, meta = restore(*arguments)
        kernel = state.params["generator"]["encoder"]["head"]["kernel"]
        kernel[2] = np.nan
        return step, state, meta

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "restore", poisoned)
        found = train_members(config(), tmp_path, classes, log=quiet)
    lost = list(found)[2]
    assert [name for name, one in found.items() if one is None] == [lost]
    theirs, ours = final(together[0]), final(tmp_path)
    for m in (0, 5):
        assert_same(*(jax.tree.map(lambda leaf, m=m: leaf[m], tree) for tree in (ours, theirs)))
    summary = sweep_summary.summarise(sweep.read_members(tmp_path), {name: None for name in found})
    assert summary["auroc"] is None
    assert all("-" in line for line in sweep_summary.lines(summary)[1:])


def test_a_loss_that_becomes_infinite_names_its_member(classes, tmp_path):
    settings = config()
    settings.optimizer.learning_rate = 1e30
    said = []
    with pytest.raises(DivergedError, match="diverged"):
        train_members(settings, tmp_path, classes, log=said.append)
    assert sum("the others continue" in line for line in said) >= 5


def test_evaluation_of_all(together, classes, monkeypatch):
    workdir, _ = together
    # The page and pictures of one run have their own tests and take seconds each.
    monkeypatch.setattr(evaluate.run_report, "write", lambda workdir, *_: workdir / "report.html")
    monkeypatch.setattr(modalities.Images, "examples", lambda *_: None)
    dataset = sources.read(config().data, classes)
    found = evaluate.evaluate_members(workdir, own=dataset)
    team = sweep.read_members(workdir)
    assert list(found) == [one.name for one in team]
    for one in team:
        own = json.loads((sweep.member_folder(workdir, one) / "metrics.json").read_text())
        assert own["seed"] == one.seed
        assert own["auroc"] == found[one.name].metrics["auroc"]
        assert list(own["per_class"]) == [one.abnormal]
    summary = sweep_summary.summarise(team, found)
    by_hand = {
        name: [found[one.name].metrics["auroc"] for one in team if one.abnormal == name]
        for name in ("lying", "standing", "a/b")
    }
    for name, values in by_hand.items():
        assert summary["per_class"][name]["mean"] == pytest.approx(np.mean(values))
        assert summary["per_class"][name]["spread"] == pytest.approx(np.std(values, ddof=1))
    assert summary["auroc"] == pytest.approx(np.mean(list(by_hand.values())))
    assert summary["spread"] == pytest.approx(np.std(np.mean(list(by_hand.values()), axis=0), ddof=1))
    table = sweep_summary.lines(summary)
    assert len(table) == 5
    assert table[0].split() == ["abnormal", "seed", "0", "seed", "3", "mean", "spread"]
    page = sweep_summary.write(workdir, summary).read_text()
    assert page.count("<circle") == 6
    assert all(f"members/{one.name}/report.html" in page for one in team)
    assert json.loads((workdir / "metrics.json").read_text()) == summary


def test_the_page_escapes_what_it_is_given(tmp_path):
    hostile = "</title><script>alert(1)</script>\"'<b>&"
    members = [
        {"name": f"{hostile}-{k}", "abnormal": hostile, "seed": k, "auroc": auroc}
        | dict.fromkeys(("average_precision", "false_positive_rate", "true_positive_rate"), auroc)
        for k, auroc in enumerate((0.75, None))
    ]
    summary = {
        "members": members,
        "per_class": {hostile: {"mean": 0.75, "spread": None, "seeds": 1}, "": {"mean": None}},
        "auroc": None,
        "spread": None,
        "diverged": [members[1]["name"]],
        "protocol": hostile,
    }
    page = sweep_summary.write(tmp_path, summary).read_text()
    assert "<script" not in page and "<b>" not in page and page.count("</title>") == 1
    assert "2 members: AUROC -" in page and "75 %" in page and "diverged and is left out" in page
    assert page.count("<circle") == 1
    assert "members/%3C/title%3E%3Cscript%3E" in page


def test_bad_wishes_are_told(together, classes, tmp_path, monkeypatch, capsys):
    workdir, _ = together
    with pytest.raises(UserError, match="holds 6 members: name one of them"):
        ganomaly_jax.load(workdir)
    with pytest.raises(UserError, match=r"train_members\(config, workdir\)"):
        train(config(), tmp_path, classes)
    with pytest.raises(UserError, match="are empty"):
        train_members(tiny_config(), tmp_path, classes)
    with pytest.raises(UserError, match="another configuration: members"):
        train_members(members_of("all", "0"), workdir, classes, log=quiet)
    for wish, match in (
        (members_of("lying,standign", ""), "'standign' is not a class of .*nearest is 'standing'"),
        (members_of("all", "0,0"), "different numbers"),
        (members_of("all", "0,x"), "different numbers"),
        (members_of("lying,lying", ""), "different names"),
    ):
        with pytest.raises(UserError, match=match):
            train_members(wish, tmp_path, classes, log=quiet)
    wide = config(batch_size=90)
    with pytest.raises(UserError, match=r"--config\.train\.batch_size=\d+, which every member can fill"):
        train_members(wide, tmp_path, classes, log=quiet)
    state = sum(leaf[0].nbytes for leaf in jax.tree.leaves(final(workdir)))
    # Room for three and a half, and for the one that is being computed and its step.
    monkeypatch.setattr(cost, "device_memory", lambda: int((classes[0].nbytes + 5.5 * state) / 0.9))
    with pytest.raises(UserError, match=r"6 members need .*at most 3 fit"):
        train_members(config(), tmp_path, classes, log=quiet)
    assert not list(tmp_path.iterdir())
    assert main.main(["evaluate", "--workdir", str(workdir), "--data", "x"]) == 2
    assert "several members" in capsys.readouterr().err


def members_of(classes, seeds):
    settings = config()
    settings.members.classes, settings.members.seeds = classes, seeds
    return settings


def test_from_the_command_line(tmp_path, classes, capsys):
    np.savez(tmp_path / "data.npz", images=classes[0], labels=classes[1])
    script = tmp_path / "config.py"
    script.write_text("from tests.support import tiny_config\n\ndef get_config():\n    return tiny_config(epochs=1)\n")
    workdir = tmp_path / "run"
    call = ["train", str(tmp_path / "data.npz"), "--config", str(script), "--workdir", str(workdir)]
    assert main.main([*call, "--config.members.classes=a/b", "--config.data.abnormal=lying"]) == 0
    said = capsys.readouterr().out
    assert "1 member: 0_a_b-seed0" in said
    for path in ("report.html", "members/0_a_b-seed0/report.html", "members/0_a_b-seed0/predictions.csv"):
        assert (workdir / path).exists()
    assert (workdir / "members" / "0_a_b-seed0" / layout.DETECTOR).is_dir()
    (workdir / "metrics.json").unlink()
    assert main.main(["evaluate", "--workdir", str(workdir), "--false-positive-rate", "0.2"]) == 0
    assert "AUROC" in capsys.readouterr().out
    assert json.loads((workdir / "metrics.json").read_text())["members"][0]["auroc"] is not None
