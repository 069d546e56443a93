"""`ganomaly update`: kept where it is not worse, refused where it is, and the old run untouched in any case."""

import dataclasses  # noqa: I001
import json
import shutil
import signal

import chex
import jax
import numpy as np
import pytest
from tests.support import blobs, tiny_config
from tests.data.test_row_windows import plant, rows_config, write

import ganomaly_jax
from ganomaly_jax.runs import layout
from ganomaly_jax.cli import main
from ganomaly_jax.core.errors import StoppedError, UserError
from ganomaly_jax.data import datasets, sources, splits
from ganomaly_jax.data.formats import mixture
from ganomaly_jax.data.lazy import LazyImages
from ganomaly_jax.evaluation import acceptance
from ganomaly_jax.runs import checkpoint, resolution, run_folder
from ganomaly_jax.scoring.recalibration import recalibrate
from ganomaly_jax.training import update
from ganomaly_jax.training.trainer import train


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def brighter(n, seed):
    return np.minimum(blobs(n, seed).astype(int) + 60, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def old(trained, arrays, tmp_path_factory):
    """(folder of the finished run, the file with its data)."""
    root = tmp_path_factory.mktemp("old")
    np.savez(root / "old.npz", images=arrays[0], labels=arrays[1])
    return trained[0], root / "old.npz"


@pytest.fixture(scope="module")
def kept(old, tmp_path_factory):
    """(new run's folder, what came of it, what was said): an update with 150 brighter normals; look, do not touch."""
    root = tmp_path_factory.mktemp("kept")
    np.savez(root / "new.npz", images=brighter(150, 20))
    before, said = contents(old[0]), []
    done = update.update(old[0], str(root / "new.npz"), root / "run", old_source=str(old[1]), log=said.append)
    assert contents(old[0]) == before
    return root / "run", done, said


def test_good_new_normals_are_learned(kept, old):
    folder, done, _ = kept
    assert done.kept, done.reasons
    fresh, odd = brighter(200, 77), blobs(60, 78, anomalous=True)
    before, after = ganomaly_jax.load(old[0]), ganomaly_jax.load(folder)
    assert (before(fresh) > before.threshold).mean() > 0.5
    assert (after(fresh) > after.threshold).mean() < 0.15
    assert (after(blobs(200, 79)) > after.threshold).mean() < 0.15  # and the old ones are not forgotten
    assert (after(odd) > after.threshold).mean() > 0.5
    flagged = done.figures["flagged"]["new"]
    assert flagged["new"]["count"] < flagged["old"]["count"] == flagged["old"]["of"]
    assert not (folder / layout.CANDIDATE).exists()


def test_where_it_comes_from_is_kept(kept, old):
    folder, _, said = kept
    lineage = run_folder.stored_environment(folder)["lineage"]
    environment = run_folder.stored_environment(old[0])
    assert lineage["parent"] == old[0].name
    assert lineage["parent_data_hash"] == environment["data_hash"]
    assert lineage["parent_step"] == checkpoint.steps(old[0] / "checkpoints")[-1]
    assert len(lineage["checkpoint_hash"]) == 64
    assert lineage["new_data_hash"] == datasets.content_hash(datasets.from_arrays(brighter(150, 20)))
    assert ganomaly_jax.load(folder).provenance["lineage"] == lineage
    assert json.loads((folder / layout.UPDATE).read_text())["lineage"] == lineage
    assert any("108 of 144 old ones" in line for line in said)  # as many as new ones
    assert (folder / "history.jsonl").exists()


def test_it_goes_on_from_the_old_weights(old, kept):
    """What it begins with is the old run's last checkpoint, optimisers included, as step 0."""
    like = ganomaly_jax.load(old[0]).detector.network.init(jax.random.key(0))
    _, last, _ = checkpoint.restore(old[0] / "checkpoints", like)
    _, begun, _ = checkpoint.restore(kept[0] / "checkpoints", like, 0)
    assert int(begun.step) == 0
    chex.assert_trees_all_equal(begun.replace(step=0), last.replace(step=0))


def test_what_is_held_out_was_trained_on_by_neither(kept, old, arrays):
    """By the pixels: the frozen set and the training part of both runs have no image in common."""
    folder = kept[0]
    mixed = sources.read(run_folder.stored_config(folder).data)
    hashes = np.array([datasets.image_hash(image) for image in mixed.images])
    held, trained_on = set(hashes[mixed.parts != 0].tolist()), set(hashes[mixed.parts == 0].tolist())
    assert held.isdisjoint(trained_on)
    settings = tiny_config()
    before = resolution.resolve(settings, arrays)
    assert held.isdisjoint(datasets.image_hash(image) for image in before.dataset.images[before.split.train])


def test_the_new_run_is_a_run(kept, capsys):
    """It is evaluated from its own folder, and can be updated in turn."""
    folder = kept[0]
    assert main.main(["evaluate", "--workdir", str(folder)]) == 0
    assert "40 anomalous" in capsys.readouterr().out
    assert update._parent(folder, "").run.split.protocol == "as the mixture says"


def test_again_it_says_that_it_is_done(kept, old):
    folder, done, _ = kept
    before, said = contents(folder), []
    source = str(folder.parent / "new.npz")
    again = update.update(old[0], source, folder, old_source=str(old[1]), log=said.append)
    assert (again.kept, again.figures) == (done.kept, done.figures)
    assert any("already finished" in line for line in said)
    assert contents(folder) == before
    with pytest.raises(UserError, match="another update: replay"):
        update.update(old[0], source, folder, replay=0.25, old_source=str(old[1]))


def test_what_would_spoil_it_is_refused(old, tmp_path, capsys):
    """Anomalies given as normal: the old test set shows it, and the old run stays byte for byte."""
    np.savez(tmp_path / "bad.npz", images=blobs(150, 30, anomalous=True))
    before, out = contents(old[0]), tmp_path / "run"
    words = ["update", "--workdir", str(old[0]), "--data", str(tmp_path / "bad.npz"), "--out", str(out)]
    assert main.main([*words, "--old-data", str(old[1])]) == 3
    said = capsys.readouterr().out
    assert "refused" in said and "on the old test set the AUROC changes from" in said
    assert contents(old[0]) == before
    assert not (out / "detector").exists()
    assert not json.loads((out / layout.UPDATE).read_text())["kept"]
    with pytest.raises(UserError):
        ganomaly_jax.load(out)
    with pytest.raises(UserError, match="was refused"):
        update.update(out, str(tmp_path / "bad.npz"), tmp_path / "next")
    assert main.main([*words, "--old-data", str(old[1])]) == 3  # and again


def test_stopped_it_goes_on_to_the_same_bits(kept, old, tmp_path, monkeypatch):
    folder, done, _ = kept
    source, out = str(folder.parent / "new.npz"), tmp_path / "run"
    real = update.trainer.train

    def stopped(settings, workdir, *rest, **named):
        settings.train.steps, steps = 10, settings.train.steps
        real(settings, workdir, *rest, **named)
        settings.train.steps = steps
        shutil.rmtree(workdir / layout.CANDIDATE)
        raise StoppedError("stopped", signal.SIGTERM)

    monkeypatch.setattr(update.trainer, "train", stopped)
    with pytest.raises(StoppedError):
        update.update(old[0], source, out, old_source=str(old[1]), log=lambda line: None)
    monkeypatch.undo()
    again = update.update(old[0], source, out, old_source=str(old[1]), log=lambda line: None)
    assert again.figures == done.figures
    images = brighter(20, 5)
    np.testing.assert_array_equal(ganomaly_jax.load(out)(images), ganomaly_jax.load(folder)(images))


def test_mistakes_are_one_sentence(old, kept, tmp_path, capsys):
    np.savez(tmp_path / "new.npz", images=brighter(40, 3))
    np.savez(tmp_path / "deep.npz", images=brighter(40, 3).astype(np.uint16))
    np.savez(tmp_path / "odd.npz", images=brighter(40, 3), labels=np.ones(40, int))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    unfinished, team, lone = tmp_path / "unfinished", tmp_path / "team", tmp_path / "lone"
    for folder in (unfinished, team):
        folder.mkdir()
        shutil.copy(old[0] / "config.json", folder)
    (team / "members.json").write_text('{"members": [{"name": "seed0", "abnormal": "", "seed": 0}]}')
    shutil.copytree(old[0], lone, ignore=shutil.ignore_patterns("checkpoints"))
    known, new = str(old[1]), str(tmp_path / "new.npz")

    def refused(words, workdir=old[0], source=new, out=tmp_path / "out", where=known):
        given = ["--workdir", str(workdir), "--data", source, "--out", str(out), "--old-data", where]
        assert main.main(["update", *given, *words]) == 2
        error = capsys.readouterr().err
        assert len(error.splitlines()) == 1
        assert not (tmp_path / "out").exists()
        return error

    assert "not finished" in refused([], workdir=unfinished)
    assert "no run in" in refused([], workdir=tmp_path / "nowhere")
    assert "members" in refused([], workdir=team)
    assert "no checkpoint of step" in refused([], workdir=lone)
    assert "have changed" in refused([], where=new)
    assert "on arrays" in refused([], where="")
    assert "no normal" in refused([], source=str(tmp_path / "odd.npz"))
    assert "uint16" in refused([], source=str(tmp_path / "deep.npz"))
    assert "0 normal images to train on" in refused([], source=known)  # nothing is new
    assert "does not hold an update" in refused([], out=tmp_path / "other")
    assert "another update" in refused([], out=kept[0])
    assert "is the run to update" in refused([], out=old[0])
    assert "replay=1.0" in refused(["--replay", "1"])
    assert "margin=-1.0" in refused(["--margin", "-1"])
    assert "keeps the network" in refused(["--config.model.features=8"])


def test_a_recalibrated_threshold_outlives_another_train(trained, arrays, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(trained[0], workdir)
    settings, said = tiny_config(epochs=12, save_every=100, picture_every=12), []
    made = recalibrate(workdir, false_positive_rate=0.25)
    assert made.threshold != trained[1].threshold
    assert train(settings, workdir, arrays, log=said.append).threshold == made.threshold
    assert ganomaly_jax.load(workdir).threshold == made.threshold
    assert any("is kept" in line for line in said)
    settings.train.steps = 230  # other weights: the threshold is not theirs
    longer = train(settings, workdir, arrays, log=said.append)
    assert longer.calibration.rate == trained[1].calibration.rate
    assert any("calibrated as configured" in line for line in said)


def figures(old_flagged, new_flagged, low=0.0, found=(40, 40), high=0.0):
    """Of 100 normal images each, and 50 anomalous ones."""
    both = {"old": {"count": old_flagged, "of": 100}, "new": {"count": new_flagged, "of": 100}}
    ranking = {"old": {"value": 0.9}, "new": {"value": 0.9}, "difference": {"value": 0.0, "low": low, "high": 0.1}}
    return {
        "promised": 0.01,
        "calibration": 100,
        "flagged": {"old": both, "new": both},
        "found": {"old": {"count": found[0], "of": 50}, "new": {"count": found[1], "of": 50}},
        "found_change": {"value": (found[1] - found[0]) / 50, "low": -1.0, "high": high},
        "auroc": {"old": ranking, "all": ranking},
    }


def test_what_not_worse_means():
    """1 % is promised; of 100 images on a threshold by 100, chance allows 1 % + 3 * 1.41 % + 1 % = 6.2 %."""
    assert acceptance.decide(figures(0, 6), 0.05) == []
    assert len(acceptance.decide(figures(0, 7), 0.05)) == 2  # of the old, and of the new normal images
    assert acceptance.decide(figures(7, 7), 0.05) == []
    assert len(acceptance.decide(figures(0, 0, low=-0.06), 0.05)) == 2
    assert acceptance.decide(figures(0, 0, low=-0.04), 0.05) == []
    assert "finds 20 of 50" in acceptance.decide(figures(0, 0, found=(40, 20), high=-0.3), 0.05)[0]
    assert acceptance.decide(figures(0, 0, found=(40, 37), high=-0.01), 0.05) == []


def test_a_level_that_moved_needs_a_new_threshold_only():
    """The same order, all scores shifted: the advice is `recalibrate`."""
    found = figures(60, 1)
    found["flagged"]["new"]["recalibrated"] = {"count": 1, "of": 100}
    found["shift"], found["beyond"] = {"statistic": 0.8, "p_value": 1e-9}, 0.1
    assert "ganomaly recalibrate --workdir W --data NEW" in acceptance._advice(found, "W", "NEW", "images")[0]
    found["auroc"]["all"]["difference"]["low"] = 0.02  # the order is better than before: that took training
    assert "recalibrate" not in acceptance._advice(found, "W", "NEW", "images")[0]
    found["shift"]["p_value"] = 0.5
    assert acceptance._advice(found, "W", "NEW", "images") == []
    found["beyond"] = 0.9
    assert "look at some of them" in acceptance._advice(found, "W", "NEW", "images")[0]


def test_a_mixture_keeps_classes_apart_and_reads_on_demand(tmp_path):
    """A class that is normal in one data set and anomalous in the other becomes two."""
    one = datasets.from_arrays(blobs(6, 0), np.array(["a", "a", "a", "b", "b", "b"]), name="one")
    other = datasets.from_arrays(blobs(4, 1), np.array(["a"] * 4), name="other")
    at = lambda *indices: np.array(indices, np.int64)  # noqa: E731
    parts = [
        mixture.Part(one_settings(), "", frozenset({"a"}), at(0), at(1), at(2, 4)),
        mixture.Part(one_settings(), "", frozenset(), at(), at(), at(3, 1)),
    ]
    mixed = mixture.join(parts, [one, other])
    assert mixed.classes == ("a", "a (anomalous)", "b")
    assert mixed.normal == {"a"}
    assert mixed.parts.tolist() == [0, 2, 1, 1, 1, 1]
    assert mixture.origins(parts).tolist() == [0, 0, 0, 0, 1, 1]
    np.testing.assert_array_equal(mixed.images, np.concatenate([one.images[[0, 1, 2, 4]], other.images[[3, 1]]]))
    lazily = LazyImages(lambda i: other.images[i], other.images.shape, other.images.dtype)
    on_demand = mixture.join(parts, [one, dataclasses.replace(other, images=lazily)])
    np.testing.assert_array_equal(on_demand.images[[5, 0, 4]], mixed.images[[5, 0, 4]])
    with pytest.raises(UserError, match="at least 2"):
        splits.split(mixed, one_settings(), 0)


def one_settings():
    return tiny_config().data


@pytest.mark.parametrize(("window", "missing"), [(0, "mask"), (8, "refuse")])
def test_rows_of_sensors(tmp_path, window, missing):
    """The old scaling, recordings apart, kept where new normal rows are learned; read again, the same run."""
    settings = rows_config(window, steps=60)
    settings.data.source, settings.data.missing = str(write(tmp_path / "old.csv", plant(400, 0))), missing
    settings.evaluate.false_positive_rate = 0.05
    folder, new = tmp_path / "run", plant(300, 1)
    train(settings, folder, log=lambda line: None)
    old = ganomaly_jax.load(folder)
    moved = new.copy()
    moved[:, 0] += 6 * new[:, 0].std()
    held = plant(120, 2)
    held[:, 0] += 6 * new[:, 0].std()
    if missing == "mask":
        moved[50, 1] = np.nan
    source = write(tmp_path / "new.csv", moved)
    said = []
    done = update.update(folder, str(source), tmp_path / "two", log=said.append)
    assert done.kept, done.reasons
    assert any("new normal windows" in line if window else "new normal rows" in line for line in said)
    made = ganomaly_jax.load(tmp_path / "two")
    np.testing.assert_array_equal(made.low, old.low)
    np.testing.assert_array_equal(made.high, old.high)
    assert made.feature_names == old.feature_names
    assert (made(held) > made.threshold).mean() < 0.6 * (old(held) > old.threshold).mean()
    # Everything that reads the run again finds the same data, and an update of the update goes on.
    again = resolution.resolve(run_folder.stored_config(tmp_path / "two"))
    assert again.scaling == (tuple(map(float, old.low)), tuple(map(float, old.high)))
    assert datasets.content_hash(again.dataset) == run_folder.stored_environment(tmp_path / "two")["data_hash"]
    assert len(np.unique(again.dataset.layout.spans[:, 0])) == 2
    assert np.isfinite(np.asarray(again.dataset.images[:])).all()
    assert update.update(folder, str(source), tmp_path / "two", log=said.append).kept
    assert "this update is already finished" in said[-1]


def test_rows_with_other_sensors_and_images_for_a_detector_of_rows_are_refused(tmp_path):
    settings = rows_config(steps=2)
    settings.data.source = str(write(tmp_path / "old.csv", plant(200, 0)))
    train(settings, tmp_path / "run", log=lambda line: None)
    (tmp_path / "other.csv").write_text("x,y\n1,2\n3,4\n")
    with pytest.raises(UserError, match="no column"):
        update.update(tmp_path / "run", str(tmp_path / "other.csv"), tmp_path / "two")
    np.savez(tmp_path / "images.npz", images=blobs(40, 0))
    with pytest.raises(UserError, match=r"images|rows"):
        update.update(tmp_path / "run", str(tmp_path / "images.npz"), tmp_path / "three")
    assert not (tmp_path / "two").exists() and not (tmp_path / "three").exists()
