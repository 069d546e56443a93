"""The loop: what it leaves behind, going on, and ending badly in a good way."""

import json  # noqa: I001
import os
import signal
import subprocess
import sys
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from tests.support import blobs, tiny_config

from ganomaly_jax.core import sealed_folder
from ganomaly_jax.core.errors import DamagedError, DivergedError, StoppedError, UserError
from ganomaly_jax.data import batch_order
from ganomaly_jax.runs import checkpoint, history, resolution, sealed_pytree
from ganomaly_jax.training import health
from ganomaly_jax.training.trainer import train

ROOT = Path(__file__).resolve().parents[2]


def quiet(line):
    """Takes the lines of a training."""


def final(workdir):
    """Every array of the last checkpoint."""
    return sealed_pytree.read(checkpoint_folders(workdir)[-1])[0]


def checkpoint_folders(workdir):
    return sorted(p for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())


def assert_same_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    chex.assert_trees_all_equal(a, b, strict=True)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, arrays):
    workdir = tmp_path_factory.mktemp("whole")
    train(tiny_config(epochs=2, save_every=10), workdir, arrays, log=quiet)
    return workdir


def test_a_run_leaves_its_files(trained):
    workdir, scorer = trained
    environment = json.loads((workdir / "env.json").read_text())
    assert environment["seed"] == 0
    assert len(environment["data_hash"]) == 64
    assert environment["versions"]["jax"] == jax.__version__
    resolved = json.loads((workdir / "config.json").read_text())
    assert resolved["data"]["channels"] == 1
    assert (resolved["data"]["low"], resolved["data"]["high"]) == (0.0, 255.0)
    assert (workdir / "pictures" / "epoch_0012.png").stat().st_size > 1000
    records = list(history.read(workdir / "history.jsonl"))
    assert [record["step"] for record in records if "images" in record] == [100, 200, 216]
    lines = [record for record in records if "contextual" in record]
    steps = [line["step"] for line in lines]
    assert steps == [*range(10, 217, 10), 216]  # 160 of 200 to train, 144 without calibration: 18 steps an epoch
    assert lines[-1]["contextual"] < lines[0]["contextual"]
    assert lines[-1]["epoch"] == 12
    assert scorer.provenance["step"] == 216


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path, arrays, uninterrupted):
    """SIGKILL in the middle of an epoch, beyond a checkpoint; then the same call again."""
    np.savez(tmp_path / "data.npz", images=arrays[0], labels=arrays[1])
    script = """
import os, signal, sys, time
import numpy as np
sys.path.insert(0, sys.argv[1])
from tests import conftest, support  # the same settings of jax
from ganomaly_jax.runs import history
from ganomaly_jax.training import trainer
add = history.History.add
def add_and_die(self, losses, speed):
    add(self, losses, speed)
    if self._step > 20:
        while not os.path.exists(sys.argv[3] + "/checkpoints/00000010"):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
history.History.add = add_and_die
data = np.load(sys.argv[2])
trainer.train(support.tiny_config(epochs=2, save_every=10), sys.argv[3], (data["images"], data["labels"]))
"""
    call = [sys.executable, "-c", script, str(ROOT), str(tmp_path / "data.npz"), str(tmp_path / "run")]
    ran = subprocess.run(call, cwd=ROOT, stdout=subprocess.DEVNULL, check=False, timeout=300)
    assert ran.returncode == -signal.SIGKILL
    resumed = tmp_path / "run"
    kept = checkpoint.steps(resumed / "checkpoints")
    assert kept
    assert not (resumed / "detector").exists(), "the run had come to its end before it was killed"
    train(tiny_config(epochs=2, save_every=10), resumed, arrays, log=quiet)
    assert_same_bits(final(resumed), final(uninterrupted))
    lines = [(folder / "history.jsonl").read_text().count("\n") for folder in (resumed, uninterrupted)]
    assert lines[0] == lines[1]


