"""What setup.cfg cannot say: configs/, at the top of the repository, is the package `ganomaly_jax.configs`."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["ganomaly_jax*"]), "ganomaly_jax.configs"],
    package_dir={"ganomaly_jax.configs": "configs"},
)
