"""The file that describes a mixture: what it names has to be there."""

import json

import numpy as np
import pytest

from ganomaly_jax.core import config
from ganomaly_jax.core.errors import DamagedError
from ganomaly_jax.data import datasets, sources
from ganomaly_jax.data.formats import mixture
from tests.support import blobs


@pytest.fixture
def written(tmp_path):
    """The file of a mixture of one source."""
    source, path = tmp_path / "x.npz", tmp_path / mixture.NAME
    np.savez(source, images=blobs(5, 0))
    settings = config.Data(source=str(source), height=16, width=16, channels=1)
    chosen = (np.array(indices, np.int64) for indices in ([0, 1], [2], [3, 4]))
    part = mixture.Part(settings, datasets.content_hash(sources.load(settings)), frozenset({"normal"}), *chosen)
    path.write_text(json.dumps(mixture.to_dict([part])))
    return path


def load(path):
    return sources.load(config.Data(source=str(path)))


def test_it_is_the_chosen_items(written):
    assert load(written).parts.tolist() == [0, 0, 2, 1, 1]


@pytest.mark.parametrize(
    "change",
    [
        {"parts": []},
        {"train": [99]},
        {"train": [-1]},
        {"test": [10**30]},
        {"test": [[1]]},
        {"data": {"height": 10**400}},
    ],
)
def test_items_that_are_not_there_are_refused(written, change):
    held = json.loads(written.read_text())
    (held if "parts" in change else held["parts"][0]).update(change)
    written.write_text(json.dumps(held))
    with pytest.raises(DamagedError, match="cannot be read"):
        load(written)


def test_nesting_without_end_is_refused(written):
    written.write_text("[" * 100_000)
    with pytest.raises(DamagedError, match="cannot be read"):
        load(written)