def test_a_signal_saves_and_leaves_and_the_run_goes_on(tmp_path, arrays, uninterrupted):
    before = signal.getsignal(signal.SIGTERM)
    original = history.History.add
    calls = []

    def add(self, *arguments):
        original(self, *arguments)
        calls.append(1)
        if len(calls) == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(history.History, "add", add)
        with pytest.raises(StoppedError, match="SIGTERM at step") as stopped:
            train(tiny_config(epochs=2, save_every=1000), tmp_path, arrays, log=quiet)
    assert stopped.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert 0 < checkpoint.steps(tmp_path / "checkpoints")[-1] < 36
    train(tiny_config(epochs=2, save_every=1000), tmp_path, arrays, log=quiet)
    assert_same_bits(final(tmp_path), final(uninterrupted))


def test_more_epochs_go_on_where_fewer_ended(tmp_path, arrays, uninterrupted):
    train(tiny_config(epochs=1, save_every=10), tmp_path, arrays, log=quiet)
    train(tiny_config(epochs=2, save_every=10), tmp_path, arrays, log=quiet)
    assert_same_bits(final(tmp_path), final(uninterrupted))


def test_divergence_stops_and_keeps_the_last_finite_checkpoint(tmp_path, arrays):
    config = tiny_config(epochs=2, save_every=10)
    train(tiny_config(epochs=1, save_every=10), tmp_path, arrays, log=quiet)
    kept = checkpoint.steps(tmp_path / "checkpoints")
    # What a step computes is fixed in the folder; the weights are what can go wrong.
    step, state, meta = checkpoint.restore(tmp_path / "checkpoints", _abstract(config))
    worse = jax.tree.map(lambda a: a * np.float32(1e20) if a.dtype == np.float32 else a, state.params)
    checkpoint.save(tmp_path / "checkpoints", step, state.replace(params=worse), meta, 2)
    with pytest.raises(DivergedError, match=r"diverged at step 19.*checkpoint is that of step 18") as diverged:
        train(config, tmp_path, arrays, log=quiet)
    assert diverged.value.exit_code == 4
    assert checkpoint.steps(tmp_path / "checkpoints") == kept


def _abstract(config):
    from tests.support import TINY

    return jax.eval_shape(TINY.init, jax.random.key(0))


def test_another_configuration_or_other_data_are_refused(uninterrupted, arrays):
    config = tiny_config(epochs=2, save_every=10)
    config.model.latent_size = 5
    with pytest.raises(UserError, match=r"model\.latent_size: 4 in the stored run, 5 now"):
        train(config, uninterrupted, arrays, log=quiet)
    with pytest.raises(UserError, match="have changed"):
        train(tiny_config(epochs=2), uninterrupted, (arrays[0][::-1], arrays[1][::-1]), log=quiet)


def test_a_damaged_checkpoint_is_refused(tmp_path, arrays):
    train(tiny_config(epochs=1, save_every=10), tmp_path, arrays, log=quiet)
    largest = max(checkpoint_folders(tmp_path)[-1].rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0)
    largest.write_bytes(largest.read_bytes()[:-10])
    with pytest.raises(DamagedError, match=largest.name) as damaged:
        train(tiny_config(epochs=2, save_every=10), tmp_path, arrays, log=quiet)
    assert damaged.value.exit_code == 5


def test_a_folder_that_cannot_be_written(tmp_path, arrays):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot be written|Not a directory"):
        train(tiny_config(), tmp_path / "file" / "run", arrays, log=quiet)


def test_a_full_disk_is_said_and_the_checkpoints_before_it_are_intact(tmp_path, arrays, monkeypatch):
    train(tiny_config(epochs=1, save_every=18), tmp_path, arrays, log=quiet)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sealed_pytree, "_save_arrays", full)
    with pytest.raises(UserError, match="No space left on device"):
        train(tiny_config(epochs=2, save_every=18), tmp_path, arrays, log=quiet)
    assert checkpoint.steps(tmp_path / "checkpoints") == [9, 18]
    sealed_folder.verify(tmp_path / "checkpoints" / "00000018")


