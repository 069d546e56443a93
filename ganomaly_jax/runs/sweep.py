"""Members of a sweep: independent models, one for each abnormal class and seed."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import json
import re
from collections.abc import Sequence
from pathlib import Path

from ganomaly_jax.core import config, members
from ganomaly_jax.core.config import Config
from ganomaly_jax.core.errors import DamagedError, UserError
from ganomaly_jax.data import modalities
from ganomaly_jax.data.datasets import Dataset
from ganomaly_jax.runs import layout, run_folder


@dataclasses.dataclass(frozen=True)
class Member:
    """One model of a sweep.

    Attributes:
      name: name of its folder, a run's folder.
      abnormal: its abnormal class; empty for that of the data.
      seed: its seed.
    """

    name: str
    abnormal: str
    seed: int


def expand(settings: Config, dataset: Dataset) -> list[Member]:
    """Returns the members that a configuration requests, by class, then seed.

    Raises:
      UserError: the data have no such class, or do not support members.
    """
    modalities.named(dataset.modality).check(settings)
    requested = members.classes(settings)
    classes = list(dataset.classes) if requested == ["all"] else requested or [settings.data.abnormal]
    for name in requested:
        if requested != ["all"] and name not in dataset.classes:
            near = difflib.get_close_matches(name, dataset.classes, n=1, cutoff=0.0)
            raise UserError(
                f"members.classes: {name!r} is not a class of {dataset.name}, which has {', '.join(dataset.classes)}; "
                f"the nearest is {near[0]!r}, and `all` takes each class in turn"
            )
    found = []
    for position, abnormal in enumerate(classes):
        # Class names are arbitrary; the position keeps names unique that differ in special characters only.
        plain = re.sub(r"[^\w.-]+", "_", abnormal)
        word = abnormal if plain == abnormal else f"{position}_{plain}"
        for seed in members.seeds(settings):
            found.append(Member(f"{word}-seed{seed}" if abnormal else f"seed{seed}", abnormal, seed))
    return found


def member_config(settings: Config, member: Member) -> Config:
    """Returns the configuration of one member, as if it were trained alone."""
    alone = copy.deepcopy(settings)
    alone.data.abnormal, alone.seed, alone.members = member.abnormal, member.seed, config.Members()
    return alone


def member_folder(workdir: Path, member: Member) -> Path:
    """Returns the run's folder of a member."""
    return workdir / layout.MEMBERS / member.name


def write_members(workdir: Path, members: Sequence[Member]) -> None:
    """Writes the list of members to the folder of the sweep.

    Raises:
      UserError: it cannot be written.
    """
    run_folder.write_json(workdir / layout.MEMBER_LIST, {"members": [dataclasses.asdict(member) for member in members]})


def read_members(workdir: Path) -> list[Member]:
    """Returns the members of the sweep in this folder; empty for a single run or no run.

    Raises:
      DamagedError: the list exists but cannot be read.
    """
    path = workdir / layout.MEMBER_LIST
    try:
        return [Member(**values) for values in json.loads(path.read_text(encoding="utf-8"))["members"]]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError, KeyError) as error:
        raise DamagedError(f"{path} cannot be read ({error}); train again in another --workdir") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
