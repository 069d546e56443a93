"""benchmarks/accuracy/auroc.py: what is trained and tested on, what is refused, runs that add up, and the page."""

import json  # noqa: I001
from pathlib import Path

import jax
import numpy as np
import pytest
from tests.support import TINY, blobs

from benchmarks.accuracy import auroc, auroc_data, auroc_model, auroc_page, auroc_recipe
from configs import recipe, surface
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data import datasets
from ganomaly_jax.evaluation import metrics

SMALL = ["--features=4", "--latent=4", "--batch=8", "--side=16", "--epochs=2", "--seeds=0"]


@pytest.fixture
def two_classes(monkeypatch):
    """Classes a (120 images) and b (40), in the place of a data set that is read."""
    images = np.concatenate([blobs(120, 0), blobs(40, 1, anomalous=True)])
    labels = np.repeat([0, 1], [120, 40])
    made = datasets.Dataset(images, labels, ("a", "b"), None, None, tuple(map(str, range(160))), 0.0, 255.0)
    monkeypatch.setattr(auroc_data, "read", lambda *given: made)
    return made


def test_the_split_is_the_papers(two_classes):
    task = auroc_data.task("mnist", two_classes, "b", 3, 0, 0)
    assert len(task.train) == 96 and (two_classes.labels[task.train] == 0).all()
    assert task.labels.tolist() == [0] * 24 + [1] * 40  # the original's order: normal images first
    np.testing.assert_array_equal(two_classes.labels[task.test], task.labels)
    assert not set(task.train) & set(task.test)
    few = auroc_data.task("mnist", two_classes, "b", 3, 50, 10)
    assert len(few.train) == 50 and few.labels.tolist() == [0] * 10 + [1] * 10 and set(few.train) <= set(task.train)
    other = auroc_data.task("mnist", two_classes, "b", 4, 0, 0)
    assert set(other.train) != set(task.train)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--dataset", "mnits"], "the nearest is 'mnist'"),
        (["--dataset", "cifar10", "--configurations", "original_scaling"], "expected mnist or mnist5k with it"),
        (["--dataset", "mnist", "--configurations", "papre"], "the nearest is 'paper'"),
        (["--dataset", "mnist", "--seeds", "0,x"], "expected whole numbers from 0"),
        (["--dataset", "mnist", "--test-limit", "1"], "a test needs two images of each class"),
        (["--dataset", "mnist", "--epochs", "0"], "--epochs"),
        (["--dataset", "mnist", "--data", "NOWHERE"], "put train-images-idx3-ubyte"),
        (["--dataset", "fashion", "--data", "NOWHERE"], "no Fashion-MNIST in"),
        (["--dataset", "cifar10", "--data", "NOWHERE"], "data_batch_1.webp"),
        (["--dataset", "xray", "--data", "NOWHERE"], "put the folders train/good"),
    ],
)
def test_what_cannot_be_is_refused(flags, said, tmp_path, capsys):
    flags = [str(tmp_path / "nowhere") if flag == "NOWHERE" else flag for flag in flags]
    assert auroc.main([*flags, "--out", str(tmp_path / "x")]) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_something_else_are_refused(tmp_path):
    for name in auroc_data._MNIST_MD5:
        (tmp_path / name).write_bytes(b"other")
    with pytest.raises(UserError, match="is not MNIST's: its md5"):
        auroc_data.read("mnist", str(tmp_path), 32)


def test_runs_add_up_and_protocols_are_not_mixed(two_classes, tmp_path, capsys):
    out = str(tmp_path / "found")
    asked = ["--dataset", "mnist", "--out", out, "--configurations", "paper"]
    assert auroc.main([*asked, "--classes", "b", *SMALL]) == 0
    (part,) = json.loads(Path(f"{out}.json").read_text())["parts"]
    assert (part["configuration"], part["job"], part["seed"], part["n_train"]) == ("paper", "b", 0, 96)
    row = part["rows"]["b"]
    assert set(row["columns"]) == {"running", "batch", "as_shipped", "as_shipped_shuffled"}
    assert set(row["controls"]) == {"complexity", "pixel PCA", "raw neighbours"}
    for column, curves in part["auroc_by_epoch"].items():  # the epoch that is best on the test set, and no other
        for score, curve in curves.items():
            assert len(curve) == 2 and row["columns"][column][score] == max(curve)
            assert part["best_epoch"][column][score] == 1 + int(np.argmax(curve))
    page = Path(f"{out}.md").read_text()
    assert "| b | " in page and "Reduced, the same for all columns" in page

    assert auroc.main([*asked, "--classes", "a,b", *SMALL]) == 0
    assert "2 trainings asked for, 1 of them measured before" in capsys.readouterr().out
    assert len(json.loads(Path(f"{out}.json").read_text())["parts"]) == 2
    assert auroc.main([*asked, "--classes", "c", *SMALL]) == 2
    assert "--classes: 'c' is none of a, b" in capsys.readouterr().err
    for other, said in (("--limit=50", "limit 0 there and 50 here"), ("--epochs=3", "epochs 2 there and 3 here")):
        assert auroc.main([*asked, "--classes", "b", *SMALL, other]) == 2
        refused = capsys.readouterr().err
        assert said in refused and "never put into one table" in refused
    Path(f"{out}.json").write_text("{}")
    assert auroc.main([*asked, "--classes", "b", *SMALL]) == 2
    assert "is no result of this benchmark" in capsys.readouterr().err


def test_batch_statistics_depend_on_the_neighbours_and_running_ones_do_not():
    _, _, distances = auroc_model.programs(TINY, 0, 255, "unit")
    state = jax.jit(TINY.init)(jax.random.key(0))
    images = jax.device_put(np.concatenate([blobs(20, 0), blobs(20, 1, anomalous=True)]))
    order = np.arange(40)
    mixed = np.random.default_rng(0).permutation(40)
    for batch_statistics in (False, True):
        one, other = (
            auroc_model.score(distances, state, images, which, 8, batch_statistics) for which in (order, mixed)
        )
        assert one.shape == (40, 2)
        assert np.allclose(one[mixed], other, rtol=1e-4, atol=1e-7) != batch_statistics


@pytest.mark.parametrize("configuration", [recipe, surface])
def test_a_configuration_of_the_package_is_scored_by_its_own_sum(configuration, two_classes):
    own = configuration.get_config()
    task = auroc_data.task("mnist", two_classes, "b", 0, 0, 0)
    asked = auroc_recipe.asked(own, ("squared",))
    assert asked[0] == own.evaluate.score and set(own.evaluate.score.split("+")) < set(asked)
    settings = auroc_model.Settings(6, features=4, latent=4, batch=8)
    found = auroc_recipe.measure(own, asked, task, jax.device_put(two_classes.images), (0, 255), settings, 0)
    assert found.more["held_out"] == 9 and set(found.scores) == {"running"}
    assert all(
        values.shape == task.labels.shape and np.isfinite(values).all() for values in found.scores["running"].values()
    )
    assert metrics.auroc(task.labels, found.scores["running"][own.evaluate.score]) > 0.8  # vertical bars among others
    again = auroc_recipe.measure(own, asked, task, jax.device_put(two_classes.images), (0, 255), settings, 0)
    np.testing.assert_array_equal(found.scores["running"]["squared"], again.scores["running"]["squared"])


def test_published_numbers_carry_their_trust():
    found = auroc_page.published(auroc_data.KINDS["cifar10"])
    assert {one["row"] for one in found} & {"automobile", "airplane"} and all(one["trust"] for one in found)
    assert auroc_page.published(auroc_data.KINDS["fashion"]) == []
