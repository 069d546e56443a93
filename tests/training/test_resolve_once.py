"""One `ganomaly train` reads its source, checks its configuration and builds its detector once, evaluation included."""

import collections

import pytest
from PIL import Image

from ganomaly_jax.cli import main
from ganomaly_jax.core import validation
from ganomaly_jax.data import sources
from ganomaly_jax.model import registry
from ganomaly_jax.runs import resolution
from ganomaly_jax.scoring import adapters, scorer
from tests.support import blobs

SMALL = (
    *("--config.data.height=16", "--config.data.width=16", "--config.model.features=4"),
    *("--config.model.latent_size=4", "--config.train.batch_size=8", "--config.train.steps=4"),
    *("--config.mesh.devices=1", "--config.train.picture_every=0"),
)


@pytest.fixture
def counts(monkeypatch):
    """How often each of the functions that resolve a run is called, however it is reached."""
    found = collections.Counter()

    def counted(module, name):
        function = getattr(module, name)

        def call(*arguments, **named):
            found[name] += 1
            return function(*arguments, **named)

        monkeypatch.setattr(module, name, call)

    for module, name in (
        (sources, "_open"),
        (sources, "read"),
        (validation, "check"),
        (registry, "from_config"),
        (resolution, "resolve_checked"),
        (adapters, "of_network"),
        (scorer, "load"),
    ):
        counted(module, name)
    return found


def test_a_training_resolves_its_run_once(tmp_path, counts):
    (tmp_path / "good").mkdir()
    for i, image in enumerate(blobs(40, 0)):
        Image.fromarray(image[..., 0]).save(tmp_path / "good" / f"{i:02}.png")
    workdir = tmp_path / "run"
    assert main.main(["train", str(tmp_path / "good"), "--workdir", str(workdir), *SMALL]) == 0
    assert (workdir / "metrics.json").exists(), "the evaluation at the end is part of it"
    assert counts == {"_open": 1, "read": 1, "check": 1, "from_config": 1, "resolve_checked": 1, "of_network": 1}
