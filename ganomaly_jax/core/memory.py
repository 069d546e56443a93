"""How much memory this process may still take."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")


def free_memory() -> int | None:
    """Bytes that this process may still take: of the machine, of its cgroup, of its own limit (`ulimit -v`).

    None where the system says nothing.
    """
    found = [of_machine(), _of_cgroup(), _of_limit()]
    return min((size for size in found if size is not None), default=None)


def of_machine() -> int | None:
    """Bytes of the machine's memory that are free, None where the system does not say."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable"):
                return int(line.split()[1]) * 1024
    return None


def _of_cgroup() -> int | None:
    """Of cgroups, both versions: the group of this process or one above it may have a limit."""
    found: list[int] = []
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, own = line.split(":", 2)
            if not controllers:
                found += _limited(_CGROUPS, own, ("memory.max", "memory.current", "inactive_file"))
            elif "memory" in controllers.split(","):
                names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
                found += _limited(_CGROUPS / "memory", own, names)
    return min(found, default=None)


def _limited(root: Path, own: str, names: tuple[str, str, str]) -> Iterator[int]:
    """What is free in each group with a limit, from a process's own up to the root, which is a container's own one."""
    here = root / own.lstrip("/")
    for group in (here, *here.parents):
        if root not in (group, *group.parents) or not (group / names[0]).exists():
            continue
        limit = (group / names[0]).read_text().strip()
        if limit != "max" and int(limit) < 2**60:  # version 1 says it by a number
            # Files that were read count as used, and go when the memory is needed.
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            used = int((group / names[1]).read_text()) - int(stat.get(names[2], 0))
            yield max(int(limit) - used, 0)


def _of_limit() -> int | None:
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return None
    with contextlib.suppress(OSError, ValueError):
        return max(limit - int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE"), 0)
    return limit
