"""Smoke test: 120 steps on generated images, saving every 8, 20 s with compilation on 2 CPU cores (measured).

ganomaly train --config smoke --workdir W
"""

from ganomaly_jax import Config


def get_config() -> Config:
    config = Config()
    config.data.source = "generated"
    config.data.height = config.data.width = 16
    config.model.latent_size = config.model.features = 8
    config.train.batch_size = 16
    config.train.steps = 120
    config.train.save_every = 8
    config.train.picture_every = 0
    config.optimizer.learning_rate = 2e-3
    return config
