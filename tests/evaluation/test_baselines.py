"""Statistical detectors beside the GAN: worked values, both conventions of a sign, what their thresholds promise."""

import json  # noqa: I001
import shutil
import sys

import numpy as np
import pytest
from sklearn import base, decomposition, ensemble, neighbors, pipeline, preprocessing
from tests.support import blobs

import ganomaly_jax
from ganomaly_jax.cli import main
from ganomaly_jax.core import config, validation
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data import sources
from ganomaly_jax.evaluation import baselines, combination, process_statistics
from ganomaly_jax.evaluation import evaluate as evaluation_evaluate
from ganomaly_jax.scoring import calibration


@pytest.fixture
def workdir(trained, tmp_path):
    """A copy that may be written to."""
    shutil.copytree(trained[0], tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(scope="module")
def compared(trained):
    """(scorer, calibration items, test items, labels, all baselines and combinations on them)."""
    scorer = trained[1]
    normals, test = blobs(100, 11), np.concatenate([blobs(50, 12), blobs(30, 13, anomalous=True)])
    labels = np.repeat([0, 1], [50, 30])
    return scorer, normals, test, labels, baselines.compare(scorer, blobs(120, 10), normals, test, labels)


def test_t2_and_q_of_a_worked_matrix():
    # Four items on the line (1, 1), off it by (1, -1) / 10: means 0, variances 20/3 and 0.08/3 along the two.
    x = np.array([[-2, -2], [-1, -1], [1, 1], [2, 2]], float) + 0.1 * np.array([[1, -1], [-1, 1], [-1, 1], [1, -1]])
    fitted = process_statistics.fit(x, components=1, scale=False)
    np.testing.assert_allclose(fitted["variances"], [20 / 3])
    # (3, 1) is (2, 2) along the line and (1, -1) off it: 8 / (20 / 3), and 2.
    np.testing.assert_allclose(process_statistics.hotelling(fitted, np.array([[3.0, 1.0]])), [1.2])
    np.testing.assert_allclose(process_statistics.squared_error(fitted, np.array([[3.0, 1.0]])), [2.0])


@pytest.mark.parametrize("shape", [(40, 6), (40, 3, 4), (12, 4, 4, 2)])
@pytest.mark.parametrize("asked", [2, 0.8])
def test_t2_and_q_are_those_of_scikit_learn(shape, asked):
    random = np.random.default_rng(0)
    x = random.normal(size=shape) @ np.diag(np.arange(1, shape[-1] + 1))
    new = random.normal(size=(5, *shape[1:]))
    rows, fresh = x.reshape(len(x), -1), new.reshape(len(new), -1)
    if len(shape) < 4:  # variables of their own units
        scaler = preprocessing.StandardScaler().fit(rows)
        deviations = rows.std(axis=0, ddof=1)
        rows, fresh = (rows - scaler.mean_) / deviations, (fresh - scaler.mean_) / deviations
    pca = decomposition.PCA(n_components=asked, svd_solver="full").fit(rows)
    fitted = process_statistics.fit(x, components=asked)
    assert fitted["axes"].shape[1] == pca.n_components_
    t = pca.transform(fresh)
    np.testing.assert_allclose(
        process_statistics.hotelling(fitted, new), (t**2 / pca.explained_variance_).sum(1), rtol=1e-8
    )
    off = fresh - pca.inverse_transform(t)
    np.testing.assert_allclose(process_statistics.squared_error(fitted, new), (off**2).sum(1), rtol=1e-8)


def test_constant_variables_and_items_give_finite_statistics():
    x = np.ones((5, 3))
    for components_asked in (0.9, 2):
        fitted = process_statistics.fit(x, components=components_asked)
        assert np.isfinite(process_statistics.hotelling(fitted, x + 1)).all()
        assert (process_statistics.squared_error(fitted, x + 1) > 0).all()
    with pytest.raises(UserError, match="expected at least two items"):
        process_statistics.fit(x[:1])


def test_every_baseline_and_combination_has_its_figures(compared):
    _, _, test, labels, found = compared
    assert list(found.figures) == ["detector", *config.BASELINES]
    assert set(found.combinations) == {
        f"{way}{end}" for way in config.COMBINATIONS for end in ("", "_without_detector")
    }
    json.dumps(found.figures | found.combinations, allow_nan=False)
    for name, row in (found.figures | found.combinations).items():
        assert found.scores[name].shape == (len(test),)
        low, high = row["interval"]
        assert low <= row["auroc"] <= high
        flagged = found.scores[name] > row["threshold"]
        assert row["false_positive_rate"] == pytest.approx(flagged[labels == 0].mean())
        if name != "detector":
            expected = row["auroc"] - found.figures["detector"]["auroc"]
            assert row["difference"][0] == pytest.approx(expected, abs=1e-9)
    # Vertical bars among horizontal ones: the raw pixels alone tell them apart.
    assert found.figures["pca_q"]["auroc"] > 0.99
    assert "120 of 120 training items" in found.notes[0]
    assert any("detector" in sentence for sentence in found.notes[1:])


def test_nothing_but_the_figures_depends_on_the_labels(compared):
    scorer, normals, test, _, found = compared
    again = baselines.compare(scorer, blobs(120, 10), normals, test, None)
    for name, scores in found.scores.items():
        np.testing.assert_array_equal(scores, again.scores[name])
        assert again.figures.get(name, again.combinations.get(name))["auroc"] is None
    assert len(again.notes) == 1


def test_p_values_are_those_of_the_calibration_items(compared):
    scorer, normals, test, _, found = compared
    own = calibration.p_values(np.sort(scorer(normals)), scorer(test))
    np.testing.assert_allclose(found.p_values["detector"], own, rtol=1e-6)


def test_the_convention_of_each_library(compared):
    scorer, normals, test, labels, _ = compared

    class LikePyOD:
        """Higher is more anomalous."""

        def fit(self, x, y=None):
            self.mean_ = x.mean(axis=0)

        def decision_function(self, x):
            return np.linalg.norm(x - self.mean_, axis=1)

    # A detector of PyOD that is also an estimator of scikit-learn's.
    of_pyod = type("OfPyOD", (LikePyOD, base.BaseEstimator), {"__module__": "pyod.models.mine"})

    class Opposite(LikePyOD):
        def decision_function(self, x):
            return -super().decision_function(x)

    lof = neighbors.LocalOutlierFactor(novelty=True)
    detectors = {
        "lof": lof,
        "steps": pipeline.make_pipeline(preprocessing.StandardScaler(), ensemble.IsolationForest(random_state=0)),
        "pyod": LikePyOD(),
        "steps_pyod": pipeline.make_pipeline(preprocessing.StandardScaler(), of_pyod()),
        "opposite": baselines.outside(Opposite(), on="x", higher="normal"),
        "on_z": baselines.outside(LikePyOD(), on="z"),
    }
    found = baselines.compare(scorer, blobs(120, 10), normals, test, labels, detectors, combine="")
    for name in ("lof", "steps", "pyod", "steps_pyod", "opposite"):
        assert found.figures[name]["auroc"] > 0.9, name
    np.testing.assert_allclose(found.scores["pyod"], found.scores["opposite"])
    assert found.scores["on_z"].max() != found.scores["pyod"].max()
    assert found.combinations == {}
    # The forest of config.BASELINES has the sign of scikit-learn too.
    forest = baselines.compare(scorer, blobs(120, 10), normals, test, labels, "forest", combine="")
    assert forest.figures["forest"]["auroc"] > 0.9


def test_invalid_items_have_no_score(compared):
    scorer, normals, test, labels, found = compared
    spoilt = test.astype(np.float32) / 127.5 - 1
    spoilt[3, 2, 2] = np.nan
    again = baselines.compare(scorer, blobs(120, 10), normals, spoilt, labels, "pca_t2,neighbours", "stouffer")
    for scores in again.scores.values():
        assert np.flatnonzero(np.isnan(scores)).tolist() == [3]
    np.testing.assert_allclose(np.delete(again.scores["pca_t2"], 3), np.delete(found.scores["pca_t2"], 3), rtol=1e-4)


def test_what_cannot_be_used_is_refused(compared, monkeypatch):
    scorer, normals, test, labels, _ = compared
    with pytest.raises(UserError, match="nearest is 'pca_q'"):
        baselines.compare(scorer, normals, normals, test, labels, "pca_w")
    with pytest.raises(UserError, match="nearest is 'stouffer'"):
        baselines.compare(scorer, normals, normals, test, labels, "pca_q", "stoufer")
    with pytest.raises(UserError, match="has no decision_function"):
        baselines.compare(scorer, normals, normals, test, labels, {"mine": preprocessing.StandardScaler()})
    with pytest.raises(UserError, match="none of them called 'detector'"):
        baselines.compare(scorer, normals, normals, test, labels, {})
    with pytest.raises(UserError, match=r"test items \(80, 8, 8, 1\)"):
        baselines.compare(scorer, normals, normals, test[:, :8, :8], labels, "pca_q")
    bad = baselines.Baseline(lambda x, seed: None, lambda fitted, x: np.full(len(x), np.inf))
    with pytest.raises(UserError, match="baseline mine returned scores"):
        baselines.compare(scorer, normals, normals, test, labels, {"mine": bad})
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setattr(baselines.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"ganomaly-jax\[baselines\]"):
        baselines.named("forest")
    assert "forest" not in baselines.named("all")


def test_at_most_so_many_items_are_fitted_to(trained, monkeypatch):
    seen = []
    counting = baselines.Baseline(lambda x, seed: seen.append(x.shape), lambda fitted, x: x.sum(axis=(1, 2, 3)))
    monkeypatch.setattr(baselines, "TRAINING", 30)
    baselines.compare(trained[1], blobs(120, 10), blobs(20, 1), blobs(5, 2), None, {"one": counting, "two": counting})
    assert seen == [(30, 16, 16, 1)]
    monkeypatch.setattr(baselines, "NUMBERS", 20 * 256)
    baselines.compare(trained[1], blobs(120, 10), blobs(20, 1), blobs(5, 2), None, {"one": counting})
    assert seen[-1] == (20, 16, 16, 1)


def test_rarity_is_the_p_value_within_and_falls_on_beyond():
    reference = np.arange(1.0, 100.0)
    inside = combination.rarity(reference, np.array([0.0, 50.0, 99.0]))
    np.testing.assert_allclose(inside, [1, 0.51, 0.02])
    near, far = combination.rarity(reference, np.array([99.5, 150.0]))
    assert 0.01 > near > far > 0
    among = combination.rarity_of_reference(reference)
    np.testing.assert_allclose(among[:-1], (99 - np.arange(98)) / 100)
    assert among[-1] < 0.01
    assert np.isnan(combination.rarity(reference, np.array([np.nan]))[0])
    np.testing.assert_allclose(
        combination.COMBINE["stouffer"](np.array([[0.025], [0.025]])), [1.959964 * 2**0.5], rtol=1e-6
    )
    np.testing.assert_allclose(combination.COMBINE["mean"](np.array([[0.1], [0.3]])), [0.8])
    np.testing.assert_allclose(combination.COMBINE["maximum"](np.array([[0.1], [0.3]])), [1.0])


def test_combinations_with_and_without_the_detector_by_hand():
    random = np.random.default_rng(0)
    reference, test = ({name: random.normal(size=n) for name in ("detector", "a", "b")} for n in (20, 7))
    rarities = [combination.rarity(reference[name], test[name]) for name in reference]
    own = [combination.rarity_of_reference(reference[name]) for name in reference]
    on_calibration, on_test = dict(reference), dict(test)
    baselines._combine(("maximum", "mean"), on_calibration, on_test)
    for way in ("maximum", "mean"):
        combine = combination.COMBINE[way]
        for made, rows in ((on_test, rarities), (on_calibration, own)):
            np.testing.assert_array_equal(made[way], combine(np.stack(rows)))
            np.testing.assert_array_equal(made[f"{way}_without_detector"], combine(np.stack(rows[1:])))
    two = {name: reference[name] for name in ("detector", "a")}
    baselines._combine(("mean",), two, {name: test[name] for name in two})
    assert list(two) == ["detector", "a", "mean"]  # without the detector there would be nothing to combine


@pytest.mark.parametrize("way", config.COMBINATIONS)
def test_a_combination_keeps_the_promised_rate(way):
    """Of four scores, two of them dependent, 99 calibration items each; 400 times 50 fresh normal items."""
    random, flagged, n = np.random.default_rng(1), [], 99
    for _ in range(400):
        scores = random.normal(size=(4, n + 50))
        scores[1] += scores[0]
        names = [str(i) for i in range(4)]
        on_calibration = {name: scores[i, :n] for i, name in enumerate(names)}
        on_test = {name: scores[i, n:] for i, name in enumerate(names)}
        baselines._combine((way,), on_calibration, on_test)
        threshold = calibration.calibrate(on_calibration[way], 0.05).threshold
        flagged.append((on_test[way] > threshold).mean())
    # The threshold itself varies with the calibration items: the standard error of the mean is its spread / 20.
    assert np.mean(flagged) < 0.05 + 3 * np.std(flagged) / 20
    assert np.mean(flagged) > 0.035


def test_evaluate_shows_them(workdir, arrays, capsys, monkeypatch):
    own = sources.load(ganomaly_jax.load(workdir).config.data, arrays)
    asked = ["--baselines", "pca_q, mahalanobis", "--combine", "maximum"]
    with monkeypatch.context() as patched:
        patched.setattr(sources, "load", lambda *_, **__: own)
        assert main.main(["evaluate", "--workdir", str(workdir), *asked]) == 0
    printed = capsys.readouterr().out
    assert "AUROC minus the detector's" in printed
    assert any(line.startswith("pca_q ") for line in printed.splitlines())
    assert "fitted to" in printed
    found = json.loads((workdir / "metrics.json").read_text())
    assert list(found["baselines"]) == ["detector", "pca_q", "mahalanobis"]
    assert list(found["combinations"]) == ["maximum", "maximum_without_detector"]
    assert found["baselines"]["detector"]["auroc"] == pytest.approx(found["auroc"])
    assert found["baselines"]["detector"]["threshold"] == pytest.approx(found["threshold"])
    page = (workdir / "report.html").read_text(encoding="utf-8")
    assert "Comparison with statistical detectors" in page
    assert "maximum without detector" in page
    # Other test data: fitted to the run's own training part all the same.
    monkeypatch.setattr(evaluation_evaluate, "_report", lambda *_: None)
    other = np.concatenate([blobs(10, 12), blobs(5, 13, anomalous=True)]), np.repeat([0, 1], [10, 5])
    again = ganomaly_jax.evaluate(workdir, arrays=other, own=own, baselines="pca_q", combine="").metrics
    assert again["baselines"]["pca_q"]["threshold"] == found["baselines"]["pca_q"]["threshold"]
    assert again["combinations"] == {}
    assert "baselines" not in ganomaly_jax.evaluate(workdir, own=own).metrics


def test_flags_that_cannot_be_are_refused(workdir, arrays, capsys, tmp_path):
    np.savez(tmp_path / "set.npz", images=arrays[0], labels=arrays[1])
    # A run on arrays: they are not there to fit to.
    command = ["evaluate", "--workdir", str(workdir), "--data", str(tmp_path / "set.npz"), "--baselines"]
    assert main.main([*command, "all"]) == 2
    assert "data" in capsys.readouterr().err
    assert main.main([*command, "pca"]) == 2
    assert "expected some of all, pca_t2" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"evaluate\.components=0\.0"):
        asked = config.Config()
        asked.evaluate.components = 0.0
        validation.check(asked)
