"""Alarms from verdicts: k anomalous of the last n, and a rest after each. Pure, constant memory, values of JSON."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from ganomaly_jax.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class State:
    """Where it stands."""

    k: int = 3
    n: int = 5
    rest: int = 60
    """Verdicts after the end of an alarm before there is another: the cool-down."""
    recent: tuple[tuple[int, bool], ...] = ()
    """(row, anomalous) of the last n verdicts."""
    since: int = 0
    """Row of the alarm that is on; 0: none is."""
    quiet: int = 0
    """Verdicts left of the rest."""


@dataclasses.dataclass(frozen=True)
class Change:
    """An alarm that begins or ends."""

    begins: bool
    since: int
    """Row of the first anomalous verdict that it is for, of the n."""
    count: int
    """Anomalous ones of the last n."""


def start(every: str, rest: int) -> State:
    """Of `K/N`, such as 3/5.

    Raises:
      UserError: what is none.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", every)
    k, n = map(int, found.groups()) if found else (0, 0)
    if not 1 <= k <= n <= 10_000:
        raise UserError(f"--alarm {every!r}: wanted K/N, K anomalous of the last N verdicts, such as 3/5")
    if rest < 0:
        raise UserError(f"--cool-down {rest}: wanted a number of rows from 0")
    return State(k, n, rest)


def update(state: State, row: int, anomalous: bool) -> tuple[State, Change | None]:
    """After one more verdict. An alarm begins with k anomalous of the last n and ends once there are fewer.

    While the rest after an alarm lasts none begins; if there are k of n when it is over, one begins then.
    """
    recent = (*state.recent, (row, anomalous))[-state.n :]
    hit = [at for at, bad in recent if bad]
    enough = len(hit) >= state.k
    state = dataclasses.replace(state, recent=recent)
    if state.since:
        if enough:
            return state, None
        return dataclasses.replace(state, since=0, quiet=state.rest), Change(False, state.since, len(hit))
    if state.quiet:
        return dataclasses.replace(state, quiet=state.quiet - 1), None
    if not enough:
        return state, None
    return dataclasses.replace(state, since=hit[0]), Change(True, hit[0], len(hit))


def from_dict(values: Mapping[str, Any], asked: State) -> State:
    """What `dataclasses.asdict` gave, after JSON, with the k, n and rest that are asked for now.

    Raises:
      UserError: something else.
    """
    try:
        recent = tuple((int(row), bool(bad)) for row, bad in values["recent"])[-asked.n :]
        return dataclasses.replace(
            asked, recent=recent, since=int(values["since"]), quiet=min(int(values["quiet"]), asked.rest)
        )
    except (TypeError, ValueError, KeyError) as error:
        raise UserError(f"no state of alarms ({error})") from None