def test_fewer_images_than_a_batch(tmp_path):
    config = tiny_config(epochs=1, batch_size=64)
    said = []
    train(config, tmp_path, blobs(12, 0), log=said.append)
    assert any("batch 64 -> 8" in line for line in said)
    with pytest.raises(UserError, match="at least 2"):
        train(config, tmp_path / "other", blobs(2, 0), log=quiet)


def test_nothing_is_compiled_after_warm_up(tmp_path, arrays, monkeypatch):
    """After the first checkpoint and the first picture, whatever lengths the calls have."""
    compilations, seen = [], []

    def listen(name, seconds, **_):
        if name.endswith("backend_compile_duration"):
            compilations.append(seconds)

    add = history.History.add

    def count(self, losses, speed):
        seen.append((self._step, len(compilations)))
        add(self, losses, speed)

    monkeypatch.setattr(history.History, "add", count)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        train(tiny_config(epochs=4, save_every=7, picture_every=1), tmp_path, arrays, log=quiet)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    after_warm_up = {compiled for first, compiled in seen if first >= 18}
    assert len(compilations) > 0
    assert len(after_warm_up) == 1, seen


def test_every_image_of_an_epoch_is_taken_once():
    batches = batch_order.batch_indices(seed=3, n=50, batch_size=8, start_step=4, count=4)
    first = batch_order.batch_indices(seed=3, n=50, batch_size=8, start_step=0, count=6)
    assert len(np.unique(first)) == 48
    np.testing.assert_array_equal(batches[:2], first[4:])


def test_the_best_by_calibration_loss_is_kept_and_can_be_chosen(tmp_path, arrays, monkeypatch):
    """The loss of step 8 is made the smallest: it stays beside the last two, and the detector is that of step 8."""
    losses = iter([0.9, 0.1, 0.5, 0.4, 0.6])
    monkeypatch.setattr(health, "make_measure", lambda *_: lambda state: [{checkpoint.LOSS: next(losses), "images": 2}])
    settings = tiny_config(steps=20, save_every=8)
    settings.train.choose = "best"
    said = []
    best = train(settings, tmp_path, arrays, log=said.append)
    assert checkpoint.steps(tmp_path / "checkpoints") == [8, 16, 20]
    assert checkpoint.best(tmp_path / "checkpoints") == 8
    assert any("that of step 8" in line for line in said)
    stored = checkpoint.restore(tmp_path / "checkpoints", None, 8)[1]
    chex.assert_trees_all_equal(best.variables["detector"]["params"], stored["params"]["generator"])
    settings.train.choose = "last"
    last = train(settings, tmp_path, arrays, log=said.append)
    assert last.provenance["step"] == 20


def test_the_calibration_loss_is_the_error_of_the_reconstructions(trained, arrays):
    workdir, scorer = trained
    step = checkpoint.steps(workdir / "checkpoints")[-1]
    meta = checkpoint.restore(workdir / "checkpoints", None, step)[2]
    this = resolution.resolve(scorer.config, arrays)
    x, x_hat = scorer.reconstruct(this.dataset.images[this.split.calibration])
    np.testing.assert_allclose(meta["calibration_loss"], np.abs(x - x_hat).mean(), rtol=1e-5)


def test_a_damaged_checkpoint_is_passed_over_when_told(tmp_path, arrays):
    settings = tiny_config(steps=8, save_every=8)
    train(settings, tmp_path, arrays, log=lambda line: None)
    damaged = tmp_path / "checkpoints" / "00000008" / "meta.json"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    settings.train.steps = 12
    with pytest.raises(DamagedError, match="undamaged: 4"):
        train(settings, tmp_path, arrays, log=lambda line: None)
    said = []
    scorer = train(settings, tmp_path, arrays, log=said.append, fall_back=True)
    assert any("00000008" in line and "resumes from step 4" in line for line in said)
    assert scorer.provenance["step"] == 12
