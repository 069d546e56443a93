"""Memory that this process may still allocate."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")


def free_memory() -> int | None:
    """Returns the bytes that this process may still allocate, None if the system does not tell.

    The minimum of the machine's free memory, the limits of the process's cgroups and its `ulimit -v`.
    """
    free = [machine_memory(), _cgroup_memory(), _address_space_left()]
    return min((size for size in free if size is not None), default=None)


def machine_memory() -> int | None:
    """Returns the machine's available memory in bytes, None if the system does not tell."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable"):
                return int(line.split()[1]) * 1024
    return None


def _cgroup_memory() -> int | None:
    """Returns the bytes left in the process's cgroup and those above it (versions 1 and 2), None without a limit."""
    free: list[int] = []
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, group_path = line.split(":", 2)
            if not controllers:
                free += _free_in_limited_groups(_CGROUPS, group_path, ("memory.max", "memory.current", "inactive_file"))
            elif "memory" in controllers.split(","):
                names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
                free += _free_in_limited_groups(_CGROUPS / "memory", group_path, names)
    return min(free, default=None)


def _free_in_limited_groups(root: Path, group_path: str, names: tuple[str, str, str]) -> Iterator[int]:
    """Yields the free bytes of each group that has a limit, from the process's own group up to the root."""
    innermost = root / group_path.lstrip("/")
    for group in (innermost, *innermost.parents):
        if root not in (group, *group.parents) or not (group / names[0]).exists():
            continue
        limit = (group / names[0]).read_text().strip()
        if limit != "max" and int(limit) < 2**60:  # version 1 has a huge number for no limit
            # The page cache counts as used, but is dropped when the memory is needed.
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            used = int((group / names[1]).read_text()) - int(stat.get(names[2], 0))
            yield max(int(limit) - used, 0)


def _address_space_left() -> int | None:
    """Returns the bytes left under `ulimit -v`, None without a limit."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return None
    with contextlib.suppress(OSError, ValueError):
        return max(limit - int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE"), 0)
    return limit
