"""GANomaly on CIFAR-10 as published (arXiv 1805.06725, table 3): one class anomalous, 32x32x3, 15 epochs, 80/20 split.

    ganomaly train --config cifar10 --data DIR --workdir W --config.data.abnormal=bird

`--data tfds:cifar10` reads a prepared TensorFlow data set. Not run in full yet: it takes hours on a CPU, and no GPU was
available.
"""

from ganomaly_jax import Config


def get_config() -> Config:
    config = Config()
    config.data.source = "tfds:cifar10"
    config.data.abnormal = "bird"
    config.data.height = config.data.width = 32
    config.train.epochs = 15
    return config
