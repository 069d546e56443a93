"""Settings and what the tests share: small networks, compiled once."""

import os
import tempfile

import jax
import numpy as np
import pytest

# Before the first use of a device. Compilation is the budget of this suite, not speed; eight devices are for sharding.
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_disable_most_optimizations", True)
if jax.__version_info__ < (0, 11):  # An unknown flag would end the process.
    # The older code generator of XLA compiles a training step in a third of the time.
    os.environ["XLA_FLAGS"] = f"--xla_cpu_use_fusion_emitters=false {os.environ.get('XLA_FLAGS', '')}".strip()
# Many tests compile the same small programs, some in processes of their own.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", tempfile.mkdtemp(prefix="ganomaly-tests-"))
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)

from ganomaly_jax import config as configuration  # noqa: E402
from ganomaly_jax.ganomaly import Ganomaly  # noqa: E402
from ganomaly_jax.training import train  # noqa: E402

TINY = Ganomaly((16, 16, 1), latent_size=4, features=4)


@pytest.fixture(scope="session")
def tiny():
    """(detector, state, compiled update) for 16x16x1."""
    return TINY, jax.jit(TINY.init)(jax.random.key(0)), jax.jit(TINY.update)


def blobs(n, seed, anomalous=False):
    """Generated images [n, 16, 16, 1] uint8: a soft horizontal bar at a random height; anomalous ones are vertical."""
    random = np.random.default_rng(seed)
    at = random.uniform(4, 12, n)
    grid = np.arange(16)
    bars = np.exp(-0.5 * ((grid[None, :] - at[:, None]) / 1.5) ** 2) * 220
    images = np.repeat(bars[:, :, None], 16, axis=2)
    if anomalous:
        images = images.transpose(0, 2, 1)
    return np.clip(images + random.normal(0, 8, images.shape), 0, 255).astype(np.uint8)[..., None]


def tiny_config(**train_values):
    """A configuration of the size of `TINY` that trains in a second once compiled."""
    config = configuration.Config()
    config.data.height = config.data.width = 16
    config.model.latent_size = config.model.features = 4
    config.mesh.devices = 1
    config.train.batch_size = 8
    config.train.picture_every = 0
    config.optimizer.learning_rate = 1e-3  # at 2e-3 it takes a lucky seed for `trained` to separate
    for name, value in train_values.items():
        setattr(config.train, name, value)
    return config


@pytest.fixture(scope="session")
def arrays():
    """(images [240, 16, 16, 1], labels): 200 normal and 40 anomalous."""
    images = np.concatenate([blobs(200, 0), blobs(40, 1, anomalous=True)])
    return images, np.repeat([0, 1], [200, 40])


@pytest.fixture(scope="session")
def trained(tmp_path_factory, arrays):
    """(workdir, scorer) of a finished run on `arrays`; look, do not touch."""
    workdir = tmp_path_factory.mktemp("run")
    scorer = train(tiny_config(epochs=12, save_every=100, picture_every=12), workdir, arrays, say=lambda line: None)
    return workdir, scorer
