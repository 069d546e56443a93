"""Runs of the denoising autoencoder: it goes every way that GANomaly goes."""

import numpy as np  # noqa: I001
import pytest
from tests.support import blobs, tiny_config
from tests.model.test_autoencoder import settings
from tests.parallel.test_sharding import leaves_close
from tests.training.test_trainer import assert_same_bits, final, quiet

import ganomaly_jax
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.deploy import export, export_runtime
from ganomaly_jax.evaluation import evaluate
from ganomaly_jax.evaluation.metrics import auroc
from ganomaly_jax.runs import checkpoint, diagnostics, history
from ganomaly_jax.training.trainer import train, train_members


@pytest.fixture(scope="module")
def run(tmp_path_factory, arrays):
    """(workdir, scorer) of a finished run; look, do not touch."""
    workdir = tmp_path_factory.mktemp("run")
    return workdir, train(settings(epochs=12, save_every=100, picture_every=12), workdir, arrays, log=quiet)


def test_a_score_is_of_its_own_image_and_corrupts_nothing(run):
    scorer = run[1]
    x = blobs(9, 7)
    found = scorer(x)
    np.testing.assert_allclose(scorer(x[4:5]), found[4:5], rtol=1e-5)
    np.testing.assert_array_equal(scorer(x), found)
    given, x_hat = scorer.reconstruct(x)
    np.testing.assert_allclose(found, np.square(given - x_hat).mean((1, 2, 3)), rtol=1e-5)


def test_it_learns_and_not_from_shuffled_labels(run, arrays):
    images, labels = arrays
    found = run[1](images)
    assert float(auroc(labels, found)) > 0.9
    assert abs(float(auroc(np.random.default_rng(0).permutation(labels), found)) - 0.5) < 0.15
    losses = [one["reconstruction"] for one in history.read(run[0] / "history.jsonl") if "reconstruction" in one]
    assert losses[-1] < 0.3 * losses[0]


def test_a_run_is_looked_at_without_a_discriminator(run):
    records = list(history.read(run[0] / "history.jsonl"))
    looks = [record for record in records if diagnostics.VARIANCE in record]
    assert looks and all(
        diagnostics.ACCURACY not in look and {diagnostics.RANK, checkpoint.LOSS} <= set(look) for look in looks
    )
    losses = [record for record in records if "images" not in record]
    names = {name for one in losses for name in one} - {"steps"}  # of the last line, which averages fewer
    assert names == {"step", "epoch", "images_per_second", "reconstruction"}
    sick = {"step": 300, diagnostics.VARIANCE: 0.1, diagnostics.RANK: 1.0, "images": 256}
    assert not any(
        word in line for line in diagnostics.problems([sick], 100) for word in ("discriminator", "generator")
    )
    assert len(diagnostics.problems([sick], 100)) == 2


def test_read_evaluated_and_exported_it_scores_as_it_did(run, arrays, tmp_path):
    workdir, scorer = run
    read = ganomaly_jax.load(workdir)
    assert read.detector == scorer.detector
    np.testing.assert_array_equal(read(arrays[0]), scorer(arrays[0]))
    found = evaluate.evaluate(workdir, arrays=arrays)
    assert found.metrics["auroc"] > 0.9
    assert "<h1>Denoising autoencoder on" in (found.folder / "report.html").read_text(encoding="utf-8")
    export.export(read, tmp_path / "out", images=arrays[0][:8])
    score, _ = export_runtime.load(tmp_path / "out")
    np.testing.assert_allclose(score(arrays[0][:5])["score"], scorer(arrays[0][:5]), rtol=1e-5)


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(tmp_path, arrays):
    """With averaged weights and a fitted score."""
    for name, ends in (("whole", (24,)), ("parts", (8, 24))):
        for steps in ends:
            made = settings(steps=steps, save_every=8, shift=1)
            made.optimizer.average, made.evaluate.score = 0.9, "latent_density+pixel+multiscale"
            scorer = train(made, tmp_path / name, arrays, log=quiet)
    assert scorer.detector.network.average == 0.9
    np.testing.assert_array_equal(ganomaly_jax.load(tmp_path / "whole")(arrays[0]), scorer(arrays[0]))
    assert_same_bits(final(tmp_path / "parts"), final(tmp_path / "whole"))
    with pytest.raises(UserError, match=r"model\.detector: 'autoencoder' in the stored run, 'ganomaly' now"):
        train(tiny_config(steps=32, save_every=8, shift=1), tmp_path / "whole", arrays, log=quiet)


def test_members_are_what_they_would_be_alone(tmp_path, arrays):
    """The second one draws its own noise."""
    made = settings(steps=12, save_every=100)
    made.members.seeds = "0,3"
    members = train_members(made, tmp_path / "both", arrays, log=quiet)
    made.members.seeds, made.seed = "", 3
    alone = train(made, tmp_path / "alone", arrays, log=quiet)
    found = members["seed3"]
    leaves_close(found.variables["detector"], alone.variables["detector"], 1e-4)
    np.testing.assert_allclose(found(arrays[0]), alone(arrays[0]), rtol=1e-4)
