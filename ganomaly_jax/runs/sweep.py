"""The members of a run: independent models, each class abnormal in turn, times seeds."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import json
import re
from collections.abc import Sequence
from pathlib import Path

from ganomaly_jax.core import config
from ganomaly_jax.core.config import Config
from ganomaly_jax.core.errors import DamagedError, UserError
from ganomaly_jax.data import modalities
from ganomaly_jax.data.datasets import Dataset
from ganomaly_jax.runs import layout, run_folder


@dataclasses.dataclass(frozen=True)
class Member:
    """One model of several."""

    name: str
    """Of its folder, a run's folder of its own."""
    abnormal: str
    """The class that is abnormal for it; empty: as the data say."""
    seed: int


def expand(settings: Config, dataset: Dataset) -> list[Member]:
    """The members that a configuration asks for, class by class, seed by seed.

    Raises:
      UserError: a class that the data do not have, or data that members are not trained on.
    """
    modalities.named(dataset.modality).check(settings)
    asked = config.member_classes(settings)
    classes = list(dataset.classes) if asked == ["all"] else asked or [settings.data.abnormal]
    for name in asked:
        if asked != ["all"] and name not in dataset.classes:
            near = difflib.get_close_matches(name, dataset.classes, n=1, cutoff=0.0)
            raise UserError(
                f"members.classes: {name!r} is no class of {dataset.name}, which has {', '.join(dataset.classes)}; "
                f"the nearest is {near[0]!r}, and `all` takes each in turn"
            )
    made = []
    for place, abnormal in enumerate(classes):
        # A class may be called anything; its place keeps names apart that differ in odd characters only.
        plain = re.sub(r"[^\w.-]+", "_", abnormal)
        word = abnormal if plain == abnormal else f"{place}_{plain}"
        for seed in config.member_seeds(settings):
            made.append(Member(f"{word}-seed{seed}" if abnormal else f"seed{seed}", abnormal, seed))
    return made


def settings_of(settings: Config, member: Member) -> Config:
    """The configuration of one member, as if it were trained alone."""
    own = copy.deepcopy(settings)
    own.data.abnormal, own.seed, own.members = member.abnormal, member.seed, config.Members()
    return own


def folder(workdir: Path, member: Member) -> Path:
    """The run's folder of a member."""
    return workdir / layout.MEMBERS / member.name


def write(workdir: Path, members: Sequence[Member]) -> None:
    """Keep the list of members in the folder of the whole.

    Raises:
      UserError: it cannot be written.
    """
    run_folder.write_json(workdir / layout.MEMBER_LIST, {"members": [dataclasses.asdict(member) for member in members]})


def stored(workdir: Path) -> list[Member]:
    """The members of the run in this folder, empty where it is one model or no run.

    Raises:
      DamagedError: the list is there and cannot be read.
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
