"""Alarms from verdicts: k anomalous of the last n, with a cool-down. Pure, constant memory, JSON-ready."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Mapping
from typing import Any

from ganomaly_jax.core.errors import UserError
from ganomaly_jax.streaming import stored


@dataclasses.dataclass(frozen=True)
class State:
    """State of the alarms of a stream.

    Attributes:
      k: anomalous verdicts that start an alarm.
      n: last verdicts that are counted.
      rest: cool-down, the number of verdicts after an alarm during which no other starts.
      recent: (row, anomalous) of the last n verdicts.
      since: row at which the current alarm started; 0 for none.
      quiet: verdicts left of the cool-down.
    """

    k: int = 3
    n: int = 5
    rest: int = 60
    recent: tuple[tuple[int, bool], ...] = ()
    since: int = 0
    quiet: int = 0


@dataclasses.dataclass(frozen=True)
class Transition:
    """Start or end of an alarm.

    Attributes:
      begins: True for a start.
      since: row of the first anomalous verdict among the last n.
      count: anomalous verdicts among the last n.
    """

    begins: bool
    since: int
    count: int


def start(every: str, rest: int) -> State:
    """Returns the initial state for a rule `K/N`, such as `3/5`, and a cool-down of `rest` verdicts.

    Raises:
      UserError: the rule or the cool-down is invalid.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", every)
    k, n = map(int, match.groups()) if match else (0, 0)
    if not 1 <= k <= n <= 10_000:
        raise UserError(f"--alarm {every!r}: expected K/N for K anomalous of the last N verdicts, such as 3/5")
    if rest < 0:
        raise UserError(f"--cool-down {rest}: expected a number of verdicts of at least 0")
    return State(k, n, rest)


def update(state: State, row: int, anomalous: bool) -> tuple[State, Transition | None]:
    """Returns the state after one more verdict, and the transition if an alarm starts or ends.

    An alarm starts when k of the last n verdicts are anomalous and ends when fewer are. During the cool-down none
    starts; if k of n are anomalous at its end, an alarm starts then.

    Args:
      state: the state so far.
      row: number of the row.
      anomalous: whether its verdict is anomalous.
    """
    recent = (*state.recent, (row, anomalous))[-state.n :]
    anomalous_rows = [at for at, bad in recent if bad]
    enough = len(anomalous_rows) >= state.k
    state = dataclasses.replace(state, recent=recent)
    if state.since:
        if enough:
            return state, None
        return dataclasses.replace(state, since=0, quiet=state.rest), Transition(
            False, state.since, len(anomalous_rows)
        )
    if state.quiet:
        return dataclasses.replace(state, quiet=state.quiet - 1), None
    if not enough:
        return state, None
    return dataclasses.replace(state, since=anomalous_rows[0]), Transition(True, anomalous_rows[0], len(anomalous_rows))


def from_dict(values: Mapping[str, Any], requested: State) -> State:
    """Restores a state from `dataclasses.asdict` after JSON, with the k, n and cool-down of `requested`.

    Raises:
      UserError: the values are not those of a state.
    """
    with stored.reading("alarms"):
        recent = tuple((stored.count(row), stored.flag(bad)) for row, bad in stored.items(values["recent"], 10_000))
        if any(before >= after for (before, _), (after, _) in itertools.pairwise(recent)):
            raise ValueError("rows that do not ascend")
        return dataclasses.replace(
            requested,
            recent=recent[-requested.n :],
            since=stored.count(values["since"]),
            quiet=min(stored.count(values["quiet"]), requested.rest),
        )
