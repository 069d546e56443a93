"""GANomaly on MNIST as published (arXiv 1805.06725, figure 4): one digit abnormal, 32x32, 15 epochs, 80/20 split.

    ganomaly train --config configs/mnist.py --data DIR --workdir W --config.data.abnormal=5

DIR holds the four idx files; `--data tfds:mnist` reads a prepared TensorFlow data set.
"""

from ganomaly_jax import Config


def get_config() -> Config:
    config = Config()
    config.data.source = "tfds:mnist"
    config.data.abnormal = "0"
    config.data.height = config.data.width = 32
    config.train.epochs = 15
    return config
