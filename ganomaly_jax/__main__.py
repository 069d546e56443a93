"""Runs the command as `python -m ganomaly_jax`."""

import sys

from ganomaly_jax.cli.main import command

if __name__ == "__main__":
    sys.exit(command())
