"""The configuration of `ganomaly demo`, which `configs/mnist5k.py` uses as well."""

from __future__ import annotations

from ganomaly_jax.core.config import Config


def get_config() -> Config:
    """Returns the configuration of the demo: 5,000 real digits, 0 abnormal, a small network, 10 epochs."""
    config = Config()
    config.data.source = "mnist5k"
    config.data.abnormal = "0"
    config.model.features = 16
    config.train.epochs = 10
    # Differs from the paper: five times its learning rate, since this small network trains for few steps only.
    config.optimizer.learning_rate = 1e-3
    return config
