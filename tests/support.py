"""What the tests share: a small network, its configuration, generated images."""

import numpy as np

from ganomaly_jax.core.config import Config
from ganomaly_jax.model.ganomaly import Ganomaly

TINY = Ganomaly((16, 16, 1), latent_size=4, features=4)


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
    config = Config()
    config.data.height = config.data.width = 16
    config.model.latent_size = config.model.features = 4
    config.mesh.devices = 1
    config.train.batch_size = 8
    config.train.picture_every = 0
    config.optimizer.learning_rate = 1e-3  # at 2e-3 it takes a lucky seed for `trained` to separate
    for name, value in train_values.items():
        setattr(config.train, name, value)
    return config
