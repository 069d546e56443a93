"""Memory that this process may still allocate."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from collections.abc import Iterator
from pathlib import Path

from ganomaly_jax.core.errors import UserError

_CGROUPS = Path("/sys/fs/cgroup")


def free_memory() -> int | None:
    """Returns the bytes that this process may still allocate, None if the system does not tell.

    The minimum of the machine's free memory, the limits of the process's cgroups and its `ulimit -v`.
    """
    free = [machine_memory(), _cgroup_memory(), _address_space_left()]
    return min((size for size in free if size is not None), default=None)


def check_address_space() -> None:
    """Checks that `ulimit -v` leaves room for JAX, whose threads otherwise abort the process silently.

    Raises:
      UserError: it does not.
    """
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    # Measured: a small training takes 1.77 GB on one core and 1.84 GB on two, and each core has stacks and heaps.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    needed = 7 * 2**28 + cores * 2**27
    if limit != resource.RLIM_INFINITY and limit < needed:
        raise UserError(
            f"`ulimit -v` allows {limit / 1e9:.2f} GB of address space: JAX and its threads on {cores} CPU cores need "
            f"{needed / 1e9:.2f} GB. Raise it (ulimit -v {-(-needed // 1024)} or unlimited), or limit memory "
            "with a cgroup instead (systemd-run -p MemoryMax=2G)"
        )


def is_exhausted(error: BaseException) -> bool:
    """Returns whether an error means that there is no memory left, or none for another thread."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    texts = ("can't start new thread", "RESOURCE_EXHAUSTED", "Out of memory", "cannot allocate memory")
    return isinstance(error, (RuntimeError, ImportError)) and any(text in str(error) for text in texts)


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
