"""The members of a sweep, as configured: models that are trained together, one for each class and seed."""

from __future__ import annotations

from ganomaly_jax.core.config import Config
from ganomaly_jax.core.errors import UserError


def requested(config: Config) -> bool:
    """Returns whether the configuration asks for several models."""
    return bool(config.members.classes or config.members.seeds)


def classes(config: Config) -> list[str]:
    """Returns the words of `members.classes`; `["all"]` is resolved once the data are known."""
    return [word.strip() for word in config.members.classes.split(",")] if config.members.classes else []


def seeds(config: Config) -> list[int]:
    """Returns the seeds of the members.

    Raises:
      UserError: `members.seeds` contains anything but numbers from 0 to 2**32 - 1, or a number twice.
    """
    if not config.members.seeds:
        return [config.seed]
    try:
        numbers = [int(word) for word in config.members.seeds.split(",")]
    except ValueError:
        numbers = []
    if not numbers or len(set(numbers)) < len(numbers) or not all(0 <= seed < 2**32 for seed in numbers):
        raise UserError(
            f"members.seeds={config.members.seeds!r}: expected different numbers from 0 to {2**32 - 1}, separated "
            "by commas, such as 0,1,2"
        )
    return numbers
