"""GANomaly on MNIST as published (arXiv 1805.06725, figure 4): one digit anomalous, 32x32, 15 epochs, 80/20 split.

    ganomaly train --config mnist --data DIR --workdir W --config.data.abnormal=5

DIR holds the four idx files; `--data tfds:mnist` reads a prepared TensorFlow data set.
Measured: with `--config.data.limit=12800 --config.train.epochs=3` AUROC .902 (digit 0) and .884 (digit 5), one seed, in
about ten minutes on 2 busy CPU cores. The full 15 epochs, which take hours on a CPU, were not run.
"""

from ganomaly_jax import Config


def get_config() -> Config:
    config = Config()
    config.data.source = "tfds:mnist"
    config.data.abnormal = "0"
    config.data.height = config.data.width = 32
    config.train.epochs = 15
    return config
