"""Settings and what the tests share: small networks, compiled once."""

import os
import tempfile
from pathlib import Path

import hypothesis
import jax
import numpy as np
import pytest

# Before the first use of a device. Compilation is the budget of this suite, not speed; eight devices are for sharding.
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_disable_most_optimizations", True)
if jax.__version_info__ < (0, 11):  # An unknown flag would end the process.
    # The older code generator of XLA compiles a training step in a third of the time. Flags of the caller stay.
    os.environ["XLA_FLAGS"] = f"--xla_cpu_use_fusion_emitters=false {os.environ.get('XLA_FLAGS', '')}".strip()
# Many tests compile the same small programs, some in processes of their own.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", tempfile.mkdtemp(prefix="ganomaly-tests-"))
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)

# The same examples every time, few of them, and no time limit on a machine that is busy.
hypothesis.configuration.set_hypothesis_home_dir(tempfile.gettempdir())
hypothesis.settings.register_profile(
    "suite",
    derandomize=True,
    max_examples=25,
    deadline=None,
    database=None,
    suppress_health_check=[*hypothesis.HealthCheck],
)
hypothesis.settings.load_profile("suite")

from tests.support import TINY, blobs, tiny_config  # noqa: E402, I001

from ganomaly_jax.training.trainer import train  # noqa: E402


# Of results that depend on how a CPU rounds: the gate runs them with flags of XLA that stand for other CPUs.
NUMBERS = {
    *("data/test_row_windows", "deploy/test_export", "deploy/test_http_app", "parallel/test_sharding"),
    *("model/test_autoencoder", "model/test_convolution", "model/test_corruption", "model/test_ganomaly"),
    *("model/test_parity", "model/test_relative_brightness", "runs/test_golden", "scoring/test_calibration"),
    "scoring/test_properties",
    *("scoring/test_embedding", "scoring/test_patch_distance", "scoring/test_residual_scores", "scoring/test_scorer"),
    *("scoring/test_scores", "scoring/test_tiling", "training/test_autoencoder_runs"),
}


# Files that take a minute or more: they come first, so that no process is left alone with one of them at the end.
SLOW = (
    *("parallel/test_pods", "scoring/test_tiling", "test_document_examples", "data/test_row_windows"),
    *("parallel/test_sharding", "benchmark/test_faults", "training/test_update", "data/test_pack"),
)


def pytest_collection_modifyitems(items):
    """Marks the tests of numbers, and puts slow files first."""
    here = Path(__file__).parent
    names = {item.path: item.path.relative_to(here).with_suffix("").as_posix() for item in items}
    for item in items:
        if names[item.path] in NUMBERS:
            item.add_marker("numbers")
    items.sort(key=lambda item: SLOW.index(name) if (name := names[item.path]) in SLOW else len(SLOW))


@pytest.fixture(scope="session")
def tiny():
    """(detector, state, compiled update) for 16x16x1."""
    return TINY, jax.jit(TINY.init)(jax.random.key(0)), jax.jit(TINY.update)


@pytest.fixture(scope="session")
def arrays():
    """(images [240, 16, 16, 1], labels): 200 normal and 40 anomalous."""
    images = np.concatenate([blobs(200, 0), blobs(40, 1, anomalous=True)])
    return images, np.repeat([0, 1], [200, 40])


@pytest.fixture(scope="session")
def trained(tmp_path_factory, arrays):
    """(workdir, scorer) of a finished run on `arrays`; look, do not touch."""
    workdir = tmp_path_factory.mktemp("run")
    scorer = train(tiny_config(epochs=12, save_every=100, picture_every=12), workdir, arrays, log=lambda line: None)
    return workdir, scorer
